"""Pooling: the largest, mean or p-norm of each window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.conv import Window, bordered, of_rank, window
from onnxpress_adapters.registry import converter

MAX: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
AVERAGE: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}


def counts_of_windows(node: NodeView, spatial: Sequence[int], place: Window) -> tuple[int, ...]:
    """Give the output sizes; ``ceil_mode`` rounds up, but no window starts behind the input."""
    sizes = []
    for size, stride, reach, begin, end in zip(
        spatial, place.strides, place.reach, place.begins, place.ends, strict=True
    ):
        span = size + begin + end - reach
        count = span // stride + 1
        if node.get("ceil_mode", 0) and node.get("auto_pad", "NOTSET") == "NOTSET":
            count = -(-span // stride) + 1
            if (count - 1) * stride >= size + begin:
                count -= 1
        sizes.append(count)
    return tuple(sizes)


def _ends(spatial: Sequence[int], place: Window, counts: Sequence[int]) -> tuple[int, ...]:
    """Give the border behind the input that the last window needs."""
    return tuple(
        max(end, (count - 1) * stride + reach - size - begin)
        for size, stride, reach, begin, end, count in zip(
            spatial, place.strides, place.reach, place.begins, place.ends, counts, strict=True
        )
    )


def _is_plain(place: Window, ends: Sequence[int]) -> bool:
    """Tell whether torch's own padding says the same."""
    pairs = zip(place.begins, place.kernel, strict=True)
    return place.begins == tuple(ends) and all(0 <= 2 * begin <= size for begin, size in pairs)


@converter("MaxPool")
def max_pool(node: NodeView, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Largest entry of each window, and where asked for its place in the flat input."""
    rank = x.dim() - 2
    pool = of_rank(node, MAX, rank)
    place = window(node, x.shape[2:], ())
    ends = _ends(x.shape[2:], place, counts_of_windows(node, x.shape[2:], place))
    # The small integers are exact in float32, which torch can pool.
    source = x if x.is_floating_point() else x.to(torch.float32)
    padding = place.begins
    if not _is_plain(place, ends):
        source, padding = bordered(source, place.begins, ends, -torch.inf), (0,) * rank
    wants_places = len(node.outputs) > 1 and bool(node.outputs[1])
    if not wants_places:
        result = pool(source, place.kernel, place.strides, padding, place.dilations)
        return result.to(x.dtype), None
    result, flat = pool(
        source, place.kernel, place.strides, padding, place.dilations, return_indices=True
    )
    # torch counts within one padded channel, ONNX within the whole unpadded tensor.
    shifts = (0,) * rank if _is_plain(place, ends) else place.begins
    return result.to(x.dtype), _whole_places(node, flat, source.shape, x.shape, shifts)


def _whole_places(
    node: NodeView, flat: Tensor, padded: torch.Size, shape: torch.Size, shifts: Sequence[int]
) -> Tensor:
    """Turn places within a padded channel into places within the whole tensor."""
    axes = []
    for size, shift in zip(reversed(padded[2:]), reversed(shifts), strict=True):
        axes.append(flat % size - shift)
        flat = torch.div(flat, size, rounding_mode="floor")
    sizes = list(shape[2:])
    axes.reverse()
    if node.get("storage_order", 0):
        axes.reverse()
        sizes.reverse()
    place = torch.zeros_like(flat)
    for axis, size in zip(axes, sizes, strict=True):
        place = place * size + axis
    channels = shape[0] * shape[1]
    first = torch.arange(channels, device=flat.device) * math.prod(sizes)
    return place + first.reshape(tuple(shape[:2]) + (1,) * len(sizes))


@converter("MaxUnpool", host=(2,))
def max_unpool(
    node: NodeView, x: Tensor, places: Tensor, output_shape: np.ndarray | None = None
) -> Tensor:
    """Put the entries back where MaxPool found them, zeros elsewhere."""
    place = window(node, x.shape[2:], ())
    sizes = [
        (size - 1) * stride + reach - begin - end
        for size, stride, reach, begin, end in zip(
            x.shape[2:], place.strides, place.reach, place.begins, place.ends, strict=True
        )
    ]
    inner = tuple(x.shape[:2]) + tuple(sizes)
    outer = inner if output_shape is None else tuple(int(v) for v in output_shape)
    # The places count within the tensor that was pooled: larger than `inner` where a remainder
    # of the axes fell outside every window.
    flat = x.new_zeros(math.prod(outer))
    return torch.scatter(flat, 0, places.reshape(-1), x.reshape(-1)).reshape(outer)


def sum_windows(x: Tensor, place: Window, counts: Sequence[int]) -> Tensor:
    """Add up each window of the padded ``x``, one spatial axis after the other."""
    first = x.dim() - len(counts)
    for axis, (size, stride, step, count) in enumerate(
        zip(place.kernel, place.strides, place.dilations, counts, strict=True), start=first
    ):
        parts = [
            x[(slice(None),) * axis + (slice(at, at + (count - 1) * stride + 1, stride),)]
            for at in range(0, size * step, step)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        x = total
    return x


@converter("AveragePool")
def average_pool(node: NodeView, x: Tensor) -> Tensor:
    """Mean of each window; the border counts only with ``count_include_pad``."""
    spatial = x.shape[2:]
    place = window(node, spatial, ())
    counts = counts_of_windows(node, spatial, place)
    ends = _ends(spatial, place, counts)
    include = bool(node.get("count_include_pad", 0))
    # With no border at all there is nothing to include.
    if len(spatial) in AVERAGE and _is_plain(place, ends) and set(place.dilations) <= {1}:
        pool = AVERAGE[len(spatial)]
        return pool(
            x, place.kernel, place.strides, place.begins, False, include or not any(place.begins)
        )
    divisor = np.ones(())
    for axis, count in enumerate(counts):
        low = -place.begins[axis] if include else 0
        high = spatial[axis] + (place.ends[axis] if include else 0)
        starts = np.arange(count) * place.strides[axis] - place.begins[axis]
        entries = starts[:, None] + np.arange(place.kernel[axis]) * place.dilations[axis]
        divisor = divisor[..., None] * ((entries >= low) & (entries < high)).sum(1)
    total = sum_windows(bordered(x, place.begins, ends), place, counts)
    return total / torch.as_tensor(divisor, dtype=x.dtype, device=x.device)


@converter("LpPool")
def lp_pool(node: NodeView, x: Tensor) -> Tensor:
    """p-norm of each window."""
    place = window(node, x.shape[2:], ())
    counts = counts_of_windows(node, x.shape[2:], place)
    power = node.get("p", 2)
    padded = bordered(x, place.begins, _ends(x.shape[2:], place, counts))
    return root(sum_windows(torch.abs(padded) ** power, place, counts), power)


def root(x: Tensor, power: float) -> Tensor:
    """Take the root of sums of powers; its slope at zero is zero rather than infinite."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0) ** (1 / power), 0.0)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


@converter("GlobalAveragePool")
def global_average_pool(node: NodeView, x: Tensor) -> Tensor:
    """Mean of each channel, with spatial axes of size one."""
    return torch.mean(x, _spatial(x), keepdim=True)


@converter("GlobalMaxPool")
def global_max_pool(node: NodeView, x: Tensor) -> Tensor:
    """Largest entry of each channel, with spatial axes of size one."""
    return torch.amax(x, _spatial(x), keepdim=True)


@converter("GlobalLpPool")
def global_lp_pool(node: NodeView, x: Tensor) -> Tensor:
    """p-norm of each channel, with spatial axes of size one."""
    power = node.get("p", 2)
    return root(torch.sum(torch.abs(x) ** power, _spatial(x), keepdim=True), power)
