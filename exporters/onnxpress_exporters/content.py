"""A constant with other values: in its own type, its own form and with its own notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxpress_adapters.errors import ExportError

if TYPE_CHECKING:
    from onnx import NodeProto, SparseTensorProto

    from onnxpress_adapters.weights import WeightKey


def fitted(key: WeightKey, tensor: TensorProto, array: np.ndarray) -> np.ndarray:
    """Cast new values to the element type of a constant.

    Args:
        key: what a message calls the constant.
        tensor: the constant; its shape and element type hold.
        array: real, in the same shape.

    Raises:
        ExportError: the shape differs, a finite value becomes infinite, or a constant of whole
            numbers is to take others.
    """
    if array.shape != tuple(tensor.dims):
        raise ExportError(
            f"new values of shape {list(array.shape)} do not fit constant '{key}' "
            f"of shape {list(tensor.dims)}"
        )
    wanted = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if array.dtype == wanted:
        return array
    if array.dtype.kind == "f" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if not np.array_equal(array, np.rint(array).clip(limits.min, limits.max)):
            raise ExportError(f"constant '{key}' holds whole numbers of type {wanted} only")
    with np.errstate(over="ignore"):
        cast: np.ndarray = array.astype(wanted)
    if array.dtype.kind == "f" and not np.array_equal(np.isfinite(array), np.isfinite(cast)):
        raise ExportError(f"a new value of constant '{key}' is too large for its type, {wanted}")
    return cast


def same_bits(tensor: TensorProto, array: np.ndarray) -> bool:
    """Say whether a constant holds these values, bit for bit."""
    old, new = (
        np.ascontiguousarray(one).reshape(-1).view(np.uint8).data
        for one in (numpy_helper.to_array(tensor), array)
    )
    return old == new


def with_data(tensor: TensorProto, array: np.ndarray) -> TensorProto:
    """Give a constant with other data; name, shape, type and notes stay."""
    new = numpy_helper.from_array(array)
    if tensor.HasField("name"):
        new.name = tensor.name
    copy_notes(tensor, new)
    return new


def copy_notes(tensor: TensorProto, new: TensorProto) -> None:
    """Hand on what a constant says about itself."""
    if tensor.HasField("doc_string"):
        new.doc_string = tensor.doc_string
    new.metadata_props.extend(tensor.metadata_props)


def with_value(node: NodeProto, value: TensorProto | SparseTensorProto) -> NodeProto:
    """Give a Constant node with another value, in the form it had where that can hold it."""
    new = onnx.NodeProto()
    new.CopyFrom(node)
    (old,) = (a for a in new.attribute if a.name.startswith(("value", "sparse_value")))
    if isinstance(value, TensorProto) and old.name != "value":
        numbers = numpy_helper.to_array(value)
        kept = helper.make_attribute(old.name, numbers.tolist(), attr_type=old.type)
    elif isinstance(value, TensorProto):
        kept = AttributeProto(name="value", type=AttributeProto.TENSOR, t=value)
    else:
        kind = AttributeProto.SPARSE_TENSOR
        kept = AttributeProto(name="sparse_value", type=kind, sparse_tensor=value)
    if old.HasField("doc_string"):
        kept.doc_string = old.doc_string
    old.CopyFrom(kept)
    return new
