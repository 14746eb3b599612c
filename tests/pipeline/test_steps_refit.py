"""Least squares, layer after layer, with what really reaches each."""

from __future__ import annotations

import torch

from laws import StepLaws
from models import case_of, two_headed_model
from onnxpress.objective import objective_of
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import Step
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.refit import Refit, moments
from small_models import branching, thinned


class TestRefit(StepLaws):
    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.5)(state, problem)

    def make_step(self) -> Step:
        return Refit()


class TestRefitOfNothing(StepLaws):
    """The original answers what it answers: nothing to gain, nothing may move."""

    def make_step(self) -> Step:
        return Refit()


def test_moments_of_the_original_are_one() -> None:
    case = case_of(two_headed_model())
    objective = objective_of(case.problem)
    layers = case.problem.network.layers
    for gram, cross in moments(objective, {}, layers).values():
        torch.testing.assert_close(gram, cross)


def test_moments_pair_what_reached_a_layer_with_what_reaches_it() -> None:
    case = case_of(two_headed_model())
    objective = objective_of(case.problem)
    first, *behind = sorted(case.problem.network.layers, key=lambda layer: layer.sites[0])
    doubled = {first.key: 2 * case.problem.reference[first.key]}
    found = moments(objective, doubled, [first])
    gram, cross = found[first.key]
    torch.testing.assert_close(gram, cross)  # nothing before it changed
    for gram, cross in moments(objective, doubled, behind).values():
        assert not torch.allclose(gram, cross)


def test_what_pruned_layers_send_is_made_up_for_behind_them() -> None:
    case = case_of(two_headed_model())
    state = Magnitude(sparsity=0.5)(case.state, case.problem)
    d = objective_of(case.problem).measure_choose
    after = Refit()(state, case.problem)
    assert d(after.tensors).value < 0.9 * d(state.tensors).value
    for name, form in after.weights.items():
        assert torch.equal(form.support, state.weights[name].support)


def test_it_goes_on_where_surgery_ended() -> None:
    case = case_of(two_headed_model())
    state = Greedy(sparsity=0.7)(case.state, case.problem)
    d = objective_of(case.problem).measure_choose
    after = Refit()(state, case.problem)
    assert d(after.tensors).value <= d(state.tensors).value
    assert after.log[-1].startswith("Refit(work=8.0, damping=0.03): d ")


def test_a_branch_that_is_never_taken_stays_as_it_was() -> None:
    taken = [torch.rand(40, 1, 16), torch.ones(40, dtype=torch.bool)]
    case = case_of(branching(thinned(16, 4), as_node=False), taken)
    pruned = Magnitude(sparsity=0.5)(case.state, case.problem)
    after = Refit()(pruned, case.problem)
    same = {
        key.path: torch.equal(after.weights[key].values, pruned.weights[key].values)
        for key in after.weights
    }
    assert len(same) == 2
    assert any(same.values())
