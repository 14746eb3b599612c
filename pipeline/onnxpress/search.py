"""The largest compression within the tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isfinite, log, nan
from time import monotonic
from typing import TYPE_CHECKING

from onnxpress.objective import objective_of
from onnxpress.problem import SURE, silent
from onnxpress.step import Step, checked, fix, is_open
from onnxpress_adapters.errors import MisuseError, SparsityError, StepError

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

DEVIATIONS = 1.645
"""Standard errors above the mean at which a candidate is taken to be within the tolerance."""

FIRST = 0.6
"""The first sparsity tried, where nothing says better."""

PROMISING = 1.3
"""How many times the limit d is after surgery alone where it meets the limit after a repair: 0.7 to
2.4 on 13 of 15 networks of the zoo."""

PROBES, PROBING = 6, 0.1
"""Candidates by surgery alone, at most, and how close they close in; each takes a moment."""

STEEPNESS = 3.5
"""log d against log density: 2.3 to 5.8 over seven networks of all kinds."""

INNER = (0.15, 0.85)
"""The part of a bracket a candidate may lie in that is to make the bracket smaller."""

WHOLE = (0.0, 1.0)

INTERRUPTED = "interrupted: this is the best that was found until then"

NOTHING = 1e-6
"""Share of the tolerance below which d counts as none; it may be exactly zero."""


@dataclass(frozen=True, eq=False)
class Point:
    """One candidate.

    Attributes:
        sparsity: what the budgeted steps were given.
        state: what they made of it.
        steps: that made it, every sparsity fixed.
        distance: d on the choose set, scaled as the tolerance is (``Objective``).
        upper: a bound on it, ``DEVIATIONS`` standard errors up, or ``fitted`` where that is more.
        notes: what a reader of the report should know.
        fitted: d on samples of the fit set, at most as many as the choose set has; NaN where
            nobody measured it.
        aimed: ``bound_of`` what was measured.
    """

    sparsity: float
    state: State
    steps: Step
    distance: float
    upper: float
    notes: tuple[str, ...] = ()
    fitted: float = nan
    aimed: float | None = None

    @property
    def bound(self) -> float:
        """What a search holds against its limit: ``aimed`` where that is known, else ``upper``."""
        return self.upper if self.aimed is None else self.aimed


@dataclass(frozen=True)
class Search:
    """Find the largest sparsity of a step's open budgets within the tolerance.

    Candidates are judged on the choose set. log d is close to straight in the sparsity, so the next
    candidate lies where the line through the last two meets the tolerance, kept inside the bracket.
    The first lies where the guide, if there is one, comes near it.

    Attributes:
        step: a step with at least one budgeted step whose sparsity is None.
        floor: the smallest sparsity worth finding.
        rounds: candidates tried, at most.
        margin: share of the tolerance a candidate's upper bound may use.
        resolution: the bracket's width, as a share of the entries kept, at which to stop.
        deadline: a moment of ``time.monotonic`` after which no candidate is begun, or None. With a
            deadline the result depends on the machine's speed.
        guide: the beginning of the step, its budget open as well, where that takes a moment and
            only repairs come after it; None to begin anywhere.
    """

    step: Step
    floor: float = 0.0
    rounds: int = 8
    margin: float = SURE
    resolution: float = 0.05
    deadline: float | None = None
    guide: Step | None = None

    def __post_init__(self) -> None:
        """Refuse a step without an open budget."""
        if not is_open(self.step):
            raise MisuseError(
                f"nothing to search in {self.step}: leave the sparsity of a step open, "
                "or run the chain without a search"
            )

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Give the state of the sparsest candidate within the tolerance.

        Raises:
            StepError: none was.
        """
        limit = tolerance_of(problem) * self.margin
        best = best_of(self.points(state, problem), limit)
        if best.bound > limit:
            raise StepError(
                f"no sparsity was within the tolerance; closest: {best.distance:.3g} "
                f"at sparsity {best.sparsity:.2f}"
            )
        return best.state

    def points(self, state: State, problem: Problem, known: Sequence[Point] = ()) -> list[Point]:
        """Try candidates and give all of them, those already known first.

        Interrupted from the keyboard with a candidate within the tolerance, it ends there. Where
        the steps cannot go as far, it looks for how far they can.

        Raises:
            SparsityError: they cannot go anywhere.
        """
        limit = tolerance_of(problem) * self.margin
        points, most, first = list(known), 1.0, FIRST
        if not points and self.guide is not None:
            first, interrupted = self._guided(self.guide, state, problem)
            if interrupted:
                return interrupted
        for place in range(self.rounds):
            low, high = _bracket(points, limit)
            high = high if high[0] <= most else (most, inf)
            narrow = (1 - low[0]) <= (1 - high[0]) * (1 + self.resolution)
            late = self.deadline is not None and monotonic() > self.deadline
            if points and (high[0] <= self.floor or narrow or late):
                break  # one is always tried, or there would be nothing to judge
            part = _part(points[len(known) :], limit)
            between = _between(low, high, limit, part)
            sparsity = max(self.floor, between if points or most < 1 else first)
            problem.progress("pressing", place / self.rounds, f"trying sparsity {sparsity:.3f}")
            try:
                point = self._try(sparsity, state, problem)
            except KeyboardInterrupt:
                if low[0] == 0.0:
                    raise
                return [replace(point, notes=(*point.notes, INTERRUPTED)) for point in points]
            except SparsityError:
                if not points and place == self.rounds - 1:
                    raise
                most = sparsity
                continue
            points.append(point)
        return points

    def proposal(self, points: Sequence[Point], limit: float) -> float:
        """Say where between the points tried the bound should meet a limit.

        Args:
            points: tried, at least one.
            limit: for a candidate's upper bound.

        Returns:
            A sparsity; no less than the floor.
        """
        return max(self.floor, _between(*_bracket(points, limit), limit, WHOLE))

    def _guided(self, guide: Step, state: State, problem: Problem) -> tuple[float, list[Point]]:
        """Say where to try first; or, interrupted, what the guide left within the tolerance.

        Raises:
            KeyboardInterrupt: interrupted, and nothing was within it.
            SparsityError: the guide cannot go anywhere.
        """
        problem.progress("pressing", 0.0, "looking how far it goes without a repair")
        margin = PROMISING * self.margin
        quick = Search(guide, self.floor, PROBES, margin, PROBING, self.deadline)
        points = quick.points(state, replace(problem, progress=silent))
        limit = tolerance_of(problem) * self.margin
        if not any(point.notes for point in points):
            return quick.proposal(points, PROMISING * limit), []
        within = [point for point in points if point.bound <= limit]
        if not within:
            raise KeyboardInterrupt
        return FIRST, within

    def _try(self, sparsity: float, state: State, problem: Problem) -> Point:
        return tried(self.step, sparsity, state, problem)


def best_of(points: Sequence[Point], limit: float) -> Point:
    """Give the sparsest point whose bound is within a limit, or else the nearest to it."""
    within = [point for point in points if point.bound <= limit]
    if not within:
        return min(points, key=lambda point: point.bound)
    return max(within, key=lambda point: point.sparsity)


def expected(points: Sequence[Point], sparsity: float) -> float:
    """Say which bound to expect at a sparsity, by the points nearest to it.

    log d is taken for a line in log density: through a point on either side, or through the nearest
    with the slope ``STEEPNESS``.

    Args:
        points: tried, at least one.
        sparsity: 0 to 1.
    """
    kept = {point: log(max(1 - point.sparsity, 1e-6)) for point in points}
    here = log(max(1 - sparsity, 1e-6))
    less = max((p for p in points if kept[p] >= here), key=lambda p: p.sparsity, default=None)
    more = min((p for p in points if kept[p] < here), key=lambda p: p.sparsity, default=None)
    if less is not None and more is not None and 0 < less.bound < inf and 0 < more.bound < inf:
        share = (here - kept[less]) / (kept[more] - kept[less])
        return less.bound * exp(share * log(more.bound / less.bound))
    nearest = min(points, key=lambda point: abs(kept[point] - here))
    return nearest.bound * exp(STEEPNESS * (kept[nearest] - here))


def tried(step: Step, sparsity: float, state: State, problem: Problem) -> Point:
    """Run a step with its open budgets at a sparsity, and measure what it makes."""
    objective_of(problem)  # outputs that are not finite are refused before any work
    steps = fix(step, sparsity)
    return measured(sparsity, checked(steps, state, problem), steps, problem)


def measured(sparsity: float, state: State, steps: Step, problem: Problem) -> Point:
    """Measure d of a candidate on the choose set and, beside it, on the fit set.

    Args:
        sparsity: what the candidate was made for.
        state: the candidate.
        steps: that made it.
        problem: the samples.

    Raises:
        StepError: an output of the original model is not finite on the fit set.
    """
    objective = objective_of(problem)
    chosen = objective.measure_choose(state.tensors)
    fitted = objective.measure_fit(state.tensors, len(problem.choose[0])).value
    value, upper = chosen.value, chosen.upper(DEVIATIONS)
    note = f"sparsity {sparsity:.4f}: d {value:.3g}, at most {upper:.3g} on choose"
    # Rare inputs that move far may all lie in the fit set; the judge will have some of its own.
    bound = max(upper, fitted) if isfinite(upper) else inf
    aimed = bound_of(value, bound, problem.share)
    return Point(sparsity, state.noted(note), steps, value, bound, fitted=fitted, aimed=aimed)


def bound_of(distance: float, upper: float, share: float) -> float:
    """Give what has to stay within a share of a tolerance.

    For independent draws that is the upper bound. Samples of a data set are related, and new ones
    may lie further off: that moves the mean, and the mean has to stay within a smaller share. How
    unsure the mean is, is what the judge will see as well, and no more is kept back for that than
    with draws: or a few inputs that move far would count twice.

    >>> bound_of(0.006, 0.0066, 0.6), round(bound_of(0.003, 0.009, 0.6), 6)
    (0.006, 0.006)
    """
    return max(distance, upper * share / SURE)


def tolerance_of(problem: Problem) -> float:
    """Give the number d is held to.

    Raises:
        MisuseError: the problem has no tolerance.
    """
    if problem.tolerance is None:
        raise MisuseError("a search needs a tolerance: give --tolerance, such as 1%")
    return problem.tolerance.value


def _bracket(
    points: Sequence[Point], limit: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Give the sparsest point within the limit and the next one beyond: (sparsity, bound) each."""
    low, high = (0.0, 0.0), (1.0, inf)
    for point in points:
        if point.bound <= limit and point.sparsity > low[0]:
            low = (point.sparsity, point.bound)
    for point in points:
        if point.bound > limit and low[0] < point.sparsity < high[0]:
            high = (point.sparsity, point.bound)
    return low, high


def _part(points: Sequence[Point], limit: float) -> tuple[float, float]:
    """Say in which part of its bracket the next point may lie.

    Where the last ones all fell on one side, the line through the ends misjudges the other, as in
    the method of false position: the next is held to the half, then to the third nearer to it.

    Source:
        Dahlquist & Björck 1974, Numerical Methods, 6.4.4 (the Illinois variant, which halves).
    """
    sides = [point.bound <= limit for point in points]
    alike = next((n for n, side in enumerate(reversed(sides)) if side != sides[-1]), len(sides))
    if alike < 2:
        return INNER
    if sides[-1]:
        return 1 - 1 / alike, INNER[1]
    return INNER[0], 1 / alike


def _between(
    low: tuple[float, float],
    high: tuple[float, float],
    limit: float,
    within: tuple[float, float] = INNER,
) -> float:
    """Propose a sparsity inside the bracket, by a line through log d against log density.

    Args:
        low: sparsity and bound of the bracket's lower end.
        high: of its upper end.
        limit: for the bound.
        within: the part of the bracket a proposal may lie in.
    """
    kept_low, kept_high = (log(max(1 - end[0], 1e-6)) for end in (low, high))
    below = max(low[1], NOTHING * limit)
    if low[0] > 0 and high[0] < 1:
        share = log(limit / below) / log(high[1] / below) if high[1] < inf else 0.5
        return 1 - exp(kept_low + min(within[1], max(within[0], share)) * (kept_high - kept_low))
    # One side only: d grows like a power of the density, about STEEPNESS. Half a step further, so
    # that the limit is soon between two points.
    if low[0] > 0:
        return 1 - exp(kept_low + min(-0.1, max(-1.0, 1.2 * log(below / limit) / STEEPNESS)))
    if high[1] < inf:
        back = max(0.05, 1.2 * log(high[1] / limit) / STEEPNESS)
        return max(1 - exp(kept_high + back), 0.4 * high[0])
    return 0.4 * high[0]
