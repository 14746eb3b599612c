"""The greedy of the seed, to the letter: the closest neighbour, re-optimised, again and again.

The way from a network to its sparser ones does not depend on where it is to end. So it is kept: a
search that asks for another sparsity goes on from the nearest network it has passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onnxpress.cost import MACS_PER_UNIT
from onnxpress.exact import exact_macs, exact_rises
from onnxpress.objective import Objective, objective_of
from onnxpress.state import is_same
from onnxpress.step import checked
from onnxpress.steps.repair import Repair
from onnxpress.support import cut
from onnxpress_adapters.errors import StepError

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress_adapters.weights import WeightKey

WIDE = 2.5
"""How many times as long float64 takes as ``MACS_PER_UNIT`` says, gathering included."""

MOST_SAMPLES = 1024
"""Samples of the fit set that d is measured on: the price of a round grows with each of them."""

TIED = 1e-10
"""Share by which rises differ that are the same but for rounding."""

MOST_KEPT = 128
"""Networks of one way that are kept at most, evenly spread."""

KEPT_BYTES = 1 << 29
"""What they may take together."""


@dataclass(frozen=True)
class Rounds:
    """How the way is walked.

    Attributes:
        between: re-optimises after each round.
        per_round: how many neighbours are taken at once; 1 is the seed's.
        hours: of one core a call may take, by count; what would take longer is not begun.
    """

    between: Repair
    per_round: int
    hours: float

    def walk(self, state: State, problem: Problem, goal: int) -> State:
        """Go to the closest neighbour and re-optimise, until so many entries are kept.

        Args:
            state: where to begin.
            problem: the promise.
            goal: entries the free weights keep in the end.

        Raises:
            StepError: it would take longer than it may; said before anything is done.
        """
        problem = _with_fewer(problem)
        objective = objective_of(problem)
        path = _path_of(problem, self, state)
        reached = path.nearest(goal)
        if reached.kept <= goal:
            return path.told(reached, state)
        told = self._affordable(objective, reached, goal)
        begun = reached.kept
        if reached is path.begin:
            reached = reached.noted(told)
        while reached.kept > goal:
            done = (begun - reached.kept) / (begun - goal)
            problem.progress("pressing", done, f"{reached.kept - goal:,} more to leave")
            count = min(self.per_round, reached.kept - goal)
            reached = self._round(reached, objective, count)
            if count == self.per_round:  # a shorter last round is no part of the way
                path.keep(reached)
        return path.told(reached, state)

    def _round(self, state: State, objective: Objective, count: int) -> State:
        """Take the closest neighbours at once and re-optimise on what stays."""
        free = sorted(state.free)
        rises = exact_rises(objective, state.tensors, free)
        supports = {key: state.weights[key].support for key in free}
        taken = closest(rises, supports, count)
        gone = state.with_weights(
            {
                key: cut(state.weights[key].values, supports[key] & ~mask)
                for key, mask in taken.items()
            }
        )
        rise = sum(float(rises[key][mask].sum()) for key, mask in taken.items())
        mended = replace(checked(self.between, gone, objective.problem), log=state.log)
        level = float(objective.measure_fit(mended.tensors).per_output.sum())
        what = f"{count} entries" if count > 1 else _named(taken)
        return mended.noted(f"without {what}: d {rise:+.3g}, then {level:.3g} on fit")

    def _affordable(self, objective: Objective, state: State, goal: int) -> str:
        """Say what the way will cost.

        Raises:
            StepError: more than it may.
        """
        samples, kept = len(objective.problem.fit[0]), state.kept
        rounds = -(-(kept - goal) // self.per_round)
        mend = objective.cost.effort * self.between.work
        mend *= 2 if self.between.method == "auto" else 1
        scan = 0.0
        if rounds * mend / 3600 <= self.hours:  # else the repairs alone say no, whatever the size
            free = sorted(state.free)
            macs = exact_macs(objective, state.tensors, free)
            one = sum(state.weights[key].nonzeros * macs[key] for key in free) * samples
            scan = WIDE * one / MACS_PER_UNIT
        hours = rounds * (scan * (1 + goal / kept) / 2 + mend) / 3600
        each = f", about {scan:.2g} s of one core" if scan else ""
        many = "1 round with a repair" if rounds == 1 else f"{rounds:,} rounds with repairs"
        told = (
            f"every one of {kept:,} neighbours is measured on {samples:,} samples{each}, in {many}"
            f": about {hours:.2g} h"
        )
        if hours <= self.hours:
            return told
        raise StepError(
            f"{told}, and {self.hours:g} h are allowed; leave the score to a prediction (score: "
            "predicted, a second for all neighbours), take more entries at a time (per_round), "
            "press fewer weights (--include), fit on fewer samples, or allow more hours"
        )


def closest(
    rises: Mapping[WeightKey, Tensor], supports: Mapping[WeightKey, Tensor], count: int
) -> dict[WeightKey, Tensor]:
    """Mark the neighbours at which d rises least.

    Args:
        rises: key to what d rises by without each entry, ``[...]``; NaN where it cannot be told.
        supports: key to bool ``[...]``: the entries there are.
        count: how many to mark.

    Returns:
        Key to bool ``[...]``. A tie goes to the first key in order and its lower flat index: the
        only input of a unit and its only output may be as close as each other, but for rounding.

    Source:
        seeds/sparsification_mathematics.md, "The Algorithm", step 1: the neighbour that is closer
        to the original network than all others; "Sparsity graph" for what a neighbour is.

    >>> from onnxpress_adapters.weights import WeightKey
    >>> w = WeightKey((), "w")
    >>> rises = {w: torch.tensor([0.3, 0.1, -0.2, 0.1])}
    >>> closest(rises, {w: torch.tensor([True, True, False, True])}, 1)[w]
    tensor([False,  True, False, False])
    """
    keys = sorted(rises)
    flat = torch.cat([rises[key].reshape(-1) for key in keys])
    held = torch.cat([supports[key].reshape(-1) for key in keys])
    sorted_ = torch.sort(torch.where(flat.isnan(), torch.inf, flat), stable=True)
    ahead, values = sorted_.values[:-1], sorted_.values[1:]
    apart = values - ahead > TIED * ahead.abs()
    level = torch.zeros_like(sorted_.indices)
    level[sorted_.indices[1:]] = apart.long().cumsum(0)
    order = torch.sort(level, stable=True).indices
    order = order[held[order]][:count]
    marked = torch.zeros_like(held)
    marked[order] = True
    parts = marked.split([rises[key].numel() for key in keys])
    return {key: part.reshape(rises[key].shape) for key, part in zip(keys, parts, strict=True)}


def _with_fewer(problem: Problem) -> Problem:
    """Give the problem with no more samples to fit than a round can afford; the same every time."""
    if len(problem.fit[0]) <= MOST_SAMPLES:
        return problem
    known = problem.memo.get("fewer")
    if isinstance(known, dict):
        return replace(problem, fit=[value[:MOST_SAMPLES] for value in problem.fit], memo=known)
    objective = objective_of(problem)
    made = replace(problem, fit=[value[:MOST_SAMPLES] for value in problem.fit], memo={})
    targets = objective.targets and tuple(value[:MOST_SAMPLES] for value in objective.targets)
    # With the scales of all samples, so that d is measured as everywhere else.
    made.memo["objective"] = replace(objective, problem=made, targets=targets)
    problem.memo["fewer"] = made.memo
    return made


@dataclass(eq=False)
class _Path:
    """Networks that were passed on the way from one network."""

    begin: State
    states: dict[int, State] = field(default_factory=dict)

    def nearest(self, goal: int) -> State:
        """Give the one that keeps the fewest entries, but no fewer than so many."""
        passed = [kept for kept in self.states if kept >= goal]
        return self.states[min(passed)] if passed else self.begin

    def keep(self, state: State) -> None:
        """Keep one more; where there are too many, every second one goes."""
        self.states[state.kept] = state
        each = sum(value.nbytes for value in state.tensors.values())
        if len(self.states) > max(2, min(MOST_KEPT, KEPT_BYTES // max(1, each))):
            *older, last = sorted(self.states, reverse=True)
            self.states = {kept: self.states[kept] for kept in (*older[1::2], last)}

    def told(self, reached: State, state: State) -> State:
        """Give a network of the way with the log of a state that asked for it before its own."""
        return replace(reached, log=(*state.log, *reached.log[len(self.begin.log) :]))


def _path_of(problem: Problem, rounds: Rounds, state: State) -> _Path:
    """Find the way from a network, or begin one."""
    paths = problem.memo.setdefault(("nearest", rounds, state.free), [])
    assert isinstance(paths, list)
    for path in paths:
        if isinstance(path, _Path) and _alike(path.begin, state):
            return path
    made = _Path(state)
    paths[:] = [made]  # the networks of another beginning are no use any more
    return made


def _alike(one: State, other: State) -> bool:
    return (
        one.storage == other.storage
        and all(is_same(one.weights[key], form) for key, form in other.weights.items())
        and all(torch.equal(one.extras[key], value) for key, value in other.extras.items())
    )


def _named(taken: Mapping[WeightKey, Tensor]) -> str:
    """Name the one entry that is marked."""
    key, mask = next((key, mask) for key, mask in taken.items() if bool(mask.any()))
    return f"{key}{mask.nonzero()[0].tolist()}"
