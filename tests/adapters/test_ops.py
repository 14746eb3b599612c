"""Every converter against the node cases that ship with onnx, one node at a time."""

import numpy as np
import pytest
import torch

from one_node import EXCEPTIONS, cases, reason, wide
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.ops import load
from onnxpress_adapters.ops.dtypes import to_tensor

RTOL, ATOL = 1e-3, 1e-5
BRAIN = 2**-6
"""Relative tolerance for bfloat16, which has 8 significant bits: the reference rounds each step."""


def check(name: str) -> None:
    case = cases()[name]
    asked = [place for place, output in enumerate(case.model.graph.node[0].output) if output]
    for inputs, outputs in case.sets:
        results = case.prepared(inputs).run()
        for place, expected in zip(asked, outputs, strict=True):
            result, wanted = results[place], to_tensor(expected)
            assert result is not None
            assert result.dtype == wanted.dtype
            assert result.shape == wanted.shape
            rtol = max(BRAIN if wanted.dtype == torch.bfloat16 else RTOL, case.rtol)
            np.testing.assert_allclose(
                wide(result), wide(wanted), rtol=rtol, atol=max(ATOL, case.atol)
            )


@pytest.mark.parametrize("name", [name for name in cases() if reason(name) is None])
def test_case_passes(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", [name for name in cases() if reason(name) is not None])
def test_exception_still_is_one(name: str) -> None:
    with pytest.raises((AdapterError, AssertionError)):
        check(name)


def test_exceptions_are_cases() -> None:
    assert set(EXCEPTIONS) <= set(cases())


ZOO = [
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Equal",
    "Exp",
    "Expand",
    "Flatten",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "LSTM",
    "Log",
    "MatMul",
    "Max",
    "MaxPool",
    "Mul",
    "Neg",
    "Not",
    "Pad",
    "Pow",
    "QuantizeLinear",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Sign",
    "Sin",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
]


@pytest.mark.parametrize("version", [8, 9, 11, 12, 13, 15, 18, 21])
def test_operators_of_real_models_have_converters_at_each_opset(version: int) -> None:
    younger = {"ConstantOfShape": 9, "Resize": 10, "QuantizeLinear": 10, "DequantizeLinear": 10}
    table = load()
    missing = [
        name
        for name in ZOO
        if version >= younger.get(name, 1) and table.find("", name, version) is None
    ]
    assert missing == []
    assert table.find("com.microsoft", "FusedConv", 1) is not None
