"""The hunt for a candidate the judge accepts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import inf
from time import monotonic

import pytest

from fake_steps import Fake, InterruptedAt, Judge, Staged, plain_case, power, staged, times
from models import case_of, key, two_headed_model
from onnxpress import candidates
from onnxpress.candidates import (
    BEYOND,
    FEWER,
    FURTHER,
    MOST_JUDGED,
    ROUGHLY,
    hunt,
    over_free,
)
from onnxpress.plans import (
    GAIN,
    Plan,
)
from onnxpress.problem import FEW_RESERVE, RESERVE, SURE, Problem
from onnxpress.search import INTERRUPTED, Search, tolerance_of, tried
from onnxpress.state import State
from onnxpress.step import Best, Chain, Only
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.polish import Polish
from onnxpress.steps.repair import Repair
from onnxpress_adapters.errors import MisuseError, StepError


def test_a_polish_at_the_end_is_for_what_the_judge_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    case, judge, law = plain_case(), Judge([1.5, 1.0]), power(0.7, 3.5)
    monkeypatch.setattr(Polish, "__call__", lambda self, state, problem: state.noted("polished"))
    plan = Plan.of(Chain((Fake(law), Polish(work=3.0))))
    points = hunt(plan, case.state, case.problem, judge)
    assert plan.polish == Polish(work=3.0)
    assert len(judge.seen) == 2
    for candidate in judge.seen:
        assert isinstance(candidate.steps, Chain)
        assert candidate.steps.steps[1:] == (Polish(work=3.0),)
        assert candidate.state.log[-1] == "polished"
        (point,) = (point for point in points if point.state is candidate.state)
        assert point.steps == candidate.steps
        assert point.distance == pytest.approx(law(point.sparsity), rel=1e-4)
    others = [p for p in points if p.state not in [candidate.state for candidate in judge.seen]]
    assert others
    assert all("polished" not in point.state.log for point in others)


def test_a_polish_anywhere_else_is_refused() -> None:
    for steps in (
        Chain((Polish(), Magnitude())),
        Chain((Only("w*", Polish()), Magnitude())),
        Chain((Search(Chain((Magnitude(), Polish()))), Repair())),
        Chain((Chain((Magnitude(), Polish())),)),
        Best((Magnitude(0.5), Polish())),
    ):
        with pytest.raises(MisuseError, match="make it the last step of the recipe"):
            Plan.of(steps)


def test_a_polish_alone_has_no_place_for_a_sparsity() -> None:
    case = plain_case()
    with pytest.raises(MisuseError, match="every step of the recipe has its own sparsity"):
        hunt(Plan.of(Polish()), case.state, case.problem, Judge([1.0]), sparsity=0.5)


def test_without_time_there_is_no_polish_and_interrupted_it_is_left_out() -> None:
    plan = Plan.of(Chain((Magnitude(sparsity=0.5), Polish())))
    case, judge = plain_case(), Judge([1.0])
    (point,) = hunt(plan, case.state, case.problem, judge, deadline=monotonic() - 1)
    assert point.steps == Chain((Magnitude(sparsity=0.5),))
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(self: Polish, state: State, problem: Problem) -> State:
            raise KeyboardInterrupt

        patch.setattr(Polish, "__call__", interrupt)
        (point,) = hunt(plan, case.state, case.problem, judge)
    assert point.steps == Chain((Magnitude(sparsity=0.5),))
    assert point.notes == judge.seen[-1].notes == (INTERRUPTED,)


def test_an_accepted_candidate_ends_it() -> None:
    case, judge = plain_case(), Judge([1.0])
    law = power(0.7, 3.5)
    tried = hunt(Plan.of(Fake(law)), case.state, case.problem, judge)
    assert judge.seen[0].state in [point.state for point in tried]
    assert len(tried) > 1
    (sparsity,) = judge.sparsities
    assert law(sparsity) <= 0.009
    assert sparsity > 0.65
    assert judge.seen[0].notes == ()


def test_rejections_tighten_at_most_three_times() -> None:
    case, judge, law = plain_case(), Judge([1.5]), power(0.7, 3.5)
    hunt(Plan.of(Fake(law)), case.state, case.problem, judge)
    assert len(judge.seen) == MOST_JUDGED
    asked = [law(sparsity) for sparsity in judge.sparsities]
    # Each look asks the choose set for less than 0.8 / 1.5 of what the one before had.
    for before, after in pairwise(asked):
        assert 0 < after <= before * 0.8 / 1.5 * (1 + 1e-3)


def test_a_second_look_may_be_accepted() -> None:
    case, judge = plain_case(), Judge([3.0, 0.9])
    hunt(Plan.of(Fake(power(0.7, 3.5))), case.state, case.problem, judge)
    first, second = judge.sparsities
    assert second < first


def test_no_candidate_is_judged_twice() -> None:
    # The choose set sees no difference between candidates, the judge always rejects.
    for law in (lambda sparsity: 0.002, lambda sparsity: 0.5):
        case, judge = plain_case(), Judge([2.0])
        hunt(Plan.of(Fake(law)), case.state, case.problem, judge)
        assert len(judge.sparsities) == len(set(judge.sparsities))
    case, judge = plain_case(), Judge([2.0])
    late = monotonic() - 1
    hunt(Plan.of(Fake(power(0.7, 3.5))), case.state, case.problem, judge, deadline=late)
    assert judge.sparsities == [0.6]


def test_related_samples_leave_a_reserve() -> None:
    law = power(0.7, 3.5)
    asked = []
    for share in (SURE, RESERVE, FEW_RESERVE):
        case, judge = plain_case(), Judge([1.0])
        problem = replace(case.problem, share=share)
        hunt(Plan.of(Fake(law)), case.state, problem, judge)
        asked.append(law(judge.sparsities[0]))
    tolerance = tolerance_of(case.problem)
    assert asked[0] > RESERVE * tolerance >= asked[1] > FEW_RESERVE * tolerance >= asked[2]


def test_with_a_tolerance_a_sparsity_is_the_least_to_accept() -> None:
    case, judge = plain_case(), Judge([5.0])
    step = Fake(power(0.5, 3.5))
    hunt(Plan.of(step), case.state, case.problem, judge, sparsity=0.8)
    assert judge.sparsities == [0.8]  # beyond the tolerance, but nothing below may be accepted
    assert step.tried == [0.8]
    case, judge = plain_case(), Judge([5.0])
    hunt(Plan.of(Fake(power(0.9, 3.5))), case.state, case.problem, judge, sparsity=0.8)
    assert min(judge.sparsities) >= 0.8


def test_without_a_tolerance_the_sparsity_is_made() -> None:
    case, judge = plain_case(None), Judge([7.0])
    hunt(Plan.of(Chain((Magnitude(), Repair()))), case.state, case.problem, judge, sparsity=0.5)
    (candidate,) = judge.seen
    assert candidate.state.sparsity == 0.5
    assert candidate.steps == Chain((Magnitude(sparsity=0.5), Repair()))


def test_fixed_steps_run_as_written() -> None:
    case, judge = plain_case(), Judge([7.0])
    chain = Chain((Magnitude(sparsity=0.5),))
    (point,) = hunt(Plan.of(chain), case.state, case.problem, judge)
    (candidate,) = judge.seen
    assert candidate.steps is chain
    assert point.state is candidate.state
    assert (point.sparsity, point.fitted > 0) == (0.5, True)
    assert candidate.state.sparsity == 0.5
    with pytest.raises(MisuseError, match="every step of the recipe has its own sparsity; leave"):
        hunt(Plan.of(chain), case.state, case.problem, judge, sparsity=0.5)


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
            hunt(Plan.of(chain), case.state, case.problem, Judge([1.0]))


def test_what_the_judge_sees_is_made_by_the_final_steps() -> None:
    case, judge, both = plain_case(), Judge([1.0]), staged()
    points = hunt(both.plan, case.state, case.problem, judge)
    (candidate,) = judge.seen
    (sparsity,) = both.final.tried
    assert candidate.steps == both.final.at(sparsity)
    # Somewhat beyond where the quick repairs meet the limit, within what they left between them.
    assert 0.009 < 3 * both.final.law(sparsity) <= 0.009 * GAIN * 1.001
    assert [point.sparsity for point in points] == [*both.rough.tried, sparsity]
    assert [point.steps for point in points] == [
        *(both.rough.at(one) for one in both.rough.tried),
        candidate.steps,
    ]
    # Those go beyond the limit, but not beyond the tolerance.
    low = max(s for s in both.rough.tried if 3 * both.final.law(s) <= 0.01)
    high = min(s for s in both.rough.tried if 3 * both.final.law(s) > 0.01)
    assert low < sparsity <= high
    assert 1 < (1 - low) / (1 - high) <= 1 + ROUGHLY


def test_a_final_that_just_misses_is_made_again_before_something_far_less_sparse_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The long repair gains less than was hoped for, and the rough candidates are far apart."""
    case, judge = plain_case(), Judge([1.0])
    final, rough = Fake(power(0.82, 3.5)), Fake(lambda sparsity: 1e-4 if sparsity < 0.7 else 0.02)
    monkeypatch.setattr(candidates, "SEARCHING", -1.0)  # no time to search on
    known = [tried(rough, sparsity, case.state, case.problem) for sparsity in (0.6, 0.85)]
    deadline = monotonic() + 3600
    hunt(Plan(final, rough), case.state, case.problem, judge, deadline=deadline, known=known)
    first, second = final.tried
    assert final.law(first) > 0.009 >= final.law(second)
    assert 0.6 < second < first < 0.85
    assert [candidate.steps for candidate in judge.seen] == [final.at(second)]


@pytest.mark.parametrize("further", [0, 1, 2])
def test_a_candidate_that_leaves_much_of_the_limit_is_gone_beyond(further: int) -> None:
    case, judge = plain_case(), Judge([1.0])
    law = power(0.9, 3.5)
    both = Staged(law, partial(times, 200.0, law))
    hunt(replace(both.plan, further=further), case.state, case.problem, judge)
    sparsities = both.final.tried
    assert len(sparsities) == 1 + further
    assert sparsities == sorted(sparsities)
    assert all(law(one) <= 0.009 for one in sparsities)
    assert all(1 - b <= FEWER * (1 - a) for a, b in pairwise(sparsities))
    assert judge.sparsities == sparsities[-1:]


def test_what_lies_beyond_the_limit_is_not_shown() -> None:
    case, judge = plain_case(), Judge([1.0])
    law = power(0.6, 3.5)
    both = Staged(lambda sparsity: 1e-5 if law(sparsity) < 0.012 else 0.5, law)
    points = hunt(replace(both.plan, further=2), case.state, case.problem, judge)
    first, *others = both.final.tried
    within = [one for one in both.final.tried if both.final.law(one) <= 0.009]
    assert first < min(others)
    assert judge.sparsities == [max(within)]
    assert [point.sparsity for point in points[-1 - len(others) :]] == [first, *others]


def test_nothing_is_gone_beyond_without_time_or_need(monkeypatch: pytest.MonkeyPatch) -> None:
    case, law = plain_case(), power(0.9, 3.5)
    near = Staged(law, partial(times, 1.15, law))
    hunt(replace(near.plan, further=2), case.state, case.problem, Judge([1.0]))
    assert len(near.final.tried) == 1
    far, judge = Staged(law, partial(times, 200.0, law)), Judge([1.0])
    monkeypatch.setattr(candidates, "monotonic", lambda: 10.0 * len(far.final.tried))
    hunt(replace(far.plan, further=2), case.state, case.problem, judge, deadline=5.0)
    assert len(far.final.tried) == len(judge.seen) == 1


def test_interrupted_on_the_way_further_what_there_was_is_shown() -> None:
    case, judge = plain_case(), Judge([1.0])
    law = power(0.9, 3.5)
    both = Staged(InterruptedAt(law, 2), partial(times, 200.0, law))
    points = hunt(replace(both.plan, further=2), case.state, case.problem, judge)
    first, _ = both.final.tried
    assert judge.sparsities == [first]
    assert points[-1].notes == (INTERRUPTED,)


def test_a_rough_candidate_is_shown_where_the_long_repair_came_out_worse() -> None:
    rough = power(0.7, 3.5)
    for share, shown in ((0.8, True), (1.0, False)):
        case, judge = plain_case(), Judge([1.0])
        both = Staged(partial(times, share, rough), rough)
        points = hunt(both.plan, case.state, case.problem, judge)
        assert points[-1].steps == both.final.at(both.final.tried[0])
        best = max((p for p in points[:-1] if p.upper <= 0.009), key=lambda p: p.sparsity)
        assert judge.seen[0].state is (points[-1] if shown else best).state


def test_a_second_look_asks_for_less() -> None:
    case, judge, both = plain_case(), Judge([1.5, 1.2, 1.1]), staged()
    hunt(both.plan, case.state, case.problem, judge)
    assert judge.sparsities == both.final.tried
    assert len(both.final.tried) == MOST_JUDGED
    law = both.final.law
    for (before, after), excess in zip(pairwise(both.final.tried), (1.5, 1.2), strict=True):
        assert after < before
        assert law(after) < law(before) / excess
    # By what the long repair had gained where the judge said no, it goes no further than needed.
    assert law(both.final.tried[1]) == pytest.approx(law(both.final.tried[0]) * 0.8 / 1.5, rel=0.15)


def test_no_look_asks_for_more_than_the_first() -> None:
    # Nothing is within the limit, and the judge says that by little.
    case, judge = plain_case(), Judge([1.01])
    hunt(Plan.of(Fake(lambda sparsity: 0.5)), case.state, case.problem, judge)
    assert judge.sparsities == sorted(judge.sparsities, reverse=True)
    assert len(judge.seen) == MOST_JUDGED


@pytest.mark.parametrize("value", [0.0, 0.002, 0.5, inf])
@pytest.mark.parametrize("excess", [1.01, 3.0, inf])
def test_flat_laws_are_judged_less_and_less_sparse(value: float, excess: float) -> None:
    def law(sparsity: float) -> float:
        return value

    for plan in (Plan.of(Fake(law)), Staged(law, law).plan):
        case, judge = plain_case(), Judge([excess])
        hunt(plan, case.state, case.problem, judge)
        assert len(judge.seen) == MOST_JUDGED
        assert all(before > after > 0 for before, after in pairwise(judge.sparsities))


def test_at_the_floor_the_long_repair_may_be_enough() -> None:
    case, judge, both = plain_case(), Judge([5.0]), staged(0.7)
    points = hunt(both.plan, case.state, case.problem, judge, sparsity=0.65)
    assert (both.rough.tried, both.final.tried) == ([0.65], [0.65])
    assert points[0].upper > 0.009 >= points[1].upper
    assert [candidate.state for candidate in judge.seen] == [points[1].state]


def test_a_floor_is_not_tried_again() -> None:
    case, judge = plain_case(), Judge([5.0])
    step = Fake(power(0.72, 3.5))
    hunt(Plan.of(step), case.state, case.problem, judge, sparsity=0.7)
    assert len(step.tried) == len(set(step.tried))
    assert judge.sparsities[-1] == 0.7
    assert min(step.tried) == 0.7


def test_a_curve_goes_on_beyond_the_tolerance_and_nothing_of_that_is_judged() -> None:
    law = power(0.7, 3.5)
    case, judge = plain_case(), Judge([1.0])
    points = hunt(Plan.of(Fake(law)), case.state, case.problem, judge, beyond=BEYOND)
    assert len(judge.seen) == 1
    alone = hunt(Plan.of(Fake(law)), case.state, case.problem, Judge([1.0]))
    assert [point.sparsity for point in points[: len(alone)]] == [p.sparsity for p in alone]
    assert 1 <= len(points) - len(alone) <= FURTHER * len(BEYOND)
    for factor in BEYOND:
        near = max(point.upper for point in points if point.upper <= 0.009 * factor)
        assert near > 0.009 * factor / 2


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
    hunt(Plan.of(Only("w*", Magnitude())), case.only("w"), case.problem, judge, sparsity=0.5)
    assert judge.seen[0].state.sparsity == 0.5
