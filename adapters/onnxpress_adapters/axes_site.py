"""One node as the rules about axes see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxpress_adapters.axes import Axes, Cells, Role
from onnxpress_adapters.axes_numbers import Ledger
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.trace import Array

POSITIONS = "positions of an image or a sequence are no units"


@dataclass(frozen=True, eq=False)
class Site:
    """A node, and where to write down what it does with axes.

    Attributes:
        node: decoded. All its tensors have shapes in ``axes``.
        axes: the facts about cells.
        ledger: the whole numbers that are known.
    """

    node: NodeView
    axes: Axes
    ledger: Ledger

    @property
    def x(self) -> str:
        """The first input."""
        return self.node.inputs[0]

    @property
    def y(self) -> str:
        """The first output."""
        return self.node.outputs[0]

    def input(self, slot: int) -> str:
        """Give an input by place, ``""`` where it is left out."""
        return self.node.inputs[slot] if slot < len(self.node.inputs) else ""

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of an input or output."""
        return self.axes.shapes[name]

    def rank(self, name: str) -> int:
        """Give the number of dimensions of an input or output."""
        return len(self.axes.shapes[name])

    def numbers(self, attribute: str, slot: int) -> Array | Sequence[int] | None:
        """Give whole numbers that stand in an attribute or are made of constants at an input.

        None where they are left out, or not fixed: ``given`` tells these apart.
        """
        found = self.node.get(attribute)
        if found is not None:
            return [int(found)] if isinstance(found, int) else list(found)
        return self.ledger.fixed(self.input(slot)) if self.input(slot) else None

    def given(self, attribute: str, slot: int) -> bool:
        """Say whether an attribute or the input that took its place later is there."""
        return self.node.get(attribute) is not None or bool(self.input(slot))

    def keep(self, reason: str) -> None:
        """Keep the cells of everything the node reads and makes."""
        for name in (*self.node.inputs, *self.node.outputs):
            self.axes.pin_value(name, reason)

    def keep_axis(self, name: str, axis: int, reason: str) -> None:
        """Keep the cells of one axis."""
        self.axes.pin_axis(name, axis, reason)

    def link(self, one: str, axis: int, other: str, to: int) -> None:
        """Let the cells of two axes leave together where both are equally long.

        An axis of one entry beside a longer one is repeated and has no part in it.
        """
        if self.shape(one)[axis] == self.shape(other)[to]:
            self.axes.same(self.axes.of(one, axis), self.axes.of(other, to))

    def link_all(self, one: str, other: str, but: Sequence[int] = ()) -> None:
        """Link all axes of two values of one rank, but for some of the axes."""
        for axis in range(self.rank(one)):
            if axis not in but:
                self.link(one, axis, other, axis)

    def broadcast(self, names: Sequence[str], result: str) -> None:
        """Link the axes of operands, matched from the last one, with those of a result."""
        for name in names:
            behind = self.rank(result) - self.rank(name)
            for axis in range(self.rank(name)):
                self.link(name, axis, result, axis + behind)

    def mark(self, name: str, role: Role, but: Sequence[int] = ()) -> None:
        """Say what the entries of a value do, along all its axes but some."""
        for axis in range(self.rank(name)):
            if axis not in but:
                self.axes.mark(name, axis, role)

    def of(self, name: str, axis: int) -> Cells:
        """Give the cells of one axis."""
        return self.axes.of(name, axis)

    def mixes(self) -> str:
        """Say that the node computes with all entries along an axis at once."""
        return f"{self.node} computes with all of them at once"


Rule = Callable[[Site], None]
"""Writes down what an operator does with the axes of what it reads and makes."""

Rules = Mapping[tuple[str, str], Rule]
"""Domain and operator to rule."""
