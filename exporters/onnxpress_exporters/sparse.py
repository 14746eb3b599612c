"""A dense tensor as a sparse one, in COO form, and which of the two takes fewer bytes.

Only what onnxruntime 1.31 and the ONNX checker were both measured to take is written: sorted,
linear int64 indices and raw data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from onnxpress_adapters.light import framed, message_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import NodeProto, ValueInfoProto

    Part = TensorProto | SparseTensorProto | NodeProto | ValueInfoProto

INDEX_BYTES = 8

SPARSE_TYPES = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    }
)


def to_sparse(name: str, array: np.ndarray) -> SparseTensorProto:
    """Write an array as a sparse tensor.

    Args:
        name: of the constant.
        array: ``[...]`` of a type in ``SPARSE_TYPES``, of rank 1 or more.

    Returns:
        The entries whose bits are not all zero (so -0.0 is kept, and the way back is bit-equal),
        with sorted linear indices.
    """
    flat = array.reshape(-1)
    places = np.flatnonzero(_bits(flat))
    values = numpy_helper.from_array(flat[places], name)
    indices = numpy_helper.from_array(places.astype(np.int64))
    return helper.make_sparse_tensor(values, indices, list(array.shape))


def _bits(flat: np.ndarray) -> np.ndarray:
    """See numbers as whole numbers: what compares equal to zero need not be zero bits."""
    return np.ascontiguousarray(flat).view(f"u{flat.dtype.itemsize}")


def why_not_sparse(data_type: int, dims: Sequence[int]) -> str:
    """Say why a constant cannot be sparse, or ``""`` where it can.

    Args:
        data_type: its ONNX element type.
        dims: its shape.
    """
    if data_type not in SPARSE_TYPES:
        kind = TensorProto.DataType.Name(data_type).lower()
        return f"onnxruntime has no sparse {kind} tensors"
    if not dims:
        return "the ONNX checker refuses a sparse scalar"
    if 0 in dims:
        return "the ONNX checker refuses a sparse tensor without entries"
    return ""


def is_smaller(sparse: Part, dense: Part) -> bool:
    """Say whether one message takes fewer bytes in a file than another, framing included.

    Args:
        sparse: an initializer or a node with the sparse tensor.
        dense: the same with the dense one.
    """
    return framed_bytes(sparse) < framed_bytes(dense)


def framed_bytes(message: Part) -> int:
    """Count the bytes of a message in a repeated field: a tag, its length and itself."""
    return framed(message_bytes(message))


def can_be_smaller(array: np.ndarray) -> bool:
    """Say whether a sparse form has a chance, before it is made."""
    return sparse_bytes(array) < array.nbytes


def sparse_bytes(array: np.ndarray) -> int:
    """Count the bytes of values and indices in the sparse form, before it is made."""
    nonzeros = int(np.count_nonzero(_bits(array.reshape(-1))))
    return nonzeros * (INDEX_BYTES + array.dtype.itemsize)
