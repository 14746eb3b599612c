"""Iterative hard thresholding from one starting point: three ways to choose the step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import ceil, cos, inf, isfinite, pi
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from onnxpress.certificate import Certificate, parts
from onnxpress.drawing import Drawing
from onnxpress.smoothness import sampled_smoothness, trajectory_smoothness

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.space import Space
    from onnxpress.state import State

Ended = Literal["stable", "rounds", "stalled", "diverged"]

HALVINGS = 12
GROWTH = 4.0
"""How much longer the next step may be after one that was accepted at once: it is held to one over
the curvature just met as well, and what it begins with can be ten times too careful."""

PAIRS, POWER_ROUNDS = 2, 4
"""Of the estimate around the first point: it only has to be about right, the way corrects it."""

BLOWN = 4.0
"""f over its first value beyond which a fixed step is given up."""

RISE = 1e-6
"""Relative rise of f that rounding may explain."""

LOST = 1.1
"""Where a fixed step ends at more than so many times the lowest f it met, it has not converged."""

ROUNDING = 1e-7
"""Relative rise of f that a step may have and still count as none: float32 knows no better."""

LOOKS = 12
"""How often a run looks at the choose set."""

ESTIMATING = 0.25
"""Share of the work the paper's estimate may take."""

KEPT_FLIPS = 10_000_000
"""Places of the support path that are kept; of what comes after, only their number."""

DRAWING = Drawing(1.0, 0.5)
"""What Adam learns the distance from: points between inputs, pictures moved, as in a repair."""


@dataclass(frozen=True, eq=False)
class Visit:
    """One accepted step.

    Attributes:
        value: f on the fit set (of a batch, with Adam) after it.
        step: γ that was taken.
        kept: nonzeros after it.
        entered: entries that joined the support.
        left: entries that left it.
        flipped: which: int64 places in the flat vector, on the CPU; None once there were too many.
    """

    value: float
    step: float
    kept: int
    entered: int
    left: int
    flipped: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """What a run of iterative hard thresholding came to.

    Attributes:
        state: with the point that was best on the choose set.
        count: s.
        smoothness: L̂_2s: by the paper's pairs, or around the first point.
        step: γ: the paper's 1 / L̂_2s; else the last one that was taken.
        steepest: the largest curvature met between two points of the way; 0 if nobody looked.
        began: f on the fit set at the first point of s entries.
        value: f on the fit set at the point given.
        chosen: f on the choose set there; of the distance, of the worst output.
        ended: ``stable`` at an HT-stable point, ``rounds`` or work used up, ``stalled`` where no
            step helped, ``diverged`` where a step was so long that f ran away, or the run ended
            far above the lowest f it met.
        halvings: how often a step was too long.
        rises: how often f rose over a fixed step; 0 if γ ≤ 1 / L_2s.
        first: the support begun with, ``[n]`` bool on the CPU, places as in the flat vector of the
            free weights in the order of their keys.
        path: the accepted steps, in order.
        certificate: of the point given, for ``step``, in the variables of the metric.
        start: which starting support: 0 for the largest entries, else a random one.
    """

    state: State
    count: int
    smoothness: float
    step: float
    steepest: float
    began: float
    value: float
    chosen: float
    ended: Ended
    halvings: int
    rises: int
    first: Tensor
    path: tuple[Visit, ...]
    certificate: Certificate
    start: int = 0

    def support(self, place: int) -> Tensor:
        """Give the support after so many accepted steps, ``[n]`` bool.

        Raises:
            ValueError: so many steps were not taken, or their places were too many to keep.
        """
        if not 0 <= place <= len(self.path):
            raise ValueError(f"{len(self.path)} steps were taken, not {place}")
        support = self.first.clone()
        for visit in self.path[:place]:
            if visit.flipped is None:
                raise ValueError(f"more than {KEPT_FLIPS} entries changed: their places are gone")
            support[visit.flipped] ^= True
        return support


@dataclass(frozen=True)
class Plan:
    """How one run goes.

    Attributes:
        step: how γ is chosen: ``trajectory``, ``paper`` or ``adam``.
        count: s.
        rounds: steps, at most.
        work: units of work.
        gradual: share of the rounds over which the number of entries falls to s.
        rate: of Adam, as a share of each weight's root mean square.
        batch: samples per step of Adam, at most.
        simulations: n_monte of the paper.
        slope: max|g_S| that counts as none.
    """

    step: Literal["trajectory", "paper", "adam"]
    count: int
    rounds: int
    work: float
    gradual: float
    rate: float
    batch: int
    simulations: int
    slope: float

    def count_at(self, place: int, rounds: int, begun: int) -> int:
        """Give how many entries round ``place`` of ``rounds`` keeps, from ``begun`` down to s.

        Source:
            Zhu & Gupta 2017, equation 1: the cube of what is left of the ramp.
        """
        ramp = ceil(self.gradual * rounds)
        if place >= ramp or begun <= self.count:
            return self.count
        return self.count + round((begun - self.count) * (1 - (place + 1) / ramp) ** 3)


def descended(space: Space, problem: Problem, plan: Plan, start: int) -> Solution:
    """Run from one starting support.

    Args:
        space: the weights and the goal.
        problem: of the run.
        plan: how to go.
        start: 0 to begin with the largest entries; else the number of a random support.
    """
    run = _Run(space, problem, plan, start)
    return {"trajectory": run.backtracking, "paper": run.fixed, "adam": run.adam}[plan.step]()


@dataclass(eq=False)
class _Run:
    """One run: what changes over its rounds."""

    space: Space
    problem: Problem
    plan: Plan
    start: int
    path: list[Visit] = field(default_factory=list)
    flips: int = 0
    halvings: int = 0
    rises: int = 0
    steepest: float = 0.0
    ended: Ended = "rounds"

    def __post_init__(self) -> None:
        values, count = self.space.start, self.plan.count
        self.generator = self.problem.generator(f"iht {count} from {self.start}")
        if self.start:
            kept = self.space.keep(torch.rand(len(values), generator=self.generator), count)
            first = torch.where(kept.to(values.device), values, torch.zeros_like(values))
        else:
            first = self.space.project(values, count)
        self.first = self.origin = first
        if self.plan.gradual and not self.start:  # begin with what there is and the pattern allows
            self.origin = self.space.project(values, int((values != 0).sum()))
        self.begun = int((self.origin != 0).sum())
        laid, goal = self.space.laid(first), self.space.goal
        self.began = goal.on_fit(laid)
        self.best = (goal.on_choose(laid), first)

    @property
    def full_rounds(self) -> int:
        """How many full gradient steps the work pays for."""
        cost = self.space.goal.objective.cost
        return min(self.plan.rounds, cost.steps(self.plan.work, len(self.problem.fit[0])))

    def around(self, point: Tensor) -> float:
        """Estimate L̂_2s around a point, in the scaled variables."""
        space, count = self.space, self.plan.count
        most = min(2 * count, len(point))
        return float(
            trajectory_smoothness(
                space.scaled_gradient,
                point * space.root,
                partial(space.keep, count=count),
                partial(space.keep, count=most),
                self.generator,
                PAIRS,
                POWER_ROUNDS,
            )
        )

    def backtracking(self) -> Solution:
        """Take γ from the way: one over the curvature met, halved until f falls."""
        space, plan, rounds = self.space, self.plan, self.full_rounds
        smoothness = self.around(self.first)
        # Where f is flat, or not finite, around the first point, any length may be tried.
        step = 1.0 / smoothness if 0 < smoothness < inf else 1.0
        point = self.origin
        value, gradient = space.descent(point)
        kept = int((point != 0).sum())
        for place in range(rounds):
            count = plan.count_at(place, rounds, self.begun)
            if kept <= plan.count and self.is_stable(point, gradient, step):
                self.ended = "stable"
                break
            limit = value if kept <= count else inf
            moved, level, halved = self._shorter(point, gradient, step, count, limit)
            if moved is None and count > plan.count:
                continue  # there is nothing to gain here, but entries are still to leave
            self.halvings += halved
            if moved is None:
                self.ended = "stalled"
                break
            before, old, point, value = gradient, point, moved, level
            gradient = space.descent(point)[1]
            local = self.turn(point, old, gradient, before)
            self.note(old, point, value, step / 2**halved)
            kept = self.path[-1].kept
            step = step / 2**halved if halved else min(GROWTH * step, 1.0 / max(local, 1e-30))
            self.look(place, rounds, point)
        return self.solution(smoothness, step, point)

    def _shorter(
        self, point: Tensor, gradient: Tensor, step: float, count: int, limit: float
    ) -> tuple[Tensor | None, float, int]:
        """Take one projected step, halved until f is below a limit; None where no step is."""
        for halved in range(HALVINGS):
            moved = self.stepped(point, gradient, step / 2**halved, count)
            level = self.space.goal.on_fit(self.space.laid(moved))
            # Near a minimum the last of the way is lost in the rounding of f, not of its slope.
            if level < limit * (1 + ROUNDING):
                return moved, level, halved
        return None, limit, HALVINGS

    def fixed(self) -> Solution:
        """Take γ = 1 / L̂_2s of random sparse pairs and keep it; stop where f runs away."""
        space, plan = self.space, self.plan
        smoothness = self._sampled()
        step = 1.0 / max(smoothness, 1e-30)
        point = self.origin
        value, gradient = space.descent(point)
        began = max(self.began, value)
        rounds, kept = self.full_rounds, int((point != 0).sum())
        lowest = (self.began, self.first)
        for place in range(rounds):
            count = plan.count_at(place, rounds, self.begun)
            if kept <= plan.count and self.is_stable(point, gradient, step):
                self.ended = "stable"
                break
            old, before, level = point, gradient, value
            point = self.stepped(old, before, step, count)
            value, gradient = space.descent(point)
            sound = isfinite(value) and bool(gradient.isfinite().all())
            if sound:
                self.turn(point, old, gradient, before)
            if not sound or value > BLOWN * began:
                self.ended = "diverged"
                break
            self.rises += kept <= count and value > level * (1 + RISE)
            self.note(old, point, value, step)
            kept = self.path[-1].kept
            if kept <= plan.count and value < lowest[0]:
                lowest = (value, point)
            self.look(place, rounds, point)
        if self.rises and not value <= LOST * lowest[0]:
            self.ended = "diverged"
        if self.ended == "diverged":
            self.keep_if_best(lowest[1])
        return self.solution(smoothness, step, point)

    def _sampled(self) -> float:
        """Estimate L̂_2s by the paper's procedure, in the scaled variables."""
        space, samples = self.space, len(self.problem.fit[0])
        paid = space.goal.objective.cost.steps(ESTIMATING * self.plan.work, samples) // 2
        bound = space.initial_bound() * space.root

        def initial() -> Tensor:
            return bound * (2 * torch.rand(len(bound), generator=self.generator).to(bound) - 1)

        return float(
            sampled_smoothness(
                space.scaled_gradient,
                initial,
                partial(space.keep, count=self.plan.count),
                self.generator,
                max(1, min(self.plan.simulations, paid)),
            )
        )

    def adam(self) -> Solution:
        """Take Adam's steps on drawn batches, each thresholded; they fall to zero along a cosine.

        Pruned entries keep their moments, and so may return.
        """
        space, plan, goal = self.space, self.plan, self.space.goal
        batch = max(2, min(plan.batch, goal.objective.cost.batch, len(self.problem.fit[0])))
        rounds = min(plan.rounds, goal.objective.cost.steps(plan.work, batch))
        point = self.origin
        leaves = {k: v.clone().requires_grad_() for k, v in space.split(point).items()}
        sizes = [_size(leaf) for leaf in leaves.values()]
        optimiser = torch.optim.Adam(
            [{"params": [leaf]} for leaf in leaves.values()], betas=(0.9, 0.99), fused=True
        )
        fixed = {key: value for key, value in space.state.tensors.items() if key not in leaves}
        length = plan.rate
        for place in range(rounds):
            length = plan.rate * 0.5 * (1 + cos(pi * place / rounds))
            for group, size in zip(optimiser.param_groups, sizes, strict=True):
                group["lr"] = length * size
            inputs, wanted = goal.draw(batch, self.generator, DRAWING)
            value = goal.push(lambda: {**fixed, **leaves}, list(leaves.values()), inputs, wanted)
            for leaf in leaves.values():
                leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            optimiser.step()
            old, count = point, plan.count_at(place, rounds, self.begun)
            with torch.no_grad():
                point = space.project(space.flat(leaves), count)
                for key, part in space.split(point).items():
                    leaves[key].copy_(part)
            if not isfinite(value) or not bool(point.isfinite().all()):
                self.ended = "diverged"
                break
            self.note(old, point, value, length)
            self.look(place, rounds, point)
        smoothness = self.around(self.best[1])
        return self.solution(smoothness, 1.0 / max(smoothness, 1e-30), point)

    def stepped(self, point: Tensor, gradient: Tensor, step: float, count: int) -> Tensor:
        """Give H_s(θ - γ M⁻¹ ∇f(θ))."""
        return self.space.project(point - step * gradient / self.space.root.square(), count)

    def is_stable(self, point: Tensor, gradient: Tensor, step: float) -> bool:
        """Say whether a step from here leads nowhere."""
        root = self.space.root
        least, off, on = parts(point * root, gradient / root, self._held(point))
        return bool(on <= self.plan.slope) and bool(least >= step * off)

    def _held(self, point: Tensor) -> int:
        """Give how many entries H_s would hold here: s, or what a pattern or scope leaves of it."""
        if self.space.pattern.is_free and self.space.scope == "global":
            return self.plan.count
        return min(self.plan.count, int((point != 0).sum()))

    def turn(self, point: Tensor, old: Tensor, gradient: Tensor, before: Tensor) -> float:
        """Give the curvature between two points of the way, in the scaled variables."""
        way = float(((point - old) * self.space.root).norm())
        local = float(((gradient - before) / self.space.root).norm()) / way if way else 0.0
        self.steepest = max(self.steepest, local)
        return local

    def note(self, old: Tensor, point: Tensor, value: float, step: float) -> None:
        """Add a visit to the path."""
        joined, gone = (old == 0) & (point != 0), (old != 0) & (point == 0)
        entered, left = int(joined.sum()), int(gone.sum())
        self.flips += entered + left
        flipped = None
        if self.flips <= KEPT_FLIPS:
            flipped = (joined | gone).nonzero()[:, 0].cpu()
        kept = int((point != 0).sum())
        self.path.append(Visit(value, step, kept, entered, left, flipped))

    def look(self, place: int, rounds: int, point: Tensor) -> None:
        """Look at the choose set now and then, and remember the best point within the budget."""
        if (place + 1) % max(1, rounds // LOOKS) and place + 1 != rounds:
            return
        self.keep_if_best(point)

    def keep_if_best(self, point: Tensor) -> None:
        """Remember a point within the budget that is better on the choose set."""
        if int((point != 0).sum()) > self.plan.count:
            return
        found = self.space.goal.on_choose(self.space.laid(point))
        if found < self.best[0]:
            self.best = (found, point)

    def solution(self, smoothness: float, step: float, last: Tensor) -> Solution:
        """Lay the result out: the last point where it is stable, else the best on choose.

        Args:
            smoothness: L̂_2s.
            step: γ.
            last: where the run ended.
        """
        space = self.space
        if self.ended == "stable":
            self.best = (space.goal.on_choose(space.laid(last)), last)
        elif self.ended == "stalled":
            self.keep_if_best(last)
        chosen, point = self.best
        value, gradient = space.descent(point)
        certificate = Certificate.of(
            point * space.root, gradient / space.root, step, self._held(point), self.plan.slope
        )
        return Solution(
            state=space.put(point),
            count=self.plan.count,
            smoothness=smoothness,
            step=step,
            steepest=self.steepest,
            began=self.began,
            value=value,
            chosen=chosen,
            ended=self.ended,
            halvings=self.halvings,
            rises=self.rises,
            first=(self.origin != 0).cpu(),
            path=tuple(self.path),
            certificate=certificate,
            start=self.start,
        )


def _size(leaf: Tensor) -> float:
    """Root mean square of the nonzeros; 0.01 for a tensor of zeros."""
    kept = leaf.detach()[leaf.detach() != 0]
    return float(kept.square().mean().sqrt()) if kept.numel() else 0.01
