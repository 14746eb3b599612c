"""Which constants are weights: those that can reach a tensor computed from the inputs.

Names are looked at as if all bodies shared one scope. Where two bodies use one name for different
things, a constant may be taken for a weight that only feeds shapes; both lanes compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnx import GraphProto

from onnxpress_adapters.control import CALLED, Control
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.registry import Entry
from onnxpress_adapters.trace import Array
from onnxpress_adapters.weights import WeightKey

SHAPES = frozenset({"Shape", "Size"})
"""Operators that see the shape of their input and nothing else."""


@dataclass(eq=False)
class Draft:
    """A graph during compilation.

    Attributes:
        path: where it stands.
        keys: the path its constants have in a ``WeightKey``.
        graph: the proto.
        constants: all its constants by name.
        nodes: its nodes, without Constant nodes.
        on_device: the constants of the device lane, once the lanes are sorted.
    """

    path: tuple[str, ...]
    keys: tuple[str, ...]
    graph: GraphProto
    constants: dict[str, Array]
    nodes: list[DraftNode] = field(default_factory=list)
    on_device: set[str] = field(default_factory=set)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, initializers left out."""
        return [v.name for v in self.graph.input if v.name not in self.constants]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [v.name for v in self.graph.output]

    def walk(self) -> Iterator[Draft]:
        """Give this draft and those inside it."""
        yield self
        for node in self.nodes:
            for body in node.bodies.values():
                yield from body.walk()


@dataclass(eq=False)
class DraftNode:
    """A node during compilation: as an ``Instruction`` has it, bodies still drafts."""

    place: int
    node: NodeView
    entry: Entry | None
    control: Control | None
    falls_back: bool
    bodies: dict[str, Draft]


def sort_lanes(main: Draft, pressed: frozenset[WeightKey]) -> set[str]:
    """Mark, in every draft, the constants that are weights.

    Args:
        main: the main graph; its drafts' ``on_device`` are filled.
        pressed: constants of whole numbers that are weights nevertheless.

    Returns:
        The names whose values depend on what the graph's inputs hold.
    """
    varying = set(main.inputs)
    count = -1
    while count != len(varying):  # what a loop carries round may vary only from the second time on
        count = len(varying)
        _spread(main, varying)
    wanted = set(main.outputs)
    count = -1
    while count != len(wanted):
        count = len(wanted)
        _reach(main, varying, wanted)
    for draft in main.walk():
        draft.on_device = {
            name
            for name, value in draft.constants.items()
            if name in wanted and (is_float(value) or WeightKey(draft.keys, name) in pressed)
        }
    return varying


def _spread(draft: Draft, varying: set[str]) -> None:
    """Add to ``varying`` the names whose values depend on what the inputs hold."""
    for item in draft.nodes:
        node = item.node
        some = any(name in varying for name in node.inputs)
        for name, body in item.bodies.items():
            if name == CALLED:
                pairs = zip(body.inputs, node.inputs, strict=False)
                varying.update(formal for formal, given in pairs if given in varying)
            elif some or any(out in varying for out in body.outputs):
                first = 1 if node.operator == "Loop" else 0  # the count of a Loop's trips is known
                varying.update(body.inputs[first:])
            _spread(body, varying)
        if node.operator in SHAPES:
            continue
        inner = any(out in varying for body in item.bodies.values() for out in body.outputs)
        if inner or (some and CALLED not in item.bodies):
            varying.update(name for name in node.outputs if name)


def _reach(draft: Draft, varying: set[str], wanted: set[str]) -> None:
    """Walk backwards from tensors to the constants they are made of."""
    for item in reversed(draft.nodes):
        node = item.node
        if node.operator in SHAPES:
            continue
        needed = any(name in varying or name in wanted for name in node.outputs)
        for body in item.bodies.values():
            if needed:
                wanted.update(body.outputs)
            _reach(body, varying, wanted)
        if needed:
            places = host_places(item.entry, len(node.inputs))
            wanted.update(n for i, n in enumerate(node.inputs) if i not in places and n)


def upstream(main: Draft, names: set[str]) -> set[str]:
    """Give all names that names are computed from, themselves included."""
    found = set(names)
    count = -1
    while count != len(found):
        count = len(found)
        _climb(main, found)
    return found


def _climb(draft: Draft, found: set[str]) -> None:
    for item in reversed(draft.nodes):
        if item.node.operator in SHAPES:
            continue
        if any(name in found for name in item.node.outputs):
            for body in item.bodies.values():
                found.update(body.outputs)
            found.update(name for name in item.node.inputs if name)
        for body in item.bodies.values():
            _climb(body, found)
            if any(name in found for name in body.inputs):
                found.update(name for name in item.node.inputs if name)


def host_places(entry: Entry | None, count: int) -> frozenset[int]:
    """Resolve the ``host`` of a registry row for a node with ``count`` inputs."""
    if entry is None:
        return frozenset()
    places: set[int] = set()
    for place in entry.host:
        places.update(range(-place - 1, count) if place < 0 else (place,))
    return frozenset(places)


def is_float(value: Array) -> bool:
    """Say whether a constant holds real numbers steps can change."""
    # ml_dtypes' bfloat16 and float8 are of kind 'V'; numpy's own floats of kind 'f'.
    return bool(value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def last_reads(draft: Draft) -> Mapping[int, set[str]]:
    """Map a node's order to the names made in this graph that it is the last to read."""
    made = {name for item in draft.nodes for name in item.node.outputs if name}
    made.update(draft.inputs)
    keep = set(draft.outputs)
    last: dict[str, int] = {}
    for order, item in enumerate(draft.nodes):
        for name in item.node.outputs:
            last[name] = order
        for name in _reads(item):
            last[name] = order
    table: dict[int, set[str]] = {}
    for name, order in last.items():
        if name in made and name not in keep:
            table.setdefault(order, set()).add(name)
    return table


def _reads(item: DraftNode) -> set[str]:
    names = {name for name in item.node.inputs if name}
    for body in item.bodies.values():
        names.update(body.outputs)
        for inner in body.nodes:
            names |= _reads(inner)
    return names
