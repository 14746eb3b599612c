"""Curves of single layers, and how a budget is shared out by them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from models import MODELS, case_of, convolutional_model, key, two_headed_model
from onnxpress import layerwise, obs
from onnxpress.layerwise import DENSITIES, Curve, allocated, curves_of, hessians_of
from onnxpress.objective import objective_of


def curve(name: str, entries: int, steepness: float) -> Curve:
    """A layer whose loss is ``steepness`` times the share of entries that left."""
    values = torch.ones(entries)
    losses = tuple(steepness * (1 - density) for density in DENSITIES)
    return Curve(key(name), values, torch.arange(entries).float(), None, None, losses)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_level_keeps_what_it_says(name: str) -> None:
    case = case_of(MODELS[name]())
    objective = objective_of(case.problem)
    curves = curves_of(objective, case.state)
    assert [c.key for c in curves] == sorted(case.state.free)
    for found in curves:
        assert found.losses[0] == 0.0
        assert list(found.losses) == sorted(found.losses)
        assert found.counts()[0] == found.values.numel()
        assert found.counts()[-1] == 0
        for count in found.counts():
            form = found.at(count)
            assert form.nonzeros == count
            assert not form.values[~form.support].any()
        assert torch.equal(found.at(found.values.numel()).values, found.values)
        assert not found.at(0).values.any()


def test_levels_are_nested() -> None:
    case = case_of(convolutional_model())
    for found in curves_of(objective_of(case.problem), case.state):
        supports = [found.at(count).support for count in found.counts()]
        for larger, smaller in pairwise(supports):
            assert not (smaller & ~larger).any()


def test_what_remains_adapts() -> None:
    case = case_of(two_headed_model())
    objective = objective_of(case.problem)
    for found in curves_of(objective, case.state):
        assert found.layer is not None
        assert found.hessian is not None
        form = found.at(found.values.numel() // 2)
        kept = torch.where(form.support, found.values, 0.0)
        errors = [
            obs.layer_error(found.layer.matrix(v - found.values), found.hessian)
            for v in (form.values, kept)
        ]
        assert errors[0] < errors[1]


def test_losses_are_d_with_one_layer_pruned() -> None:
    case = case_of(two_headed_model(), effort=100.0)
    objective = objective_of(case.problem)
    for found in curves_of(objective, case.state):
        for count, loss in zip(found.counts()[1:], found.losses[1:], strict=True):
            tensors = {**case.state.tensors, found.key: found.at(count).values}
            measured = objective.measure_choose(tensors).value
            # What is measured at a sparser level bounds it from below: losses never fall.
            assert loss >= measured * (1 - 1e-9)
        assert found.losses[-1] == pytest.approx(objective.measure_choose(tensors).value)


def test_zeros_of_the_original_stay() -> None:
    case = case_of(two_headed_model())
    values = case.state.weights[key("w")].values.clone()
    values[:4] = 0
    found = next(c for c in curves_of(objective_of(case.problem), case.state) if c.key == key("w"))
    holed = replace(found, values=values)
    assert not holed.at(80).support[:4].any()


def test_curves_depend_on_the_problem_only() -> None:
    # A search tries many states; the curves of a weight must not remember the first of them.
    case = case_of(two_headed_model())
    half = case.state.weights[key("w")]
    halved = case.state.with_weights({key("w"): replace(half, values=half.values / 2)})
    first = curves_of(objective_of(case.problem), replace(halved, free=frozenset({key("wa")})))
    fresh = case_of(two_headed_model())
    again = curves_of(objective_of(fresh.problem), fresh.only("wa"))
    assert first[0].losses == again[0].losses
    known = curves_of(objective_of(fresh.problem), fresh.only("wa"))
    assert known is again


def test_hessians_come_some_layers_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(convolutional_model())
    objective = objective_of(case.problem)
    whole = hessians_of(objective, case.state.free, {})
    assert list(whole) == [key("c1"), key("c2"), key("w")]
    monkeypatch.setattr(layerwise, "HESSIAN_ENTRIES", 1)
    single = hessians_of(objective, case.state.free, {})
    for name, hessian in whole.items():
        torch.testing.assert_close(single[name], hessian)
    assert list(hessians_of(objective, frozenset({key("c2")}), {})) == [key("c2")]


def test_wide_layers_get_the_one_shot_order(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(convolutional_model())
    monkeypatch.setattr(layerwise, "SURGERY_UNITS", 0.0)
    for found in curves_of(objective_of(case.problem), case.state):
        assert found.layer is not None
        assert found.hessian is not None
        wanted = obs.one_shot_costs(found.layer.matrix(found.values), found.hessian)
        torch.testing.assert_close(found.costs, found.layer.weight(wanted))


@pytest.mark.parametrize(("units", "rounds"), [(100.0, 25), (1.0, 7), (0.1, 0)])
def test_rows_adapt_as_far_as_it_can_be_afforded(
    units: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(two_headed_model())
    layers = [layer for layer in case.problem.network.layers if layer.key in case.state.free]
    once = sum(layer.groups * layer.rows * layer.columns**2 for layer in layers)
    calls = len(DENSITIES) + layerwise.CANDIDATES
    monkeypatch.setattr(layerwise, "REFIT_UNITS", units)
    objective = objective_of(case.problem)
    monkeypatch.setattr(layerwise, "MACS_PER_UNIT", 7.5 * calls * once / objective.cost.effort)
    found = curves_of(objective, case.state)
    assert {curve.refits for curve in found} == {rounds}
    for curve in found:
        count = curve.counts()[6]
        kept = curve.at(count)
        assert kept.nonzeros == count
        moved = kept.values[kept.support] != curve.values[kept.support]
        assert bool(moved.any()) == (rounds > 0)


@pytest.mark.parametrize("count", [0, 1, 7, 250, 500, 999, 1499, 1500])
def test_shares_add_up_exactly(count: int) -> None:
    curves = [curve("a", 1000, 1.0), curve("b", 457, 2.0), curve("c", 43, 0.1)]
    shares = allocated(curves, count)
    assert sum(shares.values()) == count
    for found in curves:
        assert 0 <= shares[found.key] <= found.values.numel()


def test_the_layer_that_loses_less_gives_more() -> None:
    shares = allocated([curve("a", 1000, 10.0), curve("b", 1000, 0.1)], 1000)
    assert shares[key("a")] > 900
    assert shares[key("b")] < 100


def test_a_loss_that_is_not_finite_is_avoided() -> None:
    curves = [curve("a", 100, 1.0), curve("b", 100, 1.0)]
    worst = (0.0, *(1e30 for _ in DENSITIES[1:]))
    shares = allocated([replace(curves[0], losses=worst), curves[1]], 120)
    assert shares[key("a")] == 100
    assert np.isfinite(curves[1].losses).all()
