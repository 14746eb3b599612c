"""Models without the data of their large tensors: what can be copied, checked and measured quickly.

A protobuf message in memory may take more than 2 GiB; only as bytes it may not. So nothing here
turns a large tensor into bytes, and copies leave its data out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.unknown_fields import (  # type: ignore[import-untyped]  # no stubs
    UnknownFieldSet,
)
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from onnxpress_adapters.tensors import data_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_PROTOBUF_BYTES = 2**31 - 1
"""The largest message that can be written."""

LARGE_BYTES = 1 << 12
"""The smallest data that are counted without looking at them."""

HOLDERS = frozenset(
    {
        *("onnx.ModelProto", "onnx.GraphProto", "onnx.FunctionProto", "onnx.TrainingInfoProto"),
        *("onnx.NodeProto", "onnx.AttributeProto", "onnx.SparseTensorProto"),
    }
)
"""Messages with tensors in them."""

PLAIN = frozenset(
    {
        *(AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING),
        *(AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS),
    }
)
"""Attributes without tensors."""


def inline_bytes(tensor: TensorProto) -> int:
    """Count the bytes of a tensor's data, where they are in the model itself.

    Args:
        tensor: of a known type and a possible shape; strings are not counted.
    """
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 0
    if tensor.data_location == TensorProto.EXTERNAL:
        return 0
    return data_bytes(f"tensor '{tensor.name}'", tensor.data_type, tensor.dims)


def lightened(model: ModelProto, leave: Callable[[TensorProto], bool]) -> ModelProto:
    """Copy a model without the data of some tensors.

    Args:
        model: untouched.
        leave: says which tensors come without data; their names, types, shapes and notes stay.

    Returns:
        The copy, equal to the model but for these data. A message with fields that this version of
        onnx does not know is copied whole, its tensors included.
    """
    copy = ModelProto()
    _copy(model, copy, leave)
    return copy


def _copy(old: Any, new: Any, leave: Callable[[TensorProto], bool]) -> None:
    """Fill a new message from another one of the same type."""
    if _is_small(old):
        new.CopyFrom(old)
        return
    for field, content in old.ListFields():
        kind = _kind(field)
        place = getattr(new, field.name)
        if kind in HOLDERS or kind == "onnx.TensorProto":
            repeated = hasattr(place, "extend")
            if not repeated:
                place.SetInParent()
            for one in content if repeated else (content,):
                made = place.add() if repeated else place
                if kind in HOLDERS:
                    _copy(one, made, leave)
                elif leave(one):
                    _copy_head(one, made)
                else:
                    made.CopyFrom(one)
        else:
            _copy_field(new, field, content)


def _is_small(message: Any) -> bool:
    """Say whether a message is to be taken as one piece: without tensors, or not understood."""
    if isinstance(message, NodeProto):
        return all(attribute.type in PLAIN for attribute in message.attribute)
    return bool(len(UnknownFieldSet(message)))


def _kind(field: Any) -> str:
    return field.message_type.full_name if field.message_type is not None else ""


def _copy_field(new: Any, field: Any, content: Any) -> None:
    place = getattr(new, field.name)
    if hasattr(place, "extend"):  # it is repeated; what a descriptor says that with, versions vary
        place.extend(content)
    elif field.message_type is not None:
        place.CopyFrom(content)
    else:
        setattr(new, field.name, content)


def _copy_head(old: TensorProto, new: TensorProto) -> None:
    """Copy all of a tensor but its data."""
    new.dims.extend(old.dims)
    new.metadata_props.extend(old.metadata_props)
    for field in ("data_type", "name", "doc_string"):
        if old.HasField(field):
            setattr(new, field, getattr(old, field))


def message_bytes(message: Any) -> int:
    """Count the bytes of a message, without making those of large tensors.

    Args:
        message: a model or any part of one, with data of any size; raw data are as long as type
            and shape say.

    >>> message_bytes(TensorProto(name="w", dims=[2, 4], data_type=1, raw_data=bytes(32)))
    43
    """
    if isinstance(message, TensorProto):
        large = message.HasField("raw_data") and inline_bytes(message) >= LARGE_BYTES
        return raw_bytes(message) if large else int(message.ByteSize())
    if type(message).DESCRIPTOR.full_name not in HOLDERS or _is_small(message):
        return int(message.ByteSize())
    total = 0
    rest = type(message)()
    for field, content in message.ListFields():
        kind = _kind(field)
        if kind in HOLDERS or kind == "onnx.TensorProto":
            repeated = hasattr(getattr(rest, field.name), "extend")
            for one in content if repeated else (content,):
                total += framed(message_bytes(one), field.number)
        else:
            _copy_field(rest, field, content)
    return total + int(rest.ByteSize())


def raw_bytes(tensor: TensorProto) -> int:
    """Count the bytes of a tensor as if it held its data as raw ones, whether or not it does.

    Args:
        tensor: without unknown fields; its type and shape say how long the data are.
    """
    head = TensorProto()
    _copy_head(tensor, head)
    return int(head.ByteSize()) + framed(inline_bytes(tensor), 1)


def framed(size: int, number: int = 1) -> int:
    """Count the bytes of a field: a tag, a length and the content.

    Args:
        size: of the content.
        number: of the field.

    >>> framed(100), framed(300, 16)
    (102, 304)
    """
    return (1 if number < 16 else 2) + max(1, -(-size.bit_length() // 7)) + size
