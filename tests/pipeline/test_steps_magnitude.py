"""Magnitude pruning: its laws, and cases small enough to do by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from laws import StepLaws
from models import case_of, key, linear_model, two_headed_model
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import Step
from onnxpress.steps.magnitude import Magnitude
from onnxpress_adapters.errors import SparsityError, StepError


class TestMagnitudePerLayer(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return Magnitude(sparsity=0.6)


class TestMagnitudeGlobal(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return Magnitude(sparsity=0.6, scope="global")


class TestMagnitudeAfterMore(StepLaws):
    """It asks for less than is pruned already: nothing may return, and nothing may change."""

    sparsity = 0.3

    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.8)(state, problem)

    def make_step(self) -> Step:
        return Magnitude(sparsity=0.3)


def test_the_smallest_go() -> None:
    case = case_of(linear_model(np.array([[1.0, -4.0], [-2.0, 3.0], [0.5, -0.25]])))
    after = Magnitude(sparsity=0.5)(case.state, case.problem).weights[key("w")]
    assert after.values.tolist() == [[0.0, -4.0], [-2.0, 3.0], [0.0, 0.0]]
    assert after.support.tolist() == [[False, True], [True, True], [False, False]]


def test_globally_a_scale_does_not_decide() -> None:
    case = case_of(two_headed_model())
    louder = {
        name: replace(form, values=form.values * (1000 if name == key("wb") else 1))
        for name, form in case.state.weights.items()
    }
    step = Magnitude(sparsity=0.5, scope="global")
    plain = step(case.state, case.problem)
    loud = step(replace(case.state, weights=louder), case.problem)
    for name, form in plain.weights.items():
        assert torch.equal(form.support, loud.weights[name].support)
    counts = [form.nonzeros for form in plain.weights.values()]
    assert sum(counts) == plain.elements // 2


def test_each_layer_keeps_its_share() -> None:
    case = case_of(two_headed_model())
    after = Magnitude(sparsity=0.25)(case.state, case.problem)
    for form in after.weights.values():
        assert form.nonzeros == form.values.numel() * 3 // 4


def test_it_refuses_what_it_cannot_do() -> None:
    case = case_of(linear_model(np.ones((2, 2))))
    with pytest.raises(StepError, match="has no sparsity: give it one, or put it in a search"):
        Magnitude()(case.state, case.problem)
    with pytest.raises(SparsityError, match=r"between 0 and 1, not at 1\.5"):
        Magnitude(sparsity=1.5)(case.state, case.problem)
