"""Every neighbour by brute force, and how well the steps' prediction orders them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from models import MODELS, Case, case_of, key, linear_model, two_headed_model
from onnxpress import neighbours as module
from onnxpress.curvature import gauss_newton, predicted_rise
from onnxpress.neighbours import exact_gauss_newton, rises
from onnxpress.objective import objective_of
from onnxpress.state import State
from onnxpress.steps.greedy import DRAWS
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress_adapters.batching import LOOP
from onnxpress_adapters.weights import WeightKey
from trained import image_case, perceptron_case

CASES: dict[str, Callable[[], Case]] = {"perceptron": perceptron_case, "convolutions": image_case}
STATES = ("dense", "repaired", "not repaired")
LEAST_AGREEMENT = 0.98
SPARSITY = 0.6


@cache
def states(name: str) -> dict[str, State]:
    """Give the states a network passes through; each is another place to predict from."""
    case = CASES[name]()
    pruned = Magnitude(SPARSITY)(case.state, case.problem)
    repaired = Repair("lbfgs", work=0.3)(pruned, case.problem)
    return {"dense": case.state, "not repaired": pruned, "repaired": repaired}


def kept(state: State, values: dict[WeightKey, Tensor]) -> np.ndarray:
    """Lay the numbers of all kept entries side by side."""
    parts = [values[k][form.support].double() for k, form in sorted(state.weights.items())]
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("which", STATES)
def test_the_prediction_orders_neighbours_as_they_are(name: str, which: str) -> None:
    case, state = CASES[name](), states(name)[which]
    objective, free = objective_of(case.problem), sorted(state.free)
    tensors = state.tensors
    level, gradient = objective.gradient(tensors, free)
    assert (level > 0) == (which != "dense")
    curvature = gauss_newton(objective, tensors, free, DRAWS, case.problem.generator("in the test"))
    predicted = {
        k: predicted_rise(state.weights[k].values, gradient[k], curvature[k]) for k in free
    }
    truth = kept(state, rises(objective, tensors, free))
    assert len(truth) == sum(form.nonzeros for form in state.weights.values())
    assert spearmanr(kept(state, predicted), truth).statistic >= LEAST_AGREEMENT


def test_it_needs_the_linear_term_where_nothing_was_repaired() -> None:
    case, state = CASES["perceptron"](), states("perceptron")["not repaired"]
    objective, free = objective_of(case.problem), sorted(state.free)
    curvature = exact_gauss_newton(objective, state.tensors, free)
    squares = {k: state.weights[k].values.square() * curvature[k] for k in free}
    truth = kept(state, rises(objective, state.tensors, free))
    assert spearmanr(kept(state, squares), truth).statistic < 0.5
    # Some neighbours are nearer to the original than the network that was cut and left alone.
    assert 0.1 < (truth < 0).mean() < 0.6


def test_a_linear_layer_is_predicted_to_the_last_digit() -> None:
    inputs = torch.randn(40, 1, 5, generator=torch.Generator().manual_seed(0))
    weight = np.random.default_rng(0).normal(size=(5, 3))
    case = case_of(linear_model(weight), [inputs])
    objective, free = objective_of(case.problem), [key("w")]
    cut = case.state.weights[key("w")].values.clone()
    cut[1, 2] = cut[4, 0] = 0.0
    tensors = {key("w"): cut}
    found = rises(objective, tensors, free)[key("w")]
    x, w = inputs[:, 0].double(), cut.double()
    residual = x @ (w - torch.from_numpy(weight.astype(np.float32)).double())
    # d - 2 w E[R_k a_j] + w² E[a_j²], divided by the spread of the outputs
    wanted = -2 * w * (x.T @ residual / 40) + w.square() * x.square().mean(0)[:, None]
    torch.testing.assert_close(found, wanted / objective.scales, rtol=1e-4, atol=1e-7)
    assert found[1, 2] == found[4, 0] == 0
    gradient = objective.gradient(tensors, free)[1][key("w")]
    curvature = exact_gauss_newton(objective, tensors, free)[key("w")]
    predicted = predicted_rise(cut, gradient, curvature)
    torch.testing.assert_close(predicted, found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "two outputs", "shared weight"])
def test_each_rise_is_the_difference_of_two_distances(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(MODELS[name]())
    state = Magnitude(0.3)(case.state, case.problem)
    objective, free = objective_of(case.problem), sorted(state.free)
    found = rises(objective, state.tensors, free)
    before = float(objective.measure_fit(state.tensors).per_output.sum())
    for of in free:
        values = state.weights[of].values
        for place in torch.nonzero(values)[::11].tolist():
            neighbour = values.clone()
            neighbour[tuple(place)] = 0.0
            after = objective.measure_fit({**state.tensors, of: neighbour})
            rise = float(after.per_output.sum()) - before
            assert float(found[of][tuple(place)]) == pytest.approx(rise, rel=1e-3, abs=1e-6)
    # A few at a time, and one after the other where the graph runs no other way.
    monkeypatch.setattr(module, "ACTIVATION_BYTES", 1 << 20)
    network = replace(case.problem.network, batching=LOOP)
    slow = replace(case.problem, network=network, fit=[v[:12] for v in case.problem.fit], memo={})
    quick = replace(slow, network=case.problem.network, memo={})
    for of in free[:1]:
        one, other = (rises(objective_of(p), state.tensors, [of])[of] for p in (slow, quick))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


def test_the_exact_diagonal_is_that_of_the_jacobian() -> None:
    inputs = torch.randn(12, 1, 8, generator=torch.Generator().manual_seed(0))
    case = case_of(two_headed_model(), [inputs])
    objective = objective_of(case.problem)
    free = sorted(case.state.free)
    found = exact_gauss_newton(objective, case.state.tensors, free)
    x = inputs[:, 0]
    reference = case.problem.reference
    hidden = (x @ reference[key("w")] + reference[key("bias")]).relu()
    for name, scale in zip(("wa", "wb"), objective.scales, strict=True):
        wanted = hidden.square().mean(0)[:, None].expand_as(reference[key(name)]) / scale
        torch.testing.assert_close(found[key(name)], wanted.double(), rtol=1e-4, atol=1e-9)
    alive = (hidden > 0).float()
    pushed = sum(
        reference[key(name)].square().sum(1) / float(scale)
        for name, scale in zip(("wa", "wb"), objective.scales, strict=True)
    )
    wanted = (x.square().T @ alive / 12) * pushed
    torch.testing.assert_close(found[key("w")], wanted.double(), rtol=1e-4, atol=1e-9)


def test_what_no_judged_output_sees_has_no_neighbours_worth_a_rise() -> None:
    case = case_of(two_headed_model(), judged=[0])
    objective = objective_of(case.problem)
    assert not rises(objective, case.state.tensors, [key("wb")])[key("wb")].any()
    assert not exact_gauss_newton(objective, case.state.tensors, [key("wb")])[key("wb")].any()
