"""L0: its laws, what it finds, and what it is told by."""

from __future__ import annotations

from laws import StepLaws
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import Step
from onnxpress.steps.l0 import L0
from onnxpress.steps.magnitude import Magnitude


class TestL0(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return L0(sparsity=0.6)


class TestL0FromPruned(StepLaws):
    sparsity = 0.7

    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.4)(state, problem)

    def make_step(self) -> Step:
        return L0(sparsity=0.7, start="even", l2=1e-4)
