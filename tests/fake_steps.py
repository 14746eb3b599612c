"""Steps whose d is known in advance, to test what looks for a sparsity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import sqrt

import numpy as np
import torch

from models import Case, case_of, key, linear_model
from onnxpress.candidates import Candidate
from onnxpress.plans import Plan
from onnxpress.problem import Problem, Tolerance
from onnxpress.state import State
from onnxpress_adapters.weights import Dense

Law = Callable[[float], float]


@dataclass(frozen=True)
class Fake:
    """Move the weights so that d is what a law says of the sparsity; prune nothing.

    Attributes:
        law: sparsity to d, as a share of the variance.
        sparsity: as every budgeted step has it.
        tried: the sparsities asked for so far.
    """

    law: Law
    sparsity: float | None = None
    tried: list[float] = field(default_factory=list, compare=False)

    def at(self, sparsity: float) -> Fake:
        return replace(self, sparsity=sparsity)

    def __call__(self, state: State, problem: Problem, /) -> State:
        assert self.sparsity is not None
        self.tried.append(self.sparsity)
        form = state.weights[key("w")]
        share = self.law(self.sparsity)
        moved = form.values * (1 - sqrt(share)) if share < 1e9 else form.values * 3e38
        return state.with_weights({key("w"): Dense(moved, form.support)})


def plain_case(tolerance: str | None = "1%") -> Case:
    """A linear layer on inputs of one magnitude: every sample has the same error."""
    inputs = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat(8, 1)[:, None]
    parsed = None if tolerance is None else Tolerance.parse(tolerance)
    return case_of(linear_model(np.ones((2, 1))), [inputs], tolerance=parsed)


def power(knee: float, steepness: float, tolerance: float = 0.01) -> Law:
    """Give a law that meets a tolerance at ``knee`` and grows like a power of the density."""
    return lambda sparsity: tolerance * ((1 - knee) / max(1e-9, 1 - sparsity)) ** steepness


class InterruptedAt:
    """A law that is interrupted when it is asked a certain time."""

    def __init__(self, law: Law, call: int) -> None:
        self.law, self.call = law, call

    def __call__(self, sparsity: float) -> float:
        self.call -= 1
        if self.call == 0:
            raise KeyboardInterrupt
        return self.law(sparsity)


@dataclass
class Judge:
    """Answer with given excesses, the last one again and again, and remember what was shown."""

    answers: Sequence[float]
    seen: list[Candidate] = field(default_factory=list)

    def __call__(self, candidate: Candidate) -> float:
        self.seen.append(candidate)
        return self.answers[min(len(self.seen), len(self.answers)) - 1]

    @property
    def sparsities(self) -> list[float]:
        """What the fake step was given, as the candidates' steps say."""
        given = []
        for candidate in self.seen:
            assert isinstance(candidate.steps, Fake)
            assert candidate.steps.sparsity is not None
            given.append(candidate.steps.sparsity)
        return given


def times(factor: float, law: Law, sparsity: float) -> float:
    return factor * law(sparsity)


class Staged:
    """A plan whose quick repairs leave three times what the long one leaves."""

    def __init__(self, final: Law, rough: Law) -> None:
        self.final, self.rough = Fake(final), Fake(rough)
        self.plan = Plan(self.final, self.rough)


def staged(knee: float = 0.7) -> Staged:
    final = power(knee, 3.5)
    return Staged(final, partial(times, 3.0, final))
