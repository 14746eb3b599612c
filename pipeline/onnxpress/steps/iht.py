"""Iterative hard thresholding on d: a gradient step, then the best entries stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from onnxpress.curvature import gauss_newton, largest_curvature
from onnxpress.objective import Objective, objective_of
from onnxpress.pattern import Pattern
from onnxpress.step import target_count
from onnxpress.support import cut, keep_patterned
from onnxpress_adapters.errors import StepError
from onnxpress_adapters.weights import WeightKey

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

Point = dict[WeightKey, Tensor]

DRAWS = 16
"""Backward passes behind the metric."""

DAMP = 0.01
"""Share of its mean added to the Gauss-Newton diagonal, so that no entry is free to run away."""

POWER_ROUNDS = 4
HALVINGS = 12
GROWTH = 1.3
"""How much longer the next step may be after one that was accepted at once."""


@dataclass(frozen=True)
class Iht:
    """Descend on d and project onto the networks with at most s nonzeros, again and again.

    θ ← H_s(θ - t M⁻¹ ∇d(θ)), in the metric M: H_s keeps the entries with the largest m·θ². Pruned
    entries may return, which no greedy method allows. The step t begins at one over the curvature
    found by power iteration around the first point, is cut to one over every curvature met along
    the trajectory, and is halved until d falls. The point that is best on the choose set is kept.

    Attributes:
        sparsity: share of zeros over the free weights, 0 to 1; None for a search to find.
        rounds: gradient steps, at most.
        work: units of work (about seconds of one core) at effort 1; ends the rounds earlier.
        metric: ``gauss-newton``, the diagonal of d's Gauss-Newton matrix at the first point, or
            ``euclidean``, the paper's.
        pattern: what may stay together: ``none``, ``2:4``, ``block:4x8``, ``rows:32``
            (``Pattern.parse``); H_s then projects onto supports of that pattern.

    Source:
        seeds/learning_sparse_network_iht.txt, Algorithm 1 and section III (restricted smoothness);
        Blumensath & Davies 2009. FACTS section 4: the paper's estimate from random sparse pairs
        diverges on trained networks, hence the power iteration and the halving; stability needs
        both t·max|g_off| ≤ min|θ_S| and g_S ≈ 0, hence both in the log.
    """

    sparsity: float | None = None
    rounds: int = 100
    work: float = 20.0
    metric: Literal["gauss-newton", "euclidean"] = "gauss-newton"
    pattern: str = "none"

    def __post_init__(self) -> None:
        """Refuse a pattern that is none."""
        Pattern.parse(self.pattern)

    def at(self, sparsity: float) -> Iht:
        """Give the same step with its sparsity fixed."""
        return replace(self, sparsity=sparsity)

    def following(self, pattern: str) -> Iht:
        """Give the same step with its pattern set."""
        return replace(self, pattern=pattern)

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Search for the best support of the size asked for, and its values."""
        if self.sparsity is None:
            raise StepError(f"{self} has no sparsity: give it one, or put it in a search")
        objective = objective_of(problem)
        count, pattern = target_count(state, self.sparsity), Pattern.parse(self.pattern)
        descent = _Descent(objective, state, count, self.metric, pattern)
        rounds = min(self.rounds, objective.cost.steps(self.work, len(problem.fit[0])))
        return descent.run(rounds)


class _Descent:
    """One run: what stays the same over its rounds."""

    def __init__(
        self,
        objective: Objective,
        state: State,
        count: int,
        metric: Literal["gauss-newton", "euclidean"],
        pattern: Pattern,
    ) -> None:
        self.objective = objective
        self.state = state
        self.count = count
        self.pattern = pattern
        self.layers = {layer.key: layer for layer in objective.problem.network.layers}
        self.keys = sorted(state.free)
        self.start = {key: state.weights[key].values for key in self.keys}
        self.root = self._root(metric)

    def _root(self, metric: Literal["gauss-newton", "euclidean"]) -> Point:
        """Give √m for every entry: the change of variables in which H_s is Euclidean."""
        if metric == "euclidean":
            return {key: torch.ones_like(value) for key, value in self.start.items()}
        generator = self.objective.problem.generator(f"iht {self.count}")
        diagonal = gauss_newton(self.objective, self.state.tensors, self.keys, DRAWS, generator)
        entries = sum(value.numel() for value in diagonal.values())
        mean = sum(float(value.sum()) for value in diagonal.values()) / max(1, entries)
        floor = DAMP * mean + 1e-30
        return {key: (value + floor).sqrt() for key, value in diagonal.items()}

    def project(self, point: Point) -> Point:
        """Keep the ``count`` entries with the largest m·θ²; H_s in the metric."""
        scores = {key: (point[key] * self.root[key]).abs() for key in self.keys}
        if self.pattern.is_blocked:  # the squares of a block add up
            scores = {key: score.square() for key, score in scores.items()}
        supports = keep_patterned(scores, self.count, self.pattern, self.layers)
        return {key: cut(point[key], supports[key]).values for key in self.keys}

    def laid(self, point: Mapping[WeightKey, Tensor]) -> dict[WeightKey, Tensor]:
        """Give all tensors of the state with the free weights at a point."""
        return {**self.state.tensors, **point}

    def scaled_gradient(self, scaled: Point) -> Point:
        """Give ∇d in the scaled variables φ = √m θ, for the power iteration."""
        point = {key: scaled[key] / self.root[key] for key in self.keys}
        gradient = self.objective.gradient(self.laid(point), self.keys)[1]
        return {key: gradient[key] / self.root[key] for key in self.keys}

    def run(self, rounds: int) -> State:
        """Descend for so many rounds and give the best state."""
        point = self.project(self.start)
        value, gradient = self.objective.gradient(self.laid(point), self.keys)
        scaled = {key: point[key] * self.root[key] for key in self.keys}
        first = {key: gradient[key] / self.root[key] for key in self.keys}
        if _norm(first) == 0:
            first = {key: torch.ones_like(value) for key, value in scaled.items()}
        curvature = largest_curvature(self.scaled_gradient, scaled, first, POWER_ROUNDS)
        around, step = curvature, 1.0 / max(curvature, 1e-30)
        began, best = value, (self._chosen(point), point)
        look = max(1, rounds // 12)
        halvings = 0
        for place in range(rounds):
            moved, level, halved = self._descend(point, value, gradient, step)
            halvings += halved
            if moved is None:
                break
            before, old, point, value = gradient, point, moved, level
            gradient = self.objective.gradient(self.laid(point), self.keys)[1]
            local = self._quotient(point, old, gradient, before)
            curvature = max(curvature, local)
            step = step / 2**halved if halved else min(GROWTH * step, 1.0 / max(local, 1e-30))
            if (place + 1) % look == 0 or place + 1 == rounds:
                best = min(best, (self._chosen(point), point), key=lambda pair: pair[0])
        best = min(best, (self._chosen(point), point), key=lambda pair: pair[0])
        found = {key: cut(values, values != 0) for key, values in best[1].items()}
        return self.state.with_weights(found).noted(
            f"Iht to {self.count} entries: d {began:.3g} -> {value:.3g} on fit, {best[0]:.3g} on "
            f"choose; curvature {around:.3g} at the start, {curvature:.3g} along the way, "
            f"{halvings} halvings; {self._stability(point, gradient, step)}"
        )

    def _descend(
        self, point: Point, value: float, gradient: Point, step: float
    ) -> tuple[Point | None, float, int]:
        """Take one projected step, halved until d falls; None where no step helps."""
        for halved in range(HALVINGS):
            length = step / 2**halved
            moved = self.project(
                {
                    key: point[key] - length * gradient[key] / self.root[key].square()
                    for key in self.keys
                }
            )
            level = float(self.objective.measure_fit(self.laid(moved)).per_output.sum())
            if level < value:
                return moved, level, halved
        return None, value, HALVINGS

    def _quotient(self, point: Point, old: Point, gradient: Point, before: Point) -> float:
        """Give the curvature between two points of the trajectory, in the scaled variables."""
        way = _norm({key: (point[key] - old[key]) * self.root[key] for key in self.keys})
        rise = _norm({key: (gradient[key] - before[key]) / self.root[key] for key in self.keys})
        return rise / way if way else 0.0

    def _chosen(self, point: Point) -> float:
        return self.objective.measure_choose(self.laid(point)).value

    def _stability(self, point: Point, gradient: Point, step: float) -> str:
        """Say how far the point is from one that H_s would leave alone."""
        off, on, least = 0.0, 0.0, float("inf")
        for key in self.keys:
            support = point[key] != 0
            slope = (gradient[key] / self.root[key]).abs()
            size = (point[key] * self.root[key]).abs()
            if bool(support.any()):
                on = max(on, float(slope[support].max()))
                least = min(least, float(size[support].min()))
            if not bool(support.all()):
                off = max(off, float(slope[~support].max()))
        return (
            f"step times largest slope off the support {step * off:.2g} against smallest kept "
            f"{least:.2g}, largest slope on it {on:.2g}"
        )


def _norm(point: Mapping[WeightKey, Tensor]) -> float:
    return float(sum(float(value.double().square().sum()) for value in point.values()) ** 0.5)
