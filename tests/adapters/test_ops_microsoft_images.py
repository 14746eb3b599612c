"""Images in com.microsoft beside onnxruntime."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from beside_runtime import MICROSOFT, Row, check, prepared
from calculus import check_gradient, check_meta, check_vmap, floats
from one_node import Array
from onnxpress_adapters.errors import AdapterError

dice = random.Random(0)
rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def row(operator: str, *inputs: Array | None, **kw: Any) -> Row:
    return Row(operator, 1, kw, inputs, 1, MICROSOFT)


def crop_rows() -> Iterator[Row]:
    x, batch = normal(2, 3, 6, 7), np.array([1, 0, 1], np.int32)
    regions = np.array([[0.1, 0, 0.9, 1], [0.8, 0.7, 0.2, 0.1], [-0.2, 0.3, 0.5, 1.3]], np.float32)
    for mode in ("bilinear", "nearest"):
        for size in ((3, 4), (1, 2), (5, 1)):
            given = (x, regions, batch, np.array(size, np.int32))
            yield row("CropAndResize", *given, mode=mode, extrapolation_value=2.5)


def grid_rows() -> Iterator[Row]:
    x, grid = normal(2, 3, 5, 4), rng.uniform(-1.3, 1.3, (2, 3, 6, 2)).astype(np.float32)
    for mode in ("bilinear", "nearest", "bicubic"):
        for padding in ("zeros", "border", "reflection"):
            for corners in (0, 1):
                ways = {"mode": mode, "padding_mode": padding, "align_corners": corners}
                yield row("GridSample", x, grid, **ways)


def border_rows() -> Iterator[Row]:
    x = normal(2, 3, 4)
    for mode in ("constant", "edge", "reflect"):
        yield row("Pad", x, ints(0, 1, 2, 0, 0, 1), mode=mode)
    yield row("Pad", x, ints(0, 1, 2, 0, -1, 1), np.array(1.5, np.float32))
    yield row("Pad", x, ints(0, 1, 2, 0, 0, 1).reshape(1, 6), np.array([1.5], np.float32))
    image, kernel = normal(1, 2, 4, 5), normal(2, 3, 3, 2)
    ways = {"kernel_shape": [3, 2], "strides": [2, 1]}
    name = "ConvTransposeWithDynamicPads"
    yield row(name, image, kernel, ints(1, 0, 0, 1), normal(3), **ways)
    yield row(name, image, kernel, ints(0, 0, 0, 0), **ways, output_padding=[1, 0])


def word_rows() -> Iterator[Row]:
    words = np.array([[3, 1, 2, 0, 0], [1, 0, 0, 0, 0], [4, 4, 2, 1, 3], [2, 3, 0, 0, 0]], np.int32)
    yield row("WordConvEmbedding", words, normal(6, 1, 3, 4), normal(6), normal(5, 4))
    yield row("WordConvEmbedding", words, normal(6, 1, 2, 4), normal(6), normal(5, 4))


def drawn_mask(rank: int) -> Row:
    """Draw a pooling whose windows all begin where the mask allows."""
    sizes = [dice.randint(5, 8) for _ in range(rank)]
    kernel = [dice.randint(1, 3) for _ in range(rank)]
    ways = {
        "kernel_shape": kernel,
        "strides": [dice.randint(1, 2) for _ in range(rank)],
        "pads": [dice.randint(0, size - 1) for size in kernel + kernel],
    }
    mask = (rng.random((1, 1, *sizes)) < 0.7).astype(np.int32)
    return row("MaxpoolWithMask", normal(2, 3, *sizes), mask, **ways)


ROWS = [
    *crop_rows(),
    *grid_rows(),
    *border_rows(),
    *word_rows(),
    *(drawn_mask(rank) for rank in (1, 2, 3) for _ in range(5)),
]


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_is_vectorised_differentiable_and_keeps_its_device(chosen: Row) -> None:
    bound = prepared(chosen)
    check_vmap(bound)
    check_meta(bound)
    # A step from one entry to the next has no gradient in the place that is read.
    places = floats(bound)
    if chosen.attributes.get("mode") == "nearest":
        places = places[:1]
    assert check_gradient(bound, places)


def test_convolution_with_the_channels_last_is_that_with_them_first() -> None:
    """onnxruntime has a CPU kernel for it on some processors only."""
    x, w, bias, summand = normal(1, 2, 5, 4), normal(3, 2, 2, 2), normal(3), normal(1, 3, 4, 3)
    (wanted,) = prepared(row("FusedConv", x, w, bias, summand, activation="Relu")).run()
    last = [np.ascontiguousarray(np.moveaxis(value, 1, -1)) for value in (x, summand)]
    chosen = row("NhwcFusedConv", last[0], w, bias, last[1], activation="Relu")
    (found,) = prepared(chosen).run()
    (bare,) = prepared(chosen._replace(inputs=(last[0], w))).run()
    assert found is not None
    assert wanted is not None
    assert bare is not None
    torch.testing.assert_close(torch.movedim(found, -1, 1), wanted)
    assert bare.shape == found.shape


def test_what_onnxpress_does_not_know_is_named() -> None:
    crop = next(crop_rows())
    with pytest.raises(AdapterError, match="CropAndResize 'here' has the unknown mode 'cubic'"):
        prepared(crop._replace(attributes={"mode": "cubic"})).run()
    mask = np.ones((1, 3, 4), np.int32)
    with pytest.raises(AdapterError, match=r"MaxpoolWithMask 'here' has a mask of \[1, 3, 4\]"):
        prepared(row("MaxpoolWithMask", normal(2, 3, 4), mask, kernel_shape=[2])).run()
