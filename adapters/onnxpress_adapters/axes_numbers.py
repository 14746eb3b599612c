"""Where the whole numbers come from that tell a node a shape.

A graph computes shapes as it computes anything: it reads sizes of values, cuts, joins and
multiplies them. When units leave, sizes change. A number that is the size of an axis changes by
itself, one that stands in the file has to be rewritten, and one that arithmetic makes of sizes
cannot be followed: the axes it was made of then have to stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.trace import Array

Axis = tuple[str, int]
"""A value and the place of an axis in its shape."""

TARGETS: Mapping[str, int] = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}
"""Operators told the shape of their result, with the place of the input that tells it."""

IN_ORDER = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape"})
"""Operators that keep numbers in the order they have in memory."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """A value of whole numbers, entry by entry.

    Attributes:
        values: int64 ``[entries]``, as one run had them.
        fixed: bool ``[entries]``, whether an entry is made of constants alone.
        axes: the axis whose size an entry is; None where it is none.
    """

    values: Array
    fixed: Array
    axes: tuple[Axis | None, ...]

    @property
    def all_fixed(self) -> bool:
        """Whether all entries are made of constants alone."""
        return bool(self.fixed.all())


@dataclass(eq=False)
class Ledger:
    """The values of whole numbers of one graph.

    Attributes:
        shapes: of all values.
        seen: the whole numbers the run met, by name.
        known: where numbers come from, as far as it was followed.
    """

    shapes: Mapping[str, tuple[int, ...]]
    seen: Mapping[str, Array]
    known: dict[str, Numbers] = field(default_factory=dict)

    def constant(self, name: str, array: Array) -> None:
        """Enter a constant of whole numbers."""
        flat = array.reshape(-1)
        if flat.dtype.kind in "iub":
            self.known[name] = _fixed(flat.astype(np.int64))

    def fixed(self, name: str) -> Array | None:
        """Give the numbers of a value made of constants alone, flat; None for any other."""
        found = self.known.get(name)
        return found.values if found is not None and found.all_fixed else None

    def pass_on(self, node: NodeView) -> Iterator[Axis]:
        """Follow the numbers through a node.

        Yields:
            The axes whose sizes go into something that cannot be followed.
        """
        result = node.outputs[0] if node.outputs else ""
        read = [self.known[name] for name in node.inputs if name in self.known]
        whole = [name for name in node.inputs if name]
        moved = self._moved(node)
        if moved is not None:
            self.known[result] = moved
        elif read and len(read) == len(whole) and all(each.all_fixed for each in read):
            for name in node.outputs:
                if name in self.seen and self.seen[name].dtype.kind in "iub":
                    self.known[name] = _fixed(self.seen[name].reshape(-1).astype(np.int64))
        else:
            target = TARGETS.get(node.operator)
            for place, name in enumerate(node.inputs):
                if name in self.known and place != target:
                    yield from (axis for axis in self.known[name].axes if axis is not None)

    def _moved(self, node: NodeView) -> Numbers | None:
        """Follow numbers through an operator that reads sizes or moves numbers."""
        if node.operator == "Shape":
            return self._shape(node)
        read = [self.known.get(name) for name in node.inputs]
        if not read or read[0] is None or len(self.shapes.get(node.inputs[0], (1,) * 2)) > 1:
            return None
        first = read[0]
        if node.operator in IN_ORDER:
            return first
        if node.operator == "Concat":
            parts = [part for part in read if part is not None]
            if len(parts) < len(read):
                return None
            return Numbers(
                np.concatenate([part.values for part in parts]),
                np.concatenate([part.fixed for part in parts]),
                tuple(axis for part in parts for axis in part.axes),
            )
        if node.operator not in ("Gather", "Slice"):
            return None
        # What leaves is told by the operator itself, run on the places of the numbers.
        places = _taken(node, len(first.values), [self.fixed(name) for name in node.inputs[1:]])
        if places is None:
            return None
        return Numbers(
            first.values[places], first.fixed[places], tuple(first.axes[p] for p in places)
        )

    def _shape(self, node: NodeView) -> Numbers | None:
        name = node.inputs[0]
        if name not in self.shapes:
            return None
        shape = self.shapes[name]
        axes = range(len(shape))[node.get("start", 0) : node.get("end", len(shape))]
        return Numbers(
            np.array([shape[axis] for axis in axes], np.int64),
            np.zeros(len(axes), bool),
            tuple((name, axis) for axis in axes),
        )


def _fixed(flat: Array) -> Numbers:
    return Numbers(flat, np.ones(len(flat), bool), (None,) * len(flat))


def _taken(node: NodeView, count: int, further: list[Array | None]) -> list[int] | None:
    """Say which entries of a list a Gather or Slice takes; None where that is not fixed."""
    if any(given is None for given in further):
        return None
    given = [each for each in further if each is not None]
    if node.operator == "Gather":
        return [int(index) % count for index in given[0]] if count and given else None
    starts = given[0] if given else node.get("starts", [])
    ends = given[1] if len(given) > 1 else node.get("ends", [])
    step = int(given[3][0]) if len(given) > 3 else 1
    if len(starts) != 1 or len(ends) != 1:
        return None
    return list(range(count))[int(starts[0]) : int(ends[0]) : step]


def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Part a Reshape into the smallest runs of axes that hold the same entries.

    Args:
        before: the shape that is read.
        after: the shape that is made, of as many entries, at least one.

    Returns:
        Axes of ``before`` and the axes of ``after`` that take their place; axes of size 1 are in
        neither.

    >>> blocks((2, 3, 4, 5), (6, 4, 1, 5))
    [([0, 1], [0]), ([2], [1]), ([3], [3])]
    """
    old = [axis for axis, size in enumerate(before) if size != 1]
    new = [axis for axis, size in enumerate(after) if size != 1]
    found = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (one := prod(before[a] for a in left)) != (other := prod(after[a] for a in right)):
            side, rest = (left, old) if one < other else (right, new)
            side.append(rest.pop(0))
        found.append((left, right))
    return found


def factors(before: list[int], after: list[int]) -> list[int] | None:
    """Give the sizes both sides of a block are made of, outermost first.

    None where there are none: 4 by 6 and 6 by 4 share no factors in order.

    >>> factors([6, 4], [2, 12])
    [2, 3, 4]
    """
    bounds = sorted({prod(side[:k]) for side in (before, after) for k in range(1, len(side) + 1)})
    sizes, last = [], 1
    for bound in bounds:
        if bound % last:
            return None
        sizes.append(bound // last)
        last = bound
    return sizes
