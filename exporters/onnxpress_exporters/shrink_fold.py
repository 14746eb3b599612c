"""What removed units still say to those who read them, and whether it can be said in their stead.

A unit leaves exactly when every node that reads it would read the same whatever the input is: zero,
or a constant that a bias can take over. Whether a value depends on the input is followed node by
node, not guessed from samples: a rectifier that is shut on the samples may open on others. What the
constant is comes from a run with the new weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters import ops
from onnxpress_adapters.axes_products import GATES, MICROSOFT
from onnxpress_adapters.groups_trace import observe
from onnxpress_adapters.lanes import SHAPES
from onnxpress_adapters.registry import LATEST

if TYPE_CHECKING:
    from onnxpress_adapters.graph import Instruction
    from onnxpress_adapters.groups import Groups
    from onnxpress_adapters.groups_trace import Observed
    from onnxpress_adapters.network import Network
    from onnxpress_adapters.node import NodeView
    from onnxpress_adapters.trace import Value
    from onnxpress_adapters.weights import WeightKey

Mask = np.ndarray[Any, np.dtype[np.bool_]]
"""bool ``[units of all groups]``."""

EVEN = 1e-5
"""How far the same constant, computed at different places, may lie apart: what summing in another
order does to float32."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv"})
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm"}) | CONVOLUTIONS
BARE = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
"""Products with an activation, and the operator without it."""

FACTORS = PRODUCTS | {"Mul", "Einsum"}
"""Operators whose result is zero where one of the first two inputs is; that of Div is where the
first one is."""

HEADED = {
    ("", "Attention"): (2,),
    (MICROSOFT, "MultiHeadAttention"): (2, 3),
    (MICROSOFT, "Attention"): (1, 2),
}
"""Attention as one operator, and the inputs that make values: where all are zero, its result is."""

VARIES = "what {} reads of it depends on the input"
BORDER = "what {} reads of it is a constant that differs from place to place"
PAIRED = "{} multiplies it with something computed"


@dataclass(frozen=True, eq=False)
class Shift:
    """A constant to be added to what a node computes.

    Attributes:
        values: ``[size of the axis]``; for a recurrent node ``[directions, gates times units]``, to
            be added to the bias of its input.
        axis: of the node's result.
    """

    values: np.ndarray
    axis: int


@dataclass(frozen=True, eq=False)
class Constants:
    """What removed units still add, as constants.

    Attributes:
        shifts: by place of the node in the main graph, Constant nodes counted.
        stays: why a unit cannot leave, by its number.
    """

    shifts: Mapping[int, Shift]
    stays: Mapping[int, str]


def constants_read(
    network: Network,
    weights: Mapping[WeightKey, Tensor],
    inputs: Sequence[Value],
    groups: Groups,
    gone: np.ndarray,
) -> Constants:
    """Find what the readers of removed units would miss.

    Args:
        network: the imported model.
        weights: the new values, all of them.
        inputs: one sample; only its shapes matter.
        groups: of the model.
        gone: bool ``[units of all groups]``.
    """
    found = _Follower(network, groups, gone)
    observe(network, weights, inputs, found.look)
    return Constants(found.shifts, found.stays)


def contracted(node: NodeView, ranks: Sequence[int]) -> Mapping[int, tuple[int, ...]]:
    """Give the axes, by input, that a node sums over: what is on them is read there.

    Args:
        node: any.
        ranks: of its inputs.
    """
    if node.operator in CONVOLUTIONS and node.domain in ("", MICROSOFT):
        # A depthwise convolution hands each channel on.
        return {0: (1,), 1: (1 if node.operator != "ConvTranspose" else 0,)}
    if node.operator in PRODUCTS:
        inner = ranks[0] - (2 if node.get("transA", 0) and ranks[0] > 1 else 1)
        outer = ranks[1] - (1 if node.get("transB", 0) or ranks[1] == 1 else 2)
        return {0: (inner,), 1: (outer,)}
    if node.operator == "Einsum":
        terms, _, made = str(node.get("equation", "")).replace(" ", "").partition("->")
        return {
            slot: tuple(axis for axis, letter in enumerate(term) if letter not in made)
            for slot, term in enumerate(terms.split(","))
        }
    if node.operator in GATES and node.domain == "":
        return {0: (2,), 1: (2,), 2: (2,)}
    if (node.domain, node.operator) == (MICROSOFT, "Attention"):
        return {0: (2,), 1: (0,)}
    return {}


@dataclass(eq=False)
class _Follower:
    """Follows removed units through one run."""

    network: Network
    groups: Groups
    gone: Mask
    shifts: dict[int, Shift] = field(default_factory=dict)
    stays: dict[int, str] = field(default_factory=dict)
    wild: dict[str, Mask] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        main = self.network.program.main
        self.fixed.update(main.host, main.device)

    def look(
        self, run: Observed, instruction: Instruction, values: Mapping[str, Value | None]
    ) -> None:
        """Follow the removed units through the node that has just run."""
        node = instruction.node
        results = [name for name in node.outputs if name]
        given = [name for name in node.inputs if name]
        sized = node.operator in SHAPES and node.domain == ""
        if sized or (given and not instruction.bodies and self.fixed.issuperset(given)):
            self.fixed.update(results)
        if not any(name in self.groups.axes for name in given):
            return
        ranks = [len(getattr(values.get(name), "shape", ())) for name in node.inputs]
        read = contracted(node, ranks)
        if _depthwise(node, values):
            read = {}
        if node.operator in GATES and node.domain == "":
            self._recurrent(instruction, values)
            return
        if read:
            self._read(run, instruction, values, read)
        carried = [self._on(name) for name in results]
        if any(mask.any() for mask in carried):
            excused = self._excused(node, values, read)
            for name, mask in zip(results, carried, strict=True):
                self.wild[name] = self._depends(node, mask, excused, read)

    def _on(self, name: str, but: Sequence[int] = ()) -> Mask:
        """Mark the removed units that stand on some axis of a value."""
        found = self._none()
        for axis, units in enumerate(self.groups.axes.get(name, ())):
            if axis not in but:
                found[units[units >= 0]] = True
        return np.logical_and(found, self.gone)

    def _depends(
        self,
        node: NodeView,
        carried: Mask,
        excused: tuple[Mask, int],
        read: Mapping[int, tuple[int, ...]],
    ) -> Mask:
        """Mark the removed units of a result that depend on the input."""
        found, (zero, factors) = self._none(), excused
        for slot, name in enumerate(node.inputs):
            if not name or name in self.fixed:
                continue
            own = self._on(name, read.get(slot, ()))
            # A Concat takes each unit from the parts that have it.
            other = ~own if node.operator != "Concat" else self._none()
            found |= carried & (self._wild(name) | other) & ~(zero & (slot < factors))
        return found

    def _none(self) -> Mask:
        return np.zeros(len(self.gone), bool)

    def _wild(self, name: str) -> Mask:
        return self.wild.get(name, self._none())

    def _excused(
        self,
        node: NodeView,
        values: Mapping[str, Value | None],
        read: Mapping[int, tuple[int, ...]],
    ) -> tuple[Mask, int]:
        """Mark the units one factor makes zero, whatever the others are.

        Returns:
            The units, and how many inputs are factors.
        """
        headed = HEADED.get((node.domain, node.operator))
        if headed is not None:
            made = [node.inputs[slot] for slot in headed if slot < len(node.inputs)]
            parts = [self._nothing(name, values) for name in made if name]
            return np.logical_and.reduce(parts), len(node.inputs)
        found = self._none()
        factors = 2 if node.operator in FACTORS else 1 if node.operator == "Div" else 0
        for slot, name in enumerate(node.inputs[:factors]):
            found |= self._nothing(name, values, read.get(slot, ()))
        return found, 2

    def _nothing(
        self, name: str, values: Mapping[str, Value | None], but: Sequence[int] = ()
    ) -> Mask:
        """Mark the removed units that are zero in a value whatever the input is."""
        return np.logical_and(self._zero(name, values, but), ~self._wild(name))

    def _zero(self, name: str, values: Mapping[str, Value | None], but: Sequence[int] = ()) -> Mask:
        """Mark the removed units that are exactly zero everywhere in a value."""
        found = self._none()
        value = values.get(name)
        for axis, units in enumerate(self.groups.axes.get(name, ())):
            held = np.flatnonzero((units >= 0) & self.gone[units])
            if axis in but or not len(held):
                continue
            other = _any_nonzero(value, axis)[held]
            found[units[held]] = True
            found[units[held[other]]] = False
        return found

    def _read(
        self,
        run: Observed,
        instruction: Instruction,
        values: Mapping[str, Value | None],
        read: Mapping[int, tuple[int, ...]],
    ) -> None:
        """See what a sum over removed units misses without them."""
        node = instruction.node
        for slot in (0, 1):
            x, other = node.inputs[slot], node.inputs[1 - slot]
            if x in self.fixed and other not in self.fixed:
                continue
            units = self._along(x, read[slot]) & ~self._silent(other, values, read[1 - slot])
            if not units.any():
                continue
            wild = units & self._wild(x)
            self._stay(wild, VARIES.format(node))
            units &= ~wild
            loud = units & ~self._silent(x, values, read[slot])
            if not loud.any():
                continue
            if other not in self.fixed or node.operator not in PRODUCTS:
                self._stay(loud, PAIRED.format(node))
                continue
            shift = self._shift(run, instruction, values, slot, read[slot][0], units)
            if shift is None:
                self._stay(loud, BORDER.format(node))
            elif shift.values.any():
                self.shifts[instruction.place] = shift

    def _along(self, name: str, axes: Sequence[int]) -> np.ndarray:
        """Mark the removed units on some axes of a value."""
        found = self._none()
        for axis in axes:
            if name in self.groups.axes:
                units = self.groups.axes[name][axis]
                found[units[units >= 0]] = True
        return np.logical_and(found, self.gone)

    def _silent(self, name: str, values: Mapping[str, Value | None], axes: Sequence[int]) -> Mask:
        """Mark the removed units that are exactly zero along the axes that are read."""
        rank = len(getattr(values.get(name), "shape", ()))
        rest = [axis for axis in range(rank) if axis not in axes]
        return self._nothing(name, values, rest)

    def _shift(
        self,
        run: Observed,
        instruction: Instruction,
        values: Mapping[str, Value | None],
        slot: int,
        axis: int,
        units: Mask,
    ) -> Shift | None:
        """Compute what removed units add; None where that differs from place to place."""
        node = instruction.node
        x, other = (run.tensor(values[node.inputs[s]]) for s in (slot, 1 - slot))
        numbers = self.groups.axes[node.inputs[slot]][axis]
        held = torch.from_numpy((numbers >= 0) & units[numbers]).to(x.device)
        shape = [1] * x.ndim
        shape[axis] = -1
        only = torch.where(held.reshape(shape), x, torch.zeros_like(x))
        entry = instruction.entry
        if node.operator in BARE:
            entry = ops.load().find("", BARE[node.operator], LATEST)
        assert entry is not None, node.operator
        added = entry.convert(node, *((only, other) if slot == 0 else (other, only)))
        # With the weight on the left its units are the rows of the result.
        made = 1 if node.operator in CONVOLUTIONS else max(0, added.ndim - 1 - slot)
        if (slot == 1 and node.operator in CONVOLUTIONS) or other.ndim < 2:
            return None
        rows = added.movedim(made, 0).reshape(added.shape[made], -1)
        if not rows.numel():
            return None
        if float((rows - rows[:, :1]).abs().max()) > EVEN * float(rows.abs().max()):
            return None
        return Shift(rows[:, 0].cpu().numpy(), made)

    def _recurrent(self, instruction: Instruction, values: Mapping[str, Value | None]) -> None:
        """Follow hidden units, which are zero when nothing makes them and they begin so."""
        node = instruction.node
        results = [name for name in node.outputs if name]
        hidden = self._along(node.inputs[2], (2,))
        wild = self._none()
        for slot in (1, 2):
            wild |= hidden & ~self._zero(node.inputs[slot], values, (2,))
        for name in results:
            wild |= hidden & self._on(name) & ~self._zero(name, values)
        for name in results:
            self.wild[name] = wild.copy()
        loud = wild & ~self._zero(node.inputs[2], values, (1,))
        self._stay(loud, VARIES.format(node))
        x, weight = node.inputs[:2]
        units = self._along(x, (2,)) & ~self._zero(weight, values, (1,))
        varying = units & self._wild(x) if x not in self.fixed else self._none()
        self._stay(varying, VARIES.format(node))
        units &= ~varying
        numbers = self.groups.axes.get(x)
        if not units.any() or numbers is None:
            return
        held = np.flatnonzero((numbers[2] >= 0) & units[numbers[2]])
        read, rows = _array(values[x])[:, :, held], _array(values[weight])[:, :, held]
        if not np.array_equal(read, np.broadcast_to(read[:1, :1], read.shape)):
            uneven = (read != read[:1, :1]).any((0, 1))
            found = self._none()
            found[numbers[2][held[uneven]]] = True
            self._stay(found, BORDER.format(node))
            return
        shift = rows.astype(np.float64) @ read[0, 0].astype(np.float64)
        if shift.any():
            self.shifts[instruction.place] = Shift(shift, 0)

    def _stay(self, units: Mask, reason: str) -> None:
        for unit in np.flatnonzero(units):
            self.stays.setdefault(int(unit), reason)


def _depthwise(node: NodeView, values: Mapping[str, Value | None]) -> bool:
    """Say whether each channel of a convolution reads one channel only."""
    if node.operator not in CONVOLUTIONS:
        return False
    value = values.get(node.inputs[0])
    groups = node.get("group", 1)
    return isinstance(value, Tensor) and bool(groups > 1) and bool(groups == value.shape[1])


def _array(value: Value | None) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return np.asarray(value)


def _any_nonzero(value: Value | None, axis: int) -> Mask:
    """Mark the positions along an axis where something is not zero."""
    if isinstance(value, Tensor):
        rows = value.movedim(axis, 0).reshape(value.shape[axis], -1)
        found: np.ndarray = (rows != 0).any(1).cpu().numpy()
        return found
    array = np.moveaxis(np.asarray(value), axis, 0)
    marked: Mask = (array.reshape(len(array), -1) != 0).any(1)
    return marked
