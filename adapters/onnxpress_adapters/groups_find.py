"""Find the units of a model that leave together, on its graph.

The main graph is run once, so that every shape is known, and the rules of ``axes_*`` write down
what each node does with the axes of what it reads and makes. Nothing that touches a graph input or
output, a body of If, Loop or Scan, a function, or an operator without a rule can leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from onnxpress_adapters import (
    axes_attention,
    axes_elementwise,
    axes_moves,
    axes_norms,
    axes_products,
)
from onnxpress_adapters.axes import FREE, TOGETHER, Axes, Role
from onnxpress_adapters.axes_numbers import TARGETS, Ledger
from onnxpress_adapters.axes_site import Rule, Site
from onnxpress_adapters.control import CALLED
from onnxpress_adapters.groups import Group, Groups, Member, Units
from onnxpress_adapters.groups_trace import observe
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.weights import WeightKey

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxpress_adapters.graph import Instruction
    from onnxpress_adapters.groups_trace import Observed
    from onnxpress_adapters.network import Network
    from onnxpress_adapters.node import NodeView
    from onnxpress_adapters.trace import Array, Value

RULES: Mapping[tuple[str, str], Rule] = {
    **axes_attention.RULES,
    **axes_elementwise.RULES,
    **axes_moves.RULES,
    **axes_norms.RULES,
    **axes_products.RULES,
}

LARGEST_LIST = 1 << 12
"""Entries up to which computed whole numbers are remembered: shapes and bounds are short."""

PARTIAL = frozenset({"Gather", "Shape", "Slice"})
"""Operators that do not care what becomes of some entries of their first input."""

Slot = tuple[str, int, int]
"""A constant, one of its axes, and what is done there: a ``Role``."""


def find_groups(
    model: ModelProto,
    network: Network,
    weights: Mapping[WeightKey, Tensor],
    inputs: Sequence[Value],
) -> Groups:
    """Find the units of a model that leave together.

    Args:
        model: as ``read_model`` gives it.
        network: the same, imported.
        weights: the reference weights.
        inputs: one sample, as for a call of the network. Only the shapes matter.

    Raises:
        AdapterError: the network cannot run on the sample.
    """
    return _Finder(model, network, weights).find(inputs)


class _Finder:
    """Walks the main graph once and writes down the facts about its axes."""

    def __init__(
        self, model: ModelProto, network: Network, weights: Mapping[WeightKey, Tensor]
    ) -> None:
        self.model = model
        self.network = network
        self.weights = weights
        self.main = network.program.main
        self.axes = Axes()
        self.seen: dict[str, Array] = {}
        self.ledger = Ledger(self.axes.shapes, self.seen)
        self.constants: dict[str, tuple[int, ...]] = {}
        self.wired: set[str] = set()

    def find(self, inputs: Sequence[Value]) -> Groups:
        """Do all of it."""
        self._enter_constants()
        for name, value in zip(self.main.inputs, inputs, strict=True):
            self._enter(name, value)
            self.axes.pin_value(name, f"the model's input '{name}' is what it is")
        # A model that gives an input or a constant back has no node to meet it at.
        observe(self.network, self.weights, inputs, self._look)
        for weight in prunable(self.model):
            if weight.fixed and not weight.key.path:
                self.axes.pin_value(weight.key.name, f"a weight cannot change: {weight.fixed}")
        for name in self.main.outputs:
            self.axes.pin_value(name, f"the model's output '{name}' is promised as it is")
            self._pin_sizes(name, "a size is an output of the model")
        return _Sorter(self.model, self.network, self.axes, self.constants).sort(self.ledger)

    def _enter_constants(self) -> None:
        values = {name: np.asarray(array) for name, array in self.main.host.items()}
        held = self.network.program.constants
        values.update({name: held[key] for name, key in self.main.device.items()})
        for name, array in values.items():
            self.axes.add(name, array.shape)
            self.ledger.constant(name, array)
            self.constants[name] = array.shape
        self.wired.update(values)

    def _enter(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor | np.ndarray) and name not in self.axes.shapes:
            self.axes.add(name, tuple(value.shape))
        if isinstance(value, np.ndarray) and value.size <= LARGEST_LIST:
            self.seen[name] = value

    def _look(
        self, run: Observed, instruction: Instruction, values: Mapping[str, Value | None]
    ) -> None:
        """Write down what a node does that has just run."""
        node = instruction.node
        for name in node.outputs:
            if name:
                self._enter(name, values.get(name))
        read = [name for name in node.inputs if name]
        site = Site(node, self.axes, self.ledger)
        self.axes.wired = bool(read) and all(name in self.wired for name in read)
        if self.axes.wired:
            self.wired.update(name for name in node.outputs if name)
        called = CALLED in instruction.bodies
        for body in instruction.bodies.values() if not called else ():
            for inner in body.walk():
                for step in inner.instructions:
                    self._pin_captured(step.node.inputs, str(node))
                self._pin_captured(inner.outputs, str(node))
        rule = RULES.get((node.domain, node.operator))
        names = [name for name in (*node.inputs, *node.outputs) if name]
        if called or instruction.bodies:
            site.keep(f"{node} has graphs of its own")
        elif rule is None:
            site.keep(f"{node} is not followed")
        elif any(name not in self.axes.shapes for name in names):
            site.keep(f"{node} works on something that is no tensor")
        else:
            facts = self.axes.facts()
            rule(site)
            self._keep_unnamed(node, facts)
        for name, axis in self.ledger.pass_on(node):
            if name in self.axes.shapes:
                self.axes.pin_axis(name, axis, f"{node} computes with its size")
        self.axes.wired = False

    def _keep_unnamed(self, node: NodeView, facts: tuple[int, int, int]) -> None:
        """Keep whatever the rule of a node does not speak of."""
        named = [*node.inputs, *node.outputs]
        if node.operator in PARTIAL:
            named.remove(node.inputs[0])
        if node.operator in TARGETS:  # what is new there is told to the node
            named.remove(node.outputs[0])
        for name in filter(None, named):
            for axis, size in enumerate(self.axes.shapes[name]):
                if size > 1:
                    reason = f"{node} uses them in its own way"
                    self.axes.pin_unnamed(self.axes.of(name, axis), facts, reason)

    def _pin_captured(self, names: Sequence[str], reader: str) -> None:
        for name in names:
            if name in self.axes.shapes:
                self.axes.pin_value(name, f"a graph inside {reader} reads them")
                self._pin_sizes(name, f"a graph inside {reader} reads its size")

    def _pin_sizes(self, name: str, reason: str) -> None:
        known = self.ledger.known.get(name)
        for axis in known.axes if known is not None else ():
            if axis is not None:
                self.axes.pin_axis(*axis, reason)


class _Sorter:
    """Sorts classes of cells that can leave into groups."""

    def __init__(
        self,
        model: ModelProto,
        network: Network,
        axes: Axes,
        constants: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.axes = axes
        self.constants = constants
        self.classes = axes.solve()
        self.prunable = prunable(model)
        self.changing = {weight.key: not weight.fixed for weight in self.prunable}
        self.places: dict[str, int] = {}
        for place, instruction in enumerate(network.program.main.instructions):
            for name in instruction.node.inputs:
                self.places.setdefault(name, place)

    def sort(self, ledger: Ledger) -> Groups:
        """Do all of it."""
        classes, count = self.classes, 0
        number = np.full(len(classes.reason), -1, np.int64)
        found: list[tuple[str, int, int, tuple[Slot, ...]]] = []
        for signature, members in sorted(self._alike(), key=self._order):
            makers = [
                name
                for name, _, role in signature
                if role & Role.MADE and WeightKey((), name) in self.changing
            ]
            if not makers:
                continue
            units = self._ranked(signature[0], members)
            if len(units) == 1:
                # The axis, or the part of it that is like this, would be empty.
                classes.reason[units] = classes.reasons.index(TOGETHER)
                continue
            number[units] = np.arange(count, count + len(units))
            found.append((makers[0], count, len(units), signature))
            count += len(units)
        axes = self._numbered(number)
        groups = tuple(
            Group(
                name,
                units,
                first,
                tuple(self._member(slot, axes, first, units) for slot in signature),
            )
            for name, first, units, signature in found
        )
        return Groups(groups, self._reasons(groups), axes, ledger)

    def _alike(self) -> list[tuple[tuple[Slot, ...], list[int]]]:
        """Put the classes together that stand on the same axes, with their slots in constants."""
        classes = self.classes
        slots: dict[int, list[Slot]] = {}
        for name, shape in sorted(self.constants.items(), key=lambda item: self._place(item[0])):
            for axis in range(len(shape)):
                cells = self.axes.of(name, axis)
                held, which = np.unique(classes.of_cell[cells], return_inverse=True)
                roles = np.zeros(len(held), np.int64)
                np.bitwise_or.at(roles, which, classes.roles[cells])
                for each, role in zip(held.tolist(), roles.tolist(), strict=True):
                    if classes.reason[each] == FREE:
                        slots.setdefault(each, []).append((name, axis, role))
        met = self._met()
        alike: dict[tuple[tuple[Slot, ...], int], list[int]] = {}
        for each, signature in slots.items():
            alike.setdefault((tuple(signature), int(met[each])), []).append(each)
        return [(signature, members) for (signature, _), members in alike.items()]

    def _met(self) -> np.ndarray:
        """Give each class a number that is the same for classes on the same axes of all values.

        One unit that stays is then enough for no axis of any value to become empty. The number is a
        sum of random ones, one per axis, so that axes need not be listed class by class.
        """
        rng = np.random.default_rng(0)
        met = np.zeros(len(self.classes.reason), np.uint64)
        for name, shape in self.axes.shapes.items():
            for axis in range(len(shape)):
                on = np.unique(self.classes.of_cell[self.axes.of(name, axis)])
                met[on] += rng.integers(1 << 63, dtype=np.uint64)
        return met

    def _place(self, name: str) -> int:
        """Give the place of the first node that reads a constant."""
        return self.places.get(name, len(self.places))

    def _order(self, item: tuple[tuple[Slot, ...], list[int]]) -> tuple[list[int], list[int]]:
        """Sort groups by the weights that make them."""
        slots = item[0]
        made = [self._place(name) for name, _, role in slots if role & Role.MADE]
        return made, [self._place(name) for name, _, _ in slots]

    def _ranked(self, slot: Slot, members: Sequence[int]) -> Units:
        """Order the classes of a group as they stand on the axis of its first member."""
        along = self.classes.of_cell[self.axes.of(slot[0], slot[1])]
        along = along[np.isin(along, members)]
        order: Units = along[np.sort(np.unique(along, return_index=True)[1])]
        return order

    def _numbered(self, number: Units) -> dict[str, tuple[Units, ...]]:
        """Give the number of the unit at every position of the values that have some."""
        axes = {}
        for name, shape in self.axes.shapes.items():
            found = tuple(
                number[self.classes.of_cell[self.axes.of(name, axis)]] for axis in range(len(shape))
            )
            if any((each >= 0).any() for each in found):
                axes[name] = found
        return axes

    def _member(
        self, slot: Slot, axes: Mapping[str, tuple[Units, ...]], first: int, count: int
    ) -> Member:
        name, axis, role = slot
        units = axes[name][axis] - first
        key = WeightKey((), name)
        inside = (units >= 0) & (units < count)
        weight = self.changing.get(key, False)
        return Member(key, axis, np.where(inside, units, -1), Role(role), weight)

    def _reasons(self, groups: Sequence[Group]) -> dict[WeightKey, str]:
        """Say of each prunable weight that makes no removable unit why not."""
        makes = {m.key for group in groups for m in group.members if m.role & Role.MADE}
        reasons = {}
        for weight in self.prunable:
            key = weight.key
            if key in makes:
                continue
            if key.path:
                reasons[key] = "it stands in a graph inside another, or in a function"
            elif key.name not in self.constants:
                reasons[key] = "nothing reads it"
            else:
                reasons[key] = self._why(key.name)
        return reasons

    def _why(self, name: str) -> str:
        """Say why what a constant makes cannot leave."""
        cells = [self.axes.of(name, axis) for axis in range(len(self.constants[name]))]
        made = [each for each in cells if len(each) and self.classes.roles[each[0]] & Role.MADE]
        found = [self.classes.why(each) for each in made or cells]
        return next((text for text in found if text), "it makes no units")
