from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from onnxpress_adapters.sparse_tensors import fill_dense
from onnxpress_exporters.sparse import (
    SPARSE_TYPES,
    can_be_smaller,
    framed_bytes,
    to_sparse,
    why_not_sparse,
)
from small_models import thinned


def to_dense(sparse: SparseTensorProto) -> TensorProto:
    tensor = TensorProto()
    fill_dense(tensor, sparse)
    return tensor


@pytest.mark.parametrize("data_type", sorted(SPARSE_TYPES))
@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 3, 4, 5)])
def test_there_and_back_is_bit_equal(data_type: int, shape: tuple[int, ...]) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    array = (100 * np.abs(thinned(*shape, density=0.4))).astype(dtype)
    sparse = to_sparse("w", array)
    back = to_dense(sparse)
    assert (back.name, back.data_type, list(back.dims)) == ("w", data_type, list(shape))
    assert numpy_helper.to_array(back).tobytes() == array.tobytes()
    indices = numpy_helper.to_array(sparse.indices)
    assert indices.dtype == np.int64
    assert indices.tolist() == np.flatnonzero(array != 0).tolist()
    assert sparse.indices.HasField("raw_data")
    assert sparse.values.HasField("raw_data")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_minus_zero_and_nan_survive(dtype: type) -> None:
    array: np.ndarray = np.array([0.0, -0.0, np.nan, np.inf, 1e-8]).astype(dtype)
    back = numpy_helper.to_array(to_dense(to_sparse("w", array)))
    assert back.tobytes() == array.tobytes()


def test_numbers_that_share_bytes_come_back_sharing_them() -> None:
    array = np.array([0, 3, 0, -2, 7], ml_dtypes.int4)
    places = numpy_helper.from_array(np.array([1, 3, 4], np.int64))
    values = numpy_helper.from_array(array[[1, 3, 4]], "w")
    back = to_dense(helper.make_sparse_tensor(values, places, [5]))
    assert (back.data_type, len(back.raw_data)) == (TensorProto.INT4, 3)
    assert numpy_helper.to_array(back).tolist() == array.tolist()


def test_a_tensor_of_zeros_has_no_entries() -> None:
    sparse = to_sparse("w", np.zeros((3, 4), np.float32))
    assert list(sparse.indices.dims) == [0]
    np.testing.assert_array_equal(numpy_helper.to_array(to_dense(sparse)), np.zeros((3, 4)))


def test_what_cannot_be_sparse_says_why() -> None:
    assert why_not_sparse(TensorProto.FLOAT, [2, 2]) == ""
    assert why_not_sparse(TensorProto.FLOAT, []) == "the ONNX checker refuses a sparse scalar"
    assert "without entries" in why_not_sparse(TensorProto.FLOAT, [0, 2])
    assert why_not_sparse(TensorProto.INT4, [2]) == "onnxruntime has no sparse int4 tensors"


def test_the_break_even_is_a_third_for_single_precision() -> None:
    array = np.zeros(300, np.float32)
    array[:99] = 1
    assert can_be_smaller(array)
    array[:100] = 1
    assert not can_be_smaller(array)


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16383, 16384])
def test_framing_is_what_protobuf_writes(size: int) -> None:
    graph = helper.make_graph([], "g", [], [])
    empty = graph.ByteSize()
    tensor = TensorProto(raw_data=b"\0" * size)
    graph.initializer.append(tensor)
    assert graph.ByteSize() - empty == framed_bytes(tensor)
