"""Linear quantisation, exact: rounding half to even and saturating, with no made-up gradient."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.cast import to_dtype
from onnxpress_adapters.ops.dtypes import torch_dtype
from onnxpress_adapters.ops.narrow import FLOATS, INTEGERS, rounded
from onnxpress_adapters.registry import converter


def spread(node: NodeView, parameter: Tensor, x: Tensor) -> Tensor:
    """Shape a scale or zero point to broadcast over ``x``.

    It is one number, one per place of the axis, or one per block of ``block_size`` places.
    """
    if parameter.dim() == 0 or x.dim() == 0:
        return parameter.reshape(())
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    if block:
        repeated = torch.repeat_interleave(parameter, block, axis)
        return repeated.narrow(axis, 0, x.shape[axis])
    if parameter.dim() == 1 and parameter.shape[0] > 1:
        return parameter.reshape((-1,) + (1,) * (x.dim() - 1 - axis % x.dim()))
    return parameter


@converter("QuantizeLinear")
def quantize_linear(
    node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    """``saturate(round(x / scale) + zero_point)``, in the type of the zero point."""
    kind = kind_of(node)
    dtype = torch_dtype(kind) if zero_point is None else zero_point.dtype
    working = torch_dtype(node.get("precision")) if node.get("precision") else torch.float32
    # onnxruntime divides in float32 whatever the types are.
    ratio = x.to(working) / spread(node, scale, x).to(working)
    shift = 0 if zero_point is None else spread(node, zero_point.to(working), x)
    if kind in FLOATS:
        return rounded(ratio + shift, kind)
    if dtype.is_floating_point:
        return to_dtype(ratio + shift, dtype, bool(node.get("saturate", 1)))
    low, high = INTEGERS.get(kind) or limits(dtype)
    return torch.clamp(torch.round(ratio) + shift, low, high).to(dtype)


def kind_of(node: NodeView) -> int:
    """Give the element type a QuantizeLinear makes."""
    return int(node.type_of(2) or node.get("output_dtype") or TensorProto.UINT8)


def limits(dtype: torch.dtype) -> tuple[int, int]:
    """Give the lowest and the highest value of an integer type."""
    info = torch.iinfo(dtype)
    return info.min, info.max


@converter("DequantizeLinear")
def dequantize_linear(
    node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    """``(x - zero_point) scale``, in the type of the scale; exact for all 8-bit types."""
    dtype = torch_dtype(node.get("output_dtype")) if node.get("output_dtype") else scale.dtype
    working = torch.promote_types(dtype, torch.float32)
    value = x.to(working)
    if zero_point is not None:
        value = value - spread(node, zero_point.to(working), x)
    return (value * spread(node, scale.to(working), x)).to(dtype)


@converter("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: NodeView, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise to uint8 by the range of the entries, widened to hold zero."""
    lowest = torch.clamp(torch.amin(x), max=0.0)
    highest = torch.clamp(torch.amax(x), min=0.0)
    span = (highest - lowest) / 255
    scale = torch.where(span == 0, 1.0, span)
    zero = torch.clamp(torch.round(-lowest / scale), 0, 255)
    quantised = torch.clamp(torch.round(x / scale) + zero, 0, 255)
    return quantised.to(torch.uint8), scale, zero.to(torch.uint8)
