"""Products of quantised numbers: exact sums first, then scales, in float32 as onnxruntime does.

float64 holds every sum of 8-bit products that fits into 32 bits, and torch multiplies and convolves
it on every device; it does so with integers on hardly any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.cast import to_dtype
from onnxpress_adapters.ops.conv import conv
from onnxpress_adapters.ops.quantize import limits
from onnxpress_adapters.registry import converter


def centred(x: Tensor, zero_point: Tensor | None) -> Tensor:
    """Give ``x - zero_point`` in float64, exactly; the zero point broadcasts."""
    value = x.to(torch.float64)
    return value if zero_point is None else value - single(zero_point).to(torch.float64)


def whole(x: Tensor) -> Tensor:
    """Give sums of whole numbers as int32, which wraps around where they need more bits."""
    # A convolution may go through a Fourier transform, whose error is far below a half.
    return torch.round(x).to(torch.int64).to(torch.int32)


def single(parameter: Tensor) -> Tensor:
    """Drop the axes of a scale or zero point that is one number."""
    return parameter.reshape(()) if parameter.numel() == 1 else parameter


def rows(parameter: Tensor) -> Tensor:
    """Shape a scale or zero point of a left matrix, a vector where there is one per row."""
    return parameter.unsqueeze(-1) if parameter.dim() == 1 else parameter


def channels(parameter: Tensor, behind: int) -> Tensor:
    """Shape a scale or zero point, one per channel, for a tensor with axes behind the channel."""
    return parameter.reshape((-1,) + (1,) * behind)


def requantised(total: Tensor, factor: Tensor, zero_point: Tensor) -> Tensor:
    """``saturate(round(total factor) + zero_point)`` in the type of the zero point.

    Args:
        total: sums of products, of any type.
        factor: float32, broadcasts over ``total``.
        zero_point: one number, of an 8-bit type.
    """
    shift = single(zero_point).to(torch.float32)
    value = total.to(torch.float32) * factor
    if zero_point.is_floating_point():
        return to_dtype(value + shift, zero_point.dtype, saturate=True)
    return torch.clamp(torch.round(value) + shift, *limits(zero_point.dtype)).to(zero_point.dtype)


def factor_of(first: Tensor, second: Tensor, result: Tensor) -> Tensor:
    """Give what a sum of products is multiplied by, from the scales of both sides and of the sum.

    In float32 and in this order, so that ties round as they do in onnxruntime.
    """
    left, right, whole_scale = (
        single(scale).to(torch.float32) for scale in (first, second, result)
    )
    return left * right / whole_scale


@converter("MatMulInteger")
def matmul_integer(
    node: NodeView,
    a: Tensor,
    b: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
) -> Tensor:
    """Multiply matrices of 8-bit numbers, each less its zero point, into 32-bit ones."""
    shift = None if a_zero_point is None else rows(a_zero_point)
    return whole(torch.matmul(centred(a, shift), centred(b, b_zero_point)))


@converter("ConvInteger")
def conv_integer(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
) -> Tensor:
    """Convolve 8-bit numbers, each less its zero point, into 32-bit ones; the border counts 0."""
    shift = None if w_zero_point is None else channels(w_zero_point, w.dim() - 1)
    weight = centred(w, shift)
    return whole(conv(node, centred(x, x_zero_point), weight))


@converter("QLinearConv")
def qlinear_conv(
    node: NodeView,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Convolve 8-bit numbers into 8-bit ones; a weight may have a scale per output channel."""
    weight = centred(w, channels(w_zero_point, w.dim() - 1))
    summand = None if bias is None else centred(bias, None)
    total = whole(conv(node, centred(x, x_zero_point), weight, summand))
    scale = channels(w_scale, w.dim() - 2)
    return requantised(total, factor_of(x_scale, scale, y_scale), y_zero_point)


@converter("QLinearMatMul")
def qlinear_matmul(
    node: NodeView,
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    """Multiply matrices of 8-bit numbers into such; scales per row on the left, per column."""
    total = torch.matmul(centred(a, rows(a_zero_point)), centred(b, b_zero_point))
    if not a.is_floating_point() and not b.is_floating_point():
        total = whole(total)
    return requantised(total, factor_of(rows(a_scale), b_scale, y_scale), y_zero_point)
