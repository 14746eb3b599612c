"""Quantised operators of com.microsoft beside onnxruntime, exact to the last bit."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from beside_runtime import MICROSOFT, Row, check, prepared
from calculus import check_meta, check_vmap
from one_node import Array

dice = random.Random(0)
rng = np.random.default_rng(0)

SAMPLES = 40
EIGHT_BIT = (np.uint8, np.int8)


def row(operator: str, *inputs: Array | None, outputs: int = 1, **kw: Any) -> Row:
    return Row(operator, 1, kw, inputs, outputs, MICROSOFT)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def whole(kind: Any, *shape: int) -> Array:
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max + 1, shape).astype(kind)


def step() -> Array:
    """Draw a scale; half of them are powers of two, with which ties come up."""
    if dice.random() < 0.5:
        return np.array(2.0 ** rng.integers(-6, -3), np.float32)
    return np.array(rng.uniform(0.01, 0.1), np.float32)


def steps(*shape: int) -> Array:
    return np.asarray(rng.uniform(0.01, 0.1, shape), np.float32)


def parameters(kind: Any) -> tuple[Array, Array]:
    """Draw a scale and a zero point."""
    return step(), whole(kind)


def drawn_sum() -> Row:
    kind, operator = dice.choice(EIGHT_BIT), dice.choice(["QLinearAdd", "QLinearMul"])
    shapes = dice.choice([((3, 4), (3, 4)), ((2, 3, 4), (4,)), ((3, 1), (2, 1, 5)), ((4,), ())])
    a, b = (whole(kind, *shape) for shape in shapes)
    return row(operator, a, *parameters(kind), b, *parameters(kind), *parameters(kind))


def drawn_activation() -> Row:
    kind, operator = dice.choice(EIGHT_BIT), dice.choice(["QLinearSigmoid", "QLinearLeakyRelu"])
    attributes: dict[str, Any] = (
        {"alpha": round(dice.uniform(0.05, 0.5), 2)} if "Leaky" in operator else {}
    )
    every = np.arange(256).astype(np.uint8).view(kind)
    return row(operator, every, *parameters(kind), *parameters(kind), **attributes)


def drawn_softmax() -> Row:
    kind, opset = dice.choice(EIGHT_BIT), dice.choice([12, 13])
    # In float32 one 255th is a little more than that, so that 254 steps make one.
    fine = np.array(1 / dice.choice([255, 256]), np.float32), np.array(np.iinfo(kind).min, kind)
    axis = dice.choice([-1, 0, 1, 2])
    x = whole(kind, 3, 4, 5)
    return row("QLinearSoftmax", x, step(), whole(kind), *fine, axis=axis, opset=opset)


def drawn_pool() -> Row:
    kind, last = dice.choice(EIGHT_BIT), dice.randint(0, 1)
    x = whole(kind, 2, 6, 7, 5)
    if dice.random() < 0.3:
        given = step(), whole(kind), step(), whole(kind)
        return row("QLinearGlobalAveragePool", x, *given, channels_last=last)
    kernel = [dice.randint(1, 3), dice.randint(1, 3)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [dice.randint(1, 2), dice.randint(1, 3)],
        "pads": [dice.randint(0, size - 1) for size in kernel + kernel],
        "count_include_pad": dice.randint(0, 1),
        "ceil_mode": dice.randint(0, 1),
        "channels_last": last,
    }
    return row("QLinearAveragePool", x, *parameters(kind), *parameters(kind), **attributes)


def drawn_max_pool() -> Row:
    kernel = [dice.randint(1, 3), dice.randint(1, 3)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [dice.randint(1, 2), dice.randint(1, 3)],
        "dilations": [dice.randint(1, 2), dice.randint(1, 2)],
        "pads": [dice.randint(0, size - 1) for size in kernel + kernel],
        "ceil_mode": dice.randint(0, 1),
    }
    return row("NhwcMaxPool", whole(dice.choice(EIGHT_BIT), 2, 7, 6, 3), **attributes)


def drawn_join() -> Row:
    kind = dice.choice(EIGHT_BIT)
    a, b, c = whole(kind, 2, 3, 4), whole(kind, 2, 5, 4), whole(kind, 2, 1, 4)
    parts = [value for x in (a, b, c) for value in (x, step(), whole(kind))]
    return row("QLinearConcat", step(), whole(kind), *parts, axis=dice.choice([1, -2]))


def drawn_choice() -> Row:
    kind = dice.choice(EIGHT_BIT)
    condition, x, y = rng.random((3, 4)) < 0.5, whole(kind, 2, 3, 4), whole(kind, 4)
    given = x, step(), whole(kind), y, step(), whole(kind), step(), whole(kind)
    return row("QLinearWhere", condition, *given)


def drawn_gemm() -> Row:
    left, right = dice.choice([(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)])
    a, b = whole(left, 3, 20), whole(right, 20, 4)
    turns = {"transA": dice.randint(0, 1), "transB": dice.randint(0, 1)}
    each = dice.random() < 0.5
    scale, point = (steps(4), whole(right, 4)) if each else (step(), whole(right))
    shape = dice.choice([(4,), (3, 1), (3, 4), (1,)])
    c = rng.integers(-999, 999, shape).astype(np.int32) if dice.random() < 0.7 else None
    ends = (np.array(rng.uniform(0.5, 5), np.float32), whole(left)) if dice.random() < 0.7 else ()
    return row(
        "QGemm",
        np.ascontiguousarray(a.T) if turns["transA"] else a,
        *(step(), whole(left)),
        np.ascontiguousarray(b.T) if turns["transB"] else b,
        *(scale, point, c, *ends),
        alpha=dice.choice([1.0, 0.5, 0.3]),
        **turns,
    )


def drawn_conv() -> Row:
    left, right = dice.choice([(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)])
    last, groups = dice.randint(0, 1), dice.randint(1, 2)
    x = whole(left, 2, 2 * groups, 6, 5)
    w = whole(right, 4 * groups, 2, 3, 2)
    bias = rng.integers(-999, 999, 4 * groups).astype(np.int32)
    each = dice.random() < 0.5
    scale, point = (steps(4 * groups) if each else step()), whole(right)
    if each:
        point = np.full(4 * groups, point)
    return row(
        "QLinearConv",
        np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x,
        *(step(), whole(left), w, scale, point),
        *(np.array(rng.uniform(0.5, 5), np.float32), whole(left)),
        *((bias,) if dice.random() < 0.5 else ()),
        channels_last=last,
        group=groups,
        kernel_shape=[3, 2],
        pads=[1, 0, 1, 1],
        strides=[dice.randint(1, 2), 1],
    )


def drawn_product() -> Row:
    lead = dice.choice([(), (2,), (2, 3)])
    bias = normal(4) if dice.random() < 0.5 else None
    each, right = dice.random() < 0.5, dice.choice(EIGHT_BIT)
    scale = steps(4) if each else step()
    point = dice.choice([None, whole(right, 4) if each else whole(right)])
    weight = whole(right, 20, 4)
    if dice.random() < 0.5:
        x = normal(*lead, 3, 20) * np.float32(dice.choice([0, 1, 5]))
        return row("DynamicQuantizeMatMul", x, weight, scale, point, bias)
    left = np.uint8 if right == np.uint8 else dice.choice(EIGHT_BIT)
    a = whole(left, *lead, 3, 20)
    more = whole(left) if dice.random() < 0.8 else None
    return row("MatMulIntegerToFloat", a, weight, step(), scale, more, point, bias)


def drawn_wide_product() -> Row:
    a, b = whole(np.int16, 3, 5), whole(np.int16, 5, 4)
    return row("MatMulInteger16", a // 64, b // 64)


DRAWS = {
    "activation": drawn_activation,
    "choice": drawn_choice,
    "conv": drawn_conv,
    "gemm": drawn_gemm,
    "join": drawn_join,
    "max pool": drawn_max_pool,
    "pool": drawn_pool,
    "product": drawn_product,
    "softmax": drawn_softmax,
    "sum": drawn_sum,
    "wide product": drawn_wide_product,
}


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_drawn_rows_answer_as_onnxruntime(kind: str) -> None:
    dice.seed(kind)
    for _ in range(SAMPLES):
        check(DRAWS[kind](), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_drawn_rows_are_vectorised_and_keep_their_device(kind: str) -> None:
    dice.seed(kind)
    for _ in range(4):
        bound = prepared(DRAWS[kind]())
        check_vmap(bound)
        check_meta(bound)


def merged_rows() -> Iterator[Row]:
    for kind in EIGHT_BIT:
        x, w, b = whole(np.uint8, 2, 4, 6), whole(kind, 6, 24), normal(24)
        scales, points = (steps(), steps(24)), (whole(np.uint8), whole(kind, 24))
        heads: dict[str, Any] = {"num_heads": 2}
        yield row("QAttention", x, w, b, *scales, None, *points, **heads)
        yield row("QAttention", x, w, b, steps(), steps(), **heads)
        length = np.array([2, 4], np.int32)
        yield row("QAttention", x, w, b, *scales, length, *points, **heads, unidirectional=1)
        heads["outputs"] = 2
        past = normal(2, 2, 2, 3, 4)
        yield row("QAttention", x, w, b, *scales, None, *points, past, **heads)


def embed_rows() -> Iterator[Row]:
    ids, kinds = (rng.integers(0, 2, (2, 4)).astype(np.int32) for _ in range(2))
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.int32)
    for kind in EIGHT_BIT:
        words, places, sorts = whole(kind, 9, 8), whole(kind, 6, 8), whole(kind, 2, 8)
        scale, shift = whole(kind, 8), whole(kind, 8)
        sizes, points = [steps() for _ in range(5)], [whole(kind) for _ in range(5)]
        given = (ids, kinds, words, places, sorts, scale, shift, mask, *sizes, *points)
        yield row("QEmbedLayerNormalization", *given, outputs=2)
        bare = [None if place in (1, 4, 7, 10, 15) else v for place, v in enumerate(given)]
        yield row("QEmbedLayerNormalization", *bare, outputs=2)


FLOATS = [*merged_rows(), *embed_rows()]


@pytest.mark.parametrize("chosen", FLOATS, ids=str)
def test_transformers_answer_as_onnxruntime(chosen: Row) -> None:
    check(chosen)
    check_vmap(prepared(chosen))
    check_meta(prepared(chosen))


def lstm_row(direction: str, kind: Any, lengths: bool) -> Row:
    ways = 2 if direction == "bidirectional" else 1
    steps_, batch, features, hidden = 4, 2, 6, 3
    inputs = (
        normal(steps_, batch, features),
        *(whole(kind, ways, features, 4 * hidden), whole(kind, ways, hidden, 4 * hidden)),
        normal(ways, 8 * hidden),
        np.array([3, 4], np.int32) if lengths else None,
        *(normal(ways, batch, hidden), normal(ways, batch, hidden), normal(ways, 3 * hidden)),
        *(steps(ways), whole(kind, ways), steps(ways), whole(kind, ways)),
    )
    given = {"hidden_size": hidden, "direction": direction}
    return row("DynamicQuantizeLSTM", *inputs, outputs=3, **given)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.parametrize("lengths", [False, True])
def test_lstm_answers_as_onnxruntime(direction: str, kind: Any, lengths: bool) -> None:
    chosen = lstm_row(direction, kind, lengths)
    check(chosen)
    check_vmap(prepared(chosen))
    check_meta(prepared(chosen))


def narrow_rows() -> Iterator[Row]:
    for kind in (np.uint8, np.int8, np.uint16, np.int16):
        yield row("QuantizeLinear", normal(3, 4) * 40, step(), whole(kind))
        yield row("QuantizeLinear", normal(3, 4) * 40, steps(4), whole(kind, 4), axis=1)
        yield row("DequantizeLinear", whole(kind, 3, 4), step(), whole(kind))
        yield row("DequantizeLinear", whole(kind, 3, 4), steps(3), whole(kind, 3), axis=0)
    yield row("QuantizeLinear", normal(3, 4) * 40, step())
    numbers = rng.integers(-9999, 9999, (3, 4)).astype(np.int32)
    yield row("DequantizeLinear", numbers, step(), np.array(0, np.int32))


@pytest.mark.parametrize("chosen", list(narrow_rows()), ids=str)
def test_steps_between_floats_and_integers_answer_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


def test_mean_over_axes_is_that_of_the_numbers_it_stands_for() -> None:
    """onnxruntime has no kernel for it any more."""
    x, point, zero = whole(np.uint8, 2, 3, 4), whole(np.uint8), np.array(7, np.uint8)
    scales = np.array(0.03, np.float32), np.array(0.01, np.float32)
    for axes, keepdims in (([1], 0), ([0, -1], 1)):
        given: dict[str, Any] = {"axes": axes, "keepdims": keepdims}
        chosen = row("QLinearReduceMean", x, scales[0], point, scales[1], zero, **given)
        (found,) = prepared(chosen).run()
        values = (x.astype(np.float64) - point).mean(tuple(axes), keepdims=bool(keepdims)) * 3
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), np.clip(np.rint(values) + 7, 0, 255))
