"""Who reads which constant: names resolved through bodies and calls of functions.

A body sees the names of the graphs around it; a function sees its formal inputs, which stand for
what the call gives it, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxpress_adapters import walk
from onnxpress_adapters.functions import functions_of, key_of, local_call, opsets_of
from onnxpress_adapters.weights import WeightKey


@dataclass(frozen=True, eq=False)
class Scope:
    """One graph, body or called function, and what its names mean.

    Attributes:
        path: where it stands, as in ``Body.path``.
        keys: the path its constants have in a ``WeightKey``.
        opsets: domain to version.
        constants: its constants by name.
        makers: its nodes by the names they make.
        aliases: the formal inputs of a function: what each stands for, and where that is known.
    """

    path: tuple[str, ...]
    keys: tuple[str, ...]
    opsets: Mapping[str, int]
    constants: Mapping[str, TensorProto]
    makers: Mapping[str, NodeProto]
    aliases: Mapping[str, tuple[str, Scopes]]


Scopes = tuple[Scope, ...]
"""Innermost first."""


@dataclass(frozen=True, eq=False)
class Place:
    """One node where it stands.

    Attributes:
        node: the node, attributes of a function's call put in.
        index: its place in its graph.
        scopes: the graph it stands in and those around it.
    """

    node: NodeProto
    index: int
    scopes: Scopes

    @property
    def path(self) -> tuple[str, ...]:
        """Where the node's graph stands, as in ``Body.path``."""
        return self.scopes[0].path


def places(model: ModelProto) -> Iterator[Place]:
    """Walk all nodes, in the order they run; a function's once per call.

    Args:
        model: without sparse initializers, as ``read_model`` gives it.
    """
    functions = functions_of(model)
    top = _scope(model.graph, (), (), opsets_of(model), {})
    waiting: list[Iterator[Place]] = [_nodes(model.graph, (top,))]
    while waiting:
        place = next(waiting[-1], None)
        if place is None:
            waiting.pop()
            continue
        yield place
        node, scopes = place.node, place.scopes
        function = functions.get(key_of(node))
        inside: list[Iterator[Place]] = []
        if function is not None:
            called = local_call(function, node)
            step = f"{node.name or node.op_type}[{place.index}]"
            formals = [value.name for value in called.graph.input]
            aliases = {f: (g, scopes) for f, g in zip(formals, node.input, strict=False) if g}
            path = (*place.path, step)
            own = _scope(called.graph, path, called.keys or path, called.opsets, aliases)
            inside.append(_nodes(called.graph, (own,)))
        else:
            for step, body in walk.bodies(node, place.index):
                path, keys = (*place.path, step), (*scopes[0].keys, step)
                own = _scope(body, path, keys, scopes[0].opsets, {})
                inside.append(_nodes(body, (own, *scopes)))
        waiting.extend(reversed(inside))


def _nodes(graph: GraphProto, scopes: Scopes) -> Iterator[Place]:
    for index, node in enumerate(graph.node):
        yield Place(node, index, scopes)


def _scope(
    graph: GraphProto,
    path: tuple[str, ...],
    keys: tuple[str, ...],
    opsets: Mapping[str, int],
    aliases: Mapping[str, tuple[str, Scopes]],
) -> Scope:
    makers = {name: node for node in graph.node for name in node.output if name}
    return Scope(path, keys, opsets, dict(walk.constants(graph)), makers, aliases)


def constant(name: str, scopes: Scopes) -> tuple[WeightKey, TensorProto] | None:
    """Give the constant a name means, or None where it means something computed or given."""
    scope, name, _ = _resolved(name, scopes)
    if scope is None or name not in scope.constants:
        return None
    return WeightKey(scope.keys, name), scope.constants[name]


def maker(name: str, scopes: Scopes) -> tuple[NodeProto, Scopes] | None:
    """Give the node that makes a name and the scopes it stands in; None where no node does."""
    scope, name, scopes = _resolved(name, scopes)
    if scope is None or name in scope.constants or name not in scope.makers:
        return None
    return scope.makers[name], scopes


def _resolved(name: str, scopes: Scopes) -> tuple[Scope | None, str, Scopes]:
    """Find the scope a name is defined in, the name it has there, and the scopes from there on."""
    while True:
        for depth, scope in enumerate(scopes):
            if name in scope.constants or name in scope.makers:
                return scope, name, scopes[depth:]
            if name in scope.aliases:
                name, scopes = scope.aliases[name]
                break
        else:
            return None, name, ()
