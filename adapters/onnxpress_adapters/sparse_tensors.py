"""A sparse tensor as ONNX stores it, made dense.

Nothing above this file meets a sparse tensor: many tools lose them, so the working copy of a model
is dense, and sparse constants are made again when a file is written.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

from onnxpress_adapters.errors import BrokenModelError
from onnxpress_adapters.tensors import PACKED_BITS
from onnxpress_adapters.walk import holders, is_constant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import FunctionProto, ModelProto, NodeProto, SparseTensorProto

FREE_INITIALIZERS = 4  # the first IR version whose initializers need not be graph inputs


def fill_dense(tensor: TensorProto, sparse: SparseTensorProto, name: str = "") -> None:
    """Make a sparse tensor dense.

    Args:
        tensor: an empty one, which gets raw data of the same element type, with the values' name,
            documentation and metadata; exactly zero wherever no index points. (One of a model, so
            that large data are not made twice.)
        sparse: values ``[NNZ]`` and indices ``[NNZ]`` (linear) or ``[NNZ, rank]``, in any order.
        name: what messages call it; its values' own name where left out.

    Raises:
        BrokenModelError: counts do not agree, an index lies outside the shape or occurs twice.
    """
    called = f"sparse tensor '{name or sparse.values.name}'"
    if sparse.values.data_type == TensorProto.STRING:
        raise BrokenModelError(f"{called} holds text; only numbers can be made dense")
    shape = tuple(sparse.dims)
    values = numpy_helper.to_array(sparse.values)
    places = linear_indices(sparse, called)
    if values.shape != places.shape:
        raise BrokenModelError(
            f"{called} has values of shape {list(values.shape)} for {len(places)} indices"
        )
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[places] = values
    tensor.dims.extend(shape)
    tensor.data_type = sparse.values.data_type
    tensor.name = sparse.values.name
    narrow = sparse.values.data_type in PACKED_BITS
    raw = numpy_helper.from_array(dense).raw_data if narrow else dense.tobytes()
    del dense  # before the third copy
    tensor.raw_data = raw
    if sparse.values.HasField("doc_string"):
        tensor.doc_string = sparse.values.doc_string
    tensor.metadata_props.extend(sparse.values.metadata_props)


def linear_indices(sparse: SparseTensorProto, called: str) -> np.ndarray:
    """Give the places of the nonzeros in the flattened tensor.

    Args:
        sparse: indices ``[NNZ]`` or ``[NNZ, rank]``.
        called: what a message calls the tensor.

    Returns:
        int64 ``[NNZ]``, in the order of the file.

    Raises:
        BrokenModelError: an index lies outside the shape or occurs twice.
    """
    shape = tuple(sparse.dims)
    indices = numpy_helper.to_array(sparse.indices)
    if indices.dtype.kind not in "iu" or indices.ndim not in (1, 2):
        raise BrokenModelError(
            f"{called} has indices of type {indices.dtype} and shape {list(indices.shape)}; "
            "they must be whole numbers, [count] or [count, rank]"
        )
    columns = indices.reshape(len(indices), -1) if indices.size else np.zeros((0, 1), np.int64)
    extents = (math.prod(shape),) if columns.shape[1] == 1 else shape
    if columns.shape[1] != len(extents):
        raise BrokenModelError(
            f"{called} of shape {list(shape)} has indices for {columns.shape[1]} dimensions"
        )
    if (columns < 0).any() or (columns >= np.array(extents, np.int64)).any():
        raise BrokenModelError(f"{called} has an index outside its shape {list(shape)}")
    places: np.ndarray = np.zeros(len(columns), np.int64)
    for column, extent in zip(columns.T, extents, strict=True):
        places = places * extent + column.astype(np.int64)
    ordered = places if (places[1:] > places[:-1]).all() else np.sort(places)
    if (ordered[1:] == ordered[:-1]).any():
        raise BrokenModelError(f"{called} names the same place twice, with values that may differ")
    return places


def sparse_constants(model: ModelProto) -> Iterator[SparseTensorProto]:
    """Give every sparse initializer and every sparse value of a Constant node, functions too."""
    for _, holder in holders(model):
        if isinstance(holder, GraphProto):
            yield from holder.sparse_initializer
        yield from (attribute.sparse_tensor for _, attribute in _sparse_values(holder))


def make_dense(model: ModelProto) -> None:
    """Turn the sparse constants of a model into dense ones, in the model given.

    A sparse initializer follows the dense ones of its graph, in the order of the file; a Constant
    node stays where it is and holds a ``value`` instead of a ``sparse_value``. Up to IR version 3
    an initializer must be a graph input too, and becomes one where it is not.

    Args:
        model: changed in place.

    Raises:
        BrokenModelError: a sparse constant contradicts itself.
    """
    if model.ir_version < FREE_INITIALIZERS:
        known = {value.name for value in model.graph.input}
        model.graph.input.extend(
            helper.make_tensor_value_info(s.values.name, s.values.data_type, list(s.dims))
            for s in model.graph.sparse_initializer
            if s.values.name not in known
        )
    for _, holder in holders(model):
        if isinstance(holder, GraphProto):
            for sparse in holder.sparse_initializer:
                fill_dense(holder.initializer.add(), sparse)
            holder.ClearField("sparse_initializer")
        for node, attribute in _sparse_values(holder):
            name = node.output[0] if node.output else ""
            fill_dense(attribute.t, attribute.sparse_tensor, name)
            attribute.ClearField("sparse_tensor")
            attribute.name = "value"
            attribute.type = AttributeProto.TENSOR


def _sparse_values(
    holder: GraphProto | FunctionProto,
) -> Iterator[tuple[NodeProto, AttributeProto]]:
    for node in holder.node:
        if is_constant(node):
            for attribute in node.attribute:
                if attribute.name == "sparse_value":
                    yield node, attribute
