"""Products of quantised numbers against onnxruntime, bit by bit, and sums beyond float32."""

import random
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from beside_runtime import Row, check, row
from one_node import Array, make

dice = random.Random(0)
rng = np.random.default_rng(0)
SAMPLES = 60

EIGHT_BIT = (np.uint8, np.int8)


def whole(kind: Any, *shape: int) -> Array:
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max + 1, shape).astype(kind)


def scales(*shape: int, around: float = 1.0) -> Array:
    return np.asarray(around * rng.uniform(0.5, 2.0, shape), np.float32)


def drawn_matmul_integer() -> Row:
    kinds = dice.choice(EIGHT_BIT), dice.choice(EIGHT_BIT)
    rows, inner, columns = (dice.randint(1, 6) for _ in range(3))
    lead = dice.choice([(), (2,), (2, 3)])
    a, b = whole(kinds[0], *lead, rows, inner), whole(kinds[1], inner, columns)
    if dice.random() < 0.3:
        return row("MatMulInteger", 10, a, b)
    point = whole(kinds[1], columns) if dice.random() < 0.5 else whole(kinds[1])
    return row("MatMulInteger", 10, a, b, whole(kinds[0]), point)


def window(rank: int) -> dict[str, Any]:
    kernel = [dice.randint(1, 3) for _ in range(rank)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "group": dice.randint(1, 2)}
    if dice.random() < 0.3:
        return attributes | {"auto_pad": dice.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])}
    attributes["pads"] = [dice.randint(0, size - 1) for size in kernel + kernel]
    attributes["strides"] = [dice.randint(1, 3) for _ in range(rank)]
    return attributes | {"dilations": [dice.randint(1, 2) for _ in range(rank)]}


def drawn_conv_integer() -> Row:
    rank = dice.randint(1, 3)
    attributes = window(rank)
    groups, spatial = attributes["group"], [dice.randint(5, 8) for _ in range(rank)]
    x = whole(np.uint8, 2, 2 * groups, *spatial)
    w = whole(np.uint8, 3 * groups, 2, *attributes["kernel_shape"])
    points = () if dice.random() < 0.3 else (whole(np.uint8), whole(np.uint8))
    return row("ConvInteger", 10, x, w, *points, **attributes)


def drawn_qlinear_conv() -> Row:
    rank = dice.randint(1, 3)
    # Unsigned numbers may meet any weights; onnxruntime takes signed ones only with signed ones.
    kind = dice.choice(EIGHT_BIT)
    other = np.int8 if kind == np.int8 else dice.choice(EIGHT_BIT)
    attributes = window(rank)
    groups, spatial = attributes["group"], [dice.randint(5, 8) for _ in range(rank)]
    x = whole(kind, 2, 2 * groups, *spatial)
    w = whole(other, 3 * groups, 2, *attributes["kernel_shape"])
    shape = (3 * groups,) if dice.random() < 0.5 else ()
    point = np.full(shape, whole(other)) if other == np.uint8 else np.zeros(shape, other)
    inputs: list[Array] = [x, scales(), whole(kind), w, scales(*shape, around=0.01), point]
    inputs += [scales(around=2.0), whole(kind)]
    if dice.random() < 0.5:
        inputs.append(rng.integers(-3000, 3000, 3 * groups).astype(np.int32))
    return row("QLinearConv", 10, *inputs, **attributes)


def drawn_qlinear_matmul() -> Row:
    kind, other = dice.choice([(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)])
    rows, inner, columns = (dice.randint(1, 6) for _ in range(3))
    lead = dice.choice([(), (2,)])
    a, b = whole(kind, *lead, rows, inner), whole(other, inner, columns)
    shape = (columns,) if dice.random() < 0.5 else ()
    right = [b, scales(*shape, around=0.01), whole(other, *shape)]
    return row("QLinearMatMul", 10, a, scales(), whole(kind), *right, scales(), whole(kind))


DRAWS = {
    "matmul integer": drawn_matmul_integer,
    "conv integer": drawn_conv_integer,
    "qlinear conv": drawn_qlinear_conv,
    "qlinear matmul": drawn_qlinear_matmul,
}


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_answers_as_onnxruntime(kind: str) -> None:
    dice.seed(kind)
    for _ in range(SAMPLES):
        check(DRAWS[kind](), rtol=0, atol=0)


def run(operator: str, *inputs: Array | None, version: int = 21, **attributes: Any) -> Array:
    _, prepared = make(operator, inputs, attributes, version=version)
    (result,) = prepared.run()
    assert result is not None
    return result.numpy()


def test_long_sums_wrap_around_at_32_bits() -> None:
    a, b = np.full((1, 40000), 255, np.uint8), np.full((40000, 1), 254, np.uint8)
    assert run("MatMulInteger", a, b).tolist() == [[40000 * 255 * 254 - 2**32]]
    x, w = a.reshape(1, 1, -1), b.reshape(1, 1, -1)
    assert run("ConvInteger", x, w).tolist() == [[[40000 * 255 * 254 - 2**32]]]


def test_sums_are_exact_beyond_24_bits() -> None:
    a, b = whole(np.int8, 3, 20000), whole(np.int8, 20000, 2)
    expected = a.astype(np.int64) @ b.astype(np.int64)
    assert run("MatMulInteger", a, b).tolist() == expected.tolist()


def test_zero_points_may_differ_from_row_to_row() -> None:
    a, b = whole(np.uint8, 2, 3, 4), whole(np.uint8, 4, 5)
    points = whole(np.uint8, 2, 3, 1)
    expected = (a.astype(np.int32) - points) @ b.astype(np.int32)
    assert run("MatMulInteger", a, b, points).tolist() == expected.tolist()
    assert run("MatMulInteger", a[0], b, points[0, :, 0]).tolist() == expected[0].tolist()


def test_left_scales_may_differ_from_row_to_row() -> None:
    a, b, one, point = whole(np.uint8, 3, 4), whole(np.uint8, 4, 5), np.ones(()), np.uint8(0)
    steps, zero = np.array([0.01, 0.02, 0.005], np.float32), np.asarray(point)
    result = run("QLinearMatMul", a, steps, np.zeros(3, np.uint8), b, one, zero, one, zero)
    sums = (a.astype(np.int32) @ b.astype(np.int32)).astype(np.float32)
    assert result.tolist() == np.rint(sums * steps[:, None]).clip(0, 255).tolist()


def test_vectors_have_a_product_without_axes() -> None:
    a, b = whole(np.int8, 4), whole(np.int8, 4)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.int8)
    result = run("QLinearMatMul", a, one, zero, b, one, zero, 1000 * one, zero)
    assert result.shape == ()
    assert result == np.rint(np.float32(a.astype(int) @ b.astype(int)) * np.float32(0.001))


@pytest.mark.parametrize(
    ("kind", "highest"),
    [("float8_e4m3fn", 448), ("float8_e4m3fnuz", 240), ("float8_e5m2", 57344)],
)
def test_products_of_8_bit_floats_saturate(kind: str, highest: float) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind))
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 4), (4, 5)))
    one, zero = np.ones((), np.float32), np.zeros((), dtype)
    _, prepared = make("QLinearMatMul", [a, one, zero, b, one, zero, one / 10000, zero], version=21)
    (result,) = prepared.run()
    sums = 10000 * (a.astype(np.float64) @ b.astype(np.float64))
    assert result is not None
    assert result.dtype == getattr(torch, kind)
    expected = sums.clip(-highest, highest).astype(np.float32).astype(dtype).astype(np.float32)
    assert result.float().tolist() == expected.tolist()
