"""Nodes that say how many units there are, told the new numbers.

Most operators read the sizes of what they are given. A few are told them: in an attribute (the
groups of a convolution, the hidden units of an LSTM) or in a constant (the shape of a Reshape, the
bounds of a Slice).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper

from onnxpress_adapters.axes_numbers import TARGETS
from onnxpress_adapters.axes_products import GATES
from onnxpress_adapters.walk import STANDARD_DOMAINS

if TYPE_CHECKING:
    from onnxpress_adapters.axes_numbers import Ledger
    from onnxpress_adapters.groups import Groups

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv"})
HEADED = ("Attention", "MultiHeadAttention")
HEADS = ("num_heads", "q_num_heads", "kv_num_heads")
SPLIT_AS_INPUT = 13
"""The opset from which the sizes of a Split are an input."""


@dataclass(eq=False)
class Names:
    """New names and constants of one graph.

    Attributes:
        graph: the graph they are for.
        made: new constants by their content, so that none is written twice.
        told: new shapes by the old one and by how they differ, likewise.
    """

    graph: GraphProto
    made: dict[tuple[bytes, str, tuple[int, ...]], str] = field(default_factory=dict)
    told: dict[tuple[str, bytes], str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Note the names that are taken."""
        named = (self.graph.input, self.graph.output, self.graph.initializer)
        self._taken.update(one.name for field in named for one in field)
        for node in self.graph.node:
            self._taken.update((*node.input, *node.output, node.name))

    def fresh(self, stem: str) -> str:
        """Give a name nothing has."""
        name, count = stem, 1
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name

    def constant(self, array: np.ndarray, stem: str) -> str:
        """Put a constant into the graph, as an initializer, and give its name."""
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self.made:
            name = self.fresh(stem)
            self.graph.initializer.append(numpy_helper.from_array(array, name))
            self.made[key] = name
        return self.made[key]


@dataclass(frozen=True, eq=False)
class Removal:
    """What leaves, as the nodes see it.

    Attributes:
        groups: of the model.
        gone: bool ``[units of all groups]``.
    """

    groups: Groups
    gone: np.ndarray

    def kept(self, name: str, axis: int) -> np.ndarray | None:
        """Mark the positions of an axis that stay; None where all do."""
        places = self.groups.places(name, self.gone)
        if places is None or not places[axis].any():
            return None
        return np.asarray(~places[axis])

    def size(self, name: str, axis: int) -> int | None:
        """Give the new size of an axis; None where it is the old one."""
        kept = self.kept(name, axis)
        return None if kept is None else int(kept.sum())


def adapt(node: NodeProto, removal: Removal, names: Names, opset: int) -> list[NodeProto]:
    """Tell one node the new numbers, in place.

    Args:
        node: of the main graph.
        removal: what leaves.
        names: of that graph; takes new constants up.
        opset: of the standard domain.

    Returns:
        Nodes that have to run before it.
    """
    operator = node.op_type
    if operator in CONVOLUTIONS:
        _convolution(node, removal)
    elif operator in HEADED:
        _heads(node, removal)
    elif node.domain not in STANDARD_DOMAINS:
        return []
    elif operator in GATES:
        size = removal.size(node.input[2], 2)
        if size is not None and any(a.name == "hidden_size" for a in node.attribute):
            _set(node, "hidden_size", size)
    elif operator == "Split":
        _split(node, removal, names, opset)
    elif operator == "Slice":
        _cut(node, removal, names)
    elif operator == "Gather":
        _gather(node, removal, names)
    elif operator in TARGETS:
        return _target(node, removal, names)
    return []


def _get(node: NodeProto, name: str) -> list[int] | None:
    for attribute in node.attribute:
        if attribute.name == name:
            held = attribute.type == AttributeProto.INT
            return [attribute.i] if held else list(attribute.ints)
    return None


def _set(node: NodeProto, name: str, value: int | Sequence[int]) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    copies = [AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
    del node.attribute[:]
    node.attribute.extend([*copies, helper.make_attribute(name, value)])


def _drop(node: NodeProto, name: str) -> None:
    for place, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[place]
            return


def _convolution(node: NodeProto, removal: Removal) -> None:
    """A grouped convolution that lost whole groups has fewer of them."""
    groups = (_get(node, "group") or [1])[0]
    kept = removal.kept(node.input[0], 1)
    if groups == 1 or kept is None:
        return
    left = kept.reshape(groups, -1).sum(1)
    _set(node, "group", int((left > 0).sum()))


def _heads(node: NodeProto, removal: Removal) -> None:
    """An attention that lost heads is told how many are left, where it was told before."""
    kept = removal.kept(node.output[0], 2)
    for name in HEADS if kept is not None else ():
        heads = _get(node, name)
        if heads is not None and kept is not None:
            _set(node, name, int(kept.reshape(heads[0], -1).any(1).sum()))


def _split(node: NodeProto, removal: Removal, names: Names, opset: int) -> None:
    axis = (_get(node, "axis") or [0])[0]
    places = [removal.groups.axes.get(name) for name in node.output]
    if removal.groups.places(node.input[0], removal.gone) is None:
        return
    sizes = removal.groups.ledger.shapes
    axis %= len(sizes[node.input[0]])
    if removal.kept(node.input[0], axis) is None:
        return
    new = []
    for name, known in zip(node.output, places, strict=True):
        size = removal.size(name, axis) if known is not None else None
        new.append(sizes[name][axis] if size is None else size)
    _drop(node, "num_outputs")
    if opset < SPLIT_AS_INPUT:
        _set(node, "split", new)
        return
    name = names.constant(np.array(new, np.int64), f"{node.output[0]}_sizes")
    if len(node.input) > 1:
        node.input[1] = name
    else:
        node.input.append(name)


def _cut(node: NodeProto, removal: Removal, names: Names) -> None:
    """The bounds of a Slice count what is kept in front of them."""
    ledger, rank = removal.groups.ledger, len(removal.groups.ledger.shapes[node.input[0]])

    def numbers(attribute: str, slot: int) -> list[int] | None:
        if slot < len(node.input) and node.input[slot]:
            found = ledger.fixed(node.input[slot])
            return None if found is None else [int(n) for n in found]
        return _get(node, attribute)

    starts, ends, axes = (numbers(*at) for at in (("starts", 1), ("ends", 2), ("axes", 3)))
    if starts is None or ends is None:
        return
    named = range(len(starts)) if axes is None else [axis % rank for axis in axes]
    bounds = {"starts": list(starts), "ends": list(ends)}
    for place, axis in enumerate(named):
        kept = removal.kept(node.input[0], axis)
        if kept is None:
            continue
        start, end, _ = slice(starts[place], ends[place]).indices(len(kept))
        bounds["starts"][place] = int(kept[:start].sum())
        bounds["ends"][place] = int(kept[: max(start, end)].sum())
    for slot, (name, old) in enumerate((("starts", starts), ("ends", ends)), start=1):
        if bounds[name] == old:
            continue
        if len(node.input) > slot:
            kind = np.int64
            stem = f"{node.output[0]}_{name}"
            _same_kind(node, slot, names, np.array(bounds[name], kind), stem)
        else:
            _set(node, name, bounds[name])


def _same_kind(node: NodeProto, slot: int, names: Names, new: np.ndarray, stem: str) -> None:
    """Put a constant of whole numbers into a slot; of the type the node's other ones have."""
    kinds = {
        tensor.name: numpy_helper.to_array(tensor).dtype
        for tensor in names.graph.initializer
        if tensor.name in node.input[1:]
    }
    kinds.update(
        {
            other.output[0]: numpy_helper.to_array(attribute.t).dtype
            for other in names.graph.node
            if other.op_type == "Constant" and other.output[0] in node.input[1:]
            for attribute in other.attribute
            if attribute.name == "value"
        }
    )
    kind = kinds.get(node.input[slot], np.dtype(np.int64))
    node.input[slot] = names.constant(new.astype(kind), stem)


def _gather(node: NodeProto, removal: Removal, names: Names) -> None:
    """What is looked up stands at other places now."""
    shapes = removal.groups.ledger.shapes
    axis = (_get(node, "axis") or [0])[0] % len(shapes[node.input[0]])
    kept, made = removal.kept(node.input[0], axis), removal.kept(node.output[0], axis)
    found = removal.groups.ledger.fixed(node.input[1])
    if kept is None or found is None:
        return
    places = np.cumsum(kept) - 1
    new = places[found % len(kept)]
    if made is not None:
        new = new[made]
    _same_kind(node, 1, names, new, f"{node.output[0]}_indices")


def _target(node: NodeProto, removal: Removal, names: Names) -> list[NodeProto]:
    """A shape that stands in the file gets the new sizes."""
    slot = TARGETS[node.op_type]
    places = removal.groups.places(node.output[0], removal.gone)
    if places is None:
        return []
    given = _get(node, "shape")
    if given is not None:  # before opset 5
        _set(node, "shape", [_resized(n, p) for n, p in zip(given, places, strict=True)])
        return []
    if slot >= len(node.input) or not node.input[slot]:
        return []
    numbers = removal.groups.ledger.known[node.input[slot]]
    behind = len(places) - len(numbers.values)
    delta = np.zeros(len(numbers.values), np.int64)
    for entry, value in enumerate(numbers.values):
        if numbers.fixed[entry] and value > 1:
            delta[entry] = -int(places[entry + behind].sum())
    if not delta.any():
        return []
    stem = f"{node.output[0]}_shape"
    if numbers.all_fixed:
        node.input[slot] = names.constant(numbers.values + delta, stem)
        return []
    # The rest is read from sizes, which change by themselves.
    old = node.input[slot]
    known = names.told.get((old, delta.tobytes()))
    if known is not None:
        node.input[slot] = known
        return []
    told = names.fresh(stem)
    names.told[old, delta.tobytes()] = node.input[slot] = told
    joined = _joined(old, told, delta, removal.groups.ledger, names)
    if joined is not None:
        return [joined]
    change = names.constant(delta, f"{stem}_change")
    return [helper.make_node("Add", [old, change], [told], name=names.fresh(f"{told}_add"))]


def _joined(
    old: str, told: str, delta: np.ndarray, ledger: Ledger, names: Names
) -> NodeProto | None:
    """Make a shape that is a Concat anew, with other constants; None where it is none."""
    (maker,) = [node for node in names.graph.node if old in node.output]
    if maker.op_type != "Concat":
        return None
    parts, begin = [], 0
    for name in maker.input:
        numbers = ledger.known[name]
        change = delta[begin : begin + len(numbers.values)]
        begin += len(numbers.values)
        if not change.any():
            parts.append(name)
        elif numbers.all_fixed:
            parts.append(names.constant(numbers.values + change, f"{name}_shrunk"))
        else:
            return None
    return helper.make_node("Concat", parts, [told], name=names.fresh(f"{told}_concat"), axis=0)


def _resized(number: int, leaving: np.ndarray) -> int:
    return number - int(leaving.sum()) if number > 0 else number


def used(graph: GraphProto) -> set[str]:
    """Give the names something in a graph, or in a body in it, reads or gives."""
    found = {value.name for value in graph.output}
    waiting: list[GraphProto] = [graph]
    while waiting:
        inner = waiting.pop()
        found.update(value.name for value in inner.output)
        for node in inner.node:
            found.update(node.input)
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)
    return found


def drop_dead(graph: GraphProto, before: set[str]) -> None:
    """Take out the nodes and constants of a graph that nothing reads any more.

    Args:
        graph: changed in place.
        before: the names that were read before; what was not read then stays.
    """
    while True:
        now = used(graph)
        dead = [
            place
            for place, node in enumerate(graph.node)
            if node.output and not any(name in now for name in node.output)
            if any(name in before for name in node.output)
        ]
        for place in reversed(dead):
            del graph.node[place]
        if not dead:
            break
    constants = {tensor.name for tensor in graph.initializer}
    for kept in (graph.initializer, graph.input):
        for place in reversed(range(len(kept))):
            name = kept[place].name
            if name in constants and name in before and name not in now:
                del kept[place]


def by_name(graph: GraphProto) -> Mapping[str, list[NodeProto]]:
    """List the nodes of a graph that read each name."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found
