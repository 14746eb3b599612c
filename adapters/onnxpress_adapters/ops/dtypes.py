"""ONNX element types, numpy arrays and torch dtypes: the one place that knows how they relate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TypeVar

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from onnxpress_adapters.errors import AdapterError

Row = TypeVar("Row")


def by_type(table: Mapping[str, Row]) -> dict[int, Row]:
    """Key a table by ONNX element types instead of their names.

    Names an older onnx does not know are left out: it knows no model that uses them either.
    """
    known = TensorProto.DataType.keys()
    return {TensorProto.DataType.Value(n): row for n, row in table.items() if n in known}


DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    # torch computes with none of these; wider types hold their values exactly.
    **by_type(
        {
            "INT2": torch.int8,
            "INT4": torch.int8,
            "UINT2": torch.uint8,
            "UINT4": torch.uint8,
            "FLOAT4E2M1": torch.float32,
            "FLOAT6E2M3": torch.float32,
            "FLOAT6E3M2": torch.float32,
            "FLOAT8E8M0": torch.float32,
        }
    ),
}

# torch cannot read these numpy types; the bits go over as plain integers.
_BITS: dict[np.dtype, tuple[type[np.generic], torch.dtype]] = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
}

# The same numbers in numpy, by the names ml_dtypes gives them.
_HELD: dict[str, type[np.generic]] = {
    "int2": np.int8,
    "int4": np.int8,
    "uint2": np.uint8,
    "uint4": np.uint8,
    "float4_e2m1fn": np.float32,
    "float6_e2m3fn": np.float32,
    "float6_e3m2fn": np.float32,
    "float8_e8m0fnu": np.float32,
}

# torch stores these and hardly computes with them.
_STORED_ONLY = (torch.uint16, torch.uint32, torch.uint64)


def torch_dtype(element_type: int | str) -> torch.dtype:
    """Give the torch dtype that holds an ONNX element type.

    Args:
        element_type: a ``TensorProto.DataType``, or its name as the first opsets wrote it.

    Raises:
        AdapterError: torch can hold no such values (strings).
    """
    element_type = type_number(element_type)
    if element_type not in DTYPES:
        name = TensorProto.DataType.Name(element_type)
        raise AdapterError(f"torch has no tensors of type {name}; the model cannot be run here")
    return DTYPES[element_type]


def type_number(element_type: int | str) -> int:
    """Give an element type as a number, also where it is written as a name."""
    if isinstance(element_type, str):
        return int(TensorProto.DataType.Value(element_type))
    return element_type


def to_tensor(array: np.ndarray) -> Tensor:
    """Copy a numpy array to a CPU tensor of the same shape and values.

    Type and bits are the same as well, but for numbers torch holds in wider types: those of 2, 4
    and 6 bits, and bare exponents.

    Raises:
        AdapterError: torch can hold no such values (strings).
    """
    array = np.asarray(array)
    if array.dtype.name in _HELD:
        return torch.from_numpy(array.astype(_HELD[array.dtype.name]))
    if array.dtype in _BITS:
        bits, dtype = _BITS[array.dtype]
        return torch.from_numpy(np.array(array).view(bits)).view(dtype)
    if array.dtype.kind not in "biufc":
        raise AdapterError(
            f"torch has no tensors of type {array.dtype}; the model cannot be run here"
        )
    return torch.from_numpy(np.array(array))


def widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function of tensors work on the unsigned types torch only stores.

    They are computed in int64 and wrap around on the way back, as unsigned numbers do; an int64
    result is taken to be of the operands' type.
    """

    @wraps(function)
    def run(*tensors: Tensor) -> Tensor:
        dtype = tensors[0].dtype
        if dtype not in _STORED_ONLY:
            return function(*tensors)
        result = function(*(t.to(torch.int64) if t.dtype == dtype else t for t in tensors))
        return result.to(dtype) if result.dtype == torch.int64 else result

    return run
