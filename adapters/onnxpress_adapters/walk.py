"""Where the graphs of a model are and which constants stand in each.

Constants are weights wherever they stand, so whoever looks for weights looks here: initializers
(also those that are graph inputs, as in IR 3 files) and Constant nodes alike, in the main graph and
in the bodies of If, Loop and Scan. Model-local functions are no graphs and are walked apart.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import FunctionProto, GraphProto, ModelProto

STANDARD_DOMAINS = ("", "ai.onnx")


def bodies(node: NodeProto, place: int) -> Iterator[tuple[str, GraphProto]]:
    """Give the graphs a node holds, each with its entry of a ``WeightKey`` path.

    Args:
        node: any node; most hold no graph.
        place: the position of the node in its graph, from 0.

    Yields:
        ``("If_3[12].then_branch", graph)``; one of several in a list is ``"….branches[0]"``. A node
        without a name is called by its operator.
    """
    for attribute in node.attribute:
        entry = f"{node.name or node.op_type}[{place}].{attribute.name}"
        if attribute.type == AttributeProto.GRAPH:
            yield entry, attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            for index, graph in enumerate(attribute.graphs):
                yield f"{entry}[{index}]", graph


def graphs(model: ModelProto) -> Iterator[tuple[tuple[str, ...], GraphProto]]:
    """Walk the main graph and all bodies in it, parents before children.

    Args:
        model: any model; its functions are not walked.

    Yields:
        The path of a ``WeightKey`` (``()`` for the main graph) and the graph itself, not a copy.
        Bodies come depth first, in the order of the nodes.
    """
    waiting: list[tuple[tuple[str, ...], GraphProto]] = [((), model.graph)]
    while waiting:
        path, graph = waiting.pop()
        yield path, graph
        inside = [
            ((*path, entry), body)
            for place, node in enumerate(graph.node)
            for entry, body in bodies(node, place)
        ]
        waiting.extend(reversed(inside))


def function_path(function: FunctionProto) -> tuple[str, ...]:
    """Give the path of the constants a model-local function holds, as in ``WeightKey.path``.

    It has one entry, ``"function my.domain::name"``, with ``":overload"`` where there is one.
    """
    overload = f":{function.overload}" if function.overload else ""
    return (f"function {function.domain}::{function.name}{overload}",)


def functions(model: ModelProto) -> Iterator[tuple[tuple[str, ...], GraphProto | FunctionProto]]:
    """Walk the model-local functions and the bodies in them, with the paths of their constants."""
    for function in model.functions:
        yield function_path(function), function
        waiting: list[tuple[tuple[str, ...], GraphProto | FunctionProto]] = [
            (function_path(function), function)
        ]
        while waiting:
            path, holder = waiting.pop()
            for place, node in enumerate(holder.node):
                for entry, body in bodies(node, place):
                    yield (*path, entry), body
                    waiting.append(((*path, entry), body))


def strings(graph: GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    """Give the constants of one graph that hold text, as arrays of objects."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.STRING:
            yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        if not is_constant(node) or not node.output:
            continue
        for attribute in node.attribute:
            match attribute.name:
                case "value" if attribute.t.data_type == TensorProto.STRING:
                    yield node.output[0], numpy_helper.to_array(attribute.t)
                case "value_string":
                    yield node.output[0], np.array(attribute.s.decode(), object)
                case "value_strings":
                    yield node.output[0], np.array([s.decode() for s in attribute.strings], object)
                case _:
                    continue


def holders(model: ModelProto) -> Iterator[tuple[int, GraphProto | FunctionProto]]:
    """Walk everything in a model that holds nodes.

    Args:
        model: any model, trusted or not.

    Yields:
        How deep it is nested (0 for the main graph, a function or a training graph) and the holder
        itself: the main graph, then functions and training graphs, then all bodies in them.
    """
    waiting: deque[tuple[int, GraphProto | FunctionProto]] = deque([(0, model.graph)])
    waiting.extend((0, function) for function in model.functions)
    for training in model.training_info:
        waiting += [(0, training.initialization), (0, training.algorithm)]
    while waiting:
        depth, holder = waiting.popleft()
        yield depth, holder
        for place, node in enumerate(holder.node):
            waiting.extend((depth + 1, body) for _, body in bodies(node, place))


def is_constant(node: NodeProto) -> bool:
    """Say whether a node is a Constant of the standard domain."""
    return node.op_type == "Constant" and node.domain in STANDARD_DOMAINS


def constant_value(node: NodeProto) -> TensorProto | None:
    """Give what a Constant node holds as a tensor.

    Args:
        node: a Constant node, in any of the attribute forms of the ONNX specification.

    Returns:
        The tensor in the node itself for ``value``; a new one for the number forms (float32 and
        int64, scalar or 1-D); None for strings and for ``sparse_value``, which
        ``sparse_tensors.make_dense`` turns into ``value`` before anything is imported.
    """
    for attribute in node.attribute:
        match attribute.name:
            case "value" if attribute.t.data_type != TensorProto.STRING:
                tensor: TensorProto = attribute.t
                return tensor
            case "value_float":
                return numpy_helper.from_array(np.array(attribute.f, np.float32))
            case "value_floats":
                return numpy_helper.from_array(np.array(attribute.floats, np.float32))
            case "value_int":
                return numpy_helper.from_array(np.array(attribute.i, np.int64))
            case "value_ints":
                return numpy_helper.from_array(np.array(attribute.ints, np.int64))
            case _:
                continue
    return None


def constants(graph: GraphProto | FunctionProto) -> Iterator[tuple[str, TensorProto]]:
    """Give the constants of one graph, without those of the bodies in it.

    Args:
        graph: of any model, or a function; sparse constants and strings are passed over.

    Yields:
        The exact ONNX name (of the initializer, or of the Constant node's output) and the tensor;
        initializers first, then Constant nodes, in the order of the file. A tensor of an
        initializer or of a ``value`` attribute is the one in the file, not a copy.
    """
    for tensor in getattr(graph, "initializer", ()):  # a function has none
        if tensor.data_type != TensorProto.STRING:
            yield tensor.name, tensor
    for node in graph.node:
        if is_constant(node) and node.output and node.output[0]:
            value = constant_value(node)
            if value is not None:
                yield node.output[0], value
