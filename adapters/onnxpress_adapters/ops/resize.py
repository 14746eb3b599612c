"""Resize and Upsample: one axis after the other, by places and weights found on the host.

Every axis is resized by ``y_i = sum_t weight[i, t] x[place[i, t]]``. Places and weights depend on
sizes and scales only, so a tensor sees nothing but ``index_select``, products and sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.shape import numbers, take
from onnxpress_adapters.registry import converter


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        place: which axis of the tensor.
        size: of the input.
        count: of the output.
        scale: output over input as the model states it, which rounding may part from the ratio
            of the sizes.
        start: of the region of interest, as a share of the input.
        end: of the region of interest.
    """

    place: int
    size: int
    count: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Rules:
    """How a node turns output places into input places, and those into entries.

    Attributes:
        mode: ``nearest``, ``linear`` or ``cubic``.
        coordinates: the ``coordinate_transformation_mode``.
        rounding: the ``nearest_mode``; ``simple`` is what opset 10 did.
        cubic_a: the coefficient of the cubic kernel.
        exclude_outside: whether places outside weigh nothing, rather than repeat the border.
        antialias: whether kernels widen where the axis shrinks.
        extrapolation: value outside the region, for ``tf_crop_and_resize``.
    """

    mode: str
    coordinates: str
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0


# onnxruntime works in float32 here, and at a tie the last bit decides between two neighbours.
Coordinates = np.ndarray


def _half_pixel(places: Coordinates, axis: Axis) -> Coordinates:
    return (places + np.float32(0.5)) / np.float32(axis.scale) - np.float32(0.5)


def _half_pixel_symmetric(places: Coordinates, axis: Axis) -> Coordinates:
    adjustment = axis.count / (axis.scale * axis.size)
    offset = np.float32(axis.size / 2 * (1 - adjustment))
    return offset + _half_pixel(places, axis)


def _pytorch_half_pixel(places: Coordinates, axis: Axis) -> Coordinates:
    return _half_pixel(places, axis) if axis.count > 1 else np.zeros_like(places)


def _align_corners(places: Coordinates, axis: Axis) -> Coordinates:
    if axis.count == 1:
        return np.zeros_like(places)
    return places * np.float32(axis.size - 1) / np.float32(axis.count - 1)


def _asymmetric(places: Coordinates, axis: Axis) -> Coordinates:
    return places / np.float32(axis.scale)


def _half_pixel_for_nearest(places: Coordinates, axis: Axis) -> Coordinates:
    return (places + np.float32(0.5)) / np.float32(axis.scale)


def _crop(places: Coordinates, axis: Axis) -> Coordinates:
    last = np.float32(axis.size - 1)
    start, end = np.float32(axis.start), np.float32(axis.end)
    if axis.count == 1:
        return np.full_like(places, np.float32(0.5) * (start + end) * last)
    return start * last + places * (end - start) * last / np.float32(axis.count - 1)


COORDINATES: dict[str, Callable[[Coordinates, Axis], Coordinates]] = {
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "tf_crop_and_resize": _crop,
    "tf_half_pixel_for_nn": _half_pixel_for_nearest,
}

ROUNDINGS: dict[str, Callable[[Coordinates, Axis], Coordinates]] = {
    "ceil": lambda at, axis: np.ceil(at),
    "floor": lambda at, axis: np.floor(at),
    "round_prefer_ceil": lambda at, axis: np.floor(at + np.float32(0.5)),
    "round_prefer_floor": lambda at, axis: np.ceil(at - np.float32(0.5)),
    "simple": lambda at, axis: np.ceil(at) if axis.scale < 1 else np.floor(at),
}


def _triangle(distance: Coordinates, rules: Rules) -> Coordinates:
    weights: Coordinates = np.maximum(1 - np.abs(distance), 0)
    return weights


def _cubic(distance: Coordinates, rules: Rules) -> Coordinates:
    a, x = rules.cubic_a, np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


# The kernel, and how far it reaches to each side.
KERNELS: dict[str, tuple[Callable[[Coordinates, Rules], Coordinates], int]] = {
    "cubic": (_cubic, 2),
    "linear": (_triangle, 1),
}


@lru_cache(maxsize=256)
def taps(axis: Axis, rules: Rules) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Give places ``[count, taps]``, weights ``[count, taps]`` and which outputs lie inside.

    Weights are None for ``nearest``; the last array is bool ``[count]``.
    """
    at = COORDINATES[rules.coordinates](np.arange(axis.count, dtype=np.float32), axis)
    inside = (at >= 0) & (at <= axis.size - 1)
    if rules.mode == "nearest":
        nearest = ROUNDINGS[rules.rounding](at, axis).clip(0, axis.size - 1)
        return nearest.astype(np.int64)[:, None], None, inside
    kernel, reach = KERNELS[rules.mode]
    shrink = min(axis.scale, 1.0) if rules.antialias else 1.0
    first = math.floor(-reach / shrink) + 1
    base = np.floor(at)
    places = base[:, None] + np.arange(first, 2 - first)
    weights = kernel((places - at[:, None].astype(np.float64)) * shrink, rules)
    if rules.exclude_outside:
        weights = np.where((places >= 0) & (places < axis.size), weights, 0.0)
    total = weights.sum(1, keepdims=True)
    # Nothing inside: the output is extrapolated, and zeros keep NaN out of gradients.
    weights = weights / np.where(total == 0, 1.0, total)
    return places.clip(0, axis.size - 1).astype(np.int64), weights, inside


def resized(node: NodeView, x: Tensor, axes: Sequence[Axis], rules: Rules) -> Tensor:
    """Resize the axes of a tensor one after the other.

    Raises:
        AdapterError: a mode is none that ONNX knows.
    """
    known = (
        (rules.mode, ("nearest", *KERNELS)),
        (rules.coordinates, COORDINATES),
        (rules.rounding, ROUNDINGS),
    )
    for name, names in known:
        if name not in names:
            raise AdapterError(f"{node} resizes by the unknown mode '{name}'")
    result = x if x.is_floating_point() or rules.mode == "nearest" else x.to(torch.float32)
    crops = rules.coordinates == "tf_crop_and_resize"
    for axis in axes:
        if axis.count == axis.size and axis.scale == 1:
            # A region of interest has no say here either: so onnxruntime does it.
            continue
        places, weights, inside = taps(axis, rules)
        shape = [1] * x.dim()
        shape[axis.place] = axis.count
        result = _weighted(result, axis.place, places, weights, shape)
        if crops and not inside.all():
            kept = torch.as_tensor(inside, device=x.device).reshape(shape)
            result = torch.where(kept, result, rules.extrapolation)
    return result.to(x.dtype)


def _weighted(
    x: Tensor, place: int, places: np.ndarray, weights: np.ndarray | None, shape: Sequence[int]
) -> Tensor:
    if weights is None:
        times = len(places) // max(1, x.shape[place])
        if times > 1 and np.array_equal(places[:, 0], np.arange(x.shape[place]).repeat(times)):
            return _repeated(x, place, times)
        return take(x, place, places[:, 0])
    factors = torch.as_tensor(weights, dtype=x.dtype, device=x.device)
    result = take(x, place, places[:, 0]) * factors[:, 0].reshape(shape)
    for tap in range(1, places.shape[1]):
        result = result + take(x, place, places[:, tap]) * factors[:, tap].reshape(shape)
    return result


def _repeated(x: Tensor, place: int, times: int) -> Tensor:
    """Repeat each entry of an axis: five times as fast as picking them by their places."""
    tall = x.unsqueeze(place + 1)
    return tall.expand(*tall.shape[: place + 1], times, *tall.shape[place + 2 :]).flatten(
        place, place + 1
    )


def rounded_down(size: int, scale: float) -> int:
    """Scale a size; in float32, as onnxruntime does, where five times 0.6 is three."""
    return math.floor(np.float32(size) * np.float32(scale))


def scaled_axes(x: Tensor, scales: Sequence[float]) -> list[Axis]:
    """Give one axis per scale, over all axes of ``x``; sizes are rounded down."""
    sized = zip(x.shape, scales, strict=True)
    return [
        Axis(place, size, rounded_down(size, scale), float(scale))
        for place, (size, scale) in enumerate(sized)
    ]


@converter("Upsample", until=6)
def upsample_first(node: NodeView, x: Tensor) -> Tensor:
    """Enlarge images by the attributes ``height_scale`` and ``width_scale``."""
    scales = (1.0, 1.0, node.get("height_scale"), node.get("width_scale"))
    return _upsample(node, x, scales)


@converter("Upsample", since=7, until=8)
def upsample_old(node: NodeView, x: Tensor) -> Tensor:
    """Enlarge by scales given as an attribute."""
    return _upsample(node, x, node.get("scales"))


@converter("Upsample", since=9, host=(1,))
def upsample(node: NodeView, x: Tensor, scales: np.ndarray) -> Tensor:
    """Enlarge by scales given as an input."""
    return _upsample(node, x, scales.reshape(-1).tolist())


@converter("Resize", since=10, until=10, host=(1,))
def resize_first(node: NodeView, x: Tensor, scales: np.ndarray) -> Tensor:
    """Resize the way opset 10 did: corner to corner, shrinking by rounding up."""
    return _upsample(node, x, scales.reshape(-1).tolist())


def _upsample(node: NodeView, x: Tensor, scales: Sequence[float]) -> Tensor:
    mode = node.get("mode", "nearest").replace("bilinear", "linear")
    return resized(node, x, scaled_axes(x, scales), Rules(mode, "asymmetric", "simple"))


@converter("Resize", since=11, host=(1, 2, 3))
def resize(
    node: NodeView,
    x: Tensor,
    region: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
) -> Tensor:
    """Resize some axes by scales or to sizes.

    Raises:
        AdapterError: there are neither scales nor sizes.
    """
    rules = Rules(
        mode=node.get("mode", "nearest"),
        coordinates=node.get("coordinate_transformation_mode", "half_pixel"),
        rounding=node.get("nearest_mode", "round_prefer_floor"),
        cubic_a=node.get("cubic_coeff_a", -0.75),
        exclude_outside=bool(node.get("exclude_outside", 0)),
        antialias=bool(node.get("antialias", 0)),
        extrapolation=node.get("extrapolation_value", 0.0),
    )
    places = [axis % x.dim() for axis in node.get("axes") or range(x.dim())]
    inputs = [x.shape[place] for place in places]
    starts, ends = [0.0] * len(places), [1.0] * len(places)
    if rules.coordinates == "tf_crop_and_resize" and region is not None and region.size:
        corners = region.reshape(-1).astype(np.float64).tolist()
        starts, ends = corners[: len(places)], corners[len(places) :]
    if scales is not None and scales.size:
        ratios = [float(scale) for scale in scales.reshape(-1)]
        counts = [rounded_down(size, ratio) for size, ratio in zip(inputs, ratios, strict=True)]
    elif sizes is not None and sizes.size:
        counts, ratios = _kept_aspect(node, inputs, numbers(sizes))
    else:
        raise AdapterError(f"{node} has neither scales nor sizes; the model is incomplete")
    parts = zip(places, inputs, counts, ratios, starts, ends, strict=True)
    return resized(node, x, [Axis(*part) for part in parts], rules)


def _kept_aspect(
    node: NodeView, inputs: Sequence[int], wanted: Sequence[int]
) -> tuple[list[int], list[float]]:
    """Turn wanted sizes into counts and scales, under the node's aspect ratio policy."""
    ratios = [count / size for count, size in zip(wanted, inputs, strict=True)]
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return list(wanted), ratios
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [math.floor(size * ratio + 0.5) for size in inputs], [ratio] * len(inputs)
