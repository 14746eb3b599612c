"""A graph made ready to run: nodes bound to converters, constants sorted by lane.

Two lanes run side by side. The *host* lane holds what decides shapes: integer and boolean
constants, the results of Shape, and everything computed from these alone. Its values are numpy
arrays and depend only on the shapes of the inputs, so they are computed once per input signature.
The *device* lane holds tensors: the inputs, the weights, and whatever is computed from them.

A floating-point constant is a weight, passed in at call time, if it can reach a tensor computed
from the inputs; one that only feeds shape arithmetic (the scales of a Resize, say) stays on the
host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from onnx import GraphProto, NodeProto, numpy_helper

from onnxpress_adapters import walk
from onnxpress_adapters.errors import UnsupportedOperatorError
from onnxpress_adapters.node import NodeView, view
from onnxpress_adapters.registry import Entry, Registry
from onnxpress_adapters.trace import Array
from onnxpress_adapters.weights import WeightKey

BUILT_IN = frozenset({"Shape", "Size", "Identity", "If"})
"""Operators of ai.onnx the interpreter runs itself, because they concern lanes or bodies."""


@dataclass(frozen=True, eq=False)
class Instruction:
    """One node, bound.

    Attributes:
        node: the node, decoded.
        place: its index in its graph, Constant nodes counted.
        entry: the converter, or None for an operator of ``BUILT_IN``.
        host: input places that arrive as numpy arrays.
        varies: whether the first input depends on what the graph's inputs hold, not only on shapes.
        bodies: attribute name to compiled body, for control flow.
        release: names whose values nobody reads afterwards.
    """

    node: NodeView
    place: int
    entry: Entry | None
    host: frozenset[int]
    varies: bool
    bodies: Mapping[str, Body]
    release: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Body:
    """A graph or subgraph, compiled.

    Attributes:
        path: where it stands, as in ``WeightKey.path``.
        inputs: names of its inputs, initializers left out.
        outputs: names of its outputs.
        instructions: its nodes in order, without Constant nodes.
        host: constants of the host lane by name, those of the graphs around it included.
        device: its constants of the device lane: name to key.
    """

    path: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    host: Mapping[str, Array]
    device: Mapping[str, WeightKey]

    def walk(self) -> Iterator[Body]:
        """Give this body and the bodies inside it, outermost first."""
        yield self
        for instruction in self.instructions:
            for body in instruction.bodies.values():
                yield from body.walk()


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled main graph and the values of its device constants, in their original types."""

    main: Body
    constants: Mapping[WeightKey, Array]


def compile_graph(graph: GraphProto, opsets: Mapping[str, int], registry: Registry) -> Program:
    """Bind a model's main graph, subgraphs included.

    Args:
        graph: checked, without sparse initializers and local functions.
        opsets: domain to version; ``""`` for ai.onnx.
        registry: the converters.

    Raises:
        UnsupportedOperatorError: some operators have no converter; all are listed with their nodes.
    """
    compiler = _Compiler(opsets, registry)
    draft = compiler.draft(graph, ())
    if compiler.missing:
        raise UnsupportedOperatorError(_missing_message(compiler.missing))
    compiler.sort_lanes(draft)
    constants: dict[WeightKey, Array] = {}
    main = compiler.finish(draft, constants)
    return Program(main, constants)


def _missing_message(missing: Mapping[str, list[str]]) -> str:
    lines = []
    for operator, nodes in sorted(missing.items()):
        shown = ", ".join(f"'{name}'" for name in nodes[:8])
        more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
        lines.append(f"  {operator}: {shown}{more}")
    return "\n".join(
        [f"no converter for {len(missing)} operator(s) of this model (with their nodes):", *lines]
    )


@dataclass(eq=False)
class _Draft:
    """A graph during compilation, before its constants have a lane."""

    path: tuple[str, ...]
    graph: GraphProto
    constants: dict[str, Array]
    nodes: list[tuple[int, NodeView, Entry | None, dict[str, _Draft]]]
    on_device: set[str] = field(default_factory=set)


class _Compiler:
    """Compiles one model; holds what its graphs share."""

    def __init__(self, opsets: Mapping[str, int], registry: Registry) -> None:
        self.opsets = opsets
        self.registry = registry
        self.missing: dict[str, list[str]] = {}
        self.varying: set[str] = set()

    def draft(self, graph: GraphProto, path: tuple[str, ...]) -> _Draft:
        """Decode nodes and constants of a graph and its bodies."""
        constants = {name: numpy_helper.to_array(t) for name, t in walk.constants(graph)}
        draft = _Draft(path, graph, constants, [])
        for place, proto in enumerate(graph.node):
            if proto.op_type == "Constant" and proto.output[0] in constants:
                continue
            node = view(proto, self._version(proto))
            entry = self.registry.find(node.domain, node.operator, node.version)
            built_in = node.domain == "" and node.operator in BUILT_IN
            if entry is None and not built_in:
                label = f"{node.domain or 'ai.onnx'}::{node.operator} (opset {node.version})"
                self.missing.setdefault(label, []).append(node.name)
            bodies = {
                entry_name.rpartition(".")[2]: self.draft(body, (*path, entry_name))
                for entry_name, body in walk.bodies(proto, place)
            }
            draft.nodes.append((place, node, None if built_in else entry, bodies))
        return draft

    def _version(self, proto: NodeProto) -> int:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        return self.opsets.get(domain, 1)

    def sort_lanes(self, main: _Draft) -> None:
        """Mark, in every draft, the constants that can reach a tensor computed from the inputs."""
        initial = set(main.constants)
        self.varying = {v.name for v in main.graph.input if v.name not in initial}
        self._spread(main, self.varying)
        wanted = {v.name for v in main.graph.output}
        self._reach(main, self.varying, wanted)

    def _spread(self, draft: _Draft, varying: set[str]) -> None:
        """Add to ``varying`` the names whose values depend on what the inputs hold."""
        for _, node, _, bodies in draft.nodes:
            for body in bodies.values():
                self._spread(body, varying)
            if node.operator in ("Shape", "Size"):
                continue
            inner = any(v.name in varying for b in bodies.values() for v in b.graph.output)
            if inner or any(name in varying for name in node.inputs):
                varying.update(name for name in node.outputs if name)

    def _reach(self, draft: _Draft, varying: set[str], wanted: set[str]) -> None:
        """Walk backwards from tensors to the constants they are made of."""
        for _, node, entry, bodies in reversed(draft.nodes):
            if node.operator in ("Shape", "Size"):
                continue
            needed = any(name in varying or name in wanted for name in node.outputs)
            if needed:
                for body in bodies.values():
                    wanted.update(v.name for v in body.graph.output)
            for body in bodies.values():
                self._reach(body, varying, wanted)
            if needed:
                places = host_places(entry, len(node.inputs))
                wanted.update(n for i, n in enumerate(node.inputs) if i not in places and n)
        draft.on_device = {
            name for name, value in draft.constants.items() if name in wanted and _is_float(value)
        }

    def finish(
        self,
        draft: _Draft,
        constants: dict[WeightKey, Array],
        around: Mapping[str, Array] = MappingProxyType({}),
    ) -> Body:
        """Turn a draft whose constants have a lane into a body.

        Args:
            draft: with its lanes sorted.
            constants: where the constants of the device lane are put.
            around: the host constants of the graphs around this one.
        """
        last = _last_reads(draft)
        device = {name: WeightKey(draft.path, name) for name in draft.constants}
        device = {name: key for name, key in device.items() if name in draft.on_device}
        constants.update({key: draft.constants[name] for name, key in device.items()})
        host = {**around, **{n: v for n, v in draft.constants.items() if n not in device}}
        instructions = []
        for order, (place, node, entry, bodies) in enumerate(draft.nodes):
            instructions.append(
                Instruction(
                    node=node,
                    place=place,
                    entry=entry,
                    host=host_places(entry, len(node.inputs)),
                    varies=bool(node.inputs) and node.inputs[0] in self.varying,
                    bodies={n: self.finish(body, constants, host) for n, body in bodies.items()},
                    release=tuple(sorted(last.get(order, ()))),
                )
            )
        initial = set(draft.constants)
        return Body(
            path=draft.path,
            inputs=tuple(v.name for v in draft.graph.input if v.name not in initial),
            outputs=tuple(v.name for v in draft.graph.output),
            instructions=tuple(instructions),
            host=host,
            device=device,
        )


def host_places(entry: Entry | None, count: int) -> frozenset[int]:
    """Resolve the ``host`` of a registry row for a node with ``count`` inputs."""
    if entry is None:
        return frozenset()
    places: set[int] = set()
    for place in entry.host:
        places.update(range(-place - 1, count) if place < 0 else (place,))
    return frozenset(places)


def _is_float(value: Array) -> bool:
    # ml_dtypes' bfloat16 and float8 are of kind 'V'; numpy's own floats of kind 'f'.
    return bool(value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def _reads(node: NodeView, bodies: Mapping[str, _Draft]) -> set[str]:
    names = {name for name in node.inputs if name}
    for body in bodies.values():
        names.update(v.name for v in body.graph.output)
        for _, inner, _, inner_bodies in body.nodes:
            names |= _reads(inner, inner_bodies)
    return names


def _last_reads(draft: _Draft) -> dict[int, set[str]]:
    """Map a node's order to the names made in this graph that it is the last to read."""
    made = {name for _, node, _, _ in draft.nodes for name in node.outputs if name}
    keep = {v.name for v in draft.graph.output}
    last: dict[str, int] = {}
    for order, (_, node, _, bodies) in enumerate(draft.nodes):
        for name in node.outputs:
            last[name] = order
        for name in _reads(node, bodies):
            last[name] = order
    table: dict[int, set[str]] = {}
    for name, order in last.items():
        if name in made and name not in keep:
            table.setdefault(order, set()).add(name)
    return table
