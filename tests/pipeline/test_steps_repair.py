"""Repair: its laws, and that it brings d down without touching a support."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper

from laws import StepLaws
from models import MODELS, case_of, graph_model, key, linear_model, normal, two_headed_model
from onnxpress.objective import objective_of
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import Step
from onnxpress.steps import repair
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import (
    STEPS_AT_LEAST,
    STEPS_PER_ENTRY,
    STRANGE_NOTE,
    WHOLE_BATCH_SHARE,
    Repair,
)
from onnxpress.support import cut
from onnxpress_adapters.weights import Dense


class TestRepairByAdam(StepLaws):
    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.5)(state, problem)

    def make_step(self) -> Step:
        return Repair(method="adam")


class TestRepairByLbfgs(StepLaws):
    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.5)(state, problem)

    def make_step(self) -> Step:
        return Repair(method="lbfgs")


class TestRepairOfNothing(StepLaws):
    """From the original weights d is zero, so nothing can be better."""

    def make_step(self) -> Step:
        return Repair()


@pytest.mark.parametrize("method", ["auto", "adam", "lbfgs"])
@pytest.mark.parametrize("name", list(MODELS))
def test_it_brings_d_down(name: str, method: str) -> None:
    case = case_of(MODELS[name](), effort=0.02)
    pruned = Magnitude(sparsity=0.4)(case.state, case.problem)
    after = Repair(method=method)(pruned, case.problem)  # type: ignore[arg-type]  # a parameter
    objective = objective_of(case.problem)
    before, now = (objective.measure_choose(s.tensors).value for s in (pruned, after))
    assert now < 0.8 * before
    assert f"d {before:.3g} -> {now:.3g} on choose, by " in after.log[-1]


def test_auto_keeps_the_better_of_both() -> None:
    case = case_of(MODELS["mlp"](), effort=0.02)
    pruned = Magnitude(sparsity=0.4)(case.state, case.problem)
    objective = objective_of(case.problem)
    share = WHOLE_BATCH_SHARE
    found = [
        objective.measure_choose(step(pruned, case.problem).tensors).value
        for step in (
            Repair(work=10.0),
            Repair("adam", work=10.0 * (1 - share)),
            Repair("lbfgs", work=10.0 * share),
        )
    ]
    assert found[0] == min(found[1:])


def test_it_finds_the_least_squares_solution() -> None:
    # One linear layer without a bias: the best values on a support are a regression, row by row.
    rng = np.random.default_rng(1)
    inputs = torch.from_numpy(rng.normal(size=(200, 1, 6)).astype(np.float32))
    inputs[..., 1] += inputs[..., 0]
    case = case_of(linear_model(rng.normal(size=(6, 3))), [inputs], effort=0.05)
    pruned = Magnitude(sparsity=0.5)(case.state, case.problem)
    step = Repair(method="lbfgs", interpolate=0.0)
    after = step(pruned, case.problem).weights[key("w")]
    x, target = inputs[:, 0].double(), case.state.weights[key("w")].values.double()
    for column in range(3):
        held = after.support[:, column]
        wanted = torch.linalg.lstsq(x[:, held], x @ target[:, column]).solution
        torch.testing.assert_close(after.values[held, column].double(), wanted, atol=1e-4, rtol=0)


def test_a_network_of_few_entries_ends_before_its_work_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, taken = case_of(two_headed_model()), []
    pruned = Magnitude(sparsity=0.5)(case.state, case.problem)
    entries = sum(form.values.numel() for form in pruned.weights.values())
    entries += sum(value.numel() for value in pruned.extras.values())

    def steps(self: Repair, *arguments: Any) -> Iterator[int]:
        taken.append(arguments[-1])  # the number of steps
        yield arguments[-1]

    monkeypatch.setattr(Repair, "_steps", steps)
    Repair("adam", work=1000.0)(pruned, case.problem)
    Repair("adam", work=0.5)(pruned, case.problem)
    most = STEPS_AT_LEAST + STEPS_PER_ENTRY * entries
    assert taken[0] == most
    assert taken[-1] < most


def test_what_has_the_shape_of_pictures_and_is_none_is_not_moved() -> None:
    # Readings of 8 sensors at 8 times: the first is the sum of the others, and the weights of the
    # first and of the others tell nothing apart as long as that holds.
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(96, 1, 1, 8, 8, generator=generator)
    inputs[..., 0] = inputs[..., 1:].sum(-1)
    weight = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    shape = np.array([1, 64])
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    made = graph_model(nodes, {"w": weight, "shape": shape}, shape=(1, 1, 8, 8))
    case = case_of(made, [inputs])
    objective = objective_of(case.problem)
    values = case.state.weights[key("w")].values.clone().reshape(8, 8, 4)
    values[:, 1:] += values[:, :1]
    values[:, :1] = 0
    values *= 1 + 1e-4
    same = case.state.with_weights(
        {key("w"): cut(values.reshape(64, 4), values.reshape(64, 4) != 0)}
    )
    step = Repair()
    assert step.suited(objective, same) == replace(step, move=0.0, paste=0.0)
    told = step(same, case.problem).log
    assert told[0] == f"{step}: {STRANGE_NOTE}"
    assert told[1].startswith(str(replace(step, move=0.0, paste=0.0)))
    # What every input sees alike may be moved; and so may what is no picture to begin with.
    half = Magnitude(sparsity=0.5)(case.state, case.problem)
    assert step.suited(objective, half) is step
    flat = case_of(two_headed_model())
    assert step.suited(objective_of(flat.problem), flat.state) is step


def test_extras_can_be_held() -> None:
    case = case_of(two_headed_model())
    pruned = Magnitude(sparsity=0.5)(case.state, case.problem)
    held = Repair(method="adam", extras=False)(pruned, case.problem)
    assert held.extras == pruned.extras
    moved = Repair(method="adam")(pruned, case.problem)
    assert moved.extras[key("bias")] is not pruned.extras[key("bias")]


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_nothing_better_is_nothing_changed(method: str) -> None:
    case = case_of(two_headed_model(), judged=[0])
    step = Repair(method=method, extras=False)  # type: ignore[arg-type]  # a parameter
    after = step(case.only("wb"), case.problem)
    assert after.weights == case.state.weights
    assert after.log[-1].endswith("d = 0 on choose, there is nothing to mend")


def test_without_anything_free_it_does_nothing() -> None:
    case = case_of(linear_model(np.ones((2, 2))))
    empty = case.only()
    assert Repair(extras=False)(empty, case.problem) is empty


def quantised_between(kind: str) -> ModelProto:
    """Two matrix products with what has no derivative between them."""
    arrays = normal(5, w=(8, 8), v=(8, 4))
    arrays |= {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    arrays["half"] = np.array(0.5, np.float32)
    between = {
        "quantised": [
            helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["k"]),
        ],
        "binary": [helper.make_node("Sign", ["h"], ["k"])],
        "root": [  # of whole columns that pruning can empty
            helper.make_node("Mul", ["h", "h"], ["q"]),
            helper.make_node("Sqrt", ["q"], ["k"]),
        ],
        "power": [
            helper.make_node("Mul", ["h", "h"], ["q"]),
            helper.make_node("Pow", ["q", "half"], ["k"]),
        ],
    }[kind]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        *between,
        helper.make_node("MatMul", ["k", "v"], ["y"], name="last"),
    ]
    read = {name for node in nodes for name in node.input}
    return graph_model(nodes, {n: a for n, a in arrays.items() if n in read}, ("N", 8))


@pytest.mark.parametrize("kind", ["quantised", "binary", "root", "power"])
def test_weights_behind_a_flat_operator_are_mended(kind: str) -> None:
    case = case_of(quantised_between(kind))
    values = case.state.weights[key("w")].values
    support = values.abs() > values.abs().median()
    support[:, 0] = False
    weights = {**case.state.weights, key("w"): Dense(torch.where(support, values, 0.0), support)}
    pruned = replace(case.state, weights=weights, free=frozenset({key("w")}))
    d = objective_of(case.problem).measure_choose
    after = Repair(method="adam", work=200.0)(pruned, case.problem)
    assert d(after.tensors).value < 0.97 * d(pruned.tensors).value
    assert bool(after.weights[key("w")].values.isfinite().all())


def test_few_steps_are_as_long_as_short_descents_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "MOST_FALLS", 0)
    monkeypatch.setattr(repair, "MANY_STEPS", 100_000)
    case = case_of(two_headed_model())
    pruned = Magnitude(sparsity=0.3)(case.state, case.problem)
    d = objective_of(case.problem).measure_choose
    step, found = Repair(method="adam", work=200.0, rate=10.0), {}
    for powers in ((0.5, 1.0, 2.0), (0.5,), (2.0,)):
        monkeypatch.setattr(repair, "POWERS", powers)
        found[powers] = d(step(pruned, case.problem).tensors).value
    long, short = found[(0.5,)], found[(2.0,)]
    assert short < long == d(pruned.tensors).value  # nothing was better
    assert found[(0.5, 1.0, 2.0)] < long


def test_steps_that_are_too_long_are_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "MANY_STEPS", 1)  # so that their length is as asked
    case = case_of(two_headed_model())
    pruned = Magnitude(sparsity=0.3)(case.state, case.problem)
    d = objective_of(case.problem).measure_choose
    before = d(pruned.tensors).value
    step = Repair(method="adam", work=200.0, rate=0.3)
    assert d(step(pruned, case.problem).tensors).value < 0.5 * before
    monkeypatch.setattr(repair, "MOST_FALLS", 0)
    assert d(step(pruned, case.problem).tensors).value == before  # nothing was better


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_the_loss_of_a_task(method: str) -> None:
    # One linear layer whose labels are another one's: it learns those, and leaves its own answers.
    generator = torch.Generator().manual_seed(0)
    inputs, other = (
        torch.randn(96, 1, 6, generator=generator),
        torch.randn(6, 3, generator=generator),
    )
    case = case_of(linear_model(np.ones((6, 3))), [inputs], effort=0.5)
    labels = (inputs[:, 0] @ other).argmax(1)
    problem = replace(case.problem, labels=(labels, labels), memo={})
    step = Repair(method=method, objective="cross-entropy", rate=0.1)  # type: ignore[arg-type]
    after = step(case.state, problem)
    answers = inputs[:, 0] @ after.weights[key("w")].values
    assert (answers.argmax(1) == labels).double().mean() > 0.95
    assert "cross-entropy 1.1 -> " in after.log[-1]
