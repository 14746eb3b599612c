"""Weights of a few bits per number in com.microsoft beside onnxruntime."""

import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from beside_runtime import MICROSOFT, Row, check, prepared
from calculus import check_gradient, check_meta, check_vmap, floats
from one_node import Array
from onnxpress_adapters.errors import AdapterError

ROWS_OUT = 5

rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def bytes_(*shape: int) -> Array:
    return rng.integers(0, 256, shape).astype(np.uint8)


def scales(*shape: int) -> Array:
    return np.asarray(rng.uniform(0.5, 1.5, shape), np.float32)


def row(operator: str, *inputs: Array | None, **kw: Any) -> Row:
    return Row(operator, 1, kw, inputs, 1, MICROSOFT)


def product(bits: int, block: int, columns: int, *more: Array | None) -> Row:
    blocks = -(-columns // block)
    stored = bytes_(ROWS_OUT, blocks, block * bits // 8)
    given: dict[str, Any] = {"N": ROWS_OUT, "K": columns, "bits": bits, "block_size": block}
    inputs = (normal(2, 3, columns), stored, scales(ROWS_OUT, blocks), *more)
    return row("MatMulNBits", *inputs, **given)


SIZES = [(16, 32), (16, 40), (32, 33), (64, 128), (128, 100)]


def product_rows() -> Iterator[Row]:
    for bits, (block, columns) in itertools.product((2, 4, 8), SIZES):
        blocks = -(-columns // block)
        packed = bytes_(ROWS_OUT, -(-blocks * bits // 8))
        yield product(bits, block, columns)
        yield product(bits, block, columns, packed, None, normal(ROWS_OUT))
        if bits < 8:
            middle = scales(ROWS_OUT, blocks) * np.float32(2 ** (bits - 1))
            yield product(bits, block, columns, middle)
        if bits == 4:
            groups = rng.integers(0, blocks, columns).astype(np.int32)
            yield product(bits, block, columns, None, groups)


def sixteen(kind: int, rows: int, columns: int, block: int) -> Row:
    stored, count = bytes_((rows * columns + 1) // 2), -(-rows * columns // block)
    sizes: dict[str, Any] = {"N": rows, "K": columns, "block_size": block, "quant_type": kind}
    return row("MatMulBnb4", normal(2, 3, columns), stored, scales(count), **sizes)


def sixteen_rows() -> Iterator[Row]:
    for kind in (0, 1):
        yield sixteen(kind, 4, 32, 16)
        yield sixteen(kind, 5, 24, 32)
        yield sixteen(kind, 3, 5, 16)


def gather_rows() -> Iterator[Row]:
    name, places = "GatherBlockQuantized", np.array([[0, 3], [-1, 2], [1, 7], [-9, 1]])
    across: dict[str, Any] = {"block_size": 16, "quantize_axis": 1, "gather_axis": 0}
    for bits in (2, 4, 8):
        stored, steps = bytes_(6, 64 * bits // 8), scales(6, 4)
        yield row(name, stored, places, steps, bits=bits, **across)
        yield row(name, stored, places, steps, bytes_(6, -(-4 * bits // 8)), bits=bits, **across)
    for kind, low in ((ml_dtypes.int4, -8), (ml_dtypes.uint4, 0)):
        codes, points = (
            rng.integers(low, low + 16, shape).astype(kind) for shape in ((6, 3, 40), (6, 3, 3))
        )
        steps = scales(6, 3, 3)
        for axis, zeros in itertools.product((0, 1, 2), (None, points)):
            ways = {"block_size": 16, "quantize_axis": -1, "gather_axis": axis}
            chosen = places if axis == 0 else places % 3
            yield row(name, codes, chosen, steps, zeros, **ways)
        ways = {"block_size": 16, "quantize_axis": 0, "gather_axis": 1}
        turned = np.ascontiguousarray(codes[0].T)
        yield row(name, turned, places.astype(np.int32) % 3, scales(3, 3), **ways)
    yield row(name, codes, np.array(2), steps, **ways | {"quantize_axis": 2, "gather_axis": 0})
    small = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn)
    for kind in small:
        numbers, steps = normal(6, 40).astype(kind), scales(6, 3)
        yield row(name, numbers, places, steps, **across)
        for own in (steps[:, :1], steps[:1, :1]):
            yield row(name, numbers, places, own, **across | {"block_size": 0})


ROWS = [row for family in (product_rows, sixteen_rows, gather_rows) for row in family()]


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_is_vectorised_differentiable_and_keeps_its_device(chosen: Row) -> None:
    bound = prepared(chosen)
    check_vmap(bound)
    check_meta(bound)
    assert check_gradient(bound, floats(bound))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_blocks_of_any_columns_are_those_their_definition_says(bits: int) -> None:
    """onnxruntime groups columns in 4 bits only, and forgets what stands for zero then."""
    groups, middle = rng.integers(0, 3, 40).astype(np.int32), scales(ROWS_OUT, 3) * 9
    chosen = product(bits, 16, 40, middle, groups)
    x, stored, steps = (value for value in chosen.inputs[:3] if value is not None)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (stored[..., None] >> shifts & (2**bits - 1)).reshape(ROWS_OUT, -1)[:, :40]
    weight = (codes - middle[:, groups]) * steps[:, groups]
    (found,) = prepared(chosen).run()
    assert found is not None
    np.testing.assert_allclose(found.numpy(), x @ weight.T, rtol=1e-4, atol=1e-3)


def test_weight_of_sixteen_numbers_may_stand_the_other_way() -> None:
    """It is for training, and onnxruntime's CPU kernel reads behind its end."""
    chosen = sixteen(1, 4, 32, 16)
    (transposed,) = prepared(
        chosen._replace(inputs=(np.eye(32, dtype=np.float32), *chosen.inputs[1:]))
    ).run()
    x = normal(2, 4)
    turned = chosen._replace(
        inputs=(x, *chosen.inputs[1:]), attributes={**chosen.attributes, "transB": 0}
    )
    (found,) = prepared(turned).run()
    assert found is not None
    assert transposed is not None
    np.testing.assert_allclose(found.numpy(), x @ transposed.numpy().T, rtol=1e-5, atol=1e-5)


def test_what_onnxpress_cannot_read_is_named() -> None:
    good = product(4, 16, 32)
    for change, words in (
        ({"weight_prepacked": 1}, "in the order of one kind of GPU"),
        ({"bits": 3}, "stores 3 bits per number"),
    ):
        with pytest.raises(AdapterError, match=f"MatMulNBits 'here' .*{words}"):
            prepared(good._replace(attributes={**good.attributes, **change})).run()
    given: dict[str, Any] = {"N": 4, "K": 4, "block_size": 16, "quant_type": 2}
    with pytest.raises(AdapterError, match="MatMulBnb4 'here' has the quant_type 2"):
        prepared(row("MatMulBnb4", normal(1, 4), bytes_(8), scales(1), **given)).run()
