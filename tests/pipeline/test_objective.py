"""d, its scales and its gradient, against direct computation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor

from models import MODELS, Case, case_of, graph_model, key, linear_model, two_headed_model
from onnxpress import objective as module
from onnxpress.objective import Measured, objective_of
from onnxpress.problem import Tolerance
from onnxpress.steps.magnitude import Magnitude
from onnxpress_adapters.errors import StepError
from onnxpress_adapters.weights import WeightKey


def answers(case: Case, tensors: dict[WeightKey, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    problem = case.problem
    return list(problem.network.batched({**problem.reference, **tensors}, inputs))


def pruned(case: Case) -> dict[WeightKey, Tensor]:
    return Magnitude(sparsity=0.5)(case.state, case.problem).tensors


@pytest.mark.parametrize("name", list(MODELS))
def test_d_is_the_share_of_the_variance(name: str) -> None:
    case = case_of(MODELS[name]())
    objective = objective_of(case.problem)
    tensors = pruned(case)
    measured = objective.measure_choose(tensors)
    for place in range(len(case.problem.judged)):
        fit = answers(case, {}, case.problem.fit)[place].double().flatten(1)
        scale = (fit - fit.mean(0)).square().sum(1).mean()
        torch.testing.assert_close(objective.scales[place], scale)
        ours, theirs = (answers(case, w, case.problem.choose)[place] for w in (tensors, {}))
        errors = (ours.double() - theirs.double()).square().flatten(1).sum(1)
        torch.testing.assert_close(measured.errors[:, place], errors)
    torch.testing.assert_close(measured.per_output, measured.errors.mean(0) / objective.scales)
    assert measured.value == float(measured.per_output.max())
    assert objective.measure_choose(case.state.tensors).value == 0.0


def test_an_output_that_does_not_vary_is_divided_by_its_power() -> None:
    inputs = torch.ones(10, 1, 2)
    case = case_of(linear_model(np.array([[1.0, 2.0], [2.0, 2.0]])), [inputs])
    assert objective_of(case.problem).scales.tolist() == [9.0 + 16.0]


def test_an_output_that_is_zero_is_divided_by_one() -> None:
    case = case_of(linear_model(np.zeros((2, 2))), [torch.randn(10, 1, 2)])
    assert objective_of(case.problem).scales.tolist() == [1.0]


def test_outputs_with_tolerances_of_their_own() -> None:
    plain = objective_of(case_of(two_headed_model()).problem).scales
    # b may move by a quarter of what a may: the same error counts four times.
    own = Tolerance(0.02, outputs=(("a", None), ("b", 0.005)))
    scales = objective_of(case_of(two_headed_model(), tolerance=own).problem).scales
    torch.testing.assert_close(scales, plain * torch.tensor([1.0, 0.25], dtype=torch.float64))


def test_an_absolute_tolerance_leaves_errors_as_they_are() -> None:
    tolerance = Tolerance(0.1, absolute=True, outputs=(("a", 0.05), ("b", None)))
    case = case_of(two_headed_model(), tolerance=tolerance)
    assert objective_of(case.problem).scales.tolist() == [0.5, 1.0]


def test_an_absolute_tolerance_is_for_the_sum_of_the_outputs() -> None:
    case = case_of(two_headed_model(), tolerance=Tolerance(0.1, absolute=True))
    tensors = pruned(case)
    measured = objective_of(case.problem).measure_choose(tensors)
    ours, theirs = (answers(case, w, case.problem.choose) for w in (tensors, {}))
    errors = [
        (a.double() - b.double()).square().flatten(1).sum(1)
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert measured.value == pytest.approx(float(sum(errors).mean()))  # type: ignore[union-attr]
    # An output with a tolerance of its own is not part of the sum.
    own = Tolerance(0.1, absolute=True, outputs=(("a", None), ("b", 1.0)))
    case = case_of(two_headed_model(), tolerance=own)
    measured = objective_of(case.problem).measure_choose(tensors)
    wanted = [float(errors[0].mean()), float(errors[1].mean()) / 10]
    assert measured.per_output.tolist() == pytest.approx(wanted)


def test_only_judged_outputs_count() -> None:
    case = case_of(two_headed_model(), judged=[1])
    objective = objective_of(case.problem)
    assert len(objective.scales) == 1
    changed = {key("wa"): torch.zeros(12, 3)}
    assert objective.measure_choose(changed).value == 0.0
    assert objective.measure_choose({key("wb"): torch.zeros(12, 2)}).value > 0.5


def test_an_upper_bound_by_hand() -> None:
    errors = torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    measured = Measured(errors, torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert measured.per_output.tolist() == [1.0, 0.0]
    assert measured.value == 1.0
    # The standard error of the mean of (1, 3) is 1; divided by the scale of 2.
    assert measured.upper(2.0) == pytest.approx(2.0)
    assert measured.upper(0.0) == 1.0
    single = Measured(errors[:1], measured.scales)
    assert single.upper(2.0) == single.value == 0.5


def test_what_is_not_finite_is_said_so() -> None:
    errors = torch.tensor([[1.0, torch.nan]], dtype=torch.float64)
    measured = Measured(errors, torch.ones(2, dtype=torch.float64))
    assert np.isnan(measured.value)
    assert np.isnan(measured.upper(1.0))


@pytest.mark.parametrize("name", list(MODELS))
def test_the_gradient_is_that_of_the_whole_fit_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxpress.cost.LARGEST_BATCH", 50)  # 192 samples: batches of two sizes
    case = case_of(MODELS[name]())
    objective = objective_of(case.problem)
    tensors = pruned(case)
    keys = [*case.state.weights, *case.state.extras]
    value, gradient = objective.gradient(tensors, keys)
    leaves = {name: tensors[name].clone().requires_grad_() for name in keys}
    loss = objective.loss(
        objective.outputs(leaves, case.problem.fit), objective.outputs({}, case.problem.fit)
    )
    loss.backward()
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    assert value == pytest.approx(float(objective.measure_fit(tensors).per_output.sum()), rel=1e-5)
    for place in keys:
        wanted = leaves[place].grad
        assert wanted is not None
        torch.testing.assert_close(gradient[place], wanted, rtol=1e-3, atol=1e-5)
        assert not tensors[place].requires_grad


def test_the_gradient_equals_finite_differences() -> None:
    case = case_of(two_headed_model())
    objective = objective_of(case.problem)
    tensors = {name: value.double() for name, value in pruned(case).items()}
    _, gradient = objective.gradient(pruned(case), [key("wa")])
    for entry in [(0, 0), (5, 1), (11, 2)]:
        sides = []
        for step in (1e-2, -1e-2):
            moved = tensors[key("wa")].clone()
            moved[entry] += step
            laid = {**tensors, key("wa"): moved}
            laid = {name: value.float() for name, value in laid.items()}
            sides.append(float(objective.measure_fit(laid).per_output.sum()))
        # d is quadratic in the last layer, so central differences are exact up to rounding.
        slope = (sides[0] - sides[1]) / 2e-2
        assert float(gradient[key("wa")][entry]) == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_what_no_judged_output_sees_has_no_gradient() -> None:
    case = case_of(two_headed_model(), judged=[0])
    value, gradient = objective_of(case.problem).gradient(case.state.tensors, [key("wb")])
    assert value == 0.0
    assert not gradient[key("wb")].any()


def test_targets_that_are_large_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(two_headed_model())
    kept = objective_of(case.problem)
    assert kept.targets is not None
    monkeypatch.setattr(module, "KEPT_BYTES", 100)
    again = objective_of(case_of(two_headed_model()).problem)
    assert again.targets is None
    assert again.chosen is None
    torch.testing.assert_close(again.scales, kept.scales)
    tensors = pruned(case)
    for ours, theirs in (
        (again.measure_choose(tensors), kept.measure_choose(tensors)),
        (again.measure_fit(tensors), kept.measure_fit(tensors)),
    ):
        torch.testing.assert_close(ours.errors, theirs.errors)
    for (_, wanteds), (_, knowns) in zip(again.batches(50), kept.batches(50), strict=True):
        for wanted, known in zip(wanteds, knowns, strict=True):
            torch.testing.assert_close(wanted, known)


def test_it_is_computed_once() -> None:
    problem = case_of(two_headed_model()).problem
    assert objective_of(problem) is objective_of(problem)


def test_part_of_the_choose_set() -> None:
    case = case_of(two_headed_model())
    objective = objective_of(case.problem)
    few, all_ = (objective.measure_choose(pruned(case), count) for count in (10, None))
    torch.testing.assert_close(few.errors, all_.errors[:10])


def test_an_original_that_answers_nan_is_refused() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Sqrt", ["h"], ["y"]),
    ]
    case = case_of(graph_model(nodes, {"w": np.ones((8, 2), np.float32)}))
    message = (
        "^output 'y' of the original model is not finite on some of the inputs; "
        "leave those inputs out, or judge other outputs with --output$"
    )
    with pytest.raises(StepError, match=message):
        objective_of(case.problem)
