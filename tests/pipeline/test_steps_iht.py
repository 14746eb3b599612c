"""Iterative hard thresholding: its laws, and that entries return."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from laws import StepLaws
from models import MODELS, case_of, key, linear_model
from onnxpress.objective import objective_of
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import Step
from onnxpress.steps.iht import Iht
from onnxpress.steps.magnitude import Magnitude
from onnxpress_adapters.errors import StepError


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
