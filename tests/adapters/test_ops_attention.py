"""Attention and rotary embedding: what the node cases of onnx leave out."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from beside_runtime import Row, check, row
from one_node import Array, make
from onnxpress_adapters.errors import AdapterError

rng = np.random.default_rng(0)
BATCH, HEADS, QUERIES, KEYS, SIZE = 2, 3, 4, 5, 2


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape)


Q = normal(BATCH, HEADS, QUERIES, SIZE)
K, V = normal(BATCH, HEADS, KEYS, SIZE), normal(BATCH, HEADS, KEYS, 3)


def run(*inputs: Array | None, version: int = 25, **attributes: Any) -> tuple[Tensor, ...]:
    _, prepared = make("Attention", inputs, attributes, version=version, outputs=4)
    results = prepared.run()
    return tuple(result for result in results if result is not None)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def scores(q: Array, k: Array) -> Array:
    return np.asarray(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))


def places(queries: int, keys: int) -> Array:
    """How far each key lies ahead of each query."""
    return np.arange(keys) - np.arange(queries)[:, None]


def test_stages_come_in_order() -> None:
    mask, cap = normal(QUERIES, KEYS), 0.7
    raw = scores(Q, K)
    capped = cap * np.tanh(raw / cap)
    weights = softmax(capped + mask)
    for mode, stage in enumerate((raw, capped, capped + mask, weights)):
        result, *_, shown = run(Q, K, V, mask, softcap=cap, qk_matmul_output_mode=mode)
        np.testing.assert_allclose(shown, stage, rtol=1e-6)
        np.testing.assert_allclose(result, weights @ V, rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [(KEYS,), (QUERIES, KEYS), (HEADS, 1, KEYS), (1, QUERIES, KEYS), (BATCH, 1, 1, KEYS)]
)
def test_masks_of_every_rank_broadcast(shape: tuple[int, ...]) -> None:
    added = normal(*shape)
    np.testing.assert_allclose(run(Q, K, V, added)[0], softmax(scores(Q, K) + added) @ V)
    allowed = rng.random(shape) < 0.5
    allowed[..., 0] = True
    bias = np.where(allowed, 0, -np.inf)
    np.testing.assert_allclose(run(Q, K, V, allowed)[0], softmax(scores(Q, K) + bias) @ V)
    whole = rng.integers(0, 3, shape)
    np.testing.assert_allclose(run(Q, K, V, whole)[0], softmax(scores(Q, K) + whole) @ V)


@pytest.mark.parametrize("kind", [np.bool_, np.float64])
def test_a_short_mask_hides_the_keys_it_does_not_reach(kind: type) -> None:
    mask: Array = np.ones((QUERIES, 2), kind)
    np.testing.assert_allclose(run(Q, K, V, mask)[0], run(Q, K[:, :, :2], V[:, :, :2])[0])


@pytest.mark.parametrize(("left", "right"), [*itertools.product((-1, 0, 2), (-1, 0, 1))])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("past", [0, 2])
def test_windows_are_masks(left: int, right: int, causal: int, past: int) -> None:
    before = normal(BATCH, HEADS, past, SIZE), normal(BATCH, HEADS, past, 3)
    ahead = places(QUERIES, past + KEYS) - past
    allowed = np.full(ahead.shape, True)
    if causal:
        allowed &= ahead <= 0
    if left >= 0:
        allowed &= ahead >= -left
    if right >= 0:
        allowed &= ahead <= right
    window = {"left_window_size": left, "right_window_size": right, "is_causal": causal}
    found = run(Q, K, V, None, *before, qk_matmul_output_mode=3, **window)
    wanted = run(Q, K, V, allowed, *before, qk_matmul_output_mode=3)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_lengths_hide_padding_and_move_the_last_query_to_the_last_key() -> None:
    lengths = np.array([5, 3])
    causal, plain = run(Q, K, V, *[None] * 3, lengths, is_causal=1)[0], run(Q, K, V)[0]
    for sample, length in enumerate(lengths):
        allowed = places(QUERIES, KEYS) <= length - QUERIES
        allowed &= np.arange(KEYS) < length
        alone = run(*(x[sample : sample + 1] for x in (Q, K, V)), allowed)[0]
        np.testing.assert_allclose(causal[sample : sample + 1], alone)
    padded = run(Q, K, V, *[None] * 3, lengths)[0]
    np.testing.assert_allclose(padded[0], plain[0])
    np.testing.assert_allclose(padded[1:], run(Q[1:], K[1:, :, :3], V[1:, :, :3])[0])


def test_a_query_that_sees_nothing_gives_zeros_and_takes_no_gradient() -> None:
    allowed = rng.random((QUERIES, KEYS)) < 0.7
    allowed[:, 0], allowed[1] = True, False
    _, prepared = make(
        "Attention", [Q, K, V, allowed], {"qk_matmul_output_mode": 3}, version=23, outputs=4
    )
    tensors = [torch.tensor(x, requires_grad=True) for x in (Q, K, V)]
    result, _, _, weights = prepared.with_(dict(enumerate(tensors)))
    assert not result[:, :, 1].any()
    assert not weights[:, :, 1].any()
    result.sum().backward()
    for tensor in tensors:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    assert tensors[0].grad is not None
    assert not tensors[0].grad[:, :, 1].any()
    assert tensors[0].grad[:, :, 0].all()


def test_a_hidden_infinity_stays_hidden_where_the_whole_row_is() -> None:
    endless = np.full_like(Q, np.inf)
    assert not run(endless, K, V, np.full((1, KEYS), False))[0].any()


def test_an_empty_past_changes_nothing() -> None:
    past = np.zeros((BATCH, HEADS, 0, SIZE)), np.zeros((BATCH, HEADS, 0, 3))
    with_past = run(Q, K, V, None, *past, is_causal=1)
    without = run(Q, K, V, is_causal=1)
    for one, other in zip(with_past, without, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(without[1], torch.from_numpy(K))


def test_token_by_token_is_all_at_once() -> None:
    whole, keys, values, _ = run(Q, K[:, :, :QUERIES], V[:, :, :QUERIES], is_causal=1)
    past: tuple[Array, Array] = (K[:, :, :0], V[:, :, :0])
    for place in range(QUERIES):
        one = slice(place, place + 1)
        result, *now = run(Q[:, :, one], K[:, :, one], V[:, :, one], None, *past, is_causal=1)
        np.testing.assert_allclose(result, whole[:, :, one])
        past = (now[0].numpy(), now[1].numpy())
    assert np.array_equal(past[0], keys)
    assert np.array_equal(past[1], values)


@pytest.mark.parametrize("shared", [1, 2, 6])
def test_shared_heads_are_repeated_heads(shared: int) -> None:
    q = normal(BATCH, 6, QUERIES, SIZE)
    k, v = normal(BATCH, 6 // shared, KEYS, SIZE), normal(BATCH, 6 // shared, KEYS, 3)
    repeated = np.repeat(k, shared, 1), np.repeat(v, shared, 1)
    np.testing.assert_allclose(run(q, k, v)[0], run(q, *repeated)[0])


def test_packed_heads_are_heads() -> None:
    def packed(x: Array) -> Array:
        return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)

    flat = run(packed(Q), packed(K), packed(V), q_num_heads=HEADS, kv_num_heads=HEADS, is_causal=1)
    wanted = run(Q, K, V, is_causal=1)
    assert np.array_equal(flat[0], packed(wanted[0].numpy()))
    assert torch.equal(flat[1], wanted[1])


def test_the_softmax_is_as_precise_as_asked() -> None:
    (*_, weights) = run(Q, K, V, softmax_precision=TensorProto.FLOAT16, qk_matmul_output_mode=3)
    assert weights.dtype == torch.float64
    assert torch.equal(weights, weights.half().double())
    np.testing.assert_allclose(weights, softmax(scores(Q, K)), rtol=5e-3)


def test_half_precision_is_computed_in_float32() -> None:
    given = [torch.from_numpy(x).half() for x in (Q, K, V)]
    result, keys, _, stage = run(*(x.numpy() for x in given))
    assert {result.dtype, keys.dtype, stage.dtype} == {torch.float16}
    q, k, v = (x.double().numpy() for x in given)
    np.testing.assert_allclose(result, (softmax(scores(q, k)) @ v).astype(np.float16), rtol=1e-3)


def test_values_may_be_wider_than_queries() -> None:
    result, _, values, _ = run(Q.astype(np.float32), K.astype(np.float32), V)
    assert (result.dtype, values.dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"is_causal": 1}, {"softcap": 0.7, "scale": 0.3}, {"left_window_size": 1}],
    ids=str,
)
def test_gradients_are_difference_quotients(attributes: dict[str, Any]) -> None:
    past = normal(BATCH, 1, 2, SIZE), normal(BATCH, 1, 2, 3)
    inputs = [Q, K[:, :1], V[:, :1], normal(QUERIES, 2 + KEYS), *past]
    _, prepared = make("Attention", inputs, attributes, version=25, outputs=4)
    values = [torch.tensor(x, requires_grad=True) for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: prepared.with_(dict(enumerate(x))), values)


FIT = "a multiple of the second"


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ([Q, normal(BATCH, 2, KEYS, SIZE), V], {}, FIT),
        ([Q, normal(BATCH, 0, KEYS, SIZE), V], {}, FIT),
        ([normal(1, 2, 4)] * 3, {"q_num_heads": 2}, "an unknown number of heads"),
        ([normal(1, 2, 4)] * 3, {"q_num_heads": 3, "kv_num_heads": 1}, "divide 4 features"),
        ([Q, K, V], {"qk_matmul_output_mode": 4}, "qk_matmul_output_mode 4"),
    ],
)
def test_refusals(inputs: list[Array], attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        run(*inputs, **attributes)


def flex(*inputs: Array, **attributes: Any) -> Tensor:
    _, prepared = make("FlexAttention", inputs, attributes, version=1, domain="ai.onnx.preview")
    (result,) = prepared.with_({})
    return result


def test_flex_attention_without_graphs_is_attention() -> None:
    np.testing.assert_allclose(flex(Q, K, V), run(Q, K, V)[0])
    np.testing.assert_allclose(flex(Q, K, V, scale=0.2), run(Q, K, V, scale=0.2)[0])
    rounded = flex(Q, K, V, softmax_precision=TensorProto.FLOAT)
    assert rounded.dtype == torch.float64
    np.testing.assert_allclose(rounded, run(Q, K, V)[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["score_mod", "prob_mod"])
def test_flex_attention_with_a_graph_is_refused(name: str) -> None:
    graph = helper.make_graph([], name, [], [])
    with pytest.raises(AdapterError, match=f"FlexAttention 'here' .* graph '{name}'"):
        flex(Q, K, V, **{name: graph})


def single(*shape: int) -> Array:
    return normal(*shape).astype(np.float32)


def attention_rows() -> list[Row]:
    q, k, v = single(2, 4, 3, 4), single(2, 2, 5, 4), single(2, 2, 5, 6)
    mask, allowed = single(2, 1, 3, 5), rng.random((3, 5)) < 0.6
    past = single(2, 2, 2, 4), single(2, 2, 2, 6)
    flat = single(2, 3, 8), single(2, 3, 4), single(2, 3, 6)
    heads = {"q_num_heads": 4, "kv_num_heads": 2}
    return [
        row("Attention", 23, q, k, v, outputs=4),
        row("Attention", 23, q, k, v, mask, outputs=4, softcap=0.5, qk_matmul_output_mode=2),
        row("Attention", 23, q, k, v, allowed, outputs=4, qk_matmul_output_mode=3),
        row("Attention", 23, q, k, v, mask, outputs=4, softcap=0.5, qk_matmul_output_mode=1),
        row("Attention", 23, q, k, v, mask, outputs=4, softcap=0.5),
        row("Attention", 23, q, k, v, None, *past, outputs=4, is_causal=1),
        row("Attention", 23, *flat, outputs=3, is_causal=1, scale=0.4, **heads),
        row("Attention", 24, q, k, v, None, None, None, np.array([4, 5]), is_causal=1),
        row("Attention", 24, q, k, v, mask, None, None, np.array([4, 2])),
    ]


def rotary_rows() -> list[Row]:
    rows = []
    x, flat, at = single(2, 3, 4, 6), single(2, 4, 18), rng.integers(0, 7, (2, 4))
    for interleaved, turned in itertools.product((0, 1), (0, 4)):
        pairs = (turned or 6) // 2
        options = {"interleaved": interleaved, "rotary_embedding_dim": turned, "num_heads": 3}
        for y in (x, flat):
            table, own = (7, pairs), (2, 4, pairs)
            rows.append(
                row("RotaryEmbedding", 23, y, single(*table), single(*table), at, **options)
            )
            rows.append(row("RotaryEmbedding", 23, y, single(*own), single(*own), **options))
    return rows


@pytest.mark.parametrize("chosen", attention_rows() + rotary_rows(), ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


def turn(x: Array, angles: Array, **attributes: Any) -> Array:
    _, prepared = make(
        "RotaryEmbedding", [x, np.cos(angles), np.sin(angles)], attributes, version=23
    )
    (result,) = prepared.with_({})
    return result.numpy()


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotation_keeps_lengths_and_knows_distances_only(interleaved: int) -> None:
    speeds = np.array([1.0, 0.3])

    def angles(place: float) -> Array:
        return np.asarray(place * speeds).reshape(1, 1, 2)

    q, k = normal(1, 1, 1, 4), normal(1, 1, 1, 4)
    turned = turn(q, angles(3), interleaved=interleaved)
    np.testing.assert_allclose(np.linalg.norm(turned), np.linalg.norm(q))
    products = [
        (
            turn(q, angles(place), interleaved=interleaved)
            * turn(k, angles(place + 2), interleaved=interleaved)
        ).sum()
        for place in (0, 1, 5)
    ]
    np.testing.assert_allclose(products, products[0])


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ([normal(1, 2, 6), normal(1, 2, 1), normal(1, 2, 1)], {}, "6 features among 0 heads"),
        ([normal(1, 1, 2, 6), normal(1, 2, 2), normal(1, 2, 2)], {}, "turns 6 of 6 features"),
        ([normal(1, 1, 2, 4), normal(1, 2, 2), normal(1, 2, 1)], {}, "2 cosines and 1 sines"),
        (
            [normal(1, 1, 2, 4), normal(1, 2, 3), normal(1, 2, 3)],
            {"rotary_embedding_dim": 6},
            "turns 6 of 4 features",
        ),
    ],
)
def test_rotary_refusals(inputs: list[Array], attributes: dict[str, Any], message: str) -> None:
    _, prepared = make("RotaryEmbedding", inputs, attributes, version=23)
    with pytest.raises(AdapterError, match=message):
        prepared.run()
