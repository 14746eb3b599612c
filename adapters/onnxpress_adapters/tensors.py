"""Every tensor of a model, however deep it stands, and whether its bytes fit its shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnx import FunctionProto, TensorProto, helper

from onnxpress_adapters.errors import BrokenModelError
from onnxpress_adapters.walk import holders

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnx import AttributeProto, ModelProto, SparseTensorProto

# Types that share bytes; everything else takes the whole bytes of its numpy type. By name, because
# an older onnx knows fewer of them.
PACKED_BITS: dict[int, int] = {
    TensorProto.DataType.Value(name): bits
    for name, bits in {
        "INT2": 2,
        "UINT2": 2,
        "INT4": 4,
        "UINT4": 4,
        "FLOAT4E2M1": 4,
        "FLOAT6E2M3": 6,
        "FLOAT6E3M2": 6,
    }.items()
    if name in TensorProto.DataType.keys()  # noqa: SIM118  (an enum wrapper, not a dict)
}
MOST_AXES = 64  # as numpy
MOST_ENTRIES = 1 << 58  # as numpy, for 16-byte entries
TYPED_FIELDS = (
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)


def every_tensor(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Give all tensors of a model, sparse ones as their values and their indices.

    Initializers and attributes are covered, in bodies, functions and training graphs too.

    Args:
        model: as parsed; nothing about it is trusted.

    Yields:
        What a message calls the tensor, and the tensor in the model, not a copy.
    """
    for _, holder in holders(model):
        if isinstance(holder, FunctionProto):
            for attribute in holder.attribute_proto:
                yield from _in_attribute(attribute, f"function '{holder.name}'")
        else:
            for tensor in holder.initializer:
                yield f"initializer '{tensor.name}'", tensor
            for sparse in holder.sparse_initializer:
                yield from _parts(f"sparse initializer '{sparse.values.name}'", sparse)
        for node in holder.node:
            for attribute in node.attribute:
                name = node.name or next(iter(node.output), "")
                yield from _in_attribute(attribute, f"{node.op_type} '{name}'")


def _in_attribute(attribute: AttributeProto, owner: str) -> Iterator[tuple[str, TensorProto]]:
    where = f"attribute '{attribute.name}' of {owner}"
    if attribute.HasField("t"):
        yield where, attribute.t
    if attribute.HasField("sparse_tensor"):
        yield from _parts(where, attribute.sparse_tensor)
    for tensor in attribute.tensors:
        yield where, tensor
    for sparse in attribute.sparse_tensors:
        yield from _parts(where, sparse)


def _parts(where: str, sparse: SparseTensorProto) -> Iterator[tuple[str, TensorProto]]:
    yield f"the values of {where}", sparse.values
    yield f"the indices of {where}", sparse.indices


def entries(where: str, dims: Iterable[int]) -> int:
    """Count the entries of a tensor.

    Args:
        where: what a message calls the tensor.
        dims: the shape; an empty one is a scalar, with one entry.

    Raises:
        BrokenModelError: no array can have that shape.
    """
    shape = list(dims)
    if any(dim < 0 for dim in shape):
        raise BrokenModelError(f"{where} has a negative dimension in its shape {shape[:MOST_AXES]}")
    if len(shape) > MOST_AXES or math.prod(dim or 1 for dim in shape) >= MOST_ENTRIES:
        raise BrokenModelError(f"{where} has an impossible shape, {shape[:MOST_AXES]}")
    return math.prod(shape)


def data_bytes(where: str, data_type: int, dims: Iterable[int]) -> int:
    """Say how many bytes a tensor takes in ``raw_data``.

    Args:
        where: what a message calls the tensor.
        data_type: an ONNX element type other than string.
        dims: the shape; an empty one is a scalar.

    Raises:
        BrokenModelError: the type is unknown or the shape is impossible.
    """
    count = entries(where, dims)
    bits = PACKED_BITS.get(data_type)
    if bits is None:
        try:
            bits = 8 * int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)
        except KeyError as error:
            raise BrokenModelError(
                f"{where} has the unknown element type {data_type}; a newer onnx may know it"
            ) from error
    return (count * bits + 7) // 8


def check_length(where: str, tensor: TensorProto) -> None:
    """Refuse a tensor whose inline data are not exactly what its shape asks for.

    Args:
        where: what a message calls the tensor.
        tensor: without external data.

    Raises:
        BrokenModelError: too much data, too little, in several fields or in the wrong one.
    """
    if tensor.HasField("segment"):
        raise BrokenModelError(f"{where} is cut into segments, which no tool reads; save it whole")
    filled = [field for field in TYPED_FIELDS if len(getattr(tensor, field))]
    if tensor.HasField("raw_data") and (tensor.raw_data or not filled):
        filled.append("raw_data")
    if len(filled) > 1:
        raise BrokenModelError(f"{where} holds its data twice: in {' and in '.join(filled)}")
    if tensor.data_type == TensorProto.STRING:
        expected, proper = entries(where, tensor.dims), "string_data"
    elif filled == ["raw_data"]:
        expected, proper = data_bytes(where, tensor.data_type, tensor.dims), "raw_data"
    else:
        data_bytes(where, tensor.data_type, tensor.dims)
        expected, proper = _typed_entries(tensor), helper.tensor_dtype_to_field(tensor.data_type)
    if filled and filled != [proper]:
        raise BrokenModelError(f"{where} holds its data in {filled[0]} instead of {proper}")
    found = len(getattr(tensor, proper))
    if found != expected:
        unit = "bytes" if proper == "raw_data" else "values"
        raise BrokenModelError(
            f"{where} of shape {list(tensor.dims)} needs {expected} {unit} of data and has {found}"
        )


def _typed_entries(tensor: TensorProto) -> int:
    """Count the entries a tensor needs in the typed field of its element type."""
    count: int = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    per_entry = 8 // PACKED_BITS.get(tensor.data_type, 8)
    return -(-count // per_entry)
