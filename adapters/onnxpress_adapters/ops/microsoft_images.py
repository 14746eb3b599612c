"""Images in com.microsoft: regions cut out, windows and borders, kernels over letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT
from onnxpress_adapters.ops.conv import bordered, conv_transpose, fused_conv, window
from onnxpress_adapters.ops.grid import grid_sample
from onnxpress_adapters.ops.pool import counts_of_windows
from onnxpress_adapters.ops.shape import numbers, pad
from onnxpress_adapters.registry import converter

converter("GridSample", domain=MICROSOFT)(grid_sample)


@converter("Pad", domain=MICROSOFT, host=(1, 2))
def padded(node: NodeView, x: Tensor, pads: np.ndarray, value: np.ndarray | None = None) -> Tensor:
    """Add a border to every axis; a negative width cuts."""
    result: Tensor = pad(node, x, pads.reshape(-1), value)
    return result


@converter("ConvTransposeWithDynamicPads", domain=MICROSOFT, host=(2,))
def conv_transpose_with_dynamic_pads(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    pads: np.ndarray | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Transposed convolution whose pads are an input."""
    if pads is not None:
        node = replace(node, attributes={**node.attributes, "pads": numbers(pads)})
    result: Tensor = conv_transpose(node, x, w, bias)
    return result


@converter("NhwcFusedConv", domain=MICROSOFT)
def nhwc_fused_conv(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    summand: Tensor | None = None,
) -> Tensor:
    """FusedConv with the channels of input, summand and result last."""
    first = None if summand is None else torch.movedim(summand, -1, 1)
    return torch.movedim(fused_conv(node, torch.movedim(x, -1, 1), w, bias, first), 1, -1)


def sampled(start: Tensor, end: Tensor, size: int, count: int) -> Tensor:
    """Give positions of samples along an axis of an image, the corners of a region included.

    Args:
        start: of each region, from 0 to 1, ``[regions]``.
        end: of each region.
        size: of the image.
        count: samples per region; a lone one stands in the middle.
    """
    last = size - 1
    if count == 1:
        return (0.5 * (start + end) * last).unsqueeze(1)
    step = (end - start) * last / (count - 1)
    order = torch.arange(count - 1, dtype=start.dtype, device=start.device)
    inner = (start * last).unsqueeze(1) + order * step.unsqueeze(1)
    return torch.cat([inner, (end * last).unsqueeze(1)], 1)


@converter("CropAndResize", domain=MICROSOFT, host=(3,))
def crop_and_resize(
    node: NodeView, x: Tensor, regions: Tensor, batch: Tensor, size: np.ndarray
) -> Tensor:
    """Cut regions ``[[y1, x1, y2, x2], ...]`` out of images and bring them to one size.

    Raises:
        AdapterError: the node samples in a way onnxpress does not know.
    """
    mode = node.get("mode", "bilinear")
    if mode not in ("bilinear", "nearest"):
        raise AdapterError(f"{node} has the unknown mode '{mode}'; it is bilinear or nearest")
    rows, columns = numbers(size)
    height, width = x.shape[2:]
    own = x[batch.to(torch.int64)]
    y = sampled(regions[:, 0], regions[:, 2], height, rows)
    z = sampled(regions[:, 1], regions[:, 3], width, columns)
    outside = ((y < 0) | (y > height - 1)).unsqueeze(2) | ((z < 0) | (z > width - 1)).unsqueeze(1)
    y, z = y.clamp(0, height - 1), z.clamp(0, width - 1)

    def read(values: Tensor, place: Tensor, axis: int) -> Tensor:
        shape = [*values.shape]
        shape[axis] = place.shape[1]
        turned = place.to(torch.int64).unsqueeze(1).unsqueeze(1)
        wide = turned.transpose(2, 3) if axis == 2 else turned
        return torch.gather(values, axis, wide.expand(shape))

    def between(values: Tensor, place: Tensor, axis: int) -> Tensor:
        if mode == "nearest":
            return read(values, torch.floor(place + 0.5), axis)
        share = (place - torch.floor(place)).unsqueeze(1).unsqueeze(1)
        share = share.transpose(2, 3) if axis == 2 else share
        low, high = (read(values, edge(place), axis) for edge in (torch.floor, torch.ceil))
        return low + (high - low) * share

    result = between(between(own, z, 3), y, 2)
    return torch.where(outside.unsqueeze(1), node.get("extrapolation_value", 0.0), result)


def strided(x: Tensor, axis: int, start: int, count: int, stride: int) -> Tensor:
    """Take every ``stride``-th entry of an axis."""
    stop = start + (count - 1) * stride + 1
    return x[(slice(None),) * axis + (slice(start, stop, stride),)]


@converter("MaxpoolWithMask", domain=MICROSOFT)
def maxpool_with_mask(node: NodeView, x: Tensor, mask: Tensor) -> Tensor:
    """Largest entry of each window; a window's row ends where the mask is zero.

    Raises:
        AdapterError: the mask differs between channels, where onnxruntime reads beside it.
    """
    if mask.shape[0] * mask.shape[1] != 1:
        raise AdapterError(
            f"{node} has a mask of {list(mask.shape)}; it must be one for all samples and channels"
        )
    rank = x.dim() - 2
    place = window(node, x.shape[2:], ())
    counts = counts_of_windows(node, x.shape[2:], place)
    lowest = torch.finfo(x.dtype).min
    kept = mask != 0
    if rank > 1:
        # In more than one dimension onnxruntime does not ask for the very first entry.
        first = torch.arange(kept.numel(), device=x.device) == 0
        kept = kept | first.reshape(kept.shape)
    best = bordered(x, place.begins, place.ends, lowest)
    alive = bordered(kept.to(x.dtype), place.begins, place.ends, 1.0)
    return _pooled(best, alive, place.kernel, place.strides, counts, lowest)


def _pooled(
    x: Tensor,
    alive: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    counts: Sequence[int],
    lowest: float,
) -> Tensor:
    """Take the largest entries of rows as far as they are alive, then over the other axes."""
    axis = x.dim() - 1
    open_, result = None, torch.full((), lowest, dtype=x.dtype, device=x.device)
    for at in range(kernel[-1]):
        here = strided(alive, axis, at, counts[-1], strides[-1]) != 0
        open_ = here if open_ is None else open_ & here
        entry = strided(x, axis, at, counts[-1], strides[-1])
        result = torch.maximum(result, torch.where(open_, entry, lowest))
    for back in range(2, len(kernel) + 1):
        parts = [
            strided(result, x.dim() - back, at, counts[-back], strides[-back])
            for at in range(kernel[-back])
        ]
        result = torch.stack(parts).amax(0)
    return result


@converter("WordConvEmbedding", domain=MICROSOFT)
def word_conv_embedding(
    node: NodeView, words: Tensor, w: Tensor, bias: Tensor, letters: Tensor
) -> Tensor:
    """Embed words ``[words, letters]`` by a convolution over their letters; 0 is no letter.

    The kernel is ``[features, 1, window, size of a letter]``; of all places of the window, the
    largest answer counts. A word without letters gives zeros.
    """
    width = w.shape[2]
    length = torch.where(words[:, 0] > 0, torch.sum(words > 0, 1), 0)
    embedding = letters[words.to(torch.int64)].unsqueeze(1)
    answers = torch.tanh(functional.conv2d(embedding, w, bias)).squeeze(3)
    used = length.clamp(min=width) - width + 1
    place = torch.arange(answers.shape[2], device=w.device)
    beyond = (place >= used.unsqueeze(1)).unsqueeze(1)
    best = torch.where(beyond, -torch.inf, answers).amax(2)
    return torch.where((length > 0).unsqueeze(1), best, 0.0)
