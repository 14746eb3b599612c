"""Run one node in onnxruntime and through its converter, and compare."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnx import NodeProto, helper, numpy_helper

from one_node import Array, Prepared, prepare

MICROSOFT = "com.microsoft"


class Row(NamedTuple):
    """A node, its inputs, and the opset version it is read with.

    ``kinds`` names the ONNX element type of outputs for which onnxruntime cannot tell it.
    """

    operator: str
    version: int
    attributes: Mapping[str, Any]
    inputs: tuple[Array | None, ...]
    outputs: int = 1
    domain: str = ""
    kinds: Mapping[int, int] = MappingProxyType({})

    def __str__(self) -> str:
        shapes = [None if value is None else value.shape for value in self.inputs]
        return f"{self.operator}-{self.version} {dict(self.attributes)} {shapes}"


def row(operator: str, version: int, *inputs: Array | None, outputs: int = 1, **kw: Any) -> Row:
    """Describe a node of ai.onnx."""
    return Row(operator, version, kw, inputs, outputs)


def microsoft(operator: str, *inputs: Array | None, **kw: Any) -> Row:
    """Describe a node of com.microsoft with one output."""
    return Row(operator, 1, kw, inputs, domain=MICROSOFT)


def given(chosen: Row) -> dict[str, Array]:
    """Name the inputs of a row as its node does."""
    return {f"i{place}": v for place, v in enumerate(chosen.inputs) if v is not None}


def node(chosen: Row) -> NodeProto:
    """Write the node of a row, with all its outputs."""
    names = ["" if value is None else f"i{place}" for place, value in enumerate(chosen.inputs)]
    results = [f"o{place}" for place in range(chosen.outputs)]
    return helper.make_node(
        chosen.operator, names, results, name="here", domain=chosen.domain, **chosen.attributes
    )


def prepared(chosen: Row) -> Prepared:
    """Bind a row to its converter."""
    return prepare(node(chosen), chosen.version, given(chosen))


def answer(chosen: Row) -> list[Array]:
    """Run a row in onnxruntime.

    Numbers of a type that is not numpy's own become constants, because onnxruntime takes none in
    from Python; they came to ONNX late.
    """
    proto, inputs = node(chosen), given(chosen)
    constants = {name: value for name, value in inputs.items() if value.dtype.isbuiltin != 1}
    feeds = {name: value for name, value in inputs.items() if name not in constants}
    opset, ir = (23, 11) if constants else (17, 8)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in feeds.items()
    ]
    results = [
        helper.make_tensor_value_info(name, chosen.kinds[place], None)
        if place in chosen.kinds
        else helper.make_empty_tensor_value_info(name)
        for place, name in enumerate(proto.output)
    ]
    opsets = [helper.make_opsetid("", opset if chosen.domain else chosen.version)]
    opsets += [helper.make_opsetid(chosen.domain, 1)] if chosen.domain else []
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([proto], "one", infos, results, weights)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(value) for value in session.run(None, feeds)]


def check(chosen: Row, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Compare all outputs of a row, types included."""
    for result, expected in zip(prepared(chosen).run(), answer(chosen), strict=False):
        assert result is not None, str(chosen)
        value = result.numpy()
        assert value.dtype == expected.dtype, str(chosen)
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=str(chosen))
