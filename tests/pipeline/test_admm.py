"""Alternating directions on one layer, against one look and exact surgery."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models import case_of, convolutional_model
from onnxpress import admm, layerwise, obs
from onnxpress.cost import MACS_PER_UNIT
from onnxpress.layerwise import ADMM_ROUNDS, curves_of
from onnxpress.objective import objective_of
from onnxpress.pattern import Pattern
from onnxpress.support import keep_largest


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int) -> tuple[Tensor, Tensor]:
    """Two groups of random weights, and Hessians of correlated inputs of unequal loudness."""
    inputs = drawn(0, 2, 4 * columns, columns)
    mixed = (inputs @ drawn(1, 2, columns, columns) / columns**0.5).relu()
    inputs = (inputs + 2 * mixed) * drawn(2, 2, 1, columns).exp()
    return drawn(3, 2, 32, columns), inputs.transpose(1, 2) @ inputs / inputs.shape[1]


def left_after(matrix: Tensor, hessian: Tensor, scores: Tensor, count: int) -> float:
    fitted = obs.refit(matrix, hessian, keep_largest(scores, count), matrix, 40)
    return obs.layer_error(fitted - matrix, hessian)


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1])
def test_it_beats_one_look_and_comes_near_exact_surgery(density: float) -> None:
    matrix, hessian = correlated(96)
    count = int(density * matrix.numel())
    scores = admm.final_scores(matrix, hessian, count, keep_largest, ADMM_ROUNDS)
    found = left_after(matrix, hessian, scores, count)
    once = left_after(matrix, hessian, obs.one_shot_costs(matrix, hessian), count)
    exact = left_after(matrix, hessian, obs.removal_costs(matrix, hessian), count)
    assert found < 0.95 * once
    assert found < 1.1 * exact


def test_where_inputs_do_not_mix_the_loudest_stay() -> None:
    # With a diagonal H entries are worth w²·h each, and nothing can make up for a lost one.
    matrix = drawn(4, 1, 6, 10)
    hessian = torch.diag_embed(drawn(5, 1, 10).square())
    scores = admm.final_scores(matrix, hessian, 20, keep_largest, 10)
    wanted = matrix.square() * obs.damped(hessian).diagonal(dim1=1, dim2=2)[:, None, :]
    assert torch.equal(keep_largest(scores, 20), keep_largest(wanted, 20))


def test_zeros_of_the_original_score_nothing() -> None:
    matrix, hessian = correlated(12)
    matrix[:, :, 3] = 0
    assert not admm.final_scores(matrix, hessian, 100, keep_largest, 5)[:, :, 3].any()


def test_work_is_counted() -> None:
    # Per group: a product to begin with, one in each of 5 rounds, and an inverse.
    assert admm.work(2, 3, 4, 5) == 2 * (3 * 16 * 6 + 64)


@pytest.mark.parametrize("pattern", ["none", "2:4", "block:2x3"])
def test_wide_layers_take_the_better_support(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr(layerwise, "SURGERY_UNITS", 0.0)
    monkeypatch.setattr(layerwise, "ADMM_UNITS", 1e6)
    case = case_of(convolutional_model())
    chosen = Pattern.parse(pattern)
    for found in curves_of(objective_of(case.problem), case.state, chosen):
        assert found.rounds == ADMM_ROUNDS
        assert found.layer is not None
        assert found.hessian is not None
        once = replace(found, rounds=0)
        for count in found.counts():
            forms = [curve.at(count) for curve in (found, once)]
            assert forms[0].nonzeros <= count
            errors = [
                obs.layer_error(found.layer.matrix(form.values - found.values), found.hessian)
                for form in forms
            ]
            assert errors[0] <= errors[1]


def test_layers_beyond_the_work_allowed_are_left_out() -> None:
    case = case_of(convolutional_model())
    layers = case.problem.network.layers
    calls = len(layerwise.DENSITIES) + layerwise.CANDIDATES
    price = sorted(calls * admm.work(x.groups, x.rows, x.columns, ADMM_ROUNDS) for x in layers)
    effort = sum(price[:2]) / layerwise.ADMM_UNITS / MACS_PER_UNIT
    assert len(layerwise._alternating(layers, 1.001 * effort)) == 2
    assert not layerwise._alternating(layers, 0.0)
