"""Iterative hard thresholding: a gradient step, then the best entries stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from onnxpress.certificate import SLOPE
from onnxpress.curvature import gauss_newton
from onnxpress.descent import Plan, Solution, descended
from onnxpress.objective import objective_of
from onnxpress.pattern import Pattern
from onnxpress.smoothness import SIMULATIONS
from onnxpress.space import Scope, Space
from onnxpress.step import target_count
from onnxpress.support import unpatterned
from onnxpress.task import GoalName, goal_of
from onnxpress_adapters.errors import MisuseError, StepError
from onnxpress_adapters.weights import WeightKey

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

DRAWS = 16
"""Backward passes behind the metric."""

GRADUAL = 0.5
"""Share of the rounds over which entries leave, where nobody says another one."""

DAMP = 0.01
"""Share of its mean added to the Gauss-Newton diagonal, so that no entry is free to run away."""


@dataclass(frozen=True)
class Iht:
    """Descend on f and project onto the networks with at most s nonzeros, again and again.

    θ ← H_s(θ - γ M⁻¹ ∇f(θ)), in the metric M: H_s keeps the entries with the largest m·θ². Pruned
    entries may return, which no greedy method allows. The point that is best on the choose set is
    kept, or the last one where it is HT-stable. ``solution`` gives more than the state.

    Attributes:
        sparsity: share of zeros over the free weights, 0 to 1; None for a search to find.
        rounds: gradient steps, at most.
        work: units of work (about seconds of one core) at effort 1, for each start; ends the
            rounds earlier.
        metric: ``gauss-newton``, the diagonal of d's Gauss-Newton matrix at the first point, or
            ``euclidean``, the paper's. None for the paper's with its steps, the other one else.
        pattern: what may stay together: ``none``, ``2:4``, ``block:4x8``,
            ``rows:32``, ``even:32`` (``Pattern.parse``); H_s then projects onto supports of that
            pattern.
        scope: ``global``: entries of all weights compete; ``layer``: each weight keeps its share.
        objective: f: the distance to the original network, or a task's loss on labelled samples.
        step: ``trajectory``: γ begins at one over the curvature around the first point, is held to
            one over that met on the way, and is halved until f falls. ``paper``: γ = 1 / L̂_2s from
            random sparse pairs, fixed. ``adam``: Adam's steps on drawn batches.
        gradual: share of the rounds over which the number of entries falls to s, 0 to 1. None for 0
            with the paper's steps, which begin at s, and a half else: at 95 % zeros that brought d
            of a trained perceptron from .014 to .0042 (benchmarks/iht.md).
        restarts: how many more runs begin on a random support; the best on the choose set wins.
        rate: of ``adam``: its first step, as a share of each weight's root mean square.
        batch: of ``adam``: samples per step, at most.
        simulations: of ``paper``: pairs behind L̂_2s, fewer where they would take a quarter of the
            work.
        slope: the largest slope on the support that counts as none: where inequality 8 holds as
            well, the point is HT-stable and the run ends.

    Source:
        seeds/learning_sparse_network_iht.txt, algorithm 1 and sections III-F, III-G, IV-B;
        Blumensath & Davies 2009. FACTS section 4: the paper's estimate from random sparse pairs is
        hundreds of times too small on trained networks, where γ = 1 / L̂_2s then diverges; hence
        ``trajectory``. Kingma & Ba 2015; Zhu & Gupta 2017 (gradual).

    One step of algorithm 1 on f = ‖θ - (1, -3, 1)‖² / 2, whose L_2s is 1, from 0: H_2([1, -3, 1]),
    of whose two answers (the paper's footnote 1) it is always the one with the lower places.

    >>> import torch
    >>> from onnxpress.smoothness import threshold
    >>> from onnxpress.support import keep_largest_each
    >>> point, wanted = torch.zeros(3), torch.tensor([1.0, -3.0, 1.0])
    >>> threshold(point - 1.0 * (point - wanted), lambda scores: keep_largest_each(scores, 2))
    tensor([ 1., -3.,  0.])
    """

    sparsity: float | None = None
    rounds: int = 1000
    work: float = 20.0
    metric: Literal["gauss-newton", "euclidean"] | None = None
    pattern: str = "none"
    scope: Scope = "global"
    objective: GoalName = "distance"
    step: Literal["trajectory", "paper", "adam"] = "trajectory"
    gradual: float | None = None
    restarts: int = 0
    rate: float = 0.03
    batch: int = 128
    simulations: int = SIMULATIONS
    slope: float = SLOPE

    def __post_init__(self) -> None:
        """Refuse a pattern that is none, and numbers that make no sense."""
        Pattern.parse(self.pattern)
        if self.gradual is not None and not 0 <= self.gradual <= 1:
            raise MisuseError(f"gradual is a share of the rounds, 0 to 1, not {self.gradual:g}")
        for name in ("rounds", "batch", "simulations"):
            if getattr(self, name) < 1:
                raise MisuseError(f"{name} is a number from 1 on, not {getattr(self, name)}")
        if self.restarts < 0:
            raise MisuseError(f"restarts is a number from 0 on, not {self.restarts}")

    def at(self, sparsity: float) -> Iht:
        """Give the same step with its sparsity fixed."""
        return replace(self, sparsity=sparsity)

    def following(self, pattern: str) -> Iht:
        """Give the same step with its pattern set."""
        return replace(self, pattern=pattern)

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Search for the best support of the size asked for, and its values."""
        return self.solution(state, problem).state

    def solution(self, state: State, problem: Problem) -> Solution:
        """Do the same and give all there is to know about it.

        Raises:
            StepError: the step has no sparsity.
            MisuseError: it needs labels and the problem has none, or none that fit.
        """
        if self.sparsity is None:
            raise StepError(f"{self} has no sparsity: give it one, or put it in a search")
        plan = Plan(
            step=self.step,
            count=target_count(state, self.sparsity),
            rounds=self.rounds,
            work=self.work,
            gradual=self._ramp,
            rate=self.rate,
            batch=self.batch,
            simulations=self.simulations,
            slope=self.slope,
        )
        pattern = Pattern.parse(self.pattern)
        goal = goal_of(problem, self.objective)
        root = None if self._is_euclidean else _root(state, problem, plan.count)
        space = Space.of(state, problem, goal, root, pattern, self.scope)
        runs = [descended(space, problem, plan, start) for start in range(self.restarts + 1)]
        best = min(runs, key=lambda run: run.chosen)
        noted = best.state
        for line in (
            *_lines(best, goal.told, plan),
            unpatterned(space.keys, pattern, space.layers),
        ):
            noted = noted.noted(line) if line else noted
        return replace(best, state=noted)

    @property
    def _ramp(self) -> float:
        if self.gradual is not None:
            return self.gradual
        return 0.0 if self.step == "paper" else GRADUAL

    @property
    def _is_euclidean(self) -> bool:
        return self.metric == "euclidean" or (self.metric is None and self.step == "paper")


def _root(state: State, problem: Problem, count: int) -> dict[WeightKey, Tensor]:
    """Give √m for every entry: the change of variables in which H_s is Euclidean."""
    objective, keys = objective_of(problem), sorted(state.free)
    generator = problem.generator(f"iht {count}")
    diagonal = gauss_newton(objective, state.tensors, keys, DRAWS, generator)
    entries = sum(value.numel() for value in diagonal.values())
    mean = sum(float(value.sum()) for value in diagonal.values()) / max(1, entries)
    floor = DAMP * mean + 1e-30
    return {key: (value + floor).sqrt() for key, value in diagonal.items()}


def _lines(found: Solution, told: str, plan: Plan) -> tuple[str, ...]:
    """Say what was done and found, for the log."""
    name = "d" if told == "the distance" else told
    start = f", from random support {found.start}" if found.start else ""
    entered = sum(visit.entered for visit in found.path)
    left = sum(visit.left for visit in found.path)
    flips = [place for place, v in enumerate(found.path, start=1) if v.entered + v.left]
    last = f", the last in step {flips[-1]}" if flips else ""
    estimate = {
        "paper": "from random sparse pairs",
        "trajectory": "around the first point",
        "adam": "around the point given",
    }[plan.step]
    way = f", up to {found.steepest:.3g} met on the way" if found.steepest else ""
    return (
        f"Iht to {found.count} entries{start}: {name} {found.began:.3g} -> {found.value:.3g} on "
        f"fit, {found.chosen:.3g} on choose, in {len(found.path)} steps; {_ending(found, plan)}",
        f"L_2s {found.smoothness:.3g} {estimate}{way}; step {found.step:.3g}, "
        f"{found.halvings} halvings; {entered} entries joined the support and {left} left{last}",
        f"{found.certificate}: {'HT-stable' if found.certificate.is_stable else 'not HT-stable'}",
    )


def _ending(found: Solution, plan: Plan) -> str:
    """Say why it ended and, where that was no good end, what would do better."""
    if found.ended == "diverged" and plan.step == "paper":
        met = f" the curvature met is {found.steepest:.3g}," if found.steepest else ""
        return (
            f"it diverged:{met} the estimate {found.smoothness:.3g}, and a step of one over that "
            "is too long; take step: trajectory, which measures along the way (what was best until "
            "then is kept)"
        )
    if found.ended == "diverged":
        return "it diverged; take a smaller rate, or step: trajectory (what was best is kept)"
    ending = {
        "stable": "it ended at an HT-stable point",
        "rounds": "rounds or work were used up",
        "stalled": f"no step, {found.halvings} halvings in all, made it smaller",
    }[found.ended]
    if found.rises:
        ending += (
            f"; it rose in {found.rises} steps, so they are longer than 1 / L_2s: step: trajectory "
            "never rises"
        )
    return ending
