"""The hunt for a candidate the judge accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from time import monotonic

import pytest

from fake_steps import Fake, plain_case, power
from models import case_of, key, two_headed_model
from onnxpress.candidates import (
    ALONE,
    BEYOND,
    FURTHER,
    MOST_JUDGED,
    RESERVE,
    Candidate,
    default_chain,
    hunt,
    over_free,
)
from onnxpress.problem import Problem
from onnxpress.search import Point, Search, tolerance_of
from onnxpress.state import State
from onnxpress.step import Chain, Only, is_open
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress_adapters.errors import MisuseError, StepError


@dataclass
class Judge:
    """Answer with given excesses, the last one again and again, and remember what was shown."""

    answers: Sequence[float]
    seen: list[Candidate] = field(default_factory=list)

    def __call__(self, candidate: Candidate) -> float:
        self.seen.append(candidate)
        return self.answers[min(len(self.seen), len(self.answers)) - 1]

    @property
    def sparsities(self) -> list[float]:
        """What the fake step was given, as the candidates' steps say."""
        given = []
        for candidate in self.seen:
            assert isinstance(candidate.steps, Fake)
            assert candidate.steps.sparsity is not None
            given.append(candidate.steps.sparsity)
        return given


def test_the_default_chain_is_open() -> None:
    assert default_chain() == Chain((Greedy(), Repair()))
    assert default_chain(searched=False) == Chain((Greedy(), Repair(work=ALONE)))
    assert is_open(default_chain())


def test_an_accepted_candidate_ends_it() -> None:
    case, judge = plain_case(), Judge([1.0])
    law = power(0.7, 3.5)
    tried = hunt(Fake(law), case.state, case.problem, judge)
    assert judge.seen[0].state in [point.state for point in tried]
    assert len(tried) > 1
    (sparsity,) = judge.sparsities
    assert law(sparsity) <= 0.009
    assert sparsity > 0.65
    assert judge.seen[0].notes == ()


def test_rejections_tighten_at_most_three_times() -> None:
    case, judge, law = plain_case(), Judge([1.5]), power(0.7, 3.5)
    hunt(Fake(law), case.state, case.problem, judge)
    assert len(judge.seen) == MOST_JUDGED
    asked = [law(sparsity) for sparsity in judge.sparsities]
    # Each look asks the choose set for less than 0.8 / 1.5 of what the one before had.
    for before, after in pairwise(asked):
        assert 0 < after <= before * 0.8 / 1.5 * (1 + 1e-3)


def test_a_second_look_may_be_accepted() -> None:
    case, judge = plain_case(), Judge([3.0, 0.9])
    hunt(Fake(power(0.7, 3.5)), case.state, case.problem, judge)
    first, second = judge.sparsities
    assert second < first


def test_no_candidate_is_judged_twice() -> None:
    # The choose set sees no difference between candidates, the judge always rejects.
    for law in (lambda sparsity: 0.002, lambda sparsity: 0.5):
        case, judge = plain_case(), Judge([2.0])
        hunt(Fake(law), case.state, case.problem, judge)
        assert len(judge.sparsities) == len(set(judge.sparsities))
    case, judge = plain_case(), Judge([2.0])
    late = monotonic() - 1
    hunt(Fake(power(0.7, 3.5)), case.state, case.problem, judge, deadline=late)
    assert judge.sparsities == [0.6]


def test_related_samples_leave_a_reserve() -> None:
    law = power(0.7, 3.5)
    asked = []
    for related in (False, True):
        case, judge = plain_case(), Judge([1.0])
        problem = replace(case.problem, related=related)
        hunt(Fake(law), case.state, problem, judge)
        asked.append(law(judge.sparsities[0]))
    assert asked[0] > RESERVE * tolerance_of(case.problem) >= asked[1]


def test_with_a_tolerance_a_sparsity_is_the_least_to_accept() -> None:
    case, judge = plain_case(), Judge([5.0])
    step = Fake(power(0.5, 3.5))
    hunt(step, case.state, case.problem, judge, sparsity=0.8)
    assert judge.sparsities == [0.8]  # beyond the tolerance, but nothing below may be accepted
    assert step.tried == [0.8]
    case, judge = plain_case(), Judge([5.0])
    hunt(Fake(power(0.9, 3.5)), case.state, case.problem, judge, sparsity=0.8)
    assert min(judge.sparsities) >= 0.8


def test_without_a_tolerance_the_sparsity_is_made() -> None:
    case, judge = plain_case(None), Judge([7.0])
    hunt(Chain((Magnitude(), Repair())), case.state, case.problem, judge, sparsity=0.5)
    (candidate,) = judge.seen
    assert candidate.state.sparsity == 0.5
    assert candidate.steps == Chain((Magnitude(sparsity=0.5), Repair()))


def test_fixed_steps_run_as_written() -> None:
    case, judge = plain_case(), Judge([7.0])
    chain = Chain((Magnitude(sparsity=0.5),))
    (point,) = hunt(chain, case.state, case.problem, judge)
    (candidate,) = judge.seen
    assert candidate.steps is chain
    assert point.state is candidate.state
    assert (point.sparsity, point.fitted > 0) == (0.5, True)
    assert candidate.state.sparsity == 0.5
    with pytest.raises(MisuseError, match="every step of the recipe has its own sparsity; leave"):
        hunt(chain, case.state, case.problem, judge, sparsity=0.5)


class Diverges:
    """A step that leaves what no file should hold."""

    def __call__(self, state: State, problem: Problem, /) -> State:
        return state.with_weights(
            {name: replace(form, values=form.values / 0) for name, form in state.weights.items()}
        )


def test_steps_are_checked() -> None:
    case = plain_case()
    for chain in (Diverges(), Chain((Magnitude(), Diverges()))):
        with pytest.raises(StepError, match="not finite"):
            hunt(chain, case.state, case.problem, Judge([1.0]))


def test_an_interrupt_with_something_accepted_is_the_last_candidate() -> None:
    law, calls = power(0.9, 3.5), [0]

    def interrupted(sparsity: float) -> float:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return law(sparsity)

    case, judge = plain_case(), Judge([2.0])
    hunt(Fake(interrupted), case.state, case.problem, judge)
    (candidate,) = judge.seen
    assert candidate.notes == ("interrupted: this is the best that was found until then",)
    assert calls == [3]


def test_a_curve_goes_on_beyond_the_tolerance_and_nothing_of_that_is_judged() -> None:
    law = power(0.7, 3.5)
    case, judge = plain_case(), Judge([1.0])
    points = hunt(Fake(law), case.state, case.problem, judge, beyond=BEYOND)
    assert len(judge.seen) == 1
    alone = hunt(Fake(law), case.state, case.problem, Judge([1.0]))
    assert [point.sparsity for point in points[: len(alone)]] == [p.sparsity for p in alone]
    assert 1 <= len(points) - len(alone) <= FURTHER * len(BEYOND)
    for factor in BEYOND:
        near = max(point.upper for point in points if point.upper <= 0.009 * factor)
        assert near > 0.009 * factor / 2


def test_an_interrupt_beyond_the_tolerance_loses_nothing() -> None:
    law = power(0.7, 3.5)
    case, judge = plain_case(), Judge([1.0])
    known = len(hunt(Fake(law), case.state, case.problem, Judge([1.0])))
    calls = [0]

    def interrupted(sparsity: float) -> float:
        calls[0] += 1
        if calls[0] == known + 1:
            raise KeyboardInterrupt
        return law(sparsity)

    points = hunt(Fake(interrupted), case.state, case.problem, judge, beyond=BEYOND)
    assert len(points) == known
    assert calls == [known + 1]
    assert judge.seen[0].notes == ()


def test_an_interrupt_beyond_the_tolerance_with_nothing_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searching = Search.points

    def points(self: Search, state: State, problem: Problem, known: Sequence[Point]) -> list[Point]:
        if self.margin > 1:
            raise KeyboardInterrupt
        return searching(self, state, problem, known)

    monkeypatch.setattr(Search, "points", points)
    case = plain_case()
    found = hunt(Fake(lambda s: 0.5), case.state, case.problem, Judge([1.0]), beyond=BEYOND)
    assert len(found) > 1


def test_an_interrupt_with_nothing_accepted_is_an_interrupt() -> None:
    def law(sparsity: float) -> float:
        raise KeyboardInterrupt

    case, judge = plain_case(), Judge([1.0])
    with pytest.raises(KeyboardInterrupt):
        hunt(Fake(law), case.state, case.problem, judge)
    assert judge.seen == []


def test_a_sparsity_over_all_weights_becomes_one_over_the_free_ones() -> None:
    case = case_of(two_headed_model())  # 96 + 36 + 24 entries
    assert over_free(case.state, 0.25) == 0.25
    # 78 zeros of 156 must come out of 96 entries.
    assert over_free(case.only("w"), 0.5) == 78 / 96
    thin = Magnitude(sparsity=0.5)(case.state, case.problem)
    narrow = replace(thin, free=frozenset({key("w")}))
    # 30 zeros lie in the other two already, and 48 of the 78 are left to find.
    assert over_free(narrow, 0.5) == 48 / 96
    assert over_free(narrow, 0.1) == 0.0
    # Zeros in integer weights count too.
    assert over_free(replace(case.state, fixed_zeros=(44, 44)), 0.5) == (100 - 44) / 156
    with pytest.raises(MisuseError) as raised:
        over_free(case.only("w"), 0.9)
    assert str(raised.value) == (
        "a sparsity of 90% cannot be reached: the weights that may change are only enough for 62%"
    )


def test_the_sparsity_asked_for_is_the_one_of_the_file() -> None:
    case, judge = case_of(two_headed_model()), Judge([1.0])
    hunt(Only("w*", Magnitude()), case.only("w"), case.problem, judge, sparsity=0.5)
    assert judge.seen[0].state.sparsity == 0.5
