"""Operators with a state: a stream cut into pieces gives what the whole gives."""

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from one_node import Array, make
from onnxpress_adapters.errors import AdapterError

rng = np.random.default_rng(0)
RULES = ("linear", "gated", "delta", "gated_delta")


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape)


def run(operator: str, *inputs: Array | None, version: int = 27, **attributes: Any) -> list[Tensor]:
    _, prepared = make(operator, inputs, attributes, version=version, outputs=2)
    return list(prepared.with_({}))


def scatter(*inputs: Array | None, **attributes: Any) -> Tensor:
    (result,) = run("TensorScatter", *inputs, version=24, **attributes)
    return result


TYPES = (
    *(np.bool_, np.int8, np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.uint64),
    *(np.float16, np.float32, np.float64, ml_dtypes.bfloat16),
)


@pytest.mark.parametrize("dtype", TYPES)
def test_caches_of_every_type(dtype: type) -> None:
    cache: Array = np.zeros((2, 4, 1), dtype)
    update: Array = np.ones((2, 2, 1), dtype)
    result = scatter(cache, update, np.array([0, 2]))
    assert result.double().flatten(1).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("axis", [1, 2, 3, -1, -2, -3])
def test_caches_are_written_along_their_axis_and_around_their_end(axis: int) -> None:
    cache, sizes = normal(2, 3, 4, 5), [2, 3, 4, 5]
    size = sizes[axis]
    sizes[axis] = 2
    update, starts = normal(*sizes), np.array([size - 1, 2 * size])
    wanted = np.moveaxis(cache.copy(), axis, 1)
    for sample, entry in itertools.product(range(2), range(2)):
        place = (starts[sample] + entry) % size
        wanted[sample, place] = np.moveaxis(update, axis, 1)[sample, entry]
    result = scatter(cache, update, starts, axis=axis, mode="circular")
    assert np.array_equal(np.moveaxis(result.numpy(), axis, 1), wanted)


def test_a_cache_without_places_is_written_from_its_start() -> None:
    cache, update = normal(2, 3, 4), normal(2, 1, 4)
    assert np.array_equal(scatter(cache, update), np.concatenate([update, cache[:, 1:]], 1))
    assert np.array_equal(scatter(cache, update[:, :0]), cache)


def test_gradient_of_a_cache_goes_where_the_entries_went() -> None:
    _, prepared = make(
        "TensorScatter", [normal(1, 3, 1), normal(1, 2, 1), np.array([1])], version=24
    )
    tensors = [torch.zeros(1, 3, 1, requires_grad=True), torch.zeros(1, 2, 1, requires_grad=True)]
    (result,) = prepared.with_(dict(enumerate(tensors)))
    (result * torch.tensor([2.0, 3.0, 5.0]).reshape(1, 3, 1)).sum().backward()
    grads = [t.grad.flatten().tolist() for t in tensors if t.grad is not None]
    assert grads == [[2.0, 0.0, 0.0], [3.0, 5.0]]


HEADS, SHARING, TOKENS, SIZE, WIDTH = 2, 3, 5, 2, 4


def linear_inputs(rule: str, tokens: int = TOKENS) -> list[Array | None]:
    """Give query, key, value, no past, decay and beta as a rule takes them."""
    return [
        normal(2, tokens, HEADS * SHARING * SIZE),
        normal(2, tokens, HEADS * SIZE),
        normal(2, tokens, HEADS * WIDTH),
        None,
        -np.abs(normal(2, tokens, HEADS * SIZE)) if "gated" in rule else None,
        rng.random((2, tokens, HEADS)) if "delta" in rule else None,
    ]


def linear(*inputs: Array | None, **attributes: Any) -> list[Tensor]:
    heads = {"q_num_heads": HEADS * SHARING, "kv_num_heads": HEADS}
    return run("LinearAttention", *inputs, **heads, **attributes)


@pytest.mark.parametrize("rule", RULES)
def test_linear_attention_in_pieces_is_linear_attention(rule: str) -> None:
    inputs = linear_inputs(rule)
    whole, last = linear(*inputs, update_rule=rule)
    past: Array | None = None
    pieces = []
    for piece in (slice(0, 1), slice(1, 1), slice(1, 3), slice(3, TOKENS)):
        given = [None if x is None else x[:, piece] for x in inputs]
        given[3] = past
        result, state = linear(*given, update_rule=rule)
        pieces.append(result)
        past = state.numpy()
    np.testing.assert_allclose(torch.cat(pieces, 1), whole)
    assert past is not None
    np.testing.assert_allclose(past, last)


def test_linear_attention_without_decay_is_attention_without_softmax() -> None:
    q, k, v = normal(1, TOKENS, SIZE), normal(1, TOKENS, SIZE), normal(1, TOKENS, WIDTH)
    heads = {"q_num_heads": 1, "kv_num_heads": 1}
    result, state = run("LinearAttention", q, k, v, update_rule="linear", scale=0.5, **heads)
    earlier = np.tril(np.ones((TOKENS, TOKENS)))
    np.testing.assert_allclose(result[0], 0.5 * (q[0] @ k[0].T * earlier) @ v[0])
    np.testing.assert_allclose(state[0, 0], k[0].T @ v[0])


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_linear_attention(rule: str) -> None:
    inputs = linear_inputs(rule, 3)
    inputs[3] = normal(2, HEADS, SIZE, WIDTH)
    heads = {"q_num_heads": HEADS * SHARING, "kv_num_heads": HEADS, "update_rule": rule}
    _, prepared = make("LinearAttention", inputs, heads, version=27, outputs=2)
    places = prepared.tensors()
    values = [prepared.arguments[place].clone().requires_grad_() for place in places]
    assert torch.autograd.gradcheck(
        lambda *x: prepared.with_(dict(zip(places, x, strict=True))), values
    )


def test_a_state_keeps_its_own_type() -> None:
    inputs = [x if x is None else x.astype(np.float16) for x in linear_inputs("gated_delta")]
    result, state = linear(*inputs)
    assert (result.dtype, state.dtype) == (torch.float16, torch.float16)
    inputs[3] = np.zeros((2, HEADS, SIZE, WIDTH), np.float32)
    result, state = linear(*inputs)
    assert (result.dtype, state.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_a_convolution_in_pieces_is_the_convolution(reach: int) -> None:
    x, weight, bias = normal(2, 3, 6), normal(3, 1, reach), normal(3)
    whole, last = run("CausalConvWithState", x, weight, bias, activation="silu")
    padded = np.concatenate([np.zeros((2, 3, reach - 1)), x], 2)
    plain = np.stack([(padded[:, :, i : i + reach] * weight[:, 0]).sum(2) for i in range(6)], 2)
    plain += bias[:, None]
    np.testing.assert_allclose(whole, plain / (1 + np.exp(-plain)))
    np.testing.assert_array_equal(last, padded[:, :, 6:])
    past, pieces = None, []
    for piece in (slice(0, 1), slice(1, 4), slice(4, 6)):
        result, state = run(
            "CausalConvWithState", x[:, :, piece], weight, bias, past, activation="silu"
        )
        pieces.append(result)
        past = state.numpy()
    np.testing.assert_allclose(torch.cat(pieces, 2), whole)
    assert past is not None
    np.testing.assert_array_equal(past, last)


def test_gradients_of_a_streamed_convolution() -> None:
    inputs = [normal(2, 3, 4), normal(3, 1, 3), normal(3), normal(2, 3, 2)]
    _, prepared = make("CausalConvWithState", inputs, {"activation": "silu"}, version=27, outputs=2)
    values = [torch.tensor(x, requires_grad=True) for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: prepared.with_(dict(enumerate(x))), values)


ONE = normal(1, 1, 4)
TWO = {"q_num_heads": 2, "kv_num_heads": 2}
CACHE = (normal(1, 2, 1), normal(1, 3, 1))


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "message"),
    [
        ("TensorScatter", CACHE, {}, "cannot write 3 entries into a cache of 2"),
        ("TensorScatter", CACHE, {"mode": "odd"}, "unknown mode 'odd'"),
        ("LinearAttention", (ONE,) * 3, {**TWO, "update_rule": "odd"}, "update_rule 'odd'"),
        ("LinearAttention", (ONE,) * 3, TWO, "needs input 'decay'"),
        (
            "LinearAttention",
            (ONE, ONE, ONE, None, None, ONE),
            {**TWO, "update_rule": "linear"},
            "has no input 'beta'",
        ),
        (
            "LinearAttention",
            (normal(1, 1, 6), ONE, ONE),
            {"q_num_heads": 3, "kv_num_heads": 2, "update_rule": "linear"},
            "3 query heads for 2 key heads",
        ),
        (
            "CausalConvWithState",
            (normal(1, 1, 2), normal(1, 1, 1)),
            {"activation": "odd"},
            "unknown activation 'odd'",
        ),
    ],
)
def test_refusals(
    operator: str, inputs: tuple[Array | None, ...], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        run(operator, *inputs, **attributes)
    assert str(caught.value).startswith(f"{operator} 'here'")
