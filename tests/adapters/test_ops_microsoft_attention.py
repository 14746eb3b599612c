"""Attention of com.microsoft, into which onnxruntime fuses that of BERT, GPT-2, T5 and their kin.

It stands beside onnxruntime where its CPU has a kernel, and beside itself elsewhere.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from onnx import TensorProto

from beside_runtime import MICROSOFT, Row, check, prepared
from calculus import check_gradient, check_meta, check_vmap, floats
from one_node import Array
from onnxpress_adapters.errors import AdapterError

BATCH, QUERIES, KEYS, HEADS, SIZE = 2, 3, 5, 2, 4
WIDTH = HEADS * SIZE
FEATURES = 6

rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def ints(values: object) -> Array:
    return np.array(values, np.int32)


def coins(*shape: int) -> Array:
    return rng.integers(0, 2, shape).astype(np.int32)


def row(
    operator: str, *inputs: Array | None, outputs: int = 1, **kw: int | float | list[int]
) -> Row:
    # onnxruntime cannot tell the type of the scores.
    kinds = {3: int(TensorProto.FLOAT)} if outputs > 3 else {}
    return Row(operator, 1, {"num_heads": HEADS, **kw}, inputs, outputs, MICROSOFT, kinds)


def merged_rows() -> Iterator[Row]:
    x, w, b = normal(BATCH, KEYS, FEATURES), normal(FEATURES, 3 * WIDTH), normal(3 * WIDTH)
    yield row("Attention", x, w, b)
    yield row("Attention", x, w, b, outputs=2)
    yield row("Attention", x, w, b, scale=0.3, unidirectional=1)
    yield row("Attention", x, normal(FEATURES, 28), normal(28), qkv_hidden_sizes=[8, 8, 12])
    masks = [
        ints([2, 5]),
        ints([9, 0]),
        ints([3, 5, 1, 2]),
        ints([2, 2, 3, 4]),
        ints([3, 5, 0, 3, 6, 0, 5, 10]),
        ints([[0, 1, 1, 0, 1], [1, 0, 2, -1, 0]]),
        ints([[0], [1]]),
        ints([[0]]),
        coins(BATCH, KEYS, KEYS),
    ]
    for mask in masks:
        yield row("Attention", x, w, b, mask)
        yield row("Attention", x, w, b, mask, unidirectional=1)
    yield row("Attention", x, w, b, masks[0], mask_filter_value=-2.0)
    for shape in ((BATCH, HEADS, KEYS, KEYS), (1, HEADS, KEYS, KEYS), (1, 1, KEYS, KEYS)):
        yield row("Attention", x, w, b, masks[0], None, normal(*shape))
    past = normal(2, BATCH, HEADS, 3, SIZE)
    for one_way in (0, 1):
        yield row("Attention", x, w, b, None, past, outputs=2, unidirectional=one_way)
        mask = coins(BATCH, 3 + KEYS)
        yield row("Attention", x, w, b, mask, past, outputs=2, unidirectional=one_way)
    yield row("Attention", x[:, :1], w, b, None, past, outputs=2, unidirectional=1)


def multi_head_rows() -> Iterator[Row]:
    name = "MultiHeadAttention"
    q, k, v = normal(BATCH, QUERIES, WIDTH), normal(BATCH, KEYS, WIDTH), normal(BATCH, KEYS, 12)
    bias = normal(2 * WIDTH + 12)
    yield row(name, q, k, v)
    yield row(name, q, k, v, bias, outputs=4)
    yield row(name, q, k, v, scale=0.3)
    for mask in (ints([2, 5]), ints([2, 5, 0, 3, 6, 0, 5, 10]), coins(BATCH, KEYS)):
        yield row(name, q, k, v, None, mask, outputs=4)
    yield row(name, q, k, v, None, coins(BATCH, QUERIES, KEYS))
    yield row(name, q, k, v, None, coins(BATCH, KEYS), mask_filter_value=-3.0)
    for shape in ((BATCH, HEADS), (1, HEADS), (1, 1), (BATCH, 1)):
        added = normal(*shape, QUERIES, KEYS)
        yield row(name, q, k, v, bias, coins(BATCH, KEYS), added)
    yield row(name, k, k, v, unidirectional=1)
    yield row(name, q, k, v, unidirectional=1)
    yield row(name, normal(BATCH, 7, WIDTH), k, v, unidirectional=1)
    yield row(name, q[:, :1], k, v, unidirectional=1)
    cross = normal(BATCH, HEADS, KEYS, SIZE), normal(BATCH, HEADS, KEYS, SIZE)
    yield row(name, q, *cross, outputs=4)
    yield row(name, q, *cross, normal(3 * WIDTH))
    v = normal(BATCH, KEYS, WIDTH)
    past = normal(BATCH, HEADS, 4, SIZE), normal(BATCH, HEADS, 4, SIZE)
    yield row(name, q, k, v, None, None, None, *past, outputs=4)
    yield row(name, q, *cross, None, None, None, *past, outputs=4)
    mask, added = coins(BATCH, 4 + KEYS), normal(1, HEADS, QUERIES, 4 + KEYS)
    yield row(name, q, k, v, normal(3 * WIDTH), mask, added, *past, outputs=4)
    yield row(name, q, k, v, None, mask, None, *past, outputs=3, unidirectional=1)
    buffer = normal(BATCH, HEADS, 9, SIZE), normal(BATCH, HEADS, 9, SIZE)
    for count in (1, 3):
        new = q[:, :count], k[:, :count], v[:, :count]
        yield row(name, *new, None, None, None, *buffer, ints([2]), outputs=4)
    new = q[:, :1], k[:, :1], v[:, :1]
    yield row(name, *new, None, None, None, *buffer, ints([2]), coins(1, BATCH, 9), outputs=3)


def decoder_rows() -> Iterator[Row]:
    name = "DecoderMaskedMultiHeadAttention"
    q, k, v = (normal(BATCH, 1, WIDTH) for _ in range(3))
    cross = normal(BATCH, HEADS, KEYS, SIZE), normal(BATCH, HEADS, KEYS, SIZE)
    yield row(name, q, k, v)
    yield row(name, q, *cross)
    yield row(name, q, *cross, coins(BATCH, KEYS))
    bias = normal(3 * WIDTH)
    yield row(name, q, *cross, None, None, None, None, None, None, None, bias)
    buffer = normal(BATCH, HEADS, 9, SIZE), normal(BATCH, HEADS, 9, SIZE)
    share = {"past_present_share_buffer": 1, "outputs": 3}
    mask, added = coins(BATCH, 4), normal(BATCH, HEADS, 1, 4)
    yield row(name, q, k, v, None, None, *buffer, ints([3]), **share)
    yield row(name, q, k, v, mask, added, *buffer, ints([3]), **share)
    more = ints([2]), coins(1, 2, 9)
    yield row(name, q, k, v, None, None, *buffer, ints([3]), *more, bias, **share)
    share |= {"output_qk": 1, "outputs": 4}
    yield row(name, q, k, v, mask, None, *buffer, ints([3]), *more, **share)


ROWS = [row for family in (merged_rows, multi_head_rows, decoder_rows) for row in family()]


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_is_vectorised_differentiable_and_keeps_its_device(chosen: Row) -> None:
    bound = prepared(chosen)
    check_vmap(bound)
    check_meta(bound)
    assert check_gradient(bound, floats(bound))


def results(chosen: Row) -> list[torch.Tensor]:
    return [value for value in prepared(chosen).run() if value is not None]


def test_packed_inputs_answer_as_separate_ones() -> None:
    name, bias = "MultiHeadAttention", normal(3 * WIDTH)
    q, k, v = (normal(BATCH, KEYS, HEADS, SIZE) for _ in range(3))
    flat = [x.reshape(BATCH, KEYS, WIDTH) for x in (q, k, v)]
    plain = results(row(name, *flat, outputs=4))
    biased = results(row(name, *flat, bias, outputs=4))
    for packed, wanted in (
        (row(name, np.stack([q, k, v], 3), outputs=4), plain),
        (row(name, np.stack([q, k, v], 3), None, None, bias, outputs=4), biased),
        (row(name, flat[0], np.stack([k, v], 3), outputs=4), plain),
        (row(name, flat[0], np.stack([k, v], 3), None, bias, outputs=4), biased),
    ):
        for found, expected in zip(results(packed), wanted, strict=True):
            assert torch.equal(found, expected)


def test_packed_query_of_a_decoder_answers_as_separate_inputs() -> None:
    name = "DecoderMaskedMultiHeadAttention"
    q, k, v = (normal(BATCH, 1, WIDTH) for _ in range(3))
    packed = results(row(name, np.concatenate([q, k, v], 2)))
    assert torch.equal(packed[0], results(row(name, q, k, v))[0])


def test_decoder_without_a_shared_buffer_joins_past_and_present() -> None:
    q, k, v = (normal(BATCH, 1, WIDTH) for _ in range(3))
    past = normal(BATCH, HEADS, 4, SIZE), normal(BATCH, HEADS, 4, SIZE)
    name = "DecoderMaskedMultiHeadAttention"
    found = results(row(name, q, k, v, None, None, *past, outputs=3))
    wanted = results(row("MultiHeadAttention", q, k, v, None, None, None, *past, outputs=3))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_mask_of_megatron_answers_as_the_rows_it_is_cut_to() -> None:
    """GPT-2 of Megatron hands its whole triangle over; onnxruntime reads it on GPUs only."""
    x, w, b = normal(BATCH, KEYS, FEATURES), normal(FEATURES, 3 * WIDTH), normal(3 * WIDTH)
    past, whole = normal(2, BATCH, HEADS, 3, SIZE), coins(BATCH, 1, 10, 10)
    cut = np.ascontiguousarray(whole[:, 0, 3 : 3 + KEYS, : 3 + KEYS])
    found = results(row("Attention", x, w, b, whole, past, outputs=2))
    wanted = results(row("Attention", x, w, b, cut, past, outputs=2))
    assert torch.equal(found[0], wanted[0])


def test_bias_of_a_projection_may_be_left_out() -> None:
    """onnxruntime's CPU kernel ends the process there, though its schema allows it."""
    x, w = normal(BATCH, KEYS, FEATURES), normal(FEATURES, 3 * WIDTH)
    found = results(row("Attention", x, w))
    wanted = results(row("Attention", x, w, np.zeros(3 * WIDTH, np.float32)))
    assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("name", ["do_rotary", "past_present_share_buffer"])
def test_what_only_some_gpus_can_do_is_refused(name: str) -> None:
    x, w = normal(BATCH, KEYS, FEATURES), normal(FEATURES, 3 * WIDTH)
    with pytest.raises(AdapterError, match=f"'here' has {name}=1, .* cannot run on a CPU"):
        results(row("Attention", x, w, **{name: 1}))


def test_missing_keys_are_named() -> None:
    with pytest.raises(AdapterError, match="MultiHeadAttention 'here' has no keys or no values"):
        results(row("MultiHeadAttention", normal(BATCH, KEYS, WIDTH)))
