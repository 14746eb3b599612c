"""The hunt for a candidate, out of time or interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from fake_steps import Fake, InterruptedAt, Judge, Law, Staged, plain_case, power, times
from onnxpress.candidates import BEYOND, hunt
from onnxpress.plans import Plan
from onnxpress.problem import Problem
from onnxpress.search import INTERRUPTED, Point, Search
from onnxpress.state import State


class Clock:
    """A clock that stands still but when a step works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for name in ("onnxpress.search.monotonic", "onnxpress.candidates.monotonic"):
            monkeypatch.setattr(name, lambda: self.now)

    def taking(self, seconds: float, law: Law) -> Law:
        def slow(sparsity: float) -> float:
            self.now += seconds
            return law(sparsity)

        return slow


@pytest.mark.parametrize(
    ("deadline", "rough", "final"), [(70.0, 4, 2), (40.0, 3, 1), (8.0, 1, 0), (-1.0, 1, 0)]
)
def test_a_deadline_leaves_time_for_what_the_judge_sees(
    deadline: float, rough: int, final: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, law = Clock(monkeypatch), power(0.9, 3.5)
    both = Staged(clock.taking(30, partial(times, 0.7, law)), clock.taking(10, law))
    case, judge = plain_case(), Judge([2.0])
    points = hunt(both.plan, case.state, case.problem, judge, deadline=deadline, beyond=BEYOND)
    assert (len(both.rough.tried), len(both.final.tried)) == (rough, final)
    assert len(points) == rough + final
    shown = both.final if final else both.rough
    assert judge.seen[0].steps == shown.at(shown.tried[0])


def test_an_interrupt_while_finishing_keeps_the_best_within_the_tolerance() -> None:
    law = power(0.7, 3.5)
    case, judge = plain_case(), Judge([2.0])
    both = Staged(InterruptedAt(law, 1), law)
    points = hunt(both.plan, case.state, case.problem, judge, beyond=BEYOND)
    (candidate,) = judge.seen
    assert candidate.notes == (INTERRUPTED,)
    best = max((p for p in points if p.upper <= 0.009), key=lambda p: p.sparsity)
    assert candidate.state is best.state
    assert [point.notes for point in points if point is not best] == [()] * (len(points) - 1)
    assert [point.sparsity for point in points] == both.rough.tried


def test_an_interrupt_after_a_refusal_shows_a_less_sparse_one() -> None:
    law = power(0.7, 3.5)
    case, judge = plain_case(), Judge([1.5])
    both = Staged(InterruptedAt(law, 2), law)
    hunt(both.plan, case.state, case.problem, judge)
    first, second = judge.seen
    assert first.notes == ()
    assert second.notes == (INTERRUPTED,)
    assert isinstance(second.steps, Fake)
    assert second.steps.sparsity in both.rough.tried
    assert judge.sparsities[1] < judge.sparsities[0]


@pytest.mark.parametrize(("value", "call"), [(0.5, 1), (0.5, 2)])
def test_an_interrupt_while_finishing_with_nothing_to_show(value: float, call: int) -> None:
    def law(sparsity: float) -> float:
        return value

    case, judge = plain_case(), Judge([2.0])
    with pytest.raises(KeyboardInterrupt):
        hunt(Staged(InterruptedAt(law, call), law).plan, case.state, case.problem, judge)
    assert len(judge.seen) == call - 1


def test_what_was_refused_is_not_what_an_interrupt_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, law = Clock(monkeypatch), power(0.62, 3.5)
    both = Staged(InterruptedAt(partial(times, 2.0, law), 2), clock.taking(10, law))
    case, judge = plain_case(), Judge([2.0])
    with pytest.raises(KeyboardInterrupt):
        hunt(both.plan, case.state, case.problem, judge, deadline=12.0)
    assert (both.rough.tried, judge.sparsities) == ([0.6], [0.6])
    assert both.final.tried[0] > 0.6 > both.final.tried[1]


def test_an_interrupt_with_something_accepted_is_the_last_candidate() -> None:
    law, calls = power(0.9, 3.5), [0]

    def interrupted(sparsity: float) -> float:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return law(sparsity)

    case, judge = plain_case(), Judge([2.0])
    hunt(Plan.of(Fake(interrupted)), case.state, case.problem, judge)
    (candidate,) = judge.seen
    assert candidate.notes == ("interrupted: this is the best that was found until then",)
    assert calls == [3]


def test_an_interrupt_beyond_the_tolerance_loses_nothing() -> None:
    law = power(0.7, 3.5)
    case, judge = plain_case(), Judge([1.0])
    known = len(hunt(Plan.of(Fake(law)), case.state, case.problem, Judge([1.0])))
    calls = [0]

    def interrupted(sparsity: float) -> float:
        calls[0] += 1
        if calls[0] == known + 1:
            raise KeyboardInterrupt
        return law(sparsity)

    points = hunt(Plan.of(Fake(interrupted)), case.state, case.problem, judge, beyond=BEYOND)
    assert len(points) == known
    assert calls == [known + 1]
    assert judge.seen[0].notes == ()


def test_an_interrupt_beyond_the_tolerance_with_nothing_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searching = Search.points

    def points(
        self: Search, state: State, problem: Problem, known: Sequence[Point] = ()
    ) -> list[Point]:
        if self.margin > 1:
            raise KeyboardInterrupt
        return searching(self, state, problem, known)

    monkeypatch.setattr(Search, "points", points)
    case = plain_case()
    found = hunt(
        Plan.of(Fake(lambda s: 0.5)), case.state, case.problem, Judge([1.0]), beyond=BEYOND
    )
    assert len(found) > 1


def test_an_interrupt_with_nothing_accepted_is_an_interrupt() -> None:
    def law(sparsity: float) -> float:
        raise KeyboardInterrupt

    case, judge = plain_case(), Judge([1.0])
    with pytest.raises(KeyboardInterrupt):
        hunt(Plan.of(Fake(law)), case.state, case.problem, judge)
    assert judge.seen == []
