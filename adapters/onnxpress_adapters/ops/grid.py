"""Reading tensors between their entries: sampling grids, and convolutions whose kernels bend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.conv import window
from onnxpress_adapters.ops.shape import numbers
from onnxpress_adapters.registry import converter

MODES = {
    "bicubic": "cubic",
    "bilinear": "linear",
    "cubic": "cubic",
    "linear": "linear",
    "nearest": "nearest",
}
"""Modes of GridSample; opset 16 named those of images."""

PADDINGS = ("zeros", "border", "reflection")

NATIVE = {("linear", 2): "bilinear", ("linear", 3): "bilinear", ("cubic", 2): "bicubic"}
"""What torch samples itself, by mode and spatial axes, and what it calls the mode."""

CUBIC = -0.75


@converter("AffineGrid", host=(1,))
def affine_grid(node: NodeView, theta: Tensor, size: np.ndarray) -> Tensor:
    """Apply affine maps ``[batch, rank, rank + 1]`` to evenly spaced positions from -1 to 1."""
    sizes = numbers(size)[2:]
    axes = [_evenly(count, bool(node.get("align_corners", 0)), theta) for count in sizes]
    # Positions name the last axis first.
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    linear, shift = theta[..., :-1], theta[..., -1:]
    flat = places.reshape(-1, len(sizes))
    moved = torch.matmul(flat, linear.transpose(-1, -2)) + shift.transpose(-1, -2)
    return moved.reshape(theta.shape[:1] + places.shape)


def _evenly(count: int, corners: bool, like: Tensor) -> Tensor:
    """Give the positions of entries along an axis that reaches from -1 to 1."""
    steps = torch.arange(count, dtype=like.dtype, device=like.device)
    if corners:
        # A lone entry is both ends; onnxruntime takes the far one, the reference the near one.
        return 2 * steps / (count - 1) - 1 if count > 1 else steps + 1
    return (2 * steps + 1) / count - 1


@converter("GridSample")
def grid_sample(node: NodeView, x: Tensor, grid: Tensor) -> Tensor:
    """Read ``x`` ``[batch, channels, ...]`` at positions ``[batch, ..., rank]`` from -1 to 1.

    Raises:
        AdapterError: a mode is none that ONNX knows.
    """
    asked, padding = node.get("mode", "linear"), node.get("padding_mode", "zeros")
    if asked not in MODES or padding not in PADDINGS:
        raise AdapterError(
            f"{node} samples by mode '{asked}' and padding '{padding}', which are not both ONNX's"
        )
    mode, corners = MODES[asked], bool(node.get("align_corners", 0))
    positions = torch.promote_types(grid.dtype, torch.float32)
    whole = not (x.is_floating_point() or x.is_complex())
    working = torch.float64 if whole else torch.promote_types(x.dtype, positions)
    values, places = x.to(working), grid.to(working.to_real())
    rank = x.dim() - 2
    if (mode, rank) in NATIVE and not x.is_complex():
        result = functional.grid_sample(values, places, NATIVE[mode, rank], padding, corners)
        return result.to(x.dtype)
    flat = places.reshape(grid.shape[0], -1, rank).flip(-1)
    axes = []
    for place, size in enumerate(x.shape[2:]):
        at = flat[..., place]
        at = (at + 1) / 2 * (size - 1) if corners else ((at + 1) * size - 1) / 2
        axes.append(_axis(at, size, mode, padding, corners))
    result = read_between(values, axes)
    return result.reshape(x.shape[:2] + grid.shape[1:-1]).to(x.dtype)


Taps = list[tuple[Tensor, Tensor | None]]
"""How one axis is read: places and their weights, ``[batch, points]``; None weighs one."""


def _axis(at: Tensor, size: int, mode: str, padding: str, corners: bool) -> Taps:
    """Say which entries of an axis make up a value at each position, and in which shares."""
    if mode == "nearest":
        return [_bounded(torch.round(at), None, size, padding, corners)]
    if mode == "linear" and padding != "zeros":
        at = _inside(at, size, padding, corners)
    first = torch.floor(at)
    t = at - first
    if mode == "linear":
        weights = [1 - t, t]
    else:
        weights = [_far(1 + t), _near(t), _near(1 - t), _far(2 - t)]
        first = first - 1
    return [
        _bounded(first + step, weight, size, padding, corners)
        for step, weight in enumerate(weights)
    ]


def _near(t: Tensor) -> Tensor:
    """Weigh an entry up to one place away."""
    return ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1


def _far(t: Tensor) -> Tensor:
    """Weigh an entry one to two places away."""
    return ((CUBIC * t - 5 * CUBIC) * t + 8 * CUBIC) * t - 4 * CUBIC


def _bounded(
    place: Tensor, weight: Tensor | None, size: int, padding: str, corners: bool
) -> tuple[Tensor, Tensor | None]:
    """Pull a place into the axis, or let it weigh nothing outside."""
    if padding == "zeros":
        inside = (place >= 0) & (place <= size - 1)
        one = torch.ones_like(place) if weight is None else weight
        weight = torch.where(inside, one, 0.0)
    else:
        place = _inside(place, size, padding, corners)
    return place.clamp(0, size - 1).to(torch.int64), weight


def _inside(at: Tensor, size: int, padding: str, corners: bool) -> Tensor:
    """Pull positions into an axis: to its border, or by reflection."""
    if padding == "border":
        return at.clamp(0, size - 1)
    low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
    span = high - low
    if span == 0:
        return torch.zeros_like(at)
    distance = torch.abs(at - low)
    turns = torch.floor(distance / span)
    rest = distance - turns * span
    back = torch.where(torch.remainder(turns, 2) == 0, low + rest, high - rest)
    return back.clamp(0, size - 1)


def read_between(x: Tensor, axes: Sequence[Taps]) -> Tensor:
    """Sum weighted entries, with the weights of all axes multiplied.

    Args:
        x: ``[batch, channels, *sizes]``.
        axes: for each spatial axis, its taps.

    Returns:
        ``[batch, channels, points]``.
    """
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    parts = []
    for taps in itertools.product(*axes):
        places = torch.zeros_like(taps[0][0])
        for (place, _), size in zip(taps, x.shape[2:], strict=True):
            places = places * size + place
        value = torch.gather(flat, 2, places.unsqueeze(1).expand(-1, x.shape[1], -1))
        weights = [weight for _, weight in taps if weight is not None]
        if weights:
            value = value * reduce(torch.mul, weights).unsqueeze(1)
        parts.append(value)
    return reduce(torch.add, parts)


@converter("DeformConv")
def deform_conv(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve, with every entry of the kernel moved by its own offset at every place.

    Offsets are ``[batch, offset groups x kernel x rank, ...]``, masks the same without the rank;
    a position between entries is read linearly, and counts zero outside.
    """
    sizes, kernel, places = x.shape[2:], w.shape[2:], offset.shape[2:]
    rank, batch, steps = len(sizes), x.shape[0], math.prod(kernel)
    shared, groups = node.get("offset_group", 1), node.get("group", 1)
    how = window(node, sizes, kernel)
    moves = offset.reshape(batch * shared, steps, rank, *places)
    axes = []
    for axis, size in enumerate(sizes):
        starts = torch.arange(places[axis], device=x.device) * how.strides[axis]
        begins = starts.reshape((-1,) + (1,) * (rank - 1 - axis)) - how.begins[axis]
        inner = torch.arange(kernel[axis], device=x.device) * how.dilations[axis]
        repeats = math.prod(kernel[axis + 1 :])
        inner = inner.repeat_interleave(repeats).repeat(steps // (kernel[axis] * repeats))
        at = moves[:, :, axis] + begins + inner.reshape((-1,) + (1,) * rank)
        axes.append(_axis(at.flatten(1), size, "linear", "zeros", True))
    grouped = x.reshape(batch * shared, -1, *sizes)
    columns = read_between(grouped, axes)
    if mask is not None:
        columns = columns * mask.reshape(batch * shared, 1, -1)
    # [batch, groups, channels of a group x kernel, places]
    columns = columns.reshape(batch, groups, -1, math.prod(places))
    result = torch.matmul(w.reshape(groups, w.shape[0] // groups, -1), columns)
    result = result.reshape(batch, w.shape[0], *places)
    return result if bias is None else result + bias.reshape((-1,) + (1,) * rank)
