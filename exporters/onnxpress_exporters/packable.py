"""Which constants of a model can be packed, and why others cannot."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from onnx import FunctionProto, GraphProto, TensorProto, numpy_helper

from onnxpress_adapters.sparse_tensors import FREE_INITIALIZERS
from onnxpress_adapters.walk import STANDARD_DOMAINS, constants, functions, graphs
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.packed import why_not_packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from onnx import ModelProto

SETTABLE = "it is an input as well, so that a caller may set it; --freeze packs it all the same"
"""Why a constant is not packed that a caller may give another value."""


LARGE_BYTES = 1 << 10
"""Of constants worth packing that nothing changed; a decoder takes hundreds of bytes."""


def opset_of(model: ModelProto) -> int:
    """Give the version of the standard operators."""
    versions = [o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS]
    return versions[0] if versions else 1


def unpackable(model: ModelProto, *, freeze: bool) -> Mapping[WeightKey, str]:
    """Say why constants of a model cannot be packed; those that can are left out.

    Args:
        model: with all constants dense.
        freeze: whether a constant may be that is an input of the model as well. Up to IR version 3
            every initializer is listed so, and no runtime takes another in its place.
    """
    opset = opset_of(model)
    frozen = freeze or model.ir_version < FREE_INITIALIZERS
    found: dict[WeightKey, str] = {}
    for path, graph in [*graphs(model), *functions(model)]:
        outputs, inputs = _border(graph)
        for name, tensor in constants(graph):
            reason = why_not_packed(opset, tensor.data_type, prod(tensor.dims))
            if isinstance(graph, FunctionProto):
                reason = "it stands in a function"
            elif name in outputs:
                reason = "it is an output of its graph"
            elif name in inputs and (path or not frozen):
                reason = reason or SETTABLE
            if reason:
                found[WeightKey(path, name)] = reason
    return found


def large_constants(model: ModelProto) -> dict[WeightKey, np.ndarray]:
    """Give the constants that may be worth packing although nothing changed them.

    Anchors, position tables and the like often hold few values; a constant that packing does not
    make smaller stays as it is.
    """
    return {
        WeightKey(path, name): numpy_helper.to_array(tensor)
        for path, graph in graphs(model)
        for name, tensor in constants(graph)
        if tensor.data_type == TensorProto.FLOAT and 4 * prod(tensor.dims) >= LARGE_BYTES
    }


def _border(graph: GraphProto | FunctionProto) -> tuple[set[str], set[str]]:
    if isinstance(graph, FunctionProto):
        return set(), set()
    return {value.name for value in graph.output}, {value.name for value in graph.input}
