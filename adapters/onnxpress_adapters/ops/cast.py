"""Changes of type: by value, and by bits."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import by_type, torch_dtype, type_number
from onnxpress_adapters.ops.narrow import EXPONENT_TYPES, FLOATS, INTEGERS, held, wrapped
from onnxpress_adapters.registry import converter

NARROW_BITS = by_type(
    {
        "INT2": 2,
        "UINT2": 2,
        "INT4": 4,
        "UINT4": 4,
        "FLOAT4E2M1": 4,
        "FLOAT6E2M3": 6,
        "FLOAT6E3M2": 6,
        "FLOAT8E8M0": 8,
    }
)


@converter("Cast")
def cast(node: NodeView, x: Tensor) -> Tensor:
    """Change the type of the entries."""
    return converted(node, x, type_number(node.get("to")))


@converter("CastLike")
def cast_like(node: NodeView, x: Tensor, like: Tensor) -> Tensor:
    """Change the type of the entries to that of another tensor."""
    if node.type_of(1):
        return converted(node, x, node.type_of(1))
    return to_dtype(x, like.dtype, bool(node.get("saturate", 1)))


def converted(node: NodeView, x: Tensor, element_type: int) -> Tensor:
    """Cast to an ONNX element type, with the node's ``saturate`` and ``round_mode``."""
    saturate = bool(node.get("saturate", 1))
    result = held(node, x, element_type, saturate)
    return to_dtype(x, torch_dtype(element_type), saturate) if result is None else result


def to_dtype(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """Cast as ONNX does: to the largest finite 8-bit float where ``saturate`` asks for it.

    A NaN stays one; without ``saturate`` too large numbers become infinite or NaN.
    """
    if not (dtype.is_floating_point and dtype.itemsize == 1):
        return x.to(dtype)
    x = x.to(torch.float32)
    if saturate:
        highest = torch.finfo(dtype).max
        return x.clamp(-highest, highest).to(dtype)
    if dtype == torch.float8_e4m3fn:
        # torch saturates here in any case; beyond 464 the nearest value would be the NaN.
        x = torch.where(torch.abs(x) > 464, torch.nan, x)
    return x.to(dtype)


@converter("BitCast")
def bit_cast(node: NodeView, x: Tensor) -> Tensor:
    """Read the bits of the entries as another type of the same width.

    Raises:
        AdapterError: the widths differ.
    """
    source, target = node.type_of(0), type_number(node.get("to"))
    if source and source not in NARROW_BITS:
        # Half precision may arrive widened: back to the type that has the bits.
        x = x.to(torch_dtype(source))
    widths = [NARROW_BITS.get(kind) for kind in (source, target)]
    read = widths[0] or 8 * x.dtype.itemsize
    wanted = widths[1] or 8 * torch_dtype(target).itemsize
    if read != wanted:
        raise AdapterError(
            f"{node} reads numbers of {read} bits as {TensorProto.DataType.Name(target)}, which "
            f"has {wanted}; the model is broken"
        )
    if widths == [None, None]:
        return x.view(torch_dtype(target))
    return _from_bits(_to_bits(x, source), target)


def _to_bits(x: Tensor, source: int) -> Tensor:
    """Give the bits of narrow or 8-bit numbers as whole numbers, int64."""
    if source in INTEGERS:
        return x.to(torch.int64) & ((1 << NARROW_BITS[source]) - 1)
    if source in FLOATS:
        magnitudes = torch.tensor(FLOATS[source].magnitudes(), device=x.device)
        place = torch.sum(torch.abs(x).unsqueeze(-1) >= magnitudes, -1) - 1
        return place + torch.signbit(x).to(torch.int64) * len(magnitudes)
    if source in EXPONENT_TYPES:
        _, exponent = torch.frexp(x.to(torch.float64))
        # `frexp` counts from a mantissa of a half, and the bits from the exponent -127.
        return torch.where(torch.isnan(x), 255, exponent.to(torch.int64) + 126)
    return x.view(torch.uint8).to(torch.int64)


def _from_bits(bits: Tensor, target: int) -> Tensor:
    """Give the numbers of a narrow or 8-bit type that have these bits."""
    if target in INTEGERS:
        return wrapped(bits, target)
    if target in FLOATS:
        magnitudes = FLOATS[target].magnitudes()
        return torch.tensor(magnitudes + [-m for m in magnitudes], device=bits.device)[bits]
    if target in EXPONENT_TYPES:
        powers = [2.0 ** (place - 127) for place in range(255)]
        return torch.tensor([*powers, torch.nan], device=bits.device)[bits]
    return bits.to(torch.uint8).view(torch_dtype(target))
