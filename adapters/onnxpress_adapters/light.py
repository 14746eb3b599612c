"""Models without the data of their large tensors: what can be copied, checked and measured quickly.

A protobuf message in memory may take more than 2 GiB; only as bytes it may not. So nothing here
turns a large tensor into bytes, and copies leave its data out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.unknown_fields import (  # type: ignore[import-untyped]  # no stubs
    UnknownFieldSet,
)
from onnx import ModelProto, TensorProto

from onnxpress_adapters.tensors import data_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_PROTOBUF_BYTES = 2**31 - 1
"""The largest message that can be written."""

FRAME_BYTES = 128
"""More than the lengths of a tensor's data, of it and of all that holds it can take."""

HOLDERS = frozenset(
    {
        *("onnx.ModelProto", "onnx.GraphProto", "onnx.FunctionProto", "onnx.TrainingInfoProto"),
        *("onnx.NodeProto", "onnx.AttributeProto", "onnx.SparseTensorProto"),
    }
)
"""Messages with tensors in them."""


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
    if len(UnknownFieldSet(old)):
        new.CopyFrom(old)
        return
    for field, content in old.ListFields():
        inner = field.message_type.full_name if field.message_type is not None else ""
        place = getattr(new, field.name)
        repeated = hasattr(place, "extend")  # what a descriptor calls it, versions differ in
        if inner in HOLDERS or inner == "onnx.TensorProto":
            if not repeated:
                place.SetInParent()
            for one in content if repeated else (content,):
                made = place.add() if repeated else place
                if inner in HOLDERS:
                    _copy(one, made, leave)
                elif leave(one):
                    _copy_head(one, made)
                else:
                    made.CopyFrom(one)
        elif repeated:
            place.extend(content)
        elif inner:
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


def protobuf_bytes(model: ModelProto, large: int = 1024) -> int:
    """Bound the bytes of a model as one file from above, without making them.

    Args:
        model: with data of any size.
        large: bytes of the smallest tensor that is counted by its shape.

    Returns:
        Its size, and at most ``FRAME_BYTES`` more for each large tensor. Data in typed fields are
        counted as if they were raw.
    """
    total = 0

    def leave(tensor: TensorProto) -> bool:
        nonlocal total
        size = inline_bytes(tensor)
        if size < large or not tensor.HasField("raw_data"):
            return False
        total += size + FRAME_BYTES
        return True

    light = lightened(model, leave)
    return total + int(light.ByteSize())
