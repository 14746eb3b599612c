"""The search for the largest sparsity, on steps whose d is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf
from time import monotonic

import pytest

from fake_steps import Fake, InterruptedAt, Law, plain_case, power, times
from laws import Ran, StepLaws
from models import case_of, two_headed_model
from onnxpress.candidates import Candidate, hunt
from onnxpress.objective import objective_of
from onnxpress.plans import Plan
from onnxpress.problem import Tolerance
from onnxpress.search import (
    FIRST,
    INTERRUPTED,
    PROBES,
    PROMISING,
    STEEPNESS,
    Point,
    Search,
    best_of,
    expected,
    tolerance_of,
)
from onnxpress.step import Chain, Only, Step
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress_adapters.errors import MisuseError, SparsityError, StepError


class TestSearch(StepLaws):
    """Its result obeys the laws; the budget is its own to choose."""

    tolerance = Tolerance(0.2)

    def make_step(self) -> Step:
        return Search(Magnitude(), rounds=4)

    def test_the_budget_is_met(self, ran: Ran) -> None:
        objective = objective_of(ran.case.problem)
        assert 0 < objective.measure_choose(ran.after.tensors).upper(1.645) <= 0.9 * 0.2


def knee_of(law: Law, limit: float) -> float:
    """Find by bisection the largest sparsity at which a rising law is within a limit."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if law(middle) <= limit else (low, middle)
    return low


LAWS = {
    f"{knee} steep {steepness}": power(knee, steepness)
    for knee in (0.2, 0.5, 0.7, 0.9, 0.97)
    for steepness in (1.5, 3.5, 6.0)
}
LAWS["a cliff"] = lambda sparsity: 1e-6 if sparsity < 0.73 else 0.9
LAWS["a cliff from nothing"] = lambda sparsity: 0.0 if sparsity < 0.85 else 0.9
LAWS["a cliff into infinity"] = lambda sparsity: 0.002 if sparsity < 0.75 else inf


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_it_ends_within_the_resolution(law: Law) -> None:
    case = plain_case()
    step = Fake(law)
    search = Search(step, rounds=12)
    points = search.points(case.state, case.problem)
    best = best_of(points, 0.009)
    assert best.upper <= 0.009
    assert best.distance == pytest.approx(law(best.sparsity), rel=1e-3, abs=1e-9)
    kept, least = 1 - best.sparsity, 1 - knee_of(law, 0.009)
    assert least * (1 - 1e-6) <= kept <= least * (1 + search.resolution) + 1e-9
    assert len(step.tried) == len(points) < 12


@pytest.mark.parametrize(("knee", "factor"), [(0.93, 1.3), (0.9, 2.4), (0.4, 0.8), (0.85, 50.0)])
def test_a_guide_says_where_to_begin(knee: float, factor: float) -> None:
    case, law = plain_case(), power(knee, 3.5, tolerance=0.009)
    step, guide = Fake(law), Fake(partial(times, factor, law))
    points = Search(step, guide=guide).points(case.state, case.problem)
    # It comes to PROMISING times the limit where the law with that factor does.
    wanted = knee_of(law, 0.009 * PROMISING / factor)
    assert 1 - step.tried[0] == pytest.approx(1 - wanted, rel=0.1)
    assert len(guide.tried) <= PROBES
    assert {point.steps for point in points} == {step.at(sparsity) for sparsity in step.tried}
    plain = Fake(law)
    Search(plain).points(case.state, case.problem)
    assert plain.tried[0] == FIRST
    # What is known already says more than a guide.
    guide.tried.clear()
    Search(step, guide=guide).points(case.state, case.problem, points)
    assert not guide.tried


def test_a_guide_is_interrupted() -> None:
    case, law = plain_case(), power(0.9, 3.5)
    for call, low in ((1, None), (2, 0.6)):
        guide, step = Fake(InterruptedAt(law, call)), Fake(law)
        search = Search(step, guide=guide)
        if low is None:
            with pytest.raises(KeyboardInterrupt):
                search.points(case.state, case.problem)
        else:
            (point,) = search.points(case.state, case.problem)
            assert point.sparsity == low
            assert point.notes == (INTERRUPTED,)
        assert not step.tried
    # Nothing of what the guide saw is within the tolerance itself.
    between = 0.9 * PROMISING**0.5
    guide = Fake(InterruptedAt(lambda _: 0.01 * between, 2))
    with pytest.raises(KeyboardInterrupt):
        Search(Fake(law), guide=guide).points(case.state, case.problem)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_every_candidate_lies_inside_the_bracket(law: Law) -> None:
    case = plain_case()
    step = Fake(law)
    points = Search(step, rounds=10).points(case.state, case.problem)
    for place, point in enumerate(points):
        within = [p.sparsity for p in points[:place] if p.upper <= 0.009]
        beyond = [p.sparsity for p in points[:place] if p.upper > 0.009]
        assert max(within, default=0.0) < point.sparsity < min(beyond, default=1.0)


def test_what_costs_nothing_is_pruned_further_and_further() -> None:
    case = plain_case()
    step = Fake(lambda sparsity: 0.0)
    Search(step)(case.state, case.problem)
    assert step.tried == sorted(step.tried)
    assert step.tried[-1] > 0.999


def test_nothing_within_the_tolerance() -> None:
    case = plain_case()
    search = Search(Fake(lambda sparsity: 0.5 + sparsity), rounds=3)
    with pytest.raises(StepError, match=r"^no sparsity was within the tolerance; closest: 0\.\d+ "):
        search(case.state, case.problem)
    points = search.points(case.state, case.problem)
    assert best_of(points, 0.009).sparsity == min(p.sparsity for p in points)


def test_a_law_that_wavers_is_never_believed_above_the_margin() -> None:
    case = plain_case()
    search = Search(Fake(lambda s: 0.001 if int(100 * s) % 3 != 1 else 0.2), rounds=10)
    points = search.points(case.state, case.problem)
    assert best_of(points, 0.009).upper <= 0.009
    with_all = max(p.sparsity for p in points if p.upper <= 0.009)
    assert best_of(points, 0.009).sparsity == with_all


def test_the_floor_is_never_passed() -> None:
    case = plain_case()
    step = Fake(power(0.5, 3.5))
    points = Search(step, floor=0.7).points(case.state, case.problem)
    assert step.tried == [0.7]
    assert points[0].upper > 0.009
    step = Fake(power(0.8, 3.5))
    Search(step, floor=0.7)(case.state, case.problem)
    assert min(step.tried) >= 0.7


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_are_counted(rounds: int) -> None:
    case = plain_case()
    step = Fake(power(0.93, 3.5))
    Search(step, rounds=rounds, resolution=0.0)(case.state, case.problem)
    assert len(step.tried) == rounds


def test_after_the_deadline_no_candidate_is_begun() -> None:
    case = plain_case()
    step = Fake(power(0.9, 3.5))
    search = Search(step, deadline=monotonic() - 1)
    points = search.points(case.state, case.problem)
    assert len(points) == 1  # one is always tried, or there would be nothing to judge
    assert search.points(case.state, case.problem, points) == points


def test_what_is_known_is_not_tried_again() -> None:
    case = plain_case()
    step = Fake(power(0.7, 3.5))
    points = Search(step).points(case.state, case.problem)
    count = len(step.tried)
    assert Search(step).points(case.state, case.problem, points) == points
    further = Search(step, margin=0.5).points(case.state, case.problem, points)
    assert further[: len(points)] == points
    assert len(step.tried) > count
    best = best_of(further, 0.005)
    assert best.upper <= 0.005


def test_every_open_budget_gets_the_candidate() -> None:
    case = plain_case()
    first, second = Fake(power(0.7, 3.5)), Fake(power(0.7, 3.5), sparsity=0.1)
    Search(Chain((first, second)), rounds=2)(case.state, case.problem)
    assert len(first.tried) == 2
    assert second.tried == [0.1, 0.1]


def test_the_upper_bound_decides_not_the_mean() -> None:
    # Few samples of a wide spread: the bound lies far above d.
    case = case_of(two_headed_model(), tolerance=Tolerance(0.05))
    problem = replace(case.problem, choose=[value[:12] for value in case.problem.choose])
    search = Search(Magnitude(), rounds=6)
    points = search.points(case.state, problem)
    best = best_of(points, 0.045)
    assert best.distance < best.upper <= 0.045
    measured = objective_of(problem).measure_choose(best.state.tensors)
    assert (best.distance, best.upper) == (measured.value, measured.upper(1.645))
    first = [value[:12] for value in problem.fit]
    assert best.fitted == pytest.approx(
        objective_of(problem).measure(best.state.tensors, first).value, rel=1e-6
    )
    line = f"sparsity {best.sparsity:.4f}: d {best.distance:.3g}, at most {best.upper:.3g} "
    assert best.state.log[-1] == line + "on choose"


def test_a_search_needs_something_open_and_a_tolerance() -> None:
    for step in (Magnitude(sparsity=0.5), Chain((Repair(),)), Only("*", Repair())):
        message = "^nothing to search in .*: leave the sparsity of a step open, "
        with pytest.raises(MisuseError, match=message):
            Search(step)
    case = plain_case(None)
    with pytest.raises(MisuseError, match="a search needs a tolerance: give --tolerance, such as"):
        Search(Magnitude())(case.state, case.problem)
    assert tolerance_of(plain_case("2%").problem) == 0.02


class Interrupting:
    """A law that is interrupted when it is asked a certain time."""

    def __init__(self, law: Law, call: int) -> None:
        self.law, self.call, self.calls = law, call, 0

    def __call__(self, sparsity: float) -> float:
        self.calls += 1
        if self.calls == self.call:
            raise KeyboardInterrupt
        return self.law(sparsity)


def test_interrupted_with_something_accepted_it_ends_there() -> None:
    case = plain_case()
    search = Search(Fake(Interrupting(power(0.9, 3.5), 3)))
    points = search.points(case.state, case.problem)
    assert [point.notes for point in points] == [
        ("interrupted: this is the best that was found until then",)
    ] * 2
    assert best_of(points, 0.009).sparsity > 0.6


@pytest.mark.parametrize("law", [power(0.9, 3.5), lambda sparsity: 0.5])
def test_interrupted_with_nothing_accepted_it_is_interrupted(law: Law) -> None:
    case = plain_case()
    call = 1 if law(0.6) < 0.01 else 3
    with pytest.raises(KeyboardInterrupt):
        Search(Fake(Interrupting(law, call))).points(case.state, case.problem)


def test_progress_is_told() -> None:
    case = plain_case()
    told: list[tuple[str, float, str]] = []
    problem = replace(case.problem, progress=lambda *words: told.append(words))
    Search(Fake(power(0.7, 3.5)), rounds=2)(case.state, problem)
    assert told[0] == ("pressing", 0.0, "trying sparsity 0.600")
    assert told[1][:2] == ("pressing", 0.5)


@pytest.mark.parametrize(("limit", "place"), [(0.25, 2), (0.1, 1), (0.05, 1), (1.0, 0)])
def test_the_best_is_the_sparsest_within_or_else_the_nearest(limit: float, place: int) -> None:
    case, step = plain_case(), Magnitude()
    points = [Point(s, case.state, step, d, d) for s, d in ((0.6, 0.3), (0.4, 0.1), (0.5, 0.2))]
    assert best_of(points, limit) is points[place]


def test_a_proposal_lies_where_the_line_meets_the_limit() -> None:
    case, law = plain_case(), power(0.7, 3.5)
    points = [Point(s, case.state, Magnitude(), law(s), law(s)) for s in (0.3, 0.5, 0.8, 0.9)]
    search = Search(Magnitude())
    for sparsity in (0.501, 0.7, 0.799):  # as near to an end as it may be
        assert search.proposal(points, law(sparsity)) == pytest.approx(sparsity)
    assert search.proposal(points, law(0.1)) < 0.3
    assert replace(search, floor=0.75).proposal(points, law(0.7)) == 0.75


def test_what_to_expect_lies_on_the_line_between_points() -> None:
    case, law = plain_case(), power(0.7, STEEPNESS)
    points = [Point(s, case.state, Magnitude(), law(s), law(s)) for s in (0.3, 0.8, 0.5)]
    for sparsity in (0.3, 0.42, 0.5, 0.6, 0.8):
        assert expected(points, sparsity) == pytest.approx(law(sparsity))
    for sparsity in (0.1, 0.9):  # beyond them with the usual slope
        assert expected(points, sparsity) == pytest.approx(law(sparsity))
    edge = [*points, Point(0.9, case.state, Magnitude(), inf, inf)]
    assert expected(edge, 0.82) == pytest.approx(law(0.82))


@pytest.mark.parametrize("law", [lambda sparsity: 0.001, lambda sparsity: 0.5])
def test_a_floor_may_leave_nothing(law: Law) -> None:
    # All that may change has to go: the one candidate there is, whatever it costs.
    case, step = plain_case(), Fake(law)
    search = Search(step, floor=1.0)
    points = search.points(case.state, case.problem)
    assert step.tried == [1.0]
    assert search.proposal(points, 0.009) == 1.0


def test_what_made_a_candidate_stands_beside_it() -> None:
    case = plain_case()
    step = Chain((Fake(power(0.7, 3.5)), Repair(work=0.01)))
    for point in Search(step, rounds=2).points(case.state, case.problem):
        first, second = step.steps
        assert isinstance(first, Fake)
        assert point.steps == Chain((first.at(point.sparsity), second))


def short(most: float, law: Law) -> Law:
    """Give a law of steps that cannot go beyond a sparsity."""

    def found(sparsity: float) -> float:
        if sparsity > most:
            raise SparsityError(f"no further than {most}")
        return law(sparsity)

    return found


def test_steps_that_can_go_no_further_are_searched_for_how_far_they_can() -> None:
    case = plain_case()
    points = Search(Fake(short(0.5, power(0.9, 3.5)))).points(case.state, case.problem)
    assert 0.45 < best_of(points, 0.009).sparsity <= 0.5
    # The tolerance may still be what ends it.
    points = Search(Fake(short(0.5, power(0.3, 3.5)))).points(case.state, case.problem)
    assert 0.2 < best_of(points, 0.009).sparsity < 0.3
    with pytest.raises(SparsityError, match="no further than -1"):
        Search(Fake(short(-1, power(0.3, 3.5)))).points(case.state, case.problem)


def test_a_final_that_can_go_no_further_leaves_what_was_tried() -> None:
    case = plain_case()
    plan = Plan(Fake(short(0.0, power(0.9, 3.5))), Fake(short(0.5, power(0.9, 3.5))))
    shown: list[Candidate] = []

    def judge(candidate: Candidate) -> float:
        shown.append(candidate)
        return 0.5

    points = hunt(plan, case.state, case.problem, judge)
    assert len(shown) == 1
    assert any(point.state is shown[0].state for point in points)


@pytest.mark.parametrize("edge", [0.45, 0.55])
@pytest.mark.parametrize("before", [1e-9, 8e-3])
def test_a_law_with_an_edge_is_closed_in_from_both_sides(edge: float, before: float) -> None:
    # The line through the ends of the bracket puts every point on one side of the edge.
    case, step = plain_case(), Fake(lambda sparsity: before if sparsity < edge else 0.02)
    points = Search(step, resolution=0.1).points(case.state, case.problem)
    low = max(point.sparsity for point in points if point.upper <= 0.009)
    high = min(point.sparsity for point in points if point.upper > 0.009)
    assert low < edge <= high
    assert 1 - low <= (1 - high) * 1.1
    assert len(points) <= 6
