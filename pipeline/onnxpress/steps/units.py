"""Units: channels, hidden units and heads leave as a whole, so that the file runs faster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from onnxpress.objective import objective_of
from onnxpress.removal import without
from onnxpress.step import checked, target_count
from onnxpress.steps.repair import Repair
from onnxpress.unit_scores import recoverable, runs_of, unit_rises
from onnxpress_adapters.axes import Role
from onnxpress_adapters.errors import SparsityError, StepError

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress_adapters.groups import Group, Groups
    from onnxpress_adapters.weights import WeightKey

MOST_KEPT = 20_000_000
"""Entries of a network up to which a search keeps the way it went."""

LARGEST_BITE = 0.3
"""Share of its remaining units one group may lose in one block."""

LEAST_BLOCK = 0.01
"""Share of all entries a block removes at least, so that the last steps are not endless."""


TRIFLE = 0.02
"""Share of the tolerance below which d is not repaired between blocks."""

_Batch = tuple[float, int, list[int]]
"""Units of a group that leave together: what d rises for what they cost, the group, the units."""


@dataclass(eq=False)
class _Stand:
    """Where the network stands after some blocks.

    Attributes:
        state: repaired.
        alive: for each group which units are left.
        distance: d on the choose set.
        batches: what may leave next, once that was looked for.
    """

    state: State
    alive: list[Tensor]
    distance: float
    batches: list[_Batch] | None = None


@dataclass(frozen=True)
class Units:
    """Remove the units d misses least, block by block, with a repair after each.

    A unit leaves with everything that makes it and everything that reads it: rows of weights,
    channels of depthwise convolutions, columns of the next weights, in every branch that a sum ties
    together. What d gains is predicted by scaling all that reads the unit down to nothing,
    -Σw·g + E(Σw·∂F/∂w)², and by how much of that the remaining units can make up for. Units with
    the smallest rise for what they cost leave first.

    The written file has the units no more (``onnxpress_exporters.shrink``).

    Attributes:
        sparsity: share of zeros over the free weights, 0 to 1; None for a search to find. Half of
            all units is about three quarters.
        multiple: units leave so many at a time, and what is left of a group is a multiple of so
            many, as far as it had that many: kernels work in blocks, of 8 columns say, and a block
            that is half empty takes as long as a full one.
        channels: the same for the channels of convolutions, whose blocks are larger (16 on a
            processor with AVX-512), where there are two blocks or more; ``multiple`` where it is
            None.
        per: what a unit costs: the multiplications it takes (``work``) or its weights
            (``weights``).
        block: share of the remaining entries that leave in one block.
        beyond: how many times the tolerance d may be after a repair before another block leaves;
            None for any, as there is without a tolerance. It spares a search what leads nowhere.
        between: the repair after each block.

    Source:
        Molchanov et al. 2019 (a unit's gate); LeCun, Denker, Solla 1989 for the second order;
        Hassibi & Stork 1993 for what the rest makes up for.
    """

    sparsity: float | None = None
    multiple: int = 1
    channels: int | None = None
    per: Literal["work", "weights"] = "work"
    block: float = 0.15
    beyond: float | None = None
    between: Repair = field(default_factory=lambda: Repair(work=2.0, enough=TRIFLE))

    def at(self, sparsity: float) -> Units:
        """Give the same step with its sparsity fixed."""
        return replace(self, sparsity=sparsity)

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Remove units until so many entries are zero.

        Raises:
            StepError: no units of the model can leave.
            SparsityError: with one unit left in every group there are still too few zeros, or d
                is ``beyond``.
        """
        if min(self.multiple, self._channels) < 1:
            fewest = min(self.multiple, self._channels)
            raise StepError(f"{self}: units leave one at a time or more, not {fewest}")
        if self.sparsity is None:
            raise StepError(f"{self} has no sparsity: give it one, or put it in a search")
        groups = removable(state, problem)
        goal = target_count(state, self.sparsity)
        path = self._path(state, problem, groups)
        stand = next(one for one in reversed(path) if one.state.kept >= goal or one is path[0])
        while (kept := stand.state.kept) > goal:
            self._check_hope(stand, problem)
            whole = self._size(stand.state, kept) <= kept - goal
            onwards = whole and stand is path[-1] and _entries(state) <= MOST_KEPT
            stand = self._block(stand, problem, groups, goal)
            if onwards:
                path.append(stand)
        left = ", ".join(
            f"{int(mask.sum())} of {group.units} '{group.name}'"
            for group, mask in zip(groups, stand.alive, strict=True)
        )
        return stand.state.noted(f"units left: {left}")

    @property
    def _channels(self) -> int:
        return self.multiple if self.channels is None else self.channels

    def _path(self, state: State, problem: Problem, groups: Sequence[Group]) -> list[_Stand]:
        """Give the whole blocks that were removed from a state so far.

        A search goes to one sparsity after another, and always by the same blocks.
        """
        name = ("units", str(replace(self, sparsity=None)))
        known = problem.memo.get(name)
        if isinstance(known, list) and known[0].state is state:
            return known
        supports = {key: form.support for key, form in state.weights.items()}
        path = [_Stand(state, [alive_units(group, supports) for group in groups], 0.0)]
        problem.memo[name] = path
        return path

    def _size(self, state: State, kept: int) -> int:
        """Say how many entries a whole block has."""
        return max(int(self.block * kept), int(LEAST_BLOCK * _entries(state)), 1)

    def _check_hope(self, stand: _Stand, problem: Problem) -> None:
        """Refuse to go on where d is far beyond the tolerance."""
        held = _relative(problem)
        if self.beyond is not None and held is not None and stand.distance > self.beyond * held:
            share = 1 - stand.state.kept / _entries(stand.state)
            raise SparsityError(
                f"with {share:.0%} of the weights zero d is {stand.distance:.3g} already, far "
                "beyond the tolerance; ask for less, or let other steps go further"
            )

    def _block(self, stand: _Stand, problem: Problem, groups: Sequence[Group], goal: int) -> _Stand:
        """Remove one block, and repair."""
        objective = objective_of(problem)
        state, alive = stand.state, stand.alive
        size = min(state.kept - goal, self._size(state, state.kept))
        if stand.batches is None:
            stand.batches = self._batches(stand, problem, groups)
        after = [mask.clone() for mask in alive]
        taken: dict[WeightKey, Tensor] = {}
        gained = 0
        for _, place, leaving in sorted(stand.batches):
            if gained >= size:
                break
            after[place][leaving] = False
            gained += _take(taken, groups[place], leaving, state)
        smaller = without(state, objective, taken)
        distance = objective.measure_choose(smaller.tensors).value
        lost = sum(int((a & ~b).sum()) for a, b in zip(alive, after, strict=True))
        line = f"{lost} units leave with {gained} entries: d {distance:.3g} on choose"
        smaller = smaller.noted(line)
        smaller = checked(self.between, smaller, problem)
        distance = objective.measure_choose(smaller.tensors).value
        return _Stand(smaller, after, distance)

    def _batches(self, stand: _Stand, problem: Problem, groups: Sequence[Group]) -> list[_Batch]:
        """Say what may leave next, and at what price.

        Raises:
            SparsityError: nothing may.
        """
        objective, state = objective_of(problem), stand.state
        generator = problem.generator(f"units {state.kept}")
        rises = unit_rises(objective, state, groups, generator)
        shares = recoverable(objective, state, groups)
        counts = runs_of(objective, state) if self.per == "work" else {}
        ones = {
            key: form.support.double() * counts.get(key, 1.0) for key, form in state.weights.items()
        }
        worth: list[_Batch] = []
        for place, (group, rise, share) in enumerate(zip(groups, rises, shares, strict=True)):
            cost = group.sums(ones).cpu().double().clamp_min(1.0)
            order = rise.cpu().double() * share.cpu().double()
            living = stand.alive[place].nonzero().flatten()
            ranked = living[(order / cost)[living].sort(stable=True).indices]
            wide = len(living) >= 2 * self._channels  # the last block may be a part of one
            many = self._channels if wide and _is_convolved(group, state) else self.multiple
            for batch in _batches(ranked, many):
                price = float(order[batch].sum() / cost[batch].sum())
                # No batch before those that are cheaper by themselves.
                price = max(price, worth[-1][0]) if worth and worth[-1][1] == place else price
                worth.append((price, place, batch.tolist()))
        if not worth:
            raise SparsityError(
                f"with one unit left in every group only {1 - state.kept / _entries(state):.0%} "
                "of the weights are zero; ask for less, or let other steps go further"
            )
        return worth


def removable(state: State, problem: Problem) -> tuple[Group, ...]:
    """Give the groups whose units can leave: all that reads them are free weights.

    Raises:
        StepError: there are none.
    """
    if problem.groups is None:
        raise StepError("the problem does not know which units leave together")
    groups = read_by(problem.groups, state.free)
    if not groups:
        reasons = sorted(f"{key}: {why}" for key, why in problem.groups.reasons.items())
        told = "; ".join(reasons[:3])
        if problem.groups.groups:
            told = "what makes or reads them may not change"
        raise StepError(f"no units of this model can leave ({told})")
    return groups


def read_by(groups: Groups, free: Collection[WeightKey]) -> tuple[Group, ...]:
    """Give the groups that free weights alone make and read."""
    return tuple(
        group
        for group in groups.groups
        if any(member.role & Role.READ for member in group.members)
        and all(
            member.key in free
            for member in group.members
            if member.role & Role.READ or member.weight
        )
    )


def alive_units(group: Group, supports: Mapping[WeightKey, Tensor]) -> Tensor:
    """Say which units of a group something still reads.

    Args:
        group: of units.
        supports: of the weights, bool in their shapes.

    Returns:
        bool ``[units]`` on the CPU.
    """
    return group.sums({key: mask.float() for key, mask in supports.items()}, Role.READ).cpu() > 0


def _batches(ranked: Tensor, multiple: int) -> list[Tensor]:
    """Cut units, the cheapest first, into what leaves together in one block.

    >>> [batch.tolist() for batch in _batches(torch.arange(21), 8)]
    [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]]
    """
    count = len(ranked)
    uneven = count % multiple
    most = max(uneven or multiple, int(LARGEST_BITE * count))
    sizes = [uneven] if uneven else []
    while sum(sizes) + multiple <= max(most, uneven + multiple):
        sizes.append(multiple)
    batches, start = [], 0
    for size in sizes:
        if count - start - size < min(multiple, count) or start + size >= count:
            break
        batches.append(ranked[start : start + size])
        start += size
    return batches


def _is_convolved(group: Group, state: State) -> bool:
    """Say whether the units of a group are channels of a convolution."""
    known = [state.weights[m.key].values for m in group.members if m.key in state.weights]
    return any(values.ndim > 2 for values in known)


def _take(taken: dict[WeightKey, Tensor], group: Group, units: list[int], state: State) -> int:
    """Mark what leaves with units; count what had not been marked yet."""
    gained = 0
    for member in group.members:
        if member.key not in state.free:
            continue
        support = state.weights[member.key].support
        mask = taken.setdefault(member.key, torch.zeros_like(support))
        places = torch.from_numpy(np.isin(member.units, units)).to(support.device)
        part = mask.movedim(member.axis, 0)
        gained += int((support.movedim(member.axis, 0)[places] & ~part[places]).sum())
        part[places] = True
    return gained


def _entries(state: State) -> int:
    return sum(state.weights[key].values.numel() for key in state.free)


def _relative(problem: Problem) -> float | None:
    """Give the tolerance on the relative d, None where there is none."""
    tolerance = problem.tolerance
    return None if tolerance is None or tolerance.absolute else tolerance.value
