"""Every converter against the node cases that ONNX ships, one node at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onnxpress_adapters import node as nodes
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.ops import load
from onnxpress_adapters.ops.dtypes import to_tensor

with warnings.catch_warnings():
    # Importing the cases computes all of them, overflows and divisions by zero included.
    warnings.simplefilter("ignore")
    from onnx.backend.test.loader import load_model_tests

RTOL, ATOL = 1e-3, 1e-5

# What cannot pass, by the beginning of the case's name, and why.
SMALL = "torch has no numbers of 2 or 4 bits and no bare exponents"
TRAINING = "inference only: the statistics or the dropped entries would belong to training"
RUNTIME = "onnxruntime answers as onnxpress does, the reference does not"
EXCEPTIONS = {
    "test_batchnorm_epsilon_training_mode": TRAINING,
    "test_batchnorm_example_training_mode": TRAINING,
    "test_training_dropout_default": TRAINING,
    "test_training_dropout_mask": TRAINING,
    "test_equal_string": "torch has no strings",
    "test_maxunpool_export_with_output_shape": RUNTIME,
    "test_resize_downsample_scales_cubic_align_corners": RUNTIME,
    "test_resize_downsample_scales_linear_align_corners": RUNTIME,
}
UNKNOWN_TYPES = ("INT4", "INT2", "FLOAT4", "E8M0", "int4", "int2", "float4")


def run_node(model: onnx.ModelProto, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Run the only node of a model on numpy inputs."""
    (proto,) = model.graph.node
    versions = {"": 1} | {entry.domain: entry.version for entry in model.opset_import}
    view = nodes.view(proto, versions[proto.domain])
    entry = load().find(view.domain, view.operator, view.version)
    assert entry is not None
    given = dict(zip((i.name for i in model.graph.input), inputs, strict=True))
    rest = next((-place - 1 for place in entry.host if place < 0), len(view.inputs))
    arguments: list[Any] = []
    for place, name in enumerate(view.inputs):
        if not name:
            arguments.append(None)
        elif place in entry.host or place >= rest:
            arguments.append(given[name])
        else:
            arguments.append(to_tensor(given[name]))
    results = entry.convert(view, *arguments)
    return results if isinstance(results, tuple) else (results,)


@cache
def cases() -> dict[str, Any]:
    registry = load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return {
        case.name: case
        for case in found
        if "_expanded" not in case.name
        and case.model is not None
        and len(case.model.graph.node) == 1
        and (case.model.graph.node[0].domain, case.model.graph.node[0].op_type) in registry.rows
    }


def reason(name: str) -> str | None:
    if any(part in name for part in UNKNOWN_TYPES):
        return SMALL
    if name == "test_training_dropout":
        return TRAINING
    return next((why for start, why in EXCEPTIONS.items() if name.startswith(start)), None)


def arrays(values: Sequence[Any]) -> Iterator[np.ndarray]:
    for value in values:
        is_proto = isinstance(value, onnx.TensorProto)
        yield numpy_helper.to_array(value) if is_proto else np.asarray(value)


@pytest.mark.parametrize("name", [name for name in cases() if reason(name) is None])
def test_node_case(name: str) -> None:
    case = cases()[name]
    names = case.model.graph.node[0].output
    for inputs, outputs in case.data_sets:
        results = run_node(case.model, list(arrays(inputs)))
        asked = [place for place, output in enumerate(names) if output]
        for place, expected in zip(asked, arrays(outputs), strict=True):
            wanted = to_tensor(expected)
            result = results[place]
            assert result.dtype == wanted.dtype
            assert tuple(result.shape) == tuple(wanted.shape)
            np.testing.assert_allclose(
                result.to(torch.complex128 if result.is_complex() else torch.float64).numpy(),
                wanted.to(torch.complex128 if result.is_complex() else torch.float64).numpy(),
                rtol=max(RTOL, case.rtol or 0),
                atol=max(ATOL, case.atol or 0),
            )


@pytest.mark.parametrize("name", [name for name in cases() if reason(name) is not None])
def test_exception_still_is_one(name: str) -> None:
    with pytest.raises((AdapterError, AssertionError)):
        test_node_case(name)
