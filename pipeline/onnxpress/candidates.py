"""From a chain and a promise to candidates for the judge, the most wanted first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from typing import TYPE_CHECKING

from onnxpress.search import Point, Search, measured, tolerance_of
from onnxpress.step import Chain, Step, checked, fix, is_open
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.repair import Repair
from onnxpress_adapters.errors import MisuseError, StepError

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

RESERVE = 0.65
"""Share of the tolerance used where data, not a domain, says what matters.

Samples of a data set are related: crops of one photograph, chunks of one recording. Held-out ones
are then closer to the fitted ones than new inputs will be. Over the zoo, d on inputs from other
sources was up to 1.5 times d on held-out ones.
"""

MOST_JUDGED = 3
"""Candidates the judge sees, at most: each further look would weaken the verdict."""

ALONE = 40.0
"""Units of work for the last repair of a chain that runs once."""

AGAIN = 4
"""Candidates tried for a second or third look of the judge."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A state worth judging, and the steps, every sparsity fixed, that made it."""

    state: State
    steps: Step
    notes: tuple[str, ...] = ()


def default_chain(*, searched: bool = True) -> Chain:
    """Give the chain used where no recipe is given.

    Args:
        searched: whether a search runs it several times; alone, its repair works longer.
    """
    return Chain((Greedy(), Repair() if searched else Repair(work=ALONE)))


BEYOND = (2.0, 4.0)
"""Multiples of the tolerance a kept curve reaches to."""

FURTHER = 2
"""Candidates tried for each of them, at most."""

Judge = Callable[[Candidate], float]
"""Gives the judge's bound as a share of what is allowed: 1 or less is within."""


def hunt(
    chain: Step,
    state: State,
    problem: Problem,
    judge: Judge,
    *,
    sparsity: float | None = None,
    deadline: float | None = None,
    beyond: Sequence[float] = (),
) -> list[Point]:
    """Run a chain and show candidates to the judge, until one is within or enough were seen.

    Args:
        chain: the steps; a search fixes what is open in them.
        state: where to begin.
        problem: the promise.
        judge: called at least once, at most ``MOST_JUDGED`` times.
        sparsity: zeros over all prunable weights; the least to accept where there is a tolerance.
        deadline: a moment of ``time.monotonic`` after which no candidate is begun.
        beyond: multiples of the tolerance to try candidates for as well, when the judge has seen
            enough; they are not judged.

    Returns:
        Every candidate that was tried, judged or not.

    Raises:
        MisuseError: the sparsity cannot be reached with the weights that may change, or the chain
            has no place for it.
    """
    if not is_open(chain):
        if sparsity is not None:
            raise MisuseError(
                "every step of the recipe has its own sparsity; leave out --sparsity, or leave the "
                "sparsity of a step open"
            )
        return [_alone(chain, None, state, problem, judge)]
    floor = 0.0 if sparsity is None else over_free(state, sparsity)
    if problem.tolerance is None:
        return [_alone(fix(chain, floor), floor, state, problem, judge)]
    margin = margin_of(problem.related)
    first = search = Search(chain, floor=floor, margin=margin, deadline=deadline)
    points: list[Point] = []
    seen: list[State] = []
    for _ in range(MOST_JUDGED):
        points = search.points(state, problem, points)
        best = search.best(points, problem)
        if any(best.state is known for known in seen):
            break  # nothing better was found: a second look at the same would say the same
        seen.append(best.state)
        excess = judge(Candidate(best.state, fix(chain, best.sparsity), best.notes))
        if best.notes:  # interrupted
            return points
        if excess <= 1 or best.sparsity <= floor:
            break
        # The judge saw more than the choose set did: ask that set for as much less.
        share = best.upper / tolerance_of(problem) * min(0.8, max(0.25, 0.8 / excess))
        search = replace(search, margin=min(search.margin, share), rounds=AGAIN)
    for factor in beyond:
        wider = replace(first, margin=margin * factor, rounds=FURTHER)
        try:
            points = wider.points(state, problem, points)
        except KeyboardInterrupt:
            break  # the verdict is there already
        if any(point.notes for point in points):  # interrupted with a candidate within this limit
            break
    return points


def margin_of(related: bool) -> float:
    """Give the share of the tolerance a candidate's bound may use."""
    return RESERVE if related else Search.margin


def _alone(steps: Step, asked: float | None, state: State, problem: Problem, judge: Judge) -> Point:
    """Make the one candidate of steps without an open sparsity, and show it to the judge."""
    found = checked(steps, state, problem)
    sparsity = found.sparsity if asked is None else asked
    try:
        point = measured(sparsity, found, problem)
    except StepError as error:
        # Nothing was to be chosen here, so the judge can still say what becomes of such outputs.
        point = Point(sparsity, found, inf, inf, (f"its distance was not measured: {error}",), nan)
    judge(Candidate(point.state, steps, point.notes))
    return point


def over_free(state: State, sparsity: float) -> float:
    """Turn a sparsity over all prunable weights into one over the free weights.

    Raises:
        MisuseError: not even zeroing all free weights reaches it.
    """
    entries = sum(state.weights[key].values.numel() for key in state.free)
    held = sum(int((state.weights[key].values == 0).sum()) for key in state.free)
    needed = sparsity * state.elements - (state.zeros - held)
    if needed > entries:
        most = (state.zeros - held + entries) / state.elements
        raise MisuseError(
            f"a sparsity of {sparsity:.0%} cannot be reached: the weights that may change are only "
            f"enough for {most:.0%}"
        )
    return max(0.0, needed / entries)
