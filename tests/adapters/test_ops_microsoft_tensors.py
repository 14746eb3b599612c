"""Shapes, distances and transforms of com.microsoft beside onnxruntime."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from beside_runtime import MICROSOFT, Row, check, prepared
from calculus import check_gradient, check_meta, check_vmap, floats
from one_node import Array
from onnxpress_adapters.errors import AdapterError

rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def row(operator: str, *inputs: Array | None, outputs: int = 1, **kw: Any) -> Row:
    return Row(operator, 1, kw, inputs, outputs, MICROSOFT)


def shape_rows() -> Iterator[Row]:
    x = normal(3, 4, 5)
    for axis in (0, 2, -1, -4):
        yield row("ExpandDims", x, np.array(axis, np.int32))
    for upper in (0, 1):
        yield row("Trilu", x, upper=upper)
        yield row("Trilu", x, np.array(-1), upper=upper)
    yield row("GatherND", x, rng.integers(0, 3, (2, 3, 2)))
    yield row("UnfoldTensor", x, dim=1, size=3)
    yield row("UnfoldTensor", x, size=2, step=2)
    yield row("SampleOp", x)
    yield row("Inverse", normal(2, 3, 3))
    for metric in ("euclidean", "sqeuclidean"):
        yield row("CDist", normal(4, 3), normal(5, 3), metric=metric)
    yield row("CDist", normal(4, 3), normal(5, 3))


def counting_rows() -> Iterator[Row]:
    for kind in (np.float32, np.float64, np.int16, np.int32, np.int64):
        yield row("Range", *np.array([2, 9, 3], kind).reshape(3, 1))
        yield row("Range", np.array(1, kind), np.array(4, kind))
    yield row("Unique", np.array([2, 1, 1, 3, 4, 3, 2, 0], np.float32), outputs=3)


ROWS = list(shape_rows())


@pytest.mark.parametrize("chosen", [*ROWS, *counting_rows()], ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


def transform_rows() -> Iterator[tuple[Row, Array]]:
    """Give what onnxruntime computes on GPUs only, with what numpy gives."""

    def parts(x: Any) -> Array:
        return np.stack([x.real, x.imag], -1)

    x, a, b = normal(2, 4, 6), normal(3, 4, 2), normal(3, 4, 2)
    yield row("Rfft", x), parts(np.fft.rfft(x))
    yield row("Rfft", x, signal_ndim=2), parts(np.fft.rfft2(x))
    yield row("Irfft", parts(np.fft.rfft(x)).astype(np.float32), signal_ndim=1), x
    yield row("Irfft", parts(np.fft.rfft2(x)).astype(np.float32), signal_ndim=2), x
    left, right = a[..., 0] + 1j * a[..., 1], b[..., 0] + 1j * b[..., 1]
    yield row("ComplexMul", a, b), parts(left * right)
    yield row("ComplexMulConj", a, b), parts(left * np.conj(right))


TRANSFORMS = list(transform_rows())


@pytest.mark.parametrize(("chosen", "wanted"), TRANSFORMS, ids=[str(row) for row, _ in TRANSFORMS])
def test_answers_as_numpy(chosen: Row, wanted: Array) -> None:
    (found,) = prepared(chosen).run()
    assert found is not None
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", [*ROWS, *(chosen for chosen, _ in TRANSFORMS)], ids=str)
def test_is_vectorised_differentiable_and_keeps_its_device(chosen: Row) -> None:
    bound = prepared(chosen)
    check_vmap(bound)
    check_meta(bound)
    assert check_gradient(bound, floats(bound))


def test_distance_of_like_rows_has_a_gradient_of_zero() -> None:
    bound = prepared(row("CDist", np.zeros((2, 3)), np.zeros((2, 3)), metric="euclidean"))
    a = bound.arguments[0].clone().requires_grad_()
    bound.with_({0: a})[0].sum().backward()
    assert a.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (row("CDist", normal(2, 3), normal(2, 3), metric="cosine"), "measures by 'cosine'"),
        (row("Rfft", normal(2, 4), normalized=1), "is normalized or two-sided"),
        (row("Irfft", normal(2, 4, 2), signal_ndim=1, onesided=0), "is normalized or two-sided"),
    ],
    ids=str,
)
def test_what_no_definition_provides_for_is_refused(chosen: Row, words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        prepared(chosen).run()
