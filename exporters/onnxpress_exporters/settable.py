"""Constants a caller may set: initializers that are inputs of the model as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxpress_adapters.sparse_tensors import FREE_INITIALIZERS

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnx import GraphProto, ModelProto


def settable(model: ModelProto) -> tuple[str, ...]:
    """Name the constants a caller may set when running a model.

    Up to IR version 3 every constant is listed as an input, and no runtime takes another.
    """
    if model.ir_version < FREE_INITIALIZERS:
        return ()
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    return tuple(value.name for value in graph.input if value.name in known)


def release(graph: GraphProto, names: Collection[str]) -> None:
    """Let constants be no inputs of their graph."""
    for place in reversed(range(len(graph.input))):
        if graph.input[place].name in names:
            del graph.input[place]
