"""Whether a model's graphs hang together, and whether they ask for more work than anyone could do.

These checks run before the ONNX checker and onnxruntime see a file: both can be kept busy for hours
by a few hundred bytes of functions that call each other, or by one loop.
"""

from __future__ import annotations

import math
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from onnx import GraphProto, TensorProto, numpy_helper

from onnxpress_adapters.errors import AdapterError, BrokenModelError
from onnxpress_adapters.walk import STANDARD_DOMAINS, bodies, constants, graphs, holders

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from onnx import FunctionProto, ModelProto, NodeProto

WHOLE = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)  # shapes, counts, conditions
FunctionKey = tuple[str, str, str]


def called(node: NodeProto) -> str:
    """Name a node the way messages do: operator, then its name or its first output."""
    return f"{node.op_type} '{node.name or next((name for name in node.output if name), '')}'"


def check_size(model: ModelProto, most_nodes: int, most_levels: int) -> None:
    """Refuse a model too large or too deep to walk, or with names that are not text.

    Args:
        model: as parsed.
        most_nodes: how many nodes it may have with all functions expanded.
        most_levels: how deep bodies may nest, and functions may call each other.

    Raises:
        BrokenModelError: nested too deep, calls in a circle, or a name is not UTF-8.
        AdapterError: too many nodes.
    """
    count = 0
    for depth, holder in holders(model):
        count += len(holder.node)
        if depth > most_levels:
            raise BrokenModelError(f"its graphs are nested more than {most_levels} levels deep")
        for name in _texts(holder):
            if not isinstance(name, str):
                raise BrokenModelError(f"the name {name!r} is not UTF-8 text; the file may be torn")
    if count <= most_nodes:
        count = _expanded(model, most_nodes, most_levels)
    if count > most_nodes:
        raise AdapterError(f"it has more than {most_nodes} nodes, all functions expanded")


def _texts(holder: GraphProto | FunctionProto) -> Iterator[object]:
    # protobuf hands out bytes where a text field of a file is not UTF-8.
    yield holder.name
    for node in holder.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    if isinstance(holder, GraphProto):
        yield from (value.name for value in (*holder.input, *holder.output))
        yield from (tensor.name for tensor in holder.initializer)
        yield from (sparse.values.name for sparse in holder.sparse_initializer)


def _expanded(model: ModelProto, most_nodes: int, most_levels: int) -> int:
    """Count the nodes there would be without functions; more than ``most_nodes`` is not counted."""
    sizes: dict[FunctionKey, int] = {}
    levels: dict[FunctionKey, int] = {}
    functions = {_key(f.domain, f.name, f.overload): f for f in model.functions}
    if len(functions) < len(model.functions):
        raise BrokenModelError("two of its functions have the same name")
    inside = {key: list(_nodes(function)) for key, function in functions.items()}
    calls = {
        key: {call for node in nodes if (call := _call(node)) in functions}
        for key, nodes in inside.items()
    }
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError as error:
        names = " -> ".join(f"'{name}'" for _, name, _ in error.args[1])
        raise BrokenModelError(f"its functions call each other in a circle: {names}") from error
    for key in order:
        size = sum(sizes.get(_call(node), 1) for node in inside[key])
        sizes[key] = min(size, most_nodes + 1)
        levels[key] = 1 + max((levels[call] for call in calls[key]), default=0)
        if levels[key] > most_levels:
            raise BrokenModelError(f"its functions call each other more than {most_levels} deep")
    total = sum(sizes.get(_call(node), 1) for _, graph in graphs(model) for node in graph.node)
    return min(total, most_nodes + 1)


def _nodes(function: FunctionProto) -> Iterator[NodeProto]:
    waiting: list[GraphProto | FunctionProto] = [function]
    while waiting:
        holder = waiting.pop()
        for place, node in enumerate(holder.node):
            yield node
            waiting.extend(body for _, body in bodies(node, place))


def _key(domain: str, name: str, overload: str) -> FunctionKey:
    return ("" if domain in STANDARD_DOMAINS else domain, name, overload)


def _call(node: NodeProto) -> FunctionKey:
    return _key(node.domain, node.op_type, node.overload)


def check_names(model: ModelProto) -> None:
    """Refuse graphs in which a name is made twice, not at all or too late.

    Raises:
        BrokenModelError: says which name, and at which node.
    """
    if not model.graph.node:
        raise BrokenModelError("its graph has no nodes, so it computes nothing")
    if not model.graph.output:
        raise BrokenModelError("its graph has no outputs, so there is nothing to preserve")
    _check_graph(model.graph, ())


def _check_graph(graph: GraphProto, outside: tuple[set[str], ...]) -> None:
    """Check one graph and the bodies in it; ``outside`` are the names the graphs around it made."""
    own: set[str] = set()
    _add(own, (value.name for value in graph.input), "an input")
    constant: set[str] = set()
    _add(constant, (tensor.name for tensor in graph.initializer), "an initializer")
    _add(constant, (sparse.values.name for sparse in graph.sparse_initializer), "an initializer")
    own |= constant
    for place, node in enumerate(graph.node):
        for name in node.input:
            if name and name not in own and not any(name in names for names in outside):
                raise BrokenModelError(_why_missing(graph, place, name))
        for _, body in bodies(node, place):
            _check_graph(body, (*outside, own))
        _add(own, (name for name in node.output if name), f"an output of {called(node)}")
    for value in graph.output:
        if value.name not in own and not any(value.name in names for names in outside):
            raise BrokenModelError(
                f"output '{value.name}' of graph '{graph.name}' is made by no node"
            )


def _add(names: set[str], new: Iterator[str], role: str) -> None:
    for name in new:
        if name in names:
            raise BrokenModelError(f"the name '{name}' is defined twice, here as {role}")
        names.add(name)


def _why_missing(graph: GraphProto, place: int, name: str) -> str:
    """Say why the node at ``place`` cannot read ``name``: nobody makes it, or only later."""
    reader = f"{called(graph.node[place])} reads '{name}'"
    makers = {made: at for at, node in enumerate(graph.node) for made in node.output if made}
    if name not in makers:
        return f"{reader}, which no input, constant or earlier node makes"
    waiting, upstream = [makers[name]], set[int]()
    while waiting:
        at = waiting.pop()
        if at not in upstream:
            upstream.add(at)
            waiting.extend(makers[read] for read in _reads(graph.node[at]) if read in makers)
    maker = called(graph.node[makers[name]])
    if place in upstream:
        return f"{reader}, which {maker} makes from the reader's own output: a cycle"
    return f"{reader}, which {maker} makes only later; sort the nodes topologically"


def _reads(node: NodeProto) -> Iterator[str]:
    waiting = [node]
    while waiting:
        reader = waiting.pop()
        yield from reader.input
        for _, body in bodies(reader, 0):
            waiting.extend(body.node)


def check_work(model: ModelProto, most_trips: int, most_bytes: int) -> None:
    """Refuse constants that ask for endless loops or for arrays beyond all memory.

    Only what the file itself fixes is judged: a trip count or a shape that comes from an input, or
    a loop that ends by its own condition, is not.

    Args:
        model: with names checked, its sparse constants dense.
        most_trips: how often the body of a loop may run, loops around it multiplied in.
        most_bytes: how large an array made from a constant shape may be, at 4 bytes an entry.

    Raises:
        BrokenModelError: names the node.
    """
    numbers = {
        name: numpy_helper.to_array(tensor)
        for _, graph in graphs(model)
        for name, tensor in constants(graph)
        if tensor.data_type in WHOLE and len(tensor.dims) <= 1 and math.prod(tensor.dims) <= 64
    }
    waiting = [(model.graph, 1)]
    while waiting:
        graph, times = waiting.pop()
        for place, node in enumerate(graph.node):
            standard = node.domain in STANDARD_DOMAINS
            shape_at = {"ConstantOfShape": 0, "Expand": 1}.get(node.op_type)
            if standard and shape_at is not None and len(node.input) > shape_at:
                shape = numbers.get(node.input[shape_at])
                if shape is not None and 4 * math.prod(int(v) for v in shape.flat) > most_bytes:
                    raise BrokenModelError(
                        f"{called(node)} asks for an array of shape {shape.tolist()}"
                    )
            endless = standard and node.op_type == "Loop" and _runs_on(node, numbers)
            trips = times
            if endless:
                count = numbers.get(node.input[0]) if node.input and node.input[0] else None
                trips *= int(count.flat[0]) if count is not None else most_trips + 1
                if trips > most_trips:
                    raise BrokenModelError(
                        f"{called(node)} runs its body more than {most_trips} times"
                    )
            waiting.extend((body, max(trips, 1)) for _, body in bodies(node, place))


def _runs_on(node: NodeProto, numbers: dict[str, np.ndarray]) -> bool:
    """Say whether only its trip count, if that is fixed at all, can end a Loop."""
    inputs = [*node.input, "", ""]
    if inputs[0] and (inputs[0] not in numbers or not numbers[inputs[0]].size):
        return False

    def true(name: str) -> bool:
        return name in numbers and numbers[name].size == 1 and bool(numbers[name].flat[0])

    for _, body in bodies(node, 0):
        if not body.output or len(body.input) < 2:
            return False
        source = {
            made: inner.input[0]
            for inner in body.node
            if inner.op_type == "Identity" and inner.input
            for made in inner.output
        }
        name = body.output[0].name
        while name in source:
            name = source[name]
        if name == body.input[1].name:
            return not inputs[1] or true(inputs[1])
        return true(name)
    return False
