"""Store: its laws, what it chooses, and that steps after it keep to the grid."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from laws import StepLaws
from models import MODELS, case_of, key, linear_model
from onnxpress import obs
from onnxpress.layerwise import hessians_of
from onnxpress.objective import objective_of
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import Chain, Only, Step, checked
from onnxpress.steps import store
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.iht import Iht
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress.steps.store import Store, Values
from onnxpress_exporters.values import Half, Palette, Plain, Scaled, rounded


class StoreLaws(StepLaws):
    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.5)(state, problem)


class TestStoreAsInt8(StoreLaws):
    def make_step(self) -> Step:
        return Store()


class TestStoreAsHalves(StoreLaws):
    def make_step(self) -> Step:
        return Store("fp16")


class TestStoreAsPalette(StoreLaws):
    def make_step(self) -> Step:
        return Store("palette")


class TestRepairOnAGrid(StepLaws):
    def begin(self, state: State, problem: Problem) -> State:
        return checked(Chain((Magnitude(sparsity=0.5), Store("palette"))), state, problem)

    def make_step(self) -> Step:
        return Repair()


def assert_on_the_grid(state: State) -> None:
    for name, each in state.storage.items():
        values = state.weights[name].values.numpy()
        assert values.tobytes() == rounded(values, each).tobytes(), name


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("values", ["fp16", "int8", "palette"])
def test_values_are_what_the_file_will_hold(name: str, values: Values) -> None:
    case = case_of(MODELS[name]())
    after = checked(Store(values), case.state, case.problem)
    kind = {"fp16": Half, "int8": Scaled, "palette": Palette}[values]
    assert after.storage
    assert all(isinstance(each, kind) for each in after.storage.values())
    assert_on_the_grid(after)


@pytest.mark.parametrize("then", [Repair("adam"), Greedy(0.6), Iht(0.6, rounds=3), Magnitude(0.6)])
def test_steps_after_it_keep_to_the_grid(then: Step) -> None:
    case = case_of(MODELS["cnn"]())
    after = checked(Chain((Magnitude(0.3), Store(), then)), case.state, case.problem)
    before = checked(Chain((Magnitude(0.3), Store())), case.state, case.problem)
    assert after.storage.keys() == before.storage.keys()
    assert_on_the_grid(after)


def test_a_repair_wins_back_what_rounding_cost() -> None:
    case = case_of(MODELS["two outputs"](), effort=0.02)
    coarse = checked(Store("palette", feedback=False), case.state, case.problem)
    after = checked(Repair(work=3.0), coarse, case.problem)
    objective = objective_of(case.problem)
    lost, kept = (objective.measure_choose(s.tensors).value for s in (coarse, after))
    assert kept < lost
    assert after.log[-1].endswith("by Adam")  # a line search finds no way on a grid
    assert_on_the_grid(after)


def test_the_log_says_what_it_cost() -> None:
    case = case_of(linear_model(np.arange(1, 601).reshape(100, 6) / 7), effort=0.02)
    after = checked(Store(feedback=False), case.state, case.problem)
    d = objective_of(case.problem).measure_choose(after.tensors).value
    assert d > 0
    said = f"Store(values='int8', entries=16, feedback=False): d 0 -> {d:.3g} on choose; "
    said += "the nonzeros of 1 of 1 weights take 600 bytes, and 2 for scales and codebooks"
    zeros = int((after.weights[key("w")].values == 0).sum())
    assert after.log[-1] == said.replace("600", str(600 - zeros))


def test_feedback_spares_every_layer() -> None:
    case = case_of(MODELS["mlp"]())
    pruned = Magnitude(0.5)(case.state, case.problem)
    one, other = (
        checked(Store("palette", feedback=each), pruned, case.problem) for each in (True, False)
    )
    objective = objective_of(case.problem)
    for layer in case.problem.network.layers:
        hessians = hessians_of(objective, frozenset([layer.key]), pruned.tensors)
        target = layer.matrix(pruned.weights[layer.key].values)
        losses = []
        for state in (one, other):
            change = layer.matrix(state.weights[layer.key].values) - target
            losses.append(obs.layer_error(change, obs.damped(hessians[layer.key])))
        assert losses[0] <= losses[1]


def test_without_work_for_feedback_entries_are_rounded_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(MODELS["mlp"]())
    alone = checked(Store("palette", feedback=False), case.state, case.problem)
    together = checked(Store("palette"), case.state, case.problem)
    monkeypatch.setattr(store, "FEEDBACK_UNITS", 0.0)
    spared = checked(Store("palette"), case.state, case.problem)
    for name in case.state.weights:
        assert torch.equal(spared.weights[name].values, alone.weights[name].values)
    assert any(
        not torch.equal(together.weights[name].values, alone.weights[name].values)
        for name in case.state.weights
    )


def test_what_would_not_become_smaller_stays() -> None:
    case = case_of(linear_model(np.arange(1, 11).reshape(5, 2) / 7))
    after = checked(Store("palette"), case.state, case.problem)  # its codebook is all there is
    assert after.storage == {}
    assert after.weights == case.state.weights


def test_doubles_hold_floats() -> None:
    case = case_of(linear_model(np.arange(1, 601).reshape(100, 6) / 7))
    wide = replace(
        case.problem.network.program,
        constants={
            name: array.astype(np.float64)
            for name, array in case.problem.network.program.constants.items()
        },
    )
    problem = replace(case.problem, network=replace(case.problem.network, program=wide), memo={})
    assert checked(Store(), case.state, problem).storage.keys() == {key("w")}
    narrow = replace(wide, constants={n: a.astype(np.float16) for n, a in wide.constants.items()})
    problem = replace(problem, network=replace(problem.network, program=narrow), memo={})
    assert checked(Store(), case.state, problem).storage == {}


def test_fp32_undoes_the_choice() -> None:
    case = case_of(MODELS["mlp"]())
    before = checked(Store("fp16"), case.state, case.problem)
    after = checked(Store("fp32"), before, case.problem)
    assert set(after.storage.values()) == {Plain()}
    assert after.weights == before.weights
    assert checked(Store("fp32"), case.state, case.problem).storage == {}


def test_each_weight_can_have_its_own() -> None:
    case = case_of(MODELS["mlp"]())
    first, *others = sorted(case.state.free)
    steps = Chain((Only(str(first), Store("palette")), Only(str(others[0]), Store("fp16"))))
    after = checked(steps, case.state, case.problem)
    assert [str(after.storage[name]) for name in (first, others[0])] == ["palette", "fp16"]


def test_every_way_has_a_name() -> None:
    assert {str(each) for each in (Plain(), Half())} < set(get_args(Values))


def test_scales_per_channel_reach_the_feedback() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(60, 40)) * np.logspace(-3, 0, 40)
    case = case_of(linear_model(weight))
    after = checked(Store(), case.state, case.problem)
    storage = after.storage[key("w")]
    assert isinstance(storage, Scaled)
    assert storage.scales.shape == (1, 40)
    assert_on_the_grid(after)
