"""Iterative hard thresholding: its laws, its three steps, and what it says of its end."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from checkout import ROOT
from laws import StepLaws
from models import MODELS, Case, case_of, key, linear_model
from onnxpress import descent
from onnxpress.objective import objective_of
from onnxpress.problem import Problem
from onnxpress.recipe import dump_recipe, load_recipe
from onnxpress.state import State
from onnxpress.step import Chain, Step
from onnxpress.steps.iht import Iht
from onnxpress.steps.magnitude import Magnitude
from onnxpress.task import goal_of
from onnxpress_adapters.errors import MisuseError, StepError
from onnxpress_adapters.read import read_model


class TestIht(StepLaws):
    sparsity = 0.6
    regrows = True

    def make_step(self) -> Step:
        return Iht(sparsity=0.6, rounds=8)


class TestIhtEuclidean(StepLaws):
    sparsity = 0.6
    regrows = True

    def make_step(self) -> Step:
        return Iht(sparsity=0.6, rounds=8, metric="euclidean")


class TestIhtFromPruned(StepLaws):
    sparsity = 0.6
    regrows = True

    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.6)(state, problem)

    def make_step(self) -> Step:
        return Iht(sparsity=0.6, rounds=8)


class TestIhtOfThePaper(StepLaws):
    sparsity = 0.6
    regrows = True

    def make_step(self) -> Step:
        return Iht(sparsity=0.6, rounds=8, step="paper", simulations=3)


class TestIhtWithAdam(StepLaws):
    sparsity = 0.6
    regrows = True

    def make_step(self) -> Step:
        return Iht(sparsity=0.6, rounds=20, step="adam", gradual=0.5)


class TestIhtByLayer(StepLaws):
    sparsity = 0.6
    regrows = True

    def make_step(self) -> Step:
        return Iht(sparsity=0.6, rounds=8, scope="layer", gradual=0.5, restarts=1)


@pytest.mark.parametrize("name", list(MODELS))
def test_it_is_no_worse_than_magnitude(name: str) -> None:
    case = case_of(MODELS[name](), effort=0.02)
    objective = objective_of(case.problem)
    start = Magnitude(sparsity=0.5, scope="global")(case.state, case.problem)
    steps = (Iht(sparsity=0.5), Iht(sparsity=0.5, metric="euclidean"))
    found = [objective.measure_choose(s(start, case.problem).tensors).value for s in steps]
    assert max(found) < 0.8 * objective.measure_choose(start.tensors).value


def test_entries_return() -> None:
    # The wrong half is gone: input 0 is silent, so only the second row matters.
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 1, 2, generator=generator) * torch.tensor([1e-3, 1.0])
    case = case_of(linear_model(np.array([[5.0, 5.0], [1.0, -1.0]])), [inputs], effort=0.02)
    wrong = Magnitude(sparsity=0.5)(case.state, case.problem)
    assert wrong.weights[key("w")].support.tolist() == [[True, True], [False, False]]
    after = Iht(sparsity=0.5)(wrong, case.problem)
    assert after.weights[key("w")].support.tolist() == [[False, False], [True, True]]
    assert objective_of(case.problem).measure_fit(after.tensors).value < 1e-3


def test_it_needs_a_sparsity() -> None:
    case = case_of(linear_model(np.ones((2, 2))))
    with pytest.raises(StepError, match="has no sparsity: give it one, or put it in a search"):
        Iht()(case.state, case.problem)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gradual": 1.5}, "gradual is a share of the rounds, 0 to 1, not 1.5"),
        ({"rounds": 0}, "rounds is a number from 1 on, not 0"),
        ({"simulations": 0}, "simulations is a number from 1 on, not 0"),
        ({"restarts": -1}, "restarts is a number from 0 on, not -1"),
    ],
)
def test_numbers_that_make_no_sense(fields: dict[str, float], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        Iht(**fields)  # type: ignore[arg-type]  # a recipe could say any of this


def linear_case(samples: int = 64) -> tuple[Case, Tensor, Tensor]:
    """Give y = x w with correlated inputs, w, and the matrix of d in w."""
    drawn = torch.Generator().manual_seed(3)
    mixing = torch.randn(6, 6, generator=drawn) + 2 * torch.eye(6)
    inputs = torch.randn(samples, 1, 6, generator=drawn) @ mixing
    weight = torch.randn(6, 1, generator=drawn)
    case = case_of(linear_model(weight.numpy()), [inputs], effort=1.0)
    scale = float(objective_of(case.problem).scales[0])
    columns = inputs[:, 0].double()
    return case, weight[:, 0].double(), columns.T @ columns / (samples * scale)


@pytest.mark.parametrize("step", ["paper", "trajectory"])
def test_a_quadratic_is_followed_to_an_ht_stable_point(step: str) -> None:
    case, weight, matrix = linear_case()
    made = Iht(0.5, rounds=2000, metric="euclidean", step=step)  # type: ignore[arg-type]
    found = made.solution(case.state, case.problem)
    assert found.ended == "stable"
    assert found.certificate.is_stable
    assert found.rises == 0
    # d = (w' - w)ᵀ A (w' - w): solve it on the support, and measure both halves there.
    values = found.state.weights[key("w")].values[:, 0].double()
    support = values != 0
    assert int(support.sum()) == found.count == 3
    gradient = 2 * matrix @ (values - weight)
    assert float(gradient[support].abs().max()) == pytest.approx(found.certificate.slope, abs=1e-6)
    assert found.certificate.slope <= 1e-5
    least = float(values[support].abs().min())
    assert found.certificate.least == pytest.approx(least, rel=1e-5)
    pull = found.step * float(gradient[~support].abs().max())
    assert found.certificate.pull == pytest.approx(pull, rel=1e-3)
    # 2A is the Hessian: no estimate is above what its columns, or its blocks, allow.
    assert found.smoothness <= 2 * float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-3)
    assert found.steepest <= 2 * float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-3)
    if step == "paper":
        assert found.step == 1 / found.smoothness
    assert found.state.log[-1].endswith(": HT-stable")
    assert "it ended at an HT-stable point" in found.state.log[-3]


def test_the_support_path_leads_from_the_first_support_to_the_last() -> None:
    case, _, _ = linear_case()
    step = Iht(0.5, rounds=40, metric="euclidean", gradual=0.0)
    found = step.solution(case.state, case.problem)
    assert found.support(0).equal(found.first)
    for place, visit in enumerate(found.path, start=1):
        before, after = found.support(place - 1), found.support(place)
        assert int(after.sum()) == visit.kept
        assert int((after & ~before).sum()) == visit.entered
        assert int((before & ~after).sum()) == visit.left
    values = [visit.value for visit in found.path]
    assert all(b < a * (1 + 1e-6) for a, b in pairwise(values))
    assert values[0] < found.began
    with pytest.raises(ValueError, match="steps were taken, not 999"):
        found.support(999)


def test_a_path_of_too_many_changes_keeps_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "KEPT_FLIPS", 1)
    case = case_of(MODELS["mlp"]())
    found = Iht(0.9, rounds=30, gradual=1.0).solution(case.state, case.problem)
    assert found.path[-1].flipped is None
    assert sum(visit.left for visit in found.path) > 1
    with pytest.raises(ValueError, match="their places are gone"):
        found.support(len(found.path))


def test_a_gradual_run_lowers_the_count_along_a_cube() -> None:
    plan = descent.Plan("trajectory", 20, 10, 1.0, 0.5, 0.01, 8, 1, 1e-5)
    counts = [plan.count_at(place, 10, 100) for place in range(10)]
    assert counts == [20 + round(80 * (1 - k / 5) ** 3) for k in range(1, 6)] + [20] * 5
    assert [plan.count_at(place, 10, 15) for place in range(3)] == [20] * 3
    case = case_of(MODELS["mlp"](), effort=0.02)
    found = Iht(0.9, rounds=20).solution(case.state, case.problem)
    kept = [visit.kept for visit in found.path]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1] == found.count


def test_by_layer_every_weight_keeps_its_share() -> None:
    case = case_of(MODELS["mlp"]())
    after = Iht(0.75, rounds=5, scope="layer")(case.state, case.problem)
    for form in after.weights.values():
        assert form.nonzeros == pytest.approx(form.values.numel() / 4, abs=1)


def test_a_restart_wins_where_its_support_is_better() -> None:
    case = case_of(MODELS["mlp"](), effort=0.02)
    alone = [
        Iht(0.8, rounds=5, restarts=restarts).solution(case.state, case.problem)
        for restarts in range(4)
    ]
    chosen = [found.chosen for found in alone]
    assert chosen == sorted(chosen, reverse=True)
    assert alone[0].start == 0
    # From the wrong half, only a random support gets away from a step of nothing.
    other = Iht(0.8, rounds=5, restarts=3).solution(case.state, case.problem)
    assert other.chosen == chosen[3]
    if other.start:
        assert f"from random support {other.start}" in other.state.log[-3]


@cache
def digits() -> Case:
    """Give the trained perceptron of the examples, 50,432 weights, and its labels' inputs."""
    images = torch.from_numpy(np.load(ROOT / "examples" / "digits_train.npz")["image"])[:, None]
    case = case_of(read_model(ROOT / "examples" / "digits_fc.onnx"), [images[:256]], effort=0.2)
    return replace(case, problem=replace(case.problem, choose=[images[256:384]], memo={}))


def test_the_papers_step_on_a_trained_network_names_its_divergence() -> None:
    case = digits()
    found = Iht(0.9, rounds=60, step="paper").solution(case.state, case.problem)
    assert found.ended == "diverged"
    assert found.steepest > found.smoothness
    assert found.step == 1 / found.smoothness
    assert found.chosen <= goal_of(case.problem, "distance").on_choose(
        Iht(0.9, rounds=1, step="paper").solution(case.state, case.problem).state.tensors
    )
    assert all(form.values.isfinite().all() for form in found.state.weights.values())
    line = next(line for line in found.state.log if line.startswith("Iht to"))
    assert "it diverged: the curvature met is" in line
    assert "take step: trajectory" in line


def test_a_step_so_long_that_numbers_run_out_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = digits()
    monkeypatch.setattr(descent, "sampled_smoothness", lambda *_: torch.tensor(1e-30))
    found = Iht(0.9, rounds=10, step="paper").solution(case.state, case.problem)
    assert found.ended == "diverged"
    assert all(form.values.isfinite().all() for form in found.state.weights.values())
    monkeypatch.setattr(descent, "sampled_smoothness", lambda *_: torch.tensor(torch.inf))
    still = Iht(0.9, rounds=3, step="paper").solution(case.state, case.problem)
    assert still.value == pytest.approx(still.began, rel=1e-6)


def test_trajectory_and_adam_get_close_on_a_trained_network() -> None:
    case = digits()
    ends = {
        step: Iht(0.8, rounds=150, step=step).solution(case.state, case.problem)
        for step in ("trajectory", "adam")
    }
    assert ends["trajectory"].chosen < 0.03
    assert ends["adam"].chosen < 0.06
    assert ends["trajectory"].chosen < 0.1 * ends["trajectory"].began


def test_a_task_is_descended_on() -> None:
    drawn = torch.Generator().manual_seed(5)
    inputs = torch.randn(128, 1, 6, generator=drawn)
    labels = (inputs[:, 0, 0] > 0).long()  # what the network says of it is noise
    case = case_of(linear_model(np.ones((6, 2)) * 0.1), [inputs], effort=1.0)
    problem = replace(case.problem, labels=(labels, labels), memo={})
    found = Iht(0.5, rounds=60, metric="euclidean", objective="cross-entropy").solution(
        case.state, problem
    )
    assert found.value < 0.2 < 0.6 < found.began
    assert "the cross-entropy of 'y', taken for logits" in found.state.log[-3]
    support = found.state.weights[key("w")].support
    assert bool(support[0].all())  # the one input that matters
    with pytest.raises(MisuseError, match="give --labels"):
        Iht(0.5, objective="mse")(case.state, case.problem)


def test_it_takes_its_place_in_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        """
steps:
  - magnitude: {sparsity: 0.3}
  - l0: {sparsity: 0.5, work: 1.0}
  - iht: {sparsity: 0.7, scope: layer, step: adam, rounds: 20, gradual: 0.25, restarts: 1}
  - iht: {sparsity: 0.7, step: paper, rounds: 3, simulations: 2, slope: 1e-4, metric: gauss-newton}
  - repair: {work: 1.0}
"""
    )
    chain = load_recipe(path).steps
    assert isinstance(chain, Chain)
    case = case_of(MODELS["mlp"](), effort=0.02)
    after = chain(case.state, case.problem)
    assert after.sparsity >= 0.7
    told = "\n".join(after.log)
    assert "from random sparse pairs" in told
    assert "around the point given" in told
    path.write_text(dump_recipe(chain))
    assert load_recipe(path).steps == chain
