"""Lengths of layers: found by trying, where d is large and gradients are surrogates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from onnx import ModelProto, helper

from models import Case, case_of, graph_model, key, linear_model, normal
from onnxpress.gains import TRIALS, regained
from onnxpress.movable import Movable
from onnxpress.objective import objective_of
from onnxpress.state import State
from onnxpress.steps import repair
from onnxpress.steps.repair import FAR, Repair
from onnxpress.task import Goal, goal_of
from onnxpress_adapters.weights import Dense, WeightKey

PLENTY = 100.0
BY = "by the lengths of layers"


def sized(state: State, **factors: float) -> State:
    """Multiply weights."""
    changed = {
        key(name): Dense(factor * state.weights[key(name)].values, state.weights[key(name)].support)
        for name, factor in factors.items()
    }
    return state.with_weights(changed)


def found(case: Case, state: State, work: float = PLENTY) -> dict[WeightKey, torch.Tensor]:
    point = Movable.of(state, case.problem, extras=False)
    before = point.values()
    values, spent = regained(goal_of(case.problem, "distance"), point, work)
    assert 0 < spent <= work
    assert all(torch.equal(point.leaves[k], before[k]) for k in before)
    return values


def distance(case: Case, state: State) -> float:
    return objective_of(case.problem).measure_choose(state.tensors).value


def chain_model(between: str = "Sign") -> ModelProto:
    """Three products and a softmax: ``first`` is nearest to the input, ``last`` to the output.

    Args:
        between: the operator before ``last``.
    """
    constants = normal(5, first=(8, 8), between=(8, 8), last=(8, 4))
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "between"], ["c"]),
        helper.make_node(between, ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "last"], ["e"]),
        helper.make_node("Softmax", ["e"], ["y"], axis=1),
    ]
    return graph_model(nodes, constants)


@pytest.mark.parametrize("factor", [1 / 32, 1 / 2, 1.0, 4.0, 64.0])
def test_a_weight_gets_its_length_back_to_the_bit(factor: float) -> None:
    case = case_of(linear_model(normal(1, w=(8, 4))["w"]))
    values = found(case, sized(case.state, w=factor))
    assert torch.equal(values[key("w")], case.state.weights[key("w")].values)


def test_every_layer_is_tried_from_the_output_on() -> None:
    case = case_of(chain_model())
    values = found(case, sized(case.state, last=32.0))
    for name in ("first", "between", "last"):
        assert torch.equal(values[key(name)], case.state.weights[key(name)].values)


def test_little_work_is_for_the_layers_nearest_to_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(chain_model())
    monkeypatch.setattr("onnxpress.gains.FEWEST", 128)
    monkeypatch.setattr("onnxpress.gains.FORWARD_SHARE", 1.0)
    goal = goal_of(case.problem, "distance")
    monkeypatch.setattr(type(goal.objective.cost), "steps", lambda *_: 128 * TRIALS)
    loud = sized(case.state, first=8.0, last=8.0)
    values, spent = regained(goal, Movable.of(loud, case.problem, extras=False), PLENTY)
    assert spent == PLENTY
    assert not torch.equal(values[key("last")], loud.weights[key("last")].values)
    assert torch.equal(values[key("first")], loud.weights[key("first")].values)


def test_only_what_is_free_changes() -> None:
    case = case_of(chain_model())
    loud = sized(case.state, between=8.0, last=8.0)
    values = found(case, replace(loud, free=frozenset({key("between")})))
    assert list(values) == [key("between")]


def test_a_repair_begins_with_lengths_where_d_is_large() -> None:
    case = case_of(chain_model(), effort=1.0)
    loud = sized(case.state, last=64.0)
    before = distance(case, loud)
    assert before > FAR
    after = Repair(work=5.0)(loud, case.problem)
    assert any(BY in line and f"d {before:.3g} ->" in line for line in after.log)
    assert distance(case, after) < 1e-6


@pytest.mark.parametrize(("factor", "between"), [(1.25, "Sign"), (64.0, "Tanh")])
def test_a_repair_leaves_lengths_alone_where_d_is_small_or_gradients_are_true(
    factor: float, between: str
) -> None:
    case = case_of(chain_model(between), effort=0.02)
    loud = sized(case.state, last=factor)
    assert (0 < distance(case, loud) < FAR) == (between == "Sign")
    after = Repair(work=5.0)(loud, case.problem)
    assert not any(BY in line for line in after.log)


@pytest.mark.parametrize("nearer", [True, False])
def test_a_length_stays_where_the_choose_set_agrees_and_its_work_is_taken_off(
    nearer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(chain_model(), effort=0.02)
    loud = sized(case.state, last=64.0)
    source = case.state if nearer else sized(loud, last=-1.0)
    found = {k: form.values for k, form in source.weights.items()}
    works: list[float] = []

    def descended(self: Repair, goal: Goal, state: State, before: float, work: float) -> State:
        works.append(work)
        assert before == distance(case, state)
        return state

    monkeypatch.setattr(repair, "regained", lambda goal, point, work: (found, 0.25))
    monkeypatch.setattr(Repair, "_descended", descended)
    after = Repair(work=5.0)(loud, case.problem)
    assert works == [4.75]
    assert any(BY in line for line in after.log) == nearer
    assert distance(case, after) == (0.0 if nearer else distance(case, loud))


def test_values_on_a_grid_keep_their_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(chain_model(), effort=0.02)
    monkeypatch.setattr(repair, "has_grid", lambda state, problem: True)
    after = Repair(work=5.0)(sized(case.state, last=64.0), case.problem)
    assert not any(BY in line for line in after.log)
