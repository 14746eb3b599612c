"""Weights of com.microsoft in 2 to 8 bits, with a scale for each block of neighbours."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT
from onnxpress_adapters.registry import converter

# The sixteen numbers that four bits stand for, by `quant_type` of MatMulBnb4. The first are floats
# of two exponent bits and one of mantissa; the second have equal shares of a normal distribution.
FLOAT_OF_4_BITS = (0.0, 0.0625 / 12, 8 / 12, 12 / 12, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
NORMAL_OF_4_BITS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
VALUES = {
    0: (*FLOAT_OF_4_BITS, *(-value for value in FLOAT_OF_4_BITS)),
    1: NORMAL_OF_4_BITS,
}


def unpacked(stored: Tensor, bits: int) -> Tensor:
    """Take numbers of a few bits out of bytes, the lowest first.

    Args:
        stored: uint8 ``[..., bytes]``.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8 ``[..., 8 / bits * bytes]``.
    """
    if bits == 8:
        return stored
    mask = (1 << bits) - 1
    parts = [(stored >> shift) & mask for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2)


def block_weight(
    node: NodeView, stored: Tensor, scales: Tensor, points: Tensor | None, groups: Tensor | None
) -> Tensor:
    """Give the weight ``[out, in]`` of a MatMulNBits node.

    Args:
        node: for the sizes and the number of bits.
        stored: uint8 ``[out, blocks, bytes]``.
        scales: ``[out, blocks]``, or the same numbers in one row.
        points: what stands for zero: floats ``[out, blocks]``, or bytes that hold a number of
            ``bits`` for each block, each row beginning with a new byte; or None for the middle.
        groups: the block each column belongs to, ``[in]``; None for blocks of neighbours.

    Raises:
        AdapterError: the weight is stored for one kind of GPU, or in an unknown number of bits.
    """
    rows, columns, bits = node.get("N"), node.get("K"), node.get("bits", 4)
    if node.get("weight_prepacked", 0):
        raise AdapterError(
            f"{node} holds a weight in the order of one kind of GPU; "
            "use the model as it was before it was packed for that"
        )
    if bits not in (2, 4, 8):
        raise AdapterError(f"{node} stores {bits} bits per number; onnxpress reads 2, 4 and 8")
    scales = scales.reshape(rows, -1)
    working = torch.promote_types(scales.dtype, torch.float32)
    codes = unpacked(stored.reshape(rows, -1), bits)[:, :columns].to(working)
    if points is None:
        points = torch.full_like(scales, 1 << (bits - 1))
    elif not points.is_floating_point():
        points = unpacked(points.reshape(rows, -1), bits)[:, : scales.shape[1]]
    else:
        points = points.reshape(scales.shape)
    if groups is None:
        groups = torch.arange(columns, device=scales.device) // node.get("block_size")
    own = groups.to(torch.int64)
    return (codes - points.to(working)[:, own]) * scales.to(working)[:, own]


@converter("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(
    node: NodeView,
    x: Tensor,
    stored: Tensor,
    scales: Tensor,
    points: Tensor | None = None,
    groups: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply with a transposed weight of a few bits per number, with a scale for each block."""
    weight = block_weight(node, stored, scales, points, groups)
    result = torch.matmul(x.to(weight.dtype), weight.transpose(0, 1))
    return (result if bias is None else result + bias).to(x.dtype)


@converter("MatMulBnb4", domain=MICROSOFT)
def matmul_bnb4(node: NodeView, x: Tensor, stored: Tensor, largest: Tensor) -> Tensor:
    """Multiply with a weight whose entries are one of sixteen numbers, times the block's largest.

    The weight ``[out, in]`` stands in one row, two entries to a byte, the high bits first.

    Raises:
        AdapterError: onnxpress does not know the sixteen numbers.
    """
    kind = node.get("quant_type")
    if kind not in VALUES:
        raise AdapterError(f"{node} has the quant_type {kind}; onnxpress knows 0 and 1")
    working = torch.promote_types(largest.dtype, torch.float32)
    values = torch.tensor(VALUES[kind], dtype=working, device=x.device)
    codes = torch.stack([stored >> 4, stored & 15], -1).flatten(-2)
    count = node.get("N") * node.get("K")
    block = torch.arange(count, device=x.device) // node.get("block_size")
    flat = values[codes[:count].to(torch.int64)] * largest.to(working)[block]
    weight = flat.reshape(node.get("N"), node.get("K"))
    if node.get("transB", 1):
        weight = weight.transpose(0, 1)
    return torch.matmul(x.to(working), weight).to(x.dtype)


def dequantised(
    node: NodeView, codes: Tensor, scales: Tensor, points: Tensor | None, axis: int
) -> Tensor:
    """Give the numbers that codes stand for, with a scale for each block along an axis."""
    working = torch.promote_types(scales.dtype, torch.float32)
    length = codes.shape[axis]
    size = node.get("block_size", 128) or length
    block = torch.arange(length, device=codes.device) // size
    value = codes.to(working)
    if points is not None:
        value = value - points.to(working).index_select(axis, block)
    return (value * scales.to(working).index_select(axis, block)).to(scales.dtype)


@converter("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(
    node: NodeView, stored: Tensor, indices: Tensor, scales: Tensor, points: Tensor | None = None
) -> Tensor:
    """Collect slices of a table with a scale for each block; zeros for places it does not have.

    Bytes hold numbers of a few bits, packed along the last axis; what stands for zero is the
    middle then, unless it is given.
    """
    in_bytes = node.type_of(0) in (TensorProto.UINT8, TensorProto.UNDEFINED)
    if in_bytes and stored.dtype == torch.uint8:
        bits = node.get("bits", 4)
        stored = unpacked(stored, bits)
        if points is None:
            points = torch.full_like(scales, 1 << (bits - 1))
        else:
            points = unpacked(points, bits)[..., : scales.shape[-1]]
    if stored.is_floating_point():
        # torch stores floats of 8 bits and hardly gathers them.
        stored = stored.to(torch.promote_types(scales.dtype, torch.float32))
    axis = node.get("quantize_axis", 1) % stored.dim()
    along = node.get("gather_axis", 0) % stored.dim()
    size = stored.shape[along]
    place = indices.to(torch.int64)
    known = (place >= -size) & (place < size)
    flat = torch.where(known, torch.remainder(place, size), 0).flatten()

    def chosen(x: Tensor) -> Tensor:
        # One number for the whole axis serves every slice.
        return x if x.shape[along] == 1 and size > 1 else x.index_select(along, flat)

    if along == axis:
        result = chosen(dequantised(node, stored, scales, points, axis))
    else:
        of_slices = None if points is None else chosen(points)
        result = dequantised(node, chosen(stored), chosen(scales), of_slices, axis)
    result = result.unflatten(along, indices.shape) if indices.dim() else result.squeeze(along)
    behind = (1,) * (stored.dim() - 1 - along)
    return torch.where(known.reshape(*indices.shape, *behind), result, 0.0)
