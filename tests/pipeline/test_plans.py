"""The steps taken where no recipe says which."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fake_steps import plain_case
from onnxpress import plans
from onnxpress.candidates import rough_search
from onnxpress.cost import Cost
from onnxpress.plans import (
    ALONE,
    EARLY,
    FINAL,
    FINAL_SPARING,
    FURTHER,
    GRADUAL,
    GRADUAL_ALONE,
    MOST_ALONE,
    POLISHING,
    POLISHING_ALONE,
    REHEARSING,
    REHEARSING_ALONE,
    ROUGH,
    ROUNDED,
    SPARE,
    STEPS_ALONE,
    UNHURRIED,
    Plan,
    default_plan,
)
from onnxpress.step import Best, Chain, is_open
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.polish import Polish
from onnxpress.steps.repair import Repair
from onnxpress.steps.store import Store


def test_the_default_plan_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = plain_case().problem
    plan = default_plan(problem, searched=True)
    alone = default_plan(problem, searched=False)
    both = ((plan, FINAL_SPARING, REHEARSING), (alone, ALONE, REHEARSING_ALONE))
    for found, work, share in both:
        first = Repair(work=share * work)
        removed = Greedy(spare=SPARE, rehearsal=first)
        assert found.final == Chain((removed, Repair(work=work - first.work)))
        assert found.rough == Chain((Greedy(), Repair(work=ROUGH)))
    assert plan.polish == Polish(work=POLISHING)
    assert alone.polish == Polish(work=POLISHING_ALONE)
    assert is_open(plan.final)
    assert is_open(plan.rough)
    assert plan.is_staged
    assert rough_search(plan, problem, 0.0, None).guide == Greedy()
    for other in (Chain((Greedy(), Store("int8"))), Chain((Magnitude(), Repair())), Greedy()):
        assert rough_search(replace(plan, rough=other), problem, 0.0, None).guide is None
    assert "objective" not in problem.memo  # so that what is refused is refused before any work
    with monkeypatch.context() as dear:
        dear.setattr(plans, "points_of", lambda *_: 0)  # as where a look is dear
        plan = default_plan(problem, searched=True)
        assert plan.final == Chain((Greedy(), Repair(work=FINAL)))
    plan = default_plan(problem, searched=True, values="int8")
    for chain, work in ((plan.final, FINAL_SPARING), (plan.rough, ROUGH)):
        assert isinstance(chain, Chain)
        greedy, before, store, after = chain.steps
        assert store == Store("int8")
        assert isinstance(greedy, Greedy)
        assert isinstance(before, Repair)
        assert isinstance(after, Repair)
        assert after.work == ROUNDED * work
        spent = greedy.rehearsal.work if greedy.spare else 0.0
        assert spent + before.work + after.work == pytest.approx(work)
    assert not Plan.of(plan.final).is_staged


def test_a_repair_that_runs_once_has_more_work_where_a_step_is_dear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = replace(plain_case().problem, effort=0.5)
    for paid, work in ((10_000, ALONE), (2000, ALONE * STEPS_ALONE / 4000), (100, MOST_ALONE)):
        monkeypatch.setattr(Cost, "steps", lambda *_, paid=paid: paid)
        monkeypatch.setattr(plans, "points_of", lambda *_: 0)
        assert default_plan(problem, searched=False).final == Chain((Greedy(), Repair(work=work)))
        assert default_plan(problem, searched=True).final == Chain((Greedy(), Repair(work=FINAL)))


@pytest.mark.parametrize("searched", [True, False])
def test_a_small_network_is_pruned_in_two_ways(
    monkeypatch: pytest.MonkeyPatch, *, searched: bool
) -> None:
    problem = replace(plain_case().problem, effort=UNHURRIED)
    plan = default_plan(problem, searched=searched)
    assert plan.further == (FURTHER if searched else 0)
    gradual = Greedy(layerwise=EARLY, between=Repair(work=GRADUAL if searched else GRADUAL_ALONE))
    monkeypatch.setattr(plans, "SMALL_MACS", 0)
    larger = default_plan(problem, searched=searched).final
    assert isinstance(larger, Chain)
    after = larger.steps[1]
    assert plan.final == Chain((Best((larger, Chain((gradual, after)))),))
    monkeypatch.undo()
    hurried = replace(problem, effort=0.9 * UNHURRIED)
    assert default_plan(hurried, searched=searched).final == larger
