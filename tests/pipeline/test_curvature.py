"""Second-order facts against direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models import case_of, convolutional_model, key, linear_model, shared_model, two_headed_model
from onnxpress import curvature as module
from onnxpress.curvature import (
    gauss_newton,
    layer_hessians,
    predicted_rise,
)
from onnxpress.objective import Objective, objective_of
from onnxpress_adapters.weights import WeightKey


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def exact_diagonal(objective: Objective, tensors: dict[WeightKey, Tensor], of: WeightKey) -> Tensor:
    """Give E sum_k ‖∂F_k/∂w_j‖² / s_k from the whole Jacobian."""
    total = torch.zeros_like(tensors[of])
    fit = objective.problem.fit
    for sample in range(len(fit[0])):

        def answer(weight: Tensor, sample: int = sample) -> tuple[Tensor, ...]:
            part = [value[sample : sample + 1] for value in fit]
            return tuple(v.flatten() for v in objective.outputs({**tensors, of: weight}, part))

        jacobians = torch.autograd.functional.jacobian(answer, tensors[of])
        for jacobian, scale in zip(jacobians, objective.scales.tolist(), strict=True):
            total += jacobian.square().sum(0) / scale
    return total / len(fit[0])


def test_a_layer_hessian_is_the_second_moment_of_its_inputs() -> None:
    inputs = torch.randn(300, 1, 5, generator=generator())
    case = case_of(linear_model(np.ones((5, 2))), [inputs])
    objective = objective_of(case.problem)
    found = layer_hessians(objective, {}, case.problem.network.layers)
    x = inputs[:, 0]
    torch.testing.assert_close(found[key("w")], (x.T @ x / 300)[None])


def test_of_a_convolution() -> None:
    case = case_of(convolutional_model())
    found = layer_hessians(objective_of(case.problem), {}, case.problem.network.layers)
    x = case.problem.fit[0][:, 0]
    windows = torch.nn.functional.unfold(x, 3, padding=1)
    moment = torch.einsum("ncp,ndp->cd", windows, windows) / (192 * 64)
    torch.testing.assert_close(found[key("c1")], moment[None], rtol=1e-4, atol=1e-5)
    assert {str(name): tuple(h.shape) for name, h in found.items()} == {
        "c1": (1, 18, 18),
        "c2": (1, 36, 36),
        "w": (1, 6, 6),
    }


def test_a_shared_weight_sees_both_its_inputs() -> None:
    case = case_of(shared_model())
    objective, reference = objective_of(case.problem), case.problem.reference
    found = layer_hessians(objective, {}, case.problem.network.layers)[key("w")]
    first = reference[key("table")][case.problem.fit[0][:, 0]]
    second = (first @ reference[key("w")] + reference[key("bias")]).relu()
    both = torch.cat([first, second]).reshape(-1, 6)
    torch.testing.assert_close(found, (both.T @ both / len(both))[None], rtol=1e-4, atol=1e-5)


def test_tensors_given_are_the_ones_that_make_the_inputs() -> None:
    case = case_of(two_headed_model())
    objective = objective_of(case.problem)
    silent = {key("w"): torch.zeros(8, 12), key("bias"): torch.ones(12)}
    found = layer_hessians(objective, silent, case.problem.network.layers)
    torch.testing.assert_close(found[key("wa")], torch.ones(1, 12, 12))


def test_many_columns_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(convolutional_model())
    objective = objective_of(case.problem)
    whole = layer_hessians(objective, {}, case.problem.network.layers)[key("c1")]
    monkeypatch.setattr(module, "HESSIAN_COLUMNS", 600)
    thin = layer_hessians(objective, {}, case.problem.network.layers)[key("c1")]
    difference = (thin - whole).norm() / whole.norm()
    assert 0 < difference < 0.3


def test_one_number_out_of_one_sample_needs_one_draw() -> None:
    inputs = torch.tensor([[[1.0, -2.0, 0.5]]])
    case = case_of(linear_model(np.array([[2.0], [1.0], [4.0]])), [inputs])
    objective = objective_of(case.problem)
    found = gauss_newton(objective, case.state.tensors, [key("w")], 1, generator())
    # ∂y/∂w = x, and y = 2 - 2 + 2 = 2 does not vary, so the scale is 4.
    torch.testing.assert_close(found[key("w")], torch.tensor([[1.0], [4.0], [0.25]]) / 4)


@pytest.mark.parametrize("name", ["w", "wa", "wb"])
def test_many_draws_come_close_to_the_jacobian(name: str) -> None:
    inputs = torch.randn(12, 1, 8, generator=generator())
    case = case_of(two_headed_model(), [inputs])
    objective, of = objective_of(case.problem), key(name)
    wanted = exact_diagonal(objective, case.state.tensors, of)
    found = gauss_newton(objective, case.state.tensors, [of], 3000, generator())[of]
    torch.testing.assert_close(found, wanted, rtol=0.3, atol=0.02 * float(wanted.max()))
    assert found.sum() == pytest.approx(float(wanted.sum()), rel=0.05)


def test_draws_cycle_through_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.cost.LARGEST_BATCH", 1)
    monkeypatch.setattr(module, "MOST_DRAWS", 2)
    inputs = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    case = case_of(linear_model(np.array([[1.0], [1.0]])), [inputs])
    objective = objective_of(case.problem)
    found = gauss_newton(objective, case.state.tensors, [key("w")], 2, generator())
    scale = float(objective.scales[0])
    torch.testing.assert_close(found[key("w")], torch.tensor([[0.5], [2.0]]) / scale)


def test_what_no_judged_output_sees_has_no_curvature() -> None:
    case = case_of(two_headed_model(), judged=[0])
    objective = objective_of(case.problem)
    found = gauss_newton(objective, case.state.tensors, [key("wb")], 2, generator())
    assert not found[key("wb")].any()


def test_many_small_draws_are_closer_than_few_large_ones() -> None:
    # 64 inputs; 24 draws that saw all of them together would be off by sqrt(2 / 24), 29 %.
    inputs = torch.randn(64, 1, 8, generator=generator())
    case = case_of(two_headed_model(), [inputs], effort=1.0)
    objective, of = objective_of(case.problem), key("wb")
    wanted = exact_diagonal(objective, case.state.tensors, of)
    found = gauss_newton(objective, case.state.tensors, [of], 24, generator())[of]
    seen = wanted > 0
    assert ((found - wanted)[seen] / wanted[seen]).square().mean().sqrt() < 0.15


def test_the_prediction_is_a_parabola() -> None:
    rise = predicted_rise(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 5.0]), torch.ones(2))
    assert rise.tolist() == [-2.0, 0.0]  # -2 * 3 + 2² * 1
