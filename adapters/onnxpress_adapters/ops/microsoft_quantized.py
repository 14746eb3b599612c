"""Operators of com.microsoft on 8-bit numbers that stand for real ones: sums, pools, activations.

They compute in float32, as onnxruntime does, and round at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT
from onnxpress_adapters.ops.conv import bordered, window
from onnxpress_adapters.ops.integer import centred, factor_of, requantised, single
from onnxpress_adapters.ops.pool import average_pool, counts_of_windows, max_pool, sum_windows
from onnxpress_adapters.ops.quantize import dequantize_linear, limits, quantize_linear
from onnxpress_adapters.registry import converter

converter("QuantizeLinear", domain=MICROSOFT)(quantize_linear)
converter("DequantizeLinear", domain=MICROSOFT)(dequantize_linear)


def real(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Give the real numbers that 8-bit ones stand for."""
    value = x.to(torch.float32)
    if zero_point is not None:
        value = value - single(zero_point).to(torch.float32)
    return value * single(scale)


def saturated(
    ratio: Tensor, zero_point: Tensor | None, like: Tensor, *, late: bool = False
) -> Tensor:
    """Round to 8-bit numbers.

    Args:
        ratio: real numbers over the step between two neighbours.
        zero_point: what stands for zero; 0 where None.
        like: of the type of the result.
        late: whether the zero point is added before the rounding, so that an odd one sends ties
            the other way.
    """
    shift = ratio.new_zeros(()) if zero_point is None else single(zero_point).to(ratio.dtype)
    whole = torch.round(ratio + shift) if late else torch.round(ratio) + shift
    return torch.clamp(whole, *limits(like.dtype)).to(like.dtype)


def coded(value: Tensor, scale: Tensor, zero_point: Tensor | None, like: Tensor) -> Tensor:
    """Give the 8-bit numbers, of the type of ``like``, that stand for real ones."""
    return saturated(value / single(scale), zero_point, like)


@converter("QLinearAdd", domain=MICROSOFT)
def qlinear_add(
    node: NodeView,
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    scale: Tensor,
    zero_point: Tensor | None = None,
) -> Tensor:
    """Add, with broadcasting."""
    total = real(a, a_scale, a_zero_point) + real(b, b_scale, b_zero_point)
    return saturated(total / single(scale), zero_point, a, late=True)


@converter("QLinearMul", domain=MICROSOFT)
def qlinear_mul(
    node: NodeView,
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    scale: Tensor,
    zero_point: Tensor | None = None,
) -> Tensor:
    """Multiply, with broadcasting."""
    product = (centred(a, a_zero_point) * centred(b, b_zero_point)).to(torch.float32)
    ratio = product * factor_of(a_scale, b_scale, scale)
    return saturated(ratio, zero_point, a, late=True)


def on_codes(
    function: Callable[[NodeView, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """Turn a function of real numbers into a converter of those that stand for them."""

    def run(
        node: NodeView,
        x: Tensor,
        x_scale: Tensor,
        x_zero_point: Tensor | None,
        scale: Tensor,
        zero_point: Tensor | None = None,
    ) -> Tensor:
        return coded(function(node, real(x, x_scale, x_zero_point)), scale, zero_point, x)

    return run


def leaky_relu(node: NodeView, x: Tensor) -> Tensor:
    """``x`` where positive, ``alpha x`` elsewhere."""
    return functional.leaky_relu(x, node.get("alpha", 0.01))


def mean(node: NodeView, x: Tensor) -> Tensor:
    """Average over axes."""
    return torch.mean(x, node.get("axes"), keepdim=bool(node.get("keepdims", 1)))


converter("QLinearLeakyRelu", domain=MICROSOFT)(on_codes(leaky_relu))
converter("QLinearReduceMean", domain=MICROSOFT)(on_codes(mean))
converter("QLinearSigmoid", domain=MICROSOFT)(on_codes(lambda node, x: torch.sigmoid(x)))


@converter("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(
    node: NodeView,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    scale: Tensor,
    zero_point: Tensor,
) -> Tensor:
    """Softmax along an axis, or as before opset 13 of ONNX along all axes from there on.

    onnxruntime takes a whole number of steps for one, rounded down.
    """
    axis = node.get("axis", -1) % x.dim()
    value = real(x, x_scale, x_zero_point)
    if node.get("opset", 13) >= 13:
        share = torch.softmax(value, axis)
    else:
        rows = value.reshape(math.prod(x.shape[:axis]), -1)
        share = torch.softmax(rows, 1).reshape(x.shape)
    return saturated(share * torch.floor(1 / single(scale)), zero_point, x)


def channels_first(node: NodeView, x: Tensor) -> Tensor:
    """Move the channels, where they stand last, behind the batch."""
    return torch.movedim(x, -1, 1) if node.get("channels_last", 0) else x


def channels_back(node: NodeView, x: Tensor) -> Tensor:
    """Undo ``channels_first``."""
    return torch.movedim(x, 1, -1) if node.get("channels_last", 0) else x


def mean_of_whole_windows(node: NodeView, x: Tensor) -> Tensor:
    """Mean of each window, the border and what lies behind it counted as zeros."""
    place = window(node, x.shape[2:], ())
    counts = counts_of_windows(node, x.shape[2:], place)
    extents = zip(x.shape[2:], place.strides, place.reach, place.begins, counts, strict=True)
    ends = [
        (count - 1) * stride + reach - begin - size for size, stride, reach, begin, count in extents
    ]
    return sum_windows(bordered(x, place.begins, ends), place, counts) / math.prod(place.kernel)


@converter("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(
    node: NodeView,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    scale: Tensor,
    zero_point: Tensor | None = None,
) -> Tensor:
    """Mean of each window."""
    pool = mean_of_whole_windows if node.get("count_include_pad", 0) else average_pool
    pooled = pool(node, channels_first(node, real(x, x_scale, x_zero_point)))
    return saturated(channels_back(node, pooled) / single(scale), zero_point, x, late=True)


@converter("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(
    node: NodeView,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    scale: Tensor,
    zero_point: Tensor,
) -> Tensor:
    """Mean of each channel, with spatial axes of size one."""
    exact = channels_first(node, centred(x, x_zero_point))
    axes = tuple(range(2, x.dim()))
    count = math.prod(exact.shape[2:])
    factor = single(x_scale) / (count * single(scale))
    total = torch.sum(exact, axes, keepdim=True)
    return channels_back(node, requantised(total, factor, zero_point))


@converter("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(node: NodeView, x: Tensor) -> Tensor:
    """Largest entry of each window; the channels stand last."""
    result, _ = max_pool(node, torch.movedim(x, -1, 1))
    return torch.movedim(result, 1, -1)


@converter("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(node: NodeView, scale: Tensor, zero_point: Tensor, *parts: Tensor) -> Tensor:
    """Join tensors along an axis; each comes with its scale and its zero point."""
    triples = zip(parts[0::3], parts[1::3], parts[2::3], strict=True)
    joined = [coded(real(*triple), scale, zero_point, zero_point) for triple in triples]
    return torch.cat(joined, node.get("axis"))


@converter("QLinearWhere", domain=MICROSOFT)
def qlinear_where(
    node: NodeView,
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    scale: Tensor,
    zero_point: Tensor,
) -> Tensor:
    """Choose between two tensors entry by entry, with broadcasting."""
    left = coded(real(x, x_scale, x_zero_point), scale, zero_point, zero_point)
    right = coded(real(y, y_scale, y_zero_point), scale, zero_point, zero_point)
    return torch.where(condition, left, right)
