"""Attention of language models in com.microsoft beside onnxruntime."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto

from beside_runtime import MICROSOFT, Row, answer, check, prepared
from calculus import check_gradient, check_meta, check_vmap, floats
from one_node import Array
from onnxpress_adapters.errors import AdapterError

BATCH, TOKENS, PAST, BUFFER = 2, 4, 3, 7
HEADS, FEW, SIZE = 4, 2, 16

rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def ints(values: object) -> Array:
    return np.array(values, np.int32)


def grouped(*inputs: Array | None, outputs: int = 3, **kw: Any) -> Row:
    # onnxruntime cannot tell the type of the scores.
    kinds = {3: int(TensorProto.FLOAT)} if outputs > 3 else {}
    given = {"num_heads": HEADS, "kv_num_heads": FEW, **kw}
    return Row("GroupQueryAttention", 1, given, inputs, outputs, MICROSOFT, kinds)


def new(tokens: int, batch: int = BATCH) -> tuple[Array, Array, Array]:
    few = FEW * SIZE
    return (
        normal(batch, tokens, HEADS * SIZE),
        normal(batch, tokens, few),
        normal(batch, tokens, few),
    )


def cache(length: int, batch: int = BATCH) -> tuple[Array, Array]:
    return normal(batch, FEW, length, SIZE), normal(batch, FEW, length, SIZE)


FIRST = (None, None, ints([TOKENS - 1] * BATCH), ints(TOKENS))
RAGGED = (None, None, ints([1, TOKENS - 1]), ints([TOKENS]))
ANGLES = normal(10, SIZE // 2), normal(10, SIZE // 2)


def prompt_rows() -> Iterator[Row]:
    q, k, v = new(TOKENS)
    yield grouped(q, k, v, *FIRST)
    yield grouped(q, k, v, *FIRST, outputs=1)
    yield grouped(q, k, v, *RAGGED)
    yield grouped(np.concatenate([q, k, v], 2), None, None, *FIRST)
    yield grouped(q, k, v, *cache(BUFFER), *FIRST[2:])
    for window in (1, 2, 3):
        yield grouped(q, k, v, *FIRST, local_window_size=window)
    for choice in ({"softcap": 0.7}, {"smooth_softmax": 1}, {"scale": 0.3}, {"causal": 0}):
        yield grouped(q, k, v, *FIRST, **choice)
        yield grouped(q, k, v, *RAGGED, **choice)
    nothing = (None, None, None)
    for shape in ((1, HEADS), (BATCH, 1)):
        bias = normal(*shape, TOKENS, TOKENS)
        yield grouped(q, k, v, *FIRST, *nothing, bias, softcap=0.7)
        yield grouped(q, k, v, *FIRST, *nothing, bias, outputs=4, qk_output=2)
    yield grouped(q, k, v, *FIRST, *nothing, None, normal(HEADS), smooth_softmax=1)
    yield grouped(q, k, v, *FIRST, outputs=4, qk_output=1, softcap=0.7)
    for interleaved in (0, 1):
        turn = {"do_rotary": 1, "rotary_interleaved": interleaved}
        yield grouped(q, k, v, *FIRST, *ANGLES, **turn)
        yield grouped(q, k, v, *RAGGED, *ANGLES, **turn)
    yield grouped(np.concatenate([q, k, v], 2), None, None, *FIRST, *ANGLES, do_rotary=1)
    places = rng.integers(0, 6, (BATCH, TOKENS))
    yield grouped(q, k, v, *FIRST, *ANGLES, places, do_rotary=1)


def later_rows() -> Iterator[Row]:
    q, k, v = new(1)
    even, ragged = (ints([PAST] * BATCH), ints(PAST + 1)), (ints([1, PAST]), ints(PAST + 1))
    past, buffer = cache(PAST), cache(BUFFER)
    for where in (even, ragged):
        yield grouped(q, k, v, *past, *where)
        yield grouped(q, k, v, *buffer, *where)
        yield grouped(q, k, v, *past, *where, *ANGLES, do_rotary=1)
        yield grouped(q, k, v, *past, *where, *ANGLES, rng.integers(0, 9, (BATCH, 1)), do_rotary=1)
    bias = normal(BATCH, HEADS, 1, PAST + 1)
    yield grouped(q, k, v, *past, *ragged, None, None, None, bias, local_window_size=2)
    yield grouped(q, k, v, *buffer, *even, outputs=4, qk_output=1)
    yield grouped(q, k, v, *past, *even, outputs=4, qk_output=2, causal=0)
    three, old = new(3, 1), cache(PAST, 1)
    for used in (PAST, PAST - 1):
        where = ints([used + 2]), ints(PAST + 3)
        yield grouped(*three, *old, *where, *ANGLES, do_rotary=1)


def stored_rows() -> Iterator[Row]:
    q, k, v = new(1)
    where = ints([1, PAST]), ints(PAST + 1), None, None, None, None, None
    per_channel = np.abs(normal(1, FEW, 1, SIZE)) + np.float32(0.3)
    for way, scale in (("PER_TENSOR", np.array([0.4], np.float32)), ("PER_CHANNEL", per_channel)):
        ways: dict[str, Any] = {"k_quant_type": way, "v_quant_type": way}
        bytes_ = rng.integers(-9, 9, (2, BATCH, FEW, PAST, SIZE)).astype(np.int8)
        yield grouped(q, k, v, *bytes_, *where, scale, scale, kv_cache_bit_width=8, **ways)
        pairs = rng.integers(0, 256, (2, BATCH, FEW, PAST, SIZE // 2)).astype(np.uint8)
        yield grouped(q, k, v, *pairs, *where, scale, scale, kv_cache_bit_width=4, **ways)


ROWS = [row for family in (prompt_rows, later_rows) for row in family()]
STORED = list(stored_rows())


@pytest.mark.parametrize("chosen", [*ROWS, *STORED], ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


@pytest.mark.parametrize("chosen", [*ROWS, *STORED], ids=str)
def test_is_vectorised_and_keeps_its_device(chosen: Row) -> None:
    check_vmap(prepared(chosen))
    check_meta(prepared(chosen))


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_gradient_is_the_difference_quotient(chosen: Row) -> None:
    bound = prepared(chosen)
    assert check_gradient(bound, floats(bound))


def test_shared_cache_is_read_and_not_written() -> None:
    """Layers that share the keys of an earlier one add none; nobody reads the cache they give."""
    q, k, v = new(1)
    for past in (cache(PAST), cache(BUFFER)):
        chosen = grouped(q, k[:, :0], v[:, :0], *past, ints([1, 2]), ints(PAST))
        found = prepared(chosen).run()[0]
        assert found is not None
        np.testing.assert_allclose(found.numpy(), answer(chosen)[0], atol=1e-6)


def test_norm_of_heads_is_that_of_the_features_before() -> None:
    """onnxruntime normalises heads on GPUs only."""
    q, k, v = new(TOKENS)
    weights = normal(SIZE), normal(SIZE)

    def normal_heads(x: Array, weight: Array) -> Array:
        heads = x.reshape(BATCH, TOKENS, -1, SIZE).astype(np.float64)
        heads = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-6) * weight
        result: Array = heads.reshape(x.shape).astype(np.float32)
        return result

    more = (*FIRST, *ANGLES, None, None, None, None, None)
    found = prepared(grouped(q, k, v, *more, *weights, do_rotary=1)).run()
    before = normal_heads(q, weights[0]), normal_heads(k, weights[1])
    wanted = answer(grouped(*before, v, *FIRST, *ANGLES, do_rotary=1))
    for one, other in zip(found, wanted, strict=False):
        assert one is not None
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-4, atol=1e-5)


def test_prompt_can_be_stored_in_whole_numbers() -> None:
    """onnxruntime wants a cache to begin with; an empty one stands for none."""
    q, k, v = new(TOKENS)
    scale = np.array([0.25], np.float32)
    more = (*FIRST, None, None, None, None, None, scale, scale)
    ways: dict[str, Any] = {f"{letter}_quant_type": "PER_TENSOR" for letter in "kv"}
    ways["kv_cache_bit_width"] = 8
    _, keys, values, _ = prepared(grouped(q, k, v, *more, **ways)).run()
    for found, plain in ((keys, k), (values, v)):
        assert found is not None
        assert found.dtype == torch.int8
        coded = np.rint(plain.reshape(BATCH, TOKENS, FEW, SIZE) / 0.25).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(found.numpy(), coded)


def test_what_onnxpress_cannot_run_is_named() -> None:
    q, k, v = new(TOKENS)
    choices: list[tuple[dict[str, Any], str]] = [
        ({"sliding_window_cache": 1, "local_window_size": 2}, "keeps only a window of its cache"),
        ({"do_rotary": 1}, "has no angles"),
        ({"k_quant_type": "PER_TENSOR", "kv_cache_bit_width": 2}, "its cache in 2 bits"),
    ]
    for choice, words in choices:
        with pytest.raises(AdapterError, match=f"GroupQueryAttention 'here' .*{words}"):
            prepared(grouped(q, k, v, *FIRST, **choice)).run()


def rotary(operator: str, *inputs: Array, **kw: Any) -> Row:
    return Row(operator, 1, kw, inputs, 1, MICROSOFT)


def rotary_rows() -> Iterator[Row]:
    flat, headed = normal(BATCH, TOKENS, FEW * SIZE), normal(BATCH, FEW, TOKENS, SIZE)
    each = rng.integers(0, 10, (BATCH, TOKENS))
    half = normal(10, SIZE // 4), normal(10, SIZE // 4)
    for interleaved in (0, 1):
        for x in (flat, headed):
            yield rotary("RotaryEmbedding", x, each, *ANGLES, interleaved=interleaved)
            yield rotary("RotaryEmbedding", x, np.array([3]), *ANGLES, interleaved=interleaved)
            part = {"num_heads": FEW, "rotary_embedding_dim": SIZE // 2}
            yield rotary("RotaryEmbedding", x, each, *half, **part, interleaved=interleaved)
            three = rng.integers(0, 10, (3, BATCH, TOKENS))
            for layout, sections in (
                (0, [3, 1, 4]),
                (1, [4, 2, 2]),
                (1, [2, 3, 3]),
                (0, [8, 0, 0]),
            ):
                ways = {"mrope_section": sections, "mrope_layout": layout, "num_heads": FEW}
                turn = {"interleaved": interleaved}
                yield rotary("MRotaryEmbedding", x, three, *ANGLES, **ways, **turn)
    yield rotary("RotaryEmbedding", flat, each, *half)


@pytest.mark.parametrize("chosen", list(rotary_rows()), ids=str)
def test_rotary_embedding_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)
    bound = prepared(chosen)
    check_vmap(bound)
    check_meta(bound)
    assert check_gradient(bound, floats(bound))


def test_rotary_embedding_of_gemma_is_that_of_its_definition() -> None:
    angle, (q, q2, k, k2) = (
        normal(BATCH, TOKENS, SIZE),
        (normal(BATCH, FEW, TOKENS, SIZE) for _ in range(4)),
    )
    found = prepared(Row("GemmaRotaryEmbedding", 1, {}, (angle, q, q2, k, k2), 2, MICROSOFT)).run()
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    for one, (x, y) in zip(found, ((q, q2), (k, k2)), strict=True):
        assert one is not None
        np.testing.assert_allclose(one.numpy(), x * cos + y * sin, rtol=1e-5, atol=1e-6)
