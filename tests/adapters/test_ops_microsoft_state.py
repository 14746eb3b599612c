"""Hybrid language models in com.microsoft beside onnxruntime."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from beside_runtime import MICROSOFT, Row, check, prepared
from calculus import check_gradient, check_meta, check_vmap, floats
from one_node import Array
from onnxpress_adapters.errors import AdapterError

BATCH, TOKENS, HEADS, SIZE, OUT = 2, 3, 2, 4, 5

rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def row(operator: str, *inputs: Array | None, outputs: int = 2, **kw: Any) -> Row:
    return Row(operator, 1, kw, inputs, outputs, MICROSOFT)


def attention_rows() -> Iterator[Row]:
    sizes: dict[str, Any] = {"q_num_heads": 2 * HEADS, "kv_num_heads": HEADS}
    query, key = normal(BATCH, TOKENS, 2 * HEADS * SIZE), normal(BATCH, TOKENS, HEADS * SIZE)
    value, past = normal(BATCH, TOKENS, HEADS * OUT), normal(BATCH, HEADS, SIZE, OUT)
    decay = -np.abs(normal(BATCH, TOKENS, HEADS))
    decays = -np.abs(normal(BATCH, TOKENS, HEADS * SIZE))
    beta = rng.random((BATCH, TOKENS, HEADS)).astype(np.float32)
    for rule, fade, rate in (
        ("linear", None, None),
        ("gated", decay, None),
        ("gated", decays, None),
        ("delta", None, beta),
        ("gated_delta", decay, beta),
        ("gated_delta", decays, beta[:, :, :1]),
    ):
        given = [query, key, value, past, fade, rate]
        while given[-1] is None:
            given.pop()
        yield row("LinearAttention", *given, update_rule=rule, **sizes)
    ways = {"update_rule": "gated_delta", "scale": 0.3, **sizes}
    yield row("LinearAttention", query, key, value, None, decay, beta, **ways)


def gate_rows() -> Iterator[Row]:
    x, shift, scale = normal(BATCH, TOKENS, HEADS) * 30, normal(HEADS), normal(HEADS)
    yield row("LinearAttentionGate", x, shift, scale, outputs=1)
    yield row("LinearAttentionGate", x, shift, scale, normal(BATCH, TOKENS, HEADS))


def convolution_rows() -> Iterator[Row]:
    name, x, weight, bias = "CausalConvWithState", normal(BATCH, 4, 6), normal(4, 1, 3), normal(4)
    yield row(name, x, weight)
    yield row(name, x, weight, bias, normal(BATCH, 4, 2), activation="silu")
    yield row(name, x[:, :, :1], weight, bias, normal(BATCH, 4, 2), activation="swish")
    yield row(name, x, weight, None, normal(BATCH, 4, 4), dilation=2)
    last = np.ascontiguousarray(np.moveaxis(x, 1, 2))
    yield row(name, last, weight, bias, normal(BATCH, 2, 4), channels_last=1)
    grouped, past = last.reshape(BATCH, 6, 2, 2), normal(BATCH, 2, 2, 2)
    yield row(name, grouped, weight, bias, past, channels_last=1)


ROWS = [row for family in (attention_rows, gate_rows, convolution_rows) for row in family()]


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)
    bound = prepared(chosen)
    check_vmap(bound)
    check_meta(bound)
    assert check_gradient(bound, floats(bound))


@pytest.mark.parametrize(
    ("operator", "choice", "words"),
    [
        ("LinearAttention", {"state_window": 2}, "has state_window=2, .* runs it with 0 only"),
        ("CausalConvWithState", {"ndim": 2}, "has ndim=2, .* runs it with 1 only"),
        ("CausalConvWithState", {"activation": "gelu"}, "the unknown activation 'gelu'"),
    ],
)
def test_what_onnxpress_cannot_run_is_named(
    operator: str, choice: dict[str, Any], words: str
) -> None:
    chosen = next(chosen for chosen in ROWS if chosen.operator == operator)
    with pytest.raises(AdapterError, match=f"{operator} 'here' .*{words}"):
        prepared(chosen._replace(attributes={**chosen.attributes, **choice})).run()
