"""Greedy functional distance: its laws in both phases, and what it must find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor

from laws import StepLaws
from models import MODELS, case_of, graph_model, key, linear_model, two_headed_model
from onnxpress.cost import Cost
from onnxpress.objective import Measured, Objective, objective_of
from onnxpress.problem import Problem
from onnxpress.removal import without
from onnxpress.state import State
from onnxpress.step import Step
from onnxpress.steps.greedy import Greedy, _nearer, points_of
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress.support import cut
from onnxpress_adapters.errors import MisuseError, StepError
from onnxpress_adapters.weights import WeightKey
from trained import perceptron_case

SHORT = Repair(method="lbfgs", work=1.0)


class TestGreedyLayerwise(StepLaws):
    sparsity = 0.7

    def make_step(self) -> Step:
        return Greedy(sparsity=0.7)


class TestGreedyInBlocks(StepLaws):
    sparsity = 0.5

    def make_step(self) -> Step:
        return Greedy(sparsity=0.5, layerwise=0.0, block=0.3, between=SHORT)


class TestGreedyInBothPhases(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return Greedy(sparsity=0.6, layerwise=0.4, block=0.3, between=SHORT)


class TestGreedyFromPruned(StepLaws):
    sparsity = 0.6

    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.4)(state, problem)

    def make_step(self) -> Step:
        return Greedy(sparsity=0.6, block=0.3, between=SHORT)


class TestGreedyWithSpare(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return Greedy(sparsity=0.6, block=0.3, between=SHORT, spare=0.3, rehearsal=SHORT)


@pytest.mark.parametrize("layerwise", [1.0, 0.0])
def test_what_nothing_needs_goes_first(layerwise: float) -> None:
    # Inputs 0 and 3 are always zero, and input 1 is the louder of the other two.
    weight = np.array([[9.0, 9.0], [0.8, 0.7], [1.0, 0.9], [9.0, 9.0]])
    inputs = torch.randn(64, 1, 4, generator=torch.Generator().manual_seed(0))
    inputs *= torch.tensor([0.0, 10.0, 1.0, 0.0])
    case = case_of(linear_model(weight), [inputs])
    step = Greedy(sparsity=0.5, layerwise=layerwise, block=1.0, between=SHORT)
    after = step(case.state, case.problem)
    wanted = [[False] * 2, [True] * 2, [True] * 2, [False] * 2]
    assert after.weights[key("w")].support.tolist() == wanted
    assert objective_of(case.problem).measure_fit(after.tensors).value < 1e-9
    further = Greedy(sparsity=0.75, layerwise=layerwise, block=1.0, between=SHORT)
    more = further(case.state, case.problem).weights[key("w")]
    assert more.support.tolist() == [[False] * 2, [True] * 2, [False] * 2, [False] * 2]


def test_it_beats_magnitude() -> None:
    case = case_of(MODELS["mlp"]())
    objective = objective_of(case.problem)
    distances = [
        objective.measure_choose(step(case.state, case.problem).tensors).value
        for step in (Greedy(sparsity=0.5), Magnitude(sparsity=0.5))
    ]
    assert distances[0] < distances[1] / 2


def test_a_block_is_measured_on_as_many_points_as_work_pays_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = objective_of(case_of(linear_model(np.ones((6, 3)))).problem)
    given = len(objective.problem.fit[0])
    batch = objective.cost.batch
    for steps, count in ((0, 16), (1, min(given, batch // 2)), (10**6, given)):
        monkeypatch.setattr(Cost, "steps", lambda *_, steps=steps: steps)
        assert points_of(objective.cost, given) == count


def test_half_of_the_points_of_a_block_lie_between_the_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, looked = case_of(two_headed_model()), []
    objective = objective_of(case.problem)
    given = len(case.problem.fit[0])

    real = Objective.measure_fit

    def measure(self: Objective, tensors: Mapping[WeightKey, Tensor]) -> Measured:
        looked.append(self)
        return real(self, tensors)

    monkeypatch.setattr(Objective, "measure_fit", measure)
    Greedy(sparsity=0.5, layerwise=0.0, block=0.2, between=SHORT)(case.state, case.problem)
    (drawn,) = set(looked)
    assert drawn.scales is objective.scales
    for own, points in zip(case.problem.fit, drawn.problem.fit, strict=True):
        assert torch.equal(points[:given], own)
        assert len(points) == 2 * given
        same = (own[:, None] == points[None, given:]).flatten(2).all(2)
        assert int(same.any(0).sum()) < given / 4  # a pair may be twice the same input
    assert drawn.targets is not None
    for wanted, known in zip(drawn.reference(drawn.problem.fit), drawn.targets, strict=True):
        assert torch.equal(wanted, known)
    looked.clear()
    plain = replace(SHORT, interpolate=0.0)
    Greedy(sparsity=0.5, layerwise=0.0, block=0.2, between=plain)(case.state, case.problem)
    assert set(looked) == {objective}


@pytest.mark.parametrize("drift", [0.0, 2.0])
def test_layers_adapt_only_where_that_is_nearer(drift: float) -> None:
    case = perceptron_case()
    objective, generator = objective_of(case.problem), torch.Generator().manual_seed(5)
    first = min(case.state.free)
    values = case.state.weights[first].values
    noise = drift * values.std() * torch.randn(values.shape, generator=generator)
    # As after a repair: what reaches the later layers is no longer what it was.
    state = case.state.with_weights({first: cut(values + noise, torch.ones_like(values).bool())})
    taken = {
        name: torch.rand(form.values.shape, generator=generator) < 0.1
        for name, form in state.weights.items()
        if name in state.free and name != first
    }
    found, level = _nearer(state, objective, objective, taken, -inf)
    levels = [
        float(objective.measure_fit(without(state, objective, taken, adapt=adapt).tensors).value)
        for adapt in (True, False)
    ]
    assert level == pytest.approx(min(levels))
    _, level = _nearer(state, objective, objective, taken, inf)
    assert level == pytest.approx(levels[0])
    assert (levels[1] < levels[0]) == (drift > 0)
    for name, gone in taken.items():
        same = torch.equal(found.weights[name].values, state.weights[name].values * ~gone)
        assert same == (drift > 0)


def test_what_is_spared_leaves_after_the_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    case, seen = case_of(two_headed_model()), []  # 156 entries

    def repair(self: Repair, state: State, problem: Problem) -> State:
        seen.append((self.work, state.kept))
        return state

    monkeypatch.setattr(Repair, "__call__", repair)
    step = Greedy(sparsity=0.5, spare=0.25, rehearsal=Repair(work=3.0))
    assert step(case.state, case.problem).kept == 78
    assert seen[0] == (3.0, 97)
    assert {work for work, _ in seen[1:]} == {2.0}
    # Nothing is rehearsed where nothing is left to remove.
    seen.clear()
    half = Magnitude(sparsity=0.4)(case.state, case.problem)  # 94 entries
    assert step(half, case.problem).kept == 78
    assert {work for work, _ in seen} == {2.0}


def test_what_its_repairs_leave_is_what_a_file_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, seen = np.random.default_rng(0), []
    arrays: dict[str, np.ndarray] = {"q": rng.integers(-99, 99, (8, 8)).astype(np.int8)}
    arrays["s"] = np.array(0.02, np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    case = case_of(graph_model(nodes, arrays))

    def repair(self: Repair, state: State, problem: Problem) -> State:
        form = state.weights[key("q")]
        seen.append(form.values)
        return state.with_weights({key("q"): replace(form, values=1.004 * form.values)})

    monkeypatch.setattr(Repair, "__call__", repair)
    Greedy(sparsity=0.5, layerwise=0.4, block=0.1, spare=0.2)(case.state, case.problem)
    assert len(seen) > 2
    assert all(torch.equal(values, values.round()) for values in seen)


def test_with_spare_it_comes_nearer() -> None:
    case = perceptron_case()
    objective = objective_of(case.problem)
    distances = []
    for spare, first in ((0.0, 0.0), (0.2, 0.5)):
        step = Greedy(sparsity=0.8, spare=spare, rehearsal=Repair(work=first), between=SHORT)
        after = Repair(work=1.0 - first)(step(case.state, case.problem), case.problem)
        distances.append(objective.measure_choose(after.tensors).value)
    assert distances[1] < 0.9 * distances[0]


def test_it_goes_on_from_where_the_state_stands() -> None:
    case = case_of(two_headed_model())
    half = Greedy(sparsity=0.5)(case.state, case.problem)
    again = Greedy(sparsity=0.4)(half, case.problem)
    assert again.weights == half.weights
    assert again.extras == half.extras


def test_weights_no_judged_output_sees() -> None:
    case = case_of(two_headed_model(), judged=[0])
    for layerwise in (1.0, 0.0):
        step = Greedy(sparsity=0.9, layerwise=layerwise, block=0.5, between=SHORT)
        after = step(case.only("wb"), case.problem)
        assert after.weights[key("wb")].nonzeros == 2
        assert objective_of(case.problem).measure_choose(after.tensors).value == 0.0


def test_a_weight_without_a_layer_view() -> None:
    # It is used by two operators, so no one matrix stands for it.
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h1"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h1", "t"], ["y"]),
    ]
    made = graph_model(nodes, {"w": rng.normal(size=(8, 8)).astype(np.float32)})
    case = case_of(made)
    assert case.problem.network.layers == ()
    for layerwise in (1.0, 0.0):
        step = Greedy(sparsity=0.5, layerwise=layerwise, block=0.5, between=SHORT)
        assert step(case.state, case.problem).zeros == 32


def test_it_ends_where_d_is_infinite() -> None:
    # The logarithm of a sum: infinite once all entries that meet an input are gone.
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Log", ["h"], ["y"])]
    weight = np.random.default_rng(0).uniform(0.1, 1, (8, 4)).astype(np.float32)
    inputs = torch.rand(32, 1, 8, generator=torch.Generator().manual_seed(0))
    inputs[..., 4:] = 0
    case = case_of(graph_model(nodes, {"w": weight}), [inputs])
    values = case.state.weights[key("w")].values
    held = torch.arange(8)[:, None].expand(8, 4) >= 4
    lost = case.state.with_weights({key("w"): cut(values, held)})
    assert objective_of(case.problem).measure_fit(lost.tensors).value == torch.inf
    after = Greedy(sparsity=0.75, between=SHORT)(lost, case.problem)
    assert after.weights[key("w")].nonzeros == 8


def test_it_needs_a_sparsity() -> None:
    case = case_of(linear_model(np.ones((2, 2))))
    with pytest.raises(StepError, match="has no sparsity: give it one, or put it in a search"):
        Greedy()(case.state, case.problem)


def test_a_spare_is_a_share() -> None:
    with pytest.raises(MisuseError, match="spare is a share of what stays, 0 or more, not -1"):
        Greedy(spare=-1.0)


def test_the_log_says_what_happened() -> None:
    case = case_of(two_headed_model())
    log = Greedy(sparsity=0.6, layerwise=0.4, between=SHORT)(case.state, case.problem).log
    assert log[0] == "layer by layer to 93 entries"
    assert log[1].startswith("block of ")
    assert "predicted" in log[1]
