"""Polish: its laws, and that it learns from the choose set what nothing else may."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laws import StepLaws
from models import MODELS, case_of, linear_model
from onnxpress.objective import Objective, objective_of
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import Step
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.polish import Polish
from onnxpress.steps.repair import Repair


class TestPolish(StepLaws):
    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.5)(state, problem)

    def make_step(self) -> Step:
        return Polish()


@pytest.mark.parametrize("name", list(MODELS))
def test_it_learns_from_the_choose_set_as_well(name: str) -> None:
    case = case_of(MODELS[name](), effort=0.02)
    pruned = Magnitude(sparsity=0.4)(case.state, case.problem)
    repaired = Repair("adam")(pruned, case.problem)
    after = Polish()(repaired, case.problem)
    d = objective_of(case.problem).measure_choose
    before = d(repaired.tensors).value
    assert d(after.tensors).value < before
    # What the log says of the choose set is what was held out.
    assert after.log[:-1] == repaired.log
    assert after.log[-1].endswith(f"from the choose set as well; d there was {before:.3g} before")
    for key, form in after.weights.items():
        assert torch.equal(form.support, repaired.weights[key].support)


def test_what_only_the_choose_set_shows_is_learned() -> None:
    # The fit set never moves the last input, so only the choose set says what its weights are for.
    generator = torch.Generator().manual_seed(0)
    fit, choose = (torch.randn(64, 1, 6, generator=generator) for _ in range(2))
    fit[:, :, 5] = 0.0
    case = case_of(linear_model(torch.randn(6, 3, generator=generator).numpy()))
    problem = replace(case.problem, fit=[fit], choose=[choose], memo={})
    pruned = Magnitude(sparsity=0.3)(case.state, problem)
    (key,) = pruned.weights
    values = pruned.weights[key].values.clone()
    values[5] *= 1.5
    broken = pruned.with_weights({key: replace(pruned.weights[key], values=values)})
    d = objective_of(problem).measure_choose
    mended = Repair("adam", work=80.0)(broken, problem)
    polished = Polish(work=80.0)(broken, problem)
    assert d(polished.tensors).value < 0.8 * d(mended.tensors).value


def test_nothing_better_is_nothing_changed() -> None:
    case = case_of(MODELS["mlp"](), effort=0.02)
    after = Polish()(case.state, case.problem)
    assert after.weights is case.state.weights
    assert after.extras is case.state.extras
    assert after.log[-1].endswith("nothing was better")


def test_the_scales_stay_and_memory_that_ran_out_has_run_out() -> None:
    case = case_of(MODELS["mlp"](), effort=0.02)
    objective = objective_of(case.problem)
    objective.batch.size = 5
    pruned = Magnitude(sparsity=0.5)(case.state, case.problem)
    Polish()(pruned, case.problem)
    together = case.problem.memo["together"]
    assert isinstance(together, Objective)
    assert objective_of(together.problem) is together
    assert together.batch is objective.batch
    assert torch.equal(together.scales, objective.scales)
    given = len(case.problem.fit[0]) + len(case.problem.choose[0])
    assert len(together.problem.fit[0]) == given
    assert together.targets is not None
    assert len(together.targets[0]) == given
