"""Which positions along the axes of values have to leave together.

A *cell* is one position along one axis of one value: column 3 of a matrix, channel 7 of an image.
Removing a cell means that the value has one position less there. What the operators of a graph do
with axes is written down as three kinds of facts about cells:

* ``same``: two cells leave together (channel 7 of a sum is channel 7 of what is added);
* ``product``: a cell leaves when any one of several others does (column 3 of a flattened image
  leaves with its channel, its row or its place in the row);
* ``pin``: a cell cannot leave, and why.

``solve`` gives the classes of cells that leave together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Cells = np.ndarray[Any, np.dtype[np.int64]]

FREE = np.iinfo(np.int64).max
"""The reason of a class that can leave: none."""

ALONE = "it is the only one of its axis"
TOGETHER = "all units would have to leave at once"
WHOLE = "it leaves with the whole block it belongs to"


class Role(IntFlag):
    """What the entries of a constant that belong to a unit do for it."""

    OTHER = 0
    MADE = 1  # they make it: zero, and nothing enters it
    SHIFT = 2  # they are added to it, or scale and shift it as a norm does
    READ = 4  # they read it: zero, and nothing comes of it


@dataclass(eq=False)
class Axes:
    """The facts about the cells of a graph, as they are found.

    Attributes:
        shapes: of the values that have cells.
        reasons: why cells are pinned, the first one first.
        wired: whether facts come from a node that reads constants only. Such nodes move a weight
            to the place where it is used; roles are handed back along them.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=lambda: [ALONE])
    wired: bool = False
    _count: int = 0
    _starts: dict[str, list[int]] = field(default_factory=dict)
    _same: list[tuple[Cells, Cells, bool]] = field(default_factory=list)
    _products: list[tuple[Cells, Cells, bool]] = field(default_factory=list)
    _pins: list[tuple[Cells, int]] = field(default_factory=list)
    _marks: list[tuple[Cells, Role]] = field(default_factory=list)

    def add(self, name: str, shape: Sequence[int]) -> None:
        """Give every axis of a value cells of its own."""
        self.shapes[name] = tuple(shape)
        self._starts[name] = [int(self.fresh(size)[0]) if size else 0 for size in shape]

    def fresh(self, size: int) -> Cells:
        """Give new cells for an axis no value shows, such as the groups of a convolution."""
        cells = np.arange(self._count, self._count + size, dtype=np.int64)
        self._count += size
        if size == 1:
            self._pins.append((cells, 0))
        return cells

    def of(self, name: str, axis: int) -> Cells:
        """Give the cells of one axis; a negative axis counts from the end."""
        axis %= len(self.shapes[name])
        start = self._starts[name][axis]
        return np.arange(start, start + self.shapes[name][axis], dtype=np.int64)

    def same(self, one: Cells, other: Cells) -> None:
        """Let two equally long rows of cells leave together, one by one."""
        self._same.append((one, other, self.wired))

    def product(self, whole: Cells, parts: Sequence[Cells]) -> None:
        """Let each cell of ``whole`` leave when any cell of ``parts`` at its place does.

        Args:
            whole: ``[cells]``.
            parts: one ``[cells]`` per factor, the outermost first.
        """
        self._products.append((whole, np.stack(list(parts)), self.wired))

    def pin(self, cells: Cells, reason: str) -> None:
        """Keep cells."""
        if self.reasons[-1] != reason:
            self.reasons.append(reason)
        self._pins.append((cells, len(self.reasons) - 1))

    def pin_axis(self, name: str, axis: int, reason: str) -> None:
        """Keep the cells of one axis."""
        self.pin(self.of(name, axis), reason)

    def pin_value(self, name: str, reason: str) -> None:
        """Keep the cells of all axes of a value."""
        for axis in range(len(self.shapes.get(name, ()))):
            self.pin_axis(name, axis, reason)

    def mark(self, name: str, axis: int, role: Role) -> None:
        """Say what entries of a value along an axis do, in case they are constant."""
        self._marks.append((self.of(name, axis), role))

    def facts(self) -> tuple[int, int, int]:
        """Say how many facts there are by now, for ``pin_unnamed``."""
        return len(self._same), len(self._products), len(self._pins)

    def pin_unnamed(self, cells: Cells, since: tuple[int, int, int], reason: str) -> None:
        """Keep those of some cells that no fact names which was written down lately.

        Args:
            cells: of a value a node reads or makes.
            since: what ``facts`` gave before the node's rule.
            reason: why what no rule speaks of stays.
        """
        named = [part for one, other, _ in self._same[since[0] :] for part in (one, other)]
        named += [
            part for whole, parts, _ in self._products[since[1] :] for part in (whole, *parts)
        ]
        named += [pinned for pinned, _ in self._pins[since[2] :]]
        loose = np.setdiff1d(cells, np.concatenate(named)) if named else cells
        if len(loose):
            self.pin(loose, reason)

    def solve(self) -> Classes:
        """Find the classes of cells that leave together and the reasons why some cannot."""
        return _Solver(self._count, self._same, self._products, self._pins, self._marks).solve(
            self.reasons, [self.of(n, a) for n, s in self.shapes.items() for a in range(len(s))]
        )


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes of cells that leave together.

    Attributes:
        of_cell: int64 ``[cells]``, the class of each cell.
        reason: int64 ``[classes]``, the place in ``reasons`` of why it stays; ``FREE`` where it
            can leave.
        reasons: as sentences.
        roles: int64 ``[cells]``, a ``Role`` each; of the cells of constants.
    """

    of_cell: Cells
    reason: Cells
    reasons: Sequence[str]
    roles: Cells

    def why(self, cells: Cells) -> str:
        """Say why cells cannot leave; empty where one of them can."""
        found = self.reason[self.of_cell[cells]]
        return "" if (found == FREE).any() else self.reasons[int(found.max(initial=0))]


class _Solver:
    """Joins cells into classes until the products say nothing new."""

    def __init__(
        self,
        count: int,
        same: Sequence[tuple[Cells, Cells, bool]],
        products: Sequence[tuple[Cells, Cells, bool]],
        pins: Sequence[tuple[Cells, int]],
        marks: Sequence[tuple[Cells, Role]],
    ) -> None:
        self.count = count
        self.products = products
        self.marks = marks
        self.wires = [(one, other) for one, other, wired in same if wired]
        self.of_cell = _joined(count, [(one, other) for one, other, _ in same])
        self.reason = np.full(int(self.of_cell.max(initial=-1)) + 1, FREE, np.int64)
        for cells, reason in pins:
            np.minimum.at(self.reason, self.of_cell[cells], reason)

    def solve(self, reasons: list[str], axes: Sequence[Cells]) -> Classes:
        """Run to the end; ``axes`` are the cells of all axes that must not become empty."""
        reasons = [*reasons, TOGETHER, WHOLE]
        while self._spread() or self._choose(len(reasons) - 1):
            pass
        for cells in axes:
            found = self.of_cell[cells]
            if len(found) > 1 and (found == found[0]).all():
                self._pin(found[:1], len(reasons) - 2)
        for whole, parts, wired in self.products:
            if wired:
                held = self.of_cell[parts] == self.of_cell[whole]
                self.wires += [(whole[at], part[at]) for part, at in zip(parts, held, strict=True)]
        return Classes(self.of_cell, self.reason, reasons, self._roles())

    def _spread(self) -> bool:
        """Draw what follows from the products; say whether something did."""
        before = self.reason.copy()
        edges = []
        for whole, parts, _ in self.products:
            to, at = self.of_cell[whole], self.of_cell[parts]
            kept = self.reason[to] != FREE
            self._pin(at[:, kept].ravel(), np.tile(self.reason[to[kept]], len(parts)))
            free = self.reason[at] == FREE
            # Parts of one class count once: they leave together.
            first = np.where(free, at, FREE).min(0)
            single = ((at == first) | ~free).all(0) & ~kept
            dead = single & ~free.any(0)
            self._pin(to[dead], self.reason[at[:, dead]].min(0))
            joined = single & ~dead & (first != to)
            if joined.any():
                edges.append((to[joined], first[joined]))
        if edges:
            self._join(edges)
            return True
        return not np.array_equal(before, self.reason)

    def _choose(self, whole_reason: int) -> bool:
        """Where a cell would leave with several factors, let it leave with the outermost only."""
        for _, parts, _ in self.products:
            at = self.of_cell[parts]
            free = self.reason[at] == FREE
            several = free.sum(0) > 1
            if not several.any():
                continue
            outermost = np.take_along_axis(at, free.argmax(0)[None], 0)
            inner = free & several & (at != outermost)
            if inner.any():
                self._pin(at[inner], whole_reason)
                return True
        return False

    def _pin(self, classes: Cells, reason: Cells | int) -> None:
        np.minimum.at(self.reason, classes, reason)

    def _join(self, edges: Sequence[tuple[Cells, Cells]]) -> None:
        """Make one class of each two that turned out to be one."""
        new = _joined(len(self.reason), edges)
        reason = np.full(int(new.max(initial=-1)) + 1, FREE, np.int64)
        np.minimum.at(reason, new, self.reason)
        self.of_cell, self.reason = new[self.of_cell], reason

    def _roles(self) -> Cells:
        """Hand the roles marked where weights are used back to the constants they are made of."""
        wire = _joined(self.count, self.wires)
        found = np.zeros(int(wire.max(initial=-1)) + 1, np.int64)
        for cells, role in self.marks:
            np.bitwise_or.at(found, wire[cells], int(role))
        return found[wire]


def _joined(count: int, edges: Sequence[tuple[Cells, Cells]]) -> Cells:
    """Number the connected components of so many nodes."""
    if not edges:
        return np.arange(count, dtype=np.int64)
    one = np.concatenate([pair[0] for pair in edges])
    other = np.concatenate([pair[1] for pair in edges])
    graph = coo_array((np.ones(len(one), np.int32), (one, other)), shape=(count, count))
    labels: Cells = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels
