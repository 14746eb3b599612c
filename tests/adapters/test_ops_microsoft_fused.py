"""Fused activations, sums and normalisations of com.microsoft beside onnxruntime.

Those it computes on GPUs only stand beside their definitions.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.special import erf

from beside_runtime import MICROSOFT, Row, check, prepared
from calculus import check_gradient, check_meta, check_vmap, floats
from one_node import Array

rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def ints(values: object) -> Array:
    return np.array(values, np.int32)


def row(operator: str, *inputs: Array | None, outputs: int = 1, **kw: Any) -> Row:
    return Row(operator, 1, kw, inputs, outputs, MICROSOFT)


def activation_rows() -> Iterator[Row]:
    x, bias = normal(2, 3, 8) * 3, normal(8)
    yield row("Gelu", x)
    yield row("BiasGelu", x, bias)
    yield row("FastGelu", x)
    yield row("FastGelu", x, bias)
    yield row("QuickGelu", x)
    yield row("QuickGelu", x, alpha=-0.7)
    yield row("ScaledSiLU", x, alpha=0.5)
    yield row("ScaledSiLU", x, np.array(0.3, np.float32), alpha=0.5)
    yield row("GatedAdd", x, normal(2, 3, 8), normal(2, 3, 1))
    yield row("TransposeMatMul", normal(2, 4, 3), normal(2, 5, 4), transA=1, transB=1, alpha=0.5)


def norm_rows() -> Iterator[Row]:
    x, scale, shift, bias = normal(2, 3, 8), normal(8), normal(8), normal(8)
    for shape in ((2, 3, 8), (1, 3, 8), (3, 8)):
        yield row("SkipLayerNormalization", x, normal(*shape), scale, shift, bias, outputs=4)
    yield row("SkipLayerNormalization", x, x, scale)
    yield row("SkipLayerNormalization", x, x, scale, shift, epsilon=0.1)
    yield row("SkipLayerNormalization", x[0], x[1], scale, None, bias, outputs=4)
    yield row("SkipSimplifiedLayerNormalization", x, normal(2, 3, 8), scale, bias, outputs=4)
    yield row("SkipSimplifiedLayerNormalization", x[0], x[1], scale, epsilon=0.1)
    simplified = "SimplifiedLayerNormalization"
    yield Row(simplified, 17, {}, (x, scale), 2)
    yield Row(simplified, 12, {"axis": 1, "epsilon": 0.1}, (x, normal(3, 8)), 2)
    # Below opset 17 ONNX has no such operator; onnxruntime writes it all the same.
    yield Row("LayerNormalization", 12, {"axis": -1}, (x, scale, shift), 3)
    yield Row("LayerNormalization", 12, {"axis": 1, "epsilon": 0.1}, (x, normal(3, 8)), 1)
    for way in ("silu", "sigmoid"):
        yield row("GatedRMSNorm", x, normal(4), normal(2, 3, 8), activation=way)
    for own in (normal(8), normal(4), normal(2, 4)):
        yield row("BranchwiseRMSNorm", x, own, num_branches=2)
        yield row("BranchwiseRMSNorm", normal(3, 2, 4), own)
    yield row("BranchwiseRMSNorm", x, num_branches=4, epsilon=0.1)


def embed_rows() -> Iterator[Row]:
    name, scale, shift = "EmbedLayerNormalization", normal(8), normal(8)
    ids, segments = ints(rng.integers(0, 9, (2, 4))), ints(rng.integers(0, 2, (2, 4)))
    words, places, sentences = normal(9, 8), normal(6, 8), normal(2, 8)
    full = (ids, segments, words, places, sentences, scale, shift)
    yield row(name, *full, outputs=3)
    yield row(name, *full, ints([[1, 1, 0, 0], [1, 1, 1, 1]]), outputs=3, epsilon=0.1)
    yield row(name, *full, ints([[1, 0, 1, 0], [0, 1, 2, -1]]), outputs=2)
    bare = (ids, None, words, places, None, scale, shift)
    yield row(name, *bare, mask_index_type=0)
    yield row(name, *bare, None, ints([[3, 2, 1, 0]]), outputs=3)
    yield row(name, *bare, None, ints(rng.integers(0, 6, (2, 4))), outputs=3)


ROWS = [row for family in (activation_rows, norm_rows, embed_rows) for row in family()]


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


HALVES = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "SkipLayerNormalization")


@pytest.mark.parametrize("chosen", [row for row in ROWS if row.operator in HALVES], ids=str)
def test_half_precision_answers_as_onnxruntime(chosen: Row) -> None:
    halves = tuple(None if x is None else x.astype(np.float16) for x in chosen.inputs)
    check(chosen._replace(inputs=halves, outputs=1), rtol=2e-3, atol=2e-3)


def exact_gelu(x: Array) -> Any:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def fast_gelu(x: Array) -> Any:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Any:
    return x / (1 + np.exp(-x))


def groups_standardised(x: Array, groups: int, scale: Array, shift: Array) -> Any:
    """Standardise groups of the last axis."""
    count, channels = x.shape[0], x.shape[-1]
    parts = x.reshape(count, -1, groups, channels // groups)
    centred = parts - parts.mean((1, 3), keepdims=True)
    parts = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
    return parts.reshape(x.shape) * scale + shift


def softmax(x: Array, axis: int | tuple[int, ...]) -> Any:
    grown = np.exp(x - x.max(axis, keepdims=True))
    return grown / grown.sum(axis, keepdims=True)


def rows_of_gpus() -> Iterator[tuple[Row, tuple[Array, ...]]]:
    """Give what onnxruntime computes on GPUs only, with what its definition gives."""
    x, bias, skip = normal(2, 3, 8), normal(8), normal(2, 3, 8)
    yield row("BiasAdd", x, bias, skip), (x + bias + skip,)
    left, right = np.split(x + bias, 2, -1)
    yield row("BiasSplitGelu", x, bias), (left * exact_gelu(right),)
    weight, few = normal(8, 5), normal(5)
    yield row("GemmFastGelu", x, weight, few), (fast_gelu(x @ weight + few),)
    yield row("GemmFastGelu", x, weight), (fast_gelu(x @ weight),)
    given: dict[str, Any] = {"transB": 1, "alpha": 0.5, "activation": "Relu"}
    product = np.maximum(x @ weight / 2, 0)
    yield row("FusedMatMulActivation", x, np.ascontiguousarray(weight.T), **given), (product,)
    image, scale, shift = normal(2, 3, 5, 8), normal(8), normal(8)
    first = np.ascontiguousarray(np.moveaxis(image, -1, 1))
    for groups in (2, 4):
        wanted = groups_standardised(image, groups, scale, shift)
        given = {"groups": groups, "activation": 0}
        yield row("GroupNorm", image, scale, shift, **given), (wanted,)
        given |= {"activation": 1, "channels_last": 0}
        wanted = np.moveaxis(silu(wanted), -1, 1)
        yield row("GroupNorm", first, scale, shift, **given), (wanted,)
    given = {"groups": 2, "activation": 1, "outputs": 2}
    for more in (normal(2, 3, 5, 8), normal(2, 1, 1, 8), normal(2, 8)):
        total = image + more.reshape(2, *more.shape[1:-1] if more.ndim == 4 else (1, 1), 8)
        wanted = silu(groups_standardised(total, 2, scale, shift))
        yield row("SkipGroupNorm", image, scale, shift, more, **given), (wanted, total)
    total = image + more[:, None, None] + bias
    wanted = np.moveaxis(silu(groups_standardised(total, 2, scale, shift)), -1, 1)
    given |= {"channels_last": 0}
    both = wanted, np.moveaxis(total, -1, 1)
    yield row("SkipGroupNorm", first, scale, shift, more, bias, **given), both
    scores = normal(2, 2, 3, 4)
    for shape, inner in (((2, 1, 1, 4), 1), ((1, 1, 3, 4), 0), ((3, 4), 0)):
        added = normal(*shape)
        given = {"axis": 3, "is_inner_broadcast": inner}
        yield row("BiasSoftmax", scores, added, **given), (softmax(scores + added, 3),)
    given = {"axis": 2, "is_inner_broadcast": 0}
    yield row("BiasSoftmax", scores, added, **given), (softmax(scores + added, (2, 3)),)


OF_GPUS = list(rows_of_gpus())
NAMES = [str(chosen) for chosen, _ in OF_GPUS]


@pytest.mark.parametrize(("chosen", "wanted"), OF_GPUS, ids=NAMES)
def test_answers_as_defined(chosen: Row, wanted: tuple[Array, ...]) -> None:
    for found, expected in zip(prepared(chosen).run(), wanted, strict=True):
        assert found is not None
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", [*ROWS, *(chosen for chosen, _ in OF_GPUS)], ids=str)
def test_is_vectorised_differentiable_and_keeps_its_device(chosen: Row) -> None:
    bound = prepared(chosen)
    check_vmap(bound)
    check_meta(bound)
    assert check_gradient(bound, floats(bound))
