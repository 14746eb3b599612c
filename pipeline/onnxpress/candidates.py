"""From a chain and a promise to candidates for the judge, the most wanted first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from time import monotonic
from typing import TYPE_CHECKING

from onnxpress.plans import GAIN, Plan
from onnxpress.search import (
    INTERRUPTED,
    NOTHING,
    Point,
    Search,
    best_of,
    expected,
    measured,
    tolerance_of,
    tried,
)
from onnxpress.step import Chain, Step, checked, fix, is_open
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.polish import Polish
from onnxpress.steps.repair import Repair
from onnxpress_adapters.errors import MisuseError, SparsityError, StepError

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

MOST_JUDGED = 3  # one more than LESS has
"""Candidates the judge sees, at most: each further look would weaken the verdict."""

LESS = (0.8, 0.5)
"""What to ask of the choose set after the judge said no for the first and the second time, as a
share of what would just have done: the last candidate had better be within."""

FAR = 1.25
"""How many times the entries a candidate may keep beside one that just misses the limit, before it
is worth another."""

AGAIN = 0.75
"""Share of the limit the other one aims at: it had better not miss as well."""

FEWER = 0.9
"""Share of the entries of a candidate that one beyond it may keep to be worth another repair."""

MOST_GAINED = 4.0
"""How much of d the repair of a final candidate may have mended beside that of a rough one."""

LEAST = 0.25
"""The least share of what a candidate had to ask of the next one."""

ROUGHLY = 0.15
"""How close, as a share of the entries kept, candidates with a rough repair close in."""

SEARCHING = 0.5
"""Share of the time in which they do so; the rest is for the candidate the judge is to see."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A state worth judging, and the steps, every sparsity fixed, that made it."""

    state: State
    steps: Step
    notes: tuple[str, ...] = ()


BEYOND = (2.0, 4.0)
"""Multiples of the tolerance a kept curve reaches to."""

FURTHER = 2
"""Candidates tried for each of them, at most."""

Judge = Callable[[Candidate], float]
"""Gives the judge's bound as a share of what is allowed: 1 or less is within."""


def hunt(
    plan: Plan,
    state: State,
    problem: Problem,
    judge: Judge,
    *,
    sparsity: float | None = None,
    deadline: float | None = None,
    beyond: Sequence[float] = (),
    known: Sequence[Point] = (),
) -> list[Point]:
    """Make candidates and show some to the judge, until one is within or enough were seen.

    Args:
        plan: the steps; a search fixes what is open in them.
        state: where to begin.
        problem: the promise.
        judge: called at least once, at most ``MOST_JUDGED`` times.
        sparsity: zeros over all prunable weights; the least to accept where there is a tolerance.
        deadline: a moment of ``time.monotonic`` after which no candidate is begun.
        beyond: multiples of the tolerance to try candidates for as well, when the judge has seen
            enough; they are not judged.
        known: candidates that were tried with the plan's rough steps already.

    Returns:
        Every candidate that was tried, judged or not.

    Raises:
        MisuseError: the sparsity cannot be reached with the weights that may change, or the steps
            have no place for it.
    """
    show = _Show(judge, plan.polish, problem, deadline)
    if not is_open(plan.final):
        if sparsity is not None:
            raise MisuseError(
                "every step of the recipe has its own sparsity; leave out --sparsity, or leave the "
                "sparsity of a step open"
            )
        return [_alone(plan.final, None, state, problem, show)]
    floor = 0.0 if sparsity is None else over_free(state, sparsity)
    if problem.tolerance is None:
        return [_alone(fix(plan.final, floor), floor, state, problem, show)]
    margin = problem.share
    search = rough_search(plan, problem, floor, deadline)
    finish = _Finish(plan, replace(search, margin=margin), state, problem, deadline)
    points = list(known)
    if not any(point.notes for point in points):  # interrupted
        points = search.points(state, problem, points)
    points = _looked(finish, points, show, staged=plan.is_staged)
    if any(point.notes for point in points):  # interrupted
        return points
    for factor in beyond:
        wider = replace(finish.search, margin=margin * factor, rounds=FURTHER, deadline=deadline)
        try:
            points = wider.points(state, problem, points)
        except KeyboardInterrupt:
            break  # the verdict is there already
        if any(point.notes for point in points):  # interrupted with a candidate within this limit
            break
    return points


def rough_search(plan: Plan, problem: Problem, floor: float, deadline: float | None) -> Search:
    """Give the search that shows how far to go.

    Args:
        plan: its rough steps are searched.
        problem: the promise.
        floor: the least sparsity over the free weights.
        deadline: a moment of ``time.monotonic`` for everything; None for none.
    """
    margin = problem.share
    if not plan.is_staged:
        return Search(plan.rough, floor=floor, margin=margin, deadline=deadline)
    # Rough candidates go as far as the final one may aim, but not beyond the tolerance.
    return Search(
        plan.rough,
        floor=floor,
        margin=min(1.0, GAIN * margin),
        resolution=ROUGHLY,
        deadline=_searching_until(deadline),
        guide=_guide(plan.rough),
    )


def _guide(step: Step) -> Step | None:
    """Give the surgery a step begins with, if repairs are all that follows."""
    if not isinstance(step, Chain):
        return None
    first, *rest = step.steps
    repaired = rest and all(isinstance(each, Repair) for each in rest)
    return first if repaired and isinstance(first, Greedy) and first.is_surgery else None


def _searching_until(deadline: float | None) -> float | None:
    """Give the moment at which a search leaves the time to a candidate for the judge."""
    if deadline is None:
        return None
    now = monotonic()
    return now + SEARCHING * (deadline - now)


@dataclass(frozen=True, eq=False)
class _Show:
    """Polish what was chosen, and show it to the judge.

    Attributes:
        judge: sees it.
        polish: what it gets before; None for nothing.
        problem: the promise.
        deadline: a moment of ``time.monotonic`` after which there is no polish.
    """

    judge: Judge
    polish: Polish | None
    problem: Problem
    deadline: float | None

    def __call__(self, point: Point) -> tuple[Point, float]:
        """Give the point as the judge saw it, and what it said.

        The distances of the point stay those from before the polish, which still were held out.
        """
        point = self._polished(point)
        return point, self.judge(Candidate(point.state, point.steps, point.notes))

    def _polished(self, point: Point) -> Point:
        late = self.deadline is not None and monotonic() > self.deadline
        if self.polish is None or point.notes or late:
            return point
        self.problem.progress("pressing", 0.94, f"polishing at sparsity {point.sparsity:.3f}")
        try:
            state = checked(self.polish, point.state, self.problem)
        except KeyboardInterrupt:
            return replace(point, notes=(*point.notes, INTERRUPTED))
        before = point.steps.steps if isinstance(point.steps, Chain) else (point.steps,)
        return replace(point, state=state, steps=Chain((*before, self.polish)))


@dataclass(frozen=True, eq=False)
class _Finish:
    """Make a candidate for the judge from what a search tried.

    Attributes:
        plan: its final steps make it; their sparsity is open.
        search: says where.
        state: where to begin.
        problem: the promise.
        deadline: a moment of ``time.monotonic`` after which it is not begun.
    """

    plan: Plan
    search: Search
    state: State
    problem: Problem
    deadline: float | None

    @property
    def limit(self) -> float:
        """The largest bound a candidate may have before the judge has said anything."""
        return tolerance_of(self.problem) * self.search.margin

    def __call__(
        self,
        points: list[Point],
        limit: float,
        refused: Point | None = None,
        most: float = 0.0,
        *,
        again: bool = True,
    ) -> tuple[list[Point], Point | None]:
        """Make one where the bound is expected to meet a limit.

        Args:
            points: tried so far.
            limit: for its bound.
            refused: what the judge said no to, its bound above the limit; the next is less sparse.
            most: its bound may be so large and it is still shown, the limit being on the safe side.
            again: whether a second one is made where the first misses the limit and what there is
                within it keeps far more entries.

        Returns:
            The points with it, and the one for the judge. That is the best of those there were
            where there is no time for another or the other came out worse, or None.

        Raises:
            KeyboardInterrupt: interrupted with nothing within the tolerance to show instead.
        """
        left = [point for point in points if refused is None or point.sparsity < refused.sparsity]
        known = best_of(left, limit) if left else None
        if self._is_late:
            return points, known
        if refused is None:
            sparsity = self.search.proposal(left, self.plan.gain * limit)
            if any(point.bound > limit for point in left):  # no further than there is experience
                sparsity = min(sparsity, max(point.sparsity for point in left))
        else:
            aim = limit if again else AGAIN * limit
            sparsity = self.search.proposal([*self._raised(points, left, refused), refused], aim)
        steps = fix(self.plan.final, sparsity)
        if any(point.steps == steps for point in left):  # a floor that was tried already
            return points, known
        self.problem.progress("pressing", 0.9, f"finishing at sparsity {sparsity:.3f}")
        try:
            point = tried(self.plan.final, sparsity, self.state, self.problem)
        except KeyboardInterrupt:
            if known is None or known.upper > tolerance_of(self.problem):
                raise
            noted = replace(known, notes=(*known.notes, INTERRUPTED))
            return [noted if one is known else one for one in points], noted
        except SparsityError:  # no step can go further than those that were tried
            return points, known
        points = [*points, point]
        if refused is None and point.bound <= limit:
            return self._further(points, point, limit)
        if known is None or point.bound <= max(limit, most):
            return points, point
        if again and 1 - known.sparsity > FAR * (1 - point.sparsity):
            return self(points, limit, point, most, again=False)
        return points, best_of([point, known], limit)

    @property
    def _is_late(self) -> bool:
        return self.deadline is not None and monotonic() > self.deadline

    def _further(
        self, points: list[Point], made: Point, limit: float
    ) -> tuple[list[Point], Point | None]:
        """Go on from a candidate that leaves much of the limit; what lies beyond it is not shown.

        Interrupted, what was made until then is shown.
        """
        for _ in range(self.plan.further):
            sparsity = self.search.proposal(self._raised(points, points, made), limit)
            if self._is_late or 1 - sparsity > FEWER * (1 - made.sparsity):
                break
            self.problem.progress("pressing", 0.92, f"going on to sparsity {sparsity:.3f}")
            try:
                point = tried(self.plan.final, sparsity, self.state, self.problem)
            except KeyboardInterrupt:
                noted = replace(made, notes=(*made.notes, INTERRUPTED))
                return [noted if one is made else one for one in points], noted
            except SparsityError:  # no step can go further
                break
            points = [*points, point]
            made = point if point.bound <= limit else made
        return points, made

    def _raised(self, points: list[Point], left: list[Point], made: Point) -> list[Point]:
        """Give points as they would be after this step's repair, judging by one that had it."""
        rough = [point for point in points if point.steps != fix(self.plan.final, point.sparsity)]
        if not rough:
            return left
        least = max(made.bound, NOTHING * self.limit)
        gained = min(MOST_GAINED, max(1.0, expected(rough, made.sparsity) / least))
        return [
            replace(point, aimed=point.bound / gained) if point in rough else point
            for point in left
        ]


def _looked(finish: _Finish, points: list[Point], show: _Show, *, staged: bool) -> list[Point]:
    """Show the judge a candidate, and as long as it says no, a less sparse one.

    Returns:
        The points, and what was made beside them.
    """
    limit = finish.limit
    best: Point | None = best_of(points, limit)
    if staged and not any(point.notes for point in points):
        points, best = finish(points, limit)
    polished: dict[Point, Point] = {}
    for less in (*LESS, None):
        if best is None:  # nothing less sparse is to be had
            break
        polished[best], excess = show(best)
        if polished[best].notes or excess <= 1 or best.sparsity <= finish.search.floor:
            break
        if less is not None:
            # The judge saw more than the choose set did: ask that set for as much less.
            had = max(best.bound, NOTHING * limit)
            limit = min(limit, had * min(less, max(LEAST, less / excess)))
            points, best = finish(points, limit, replace(best, aimed=had), had / excess)
    return [polished.get(point, point) for point in points]


def _alone(steps: Step, asked: float | None, state: State, problem: Problem, show: _Show) -> Point:
    """Make the one candidate of steps without an open sparsity, and show it to the judge."""
    found = checked(steps, state, problem)
    sparsity = found.sparsity if asked is None else asked
    try:
        point = measured(sparsity, found, steps, problem)
    except StepError as error:
        # Nothing was to be chosen here, so the judge can still say what becomes of such outputs.
        note = f"its distance was not measured: {error}"
        point = Point(sparsity, found, steps, inf, inf, (note,), nan)
    return show(point)[0]


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
