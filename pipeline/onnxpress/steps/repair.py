"""Repair: with the support fixed, the remaining weights move to bring d down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, log2, pi
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from onnxpress.drawing import Drawing
from onnxpress.objective import Objective, objective_of
from onnxpress.storage import Rounding, has_grid, roundings, through
from onnxpress_adapters.weights import Dense, WeightKey

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

LOOKS = 8
"""How often an Adam run looks at the choose set, at most."""

LOOKING = 0.25
"""Share of the work that may go into looking."""

FEWEST_STEPS = 150
"""Adam steps worth having: where a full batch allows fewer, the batch is cut instead."""

WHOLE_BATCH_SECONDS = 0.25
"""Units of work for one pass over the fit set up to which ``auto`` takes L-BFGS."""

WHOLE_BATCH_WORK = 12.0
"""Units of work after which L-BFGS has fitted what it was given, and only learns it by heart."""

FIRST_LOOK = 16
"""An Adam run first looks at the choose set after one part in so many of its steps."""

SHOCK, CALMER, MOST_FALLS = 1.5, 3.0, 3
"""Where d is then more than so many times what it was, it begins anew with steps so many times
shorter; so many times at most."""

MANY_STEPS = 800
"""Adam steps from which on ``rate`` holds; fewer steps are shorter, by the square."""


@dataclass(frozen=True)
class Repair:
    """Minimise d over the entries of the supports, biases and norms.

    Labels are free: the original network gives the target of any input, so batches are made of
    random interpolations between pairs of given inputs. The point that was best on the
    choose set is kept, so a repair never makes things worse there.

    Attributes:
        method: ``lbfgs`` on the whole fit set, ``adam`` on batches; ``auto`` runs Adam, and L-BFGS
            as well where a pass over the fit set is cheap, and keeps the better on the choose set.
        work: units of work (about seconds of one core) at effort 1.
        rate: Adam's first step, as a share of each tensor's root mean square; falls to zero along
            a cosine.
        batch: samples per Adam step, at most.
        interpolate: share of each batch that lies between two inputs, 0 to 1. On the inputs
            themselves a few hundred steps fit d ten times closer than it holds on others; between
            them there are as many as one likes.
        move: share of those that are shifted and mirrored, 0 to 1, where inputs are pictures. With
            crops of six photographs to learn from, d on other photographs fell by a fifth.
        extras: whether biases and norms move too.

    Source:
        seeds/sparsification_mathematics.md, "The Algorithm", step 2: minimise the distance while
        keeping the sparsity gained. Kingma & Ba 2015 (Adam); Liu & Nocedal 1989 (L-BFGS).
    """

    method: Literal["auto", "adam", "lbfgs"] = "auto"
    work: float = 12.0
    rate: float = 0.01
    batch: int = 128
    interpolate: float = 1.0
    move: float = 0.5
    extras: bool = True

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Move the values; supports stay as they are."""
        objective = objective_of(problem)
        point = _Point.of(state, problem, extras=self.extras)
        if not point.leaves:
            return state
        before = objective.measure_choose(state.tensors).value
        cheap = self._is_cheap(objective) and not has_grid(state, problem)
        found: list[tuple[float, dict[WeightKey, Tensor], str]] = []
        if self.method == "lbfgs" or (self.method == "auto" and cheap):
            best = self._lbfgs(objective, point)
            found += [] if best is None else [(*best, "L-BFGS")]
        if self.method == "adam" or self.method == "auto":
            fresh = _Point.of(state, problem, extras=self.extras)
            best = self._adam(objective, fresh, before)
            found += [] if best is None else [(*best, "Adam")]
        after, values, how = min(found, key=lambda one: one[0], default=(before, {}, ""))
        if not after < before:
            return state.noted(f"{self}: kept d = {before:.3g} on choose, nothing was better")
        line = f"{self}: d {before:.3g} -> {after:.3g} on choose, by {how}"
        return point.put(state, values).noted(line)

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.interpolate, self.move)

    def _is_cheap(self, objective: Objective) -> bool:
        return objective.cost.steps(1.0, len(objective.problem.fit[0])) > 1 / WHOLE_BATCH_SECONDS

    def _adam(
        self, objective: Objective, point: _Point, before: float
    ) -> tuple[float, dict[WeightKey, Tensor]] | None:
        """Adam with a cosine schedule on drawn batches; the best look at choose wins.

        Where the first look finds d far above where it began, the steps are too long for what there
        is to mend, and it begins again with shorter ones.
        """
        problem, cost = objective.problem, objective.cost
        batch = min(self.batch, cost.batch, len(problem.fit[0]))
        batch = max(2, min(batch, cost.steps(self.work, 1) // FEWEST_STEPS))
        steps = cost.steps(self.work, batch)
        passes = cost.steps(LOOKING * self.work, len(problem.choose[0])) * 2
        # Few noisy steps must be short ones, or they undo more than they mend.
        share = min(1.0, steps / MANY_STEPS) ** 2
        generator = problem.generator(f"repair {state_size(point)}")
        rate = self.rate * share
        start = point.values()
        leaves = list(point.leaves.values())
        adam, first = _adam_of(point, rate)
        best: tuple[float, dict[WeightKey, Tensor]] | None = None
        looks = max(1, min(LOOKS, passes))
        begun, fallen, early = 0, 0, steps // FIRST_LOOK if looks > 2 else 0
        for step in range(steps):
            for group, size in zip(adam.param_groups, first, strict=True):
                group["lr"] = size * 0.5 * (1 + cos(pi * (step - begun) / (steps - begun)))
            inputs, wanted = self._drawing.batch(objective, batch, generator)
            objective.push(point.tensors, leaves, inputs, wanted)
            point.pin(leaves)
            adam.step()
            done = step + 1 - begun
            if done == early and fallen < MOST_FALLS:
                if not objective.measure_choose(point.tensors()).value <= SHOCK * before:
                    point.move(start)
                    rate, begun, fallen = rate / CALMER, step + 1, fallen + 1
                    adam, first = _adam_of(point, rate)
            elif done % max(1, (steps - begun) // looks) == 0 or step + 1 == steps:
                found = objective.measure_choose(point.tensors()).value
                if found < (before if best is None else best[0]):
                    best = found, point.values()
        return best

    def _lbfgs(
        self, objective: Objective, point: _Point
    ) -> tuple[float, dict[WeightKey, Tensor]] | None:
        """L-BFGS on the fit set and as many interpolations, in rounds; choose stops it."""
        problem, cost = objective.problem, objective.cost
        generator = problem.generator(f"repair {state_size(point)}")
        samples = len(problem.fit[0])
        drawn = int(samples * self.interpolate / max(1e-9, 1 - self.interpolate))
        inputs = list(problem.fit)
        if drawn:
            between = self._drawing.points(problem.fit, min(drawn, samples), generator)
            inputs = [torch.cat(pair) for pair in zip(inputs, between, strict=True)]
        wanted = objective.reference(inputs)
        evaluations = cost.steps(min(self.work, WHOLE_BATCH_WORK), len(inputs[0]))
        leaves = list(point.leaves.values())
        # Work in units of each tensor's size: one curvature estimate then fits all of them. Powers
        # of two, so that what does not move keeps its bits.
        scales = [2.0 ** round(log2(point.scale(key))) for key in point.leaves]
        unit = [
            (leaf / scale).detach().requires_grad_()
            for leaf, scale in zip(leaves, scales, strict=True)
        ]
        rounds = 6
        optimiser = torch.optim.LBFGS(
            unit,
            max_iter=max(5, evaluations // rounds),
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-12,
            tolerance_change=1e-14,
        )

        def laid() -> dict[WeightKey, Tensor]:
            scaled = zip(point.leaves, unit, scales, strict=True)
            return point.tensors({key: value * scale for key, value, scale in scaled})

        def closure() -> float:
            value = objective.push(laid, unit, inputs, wanted)
            point.pin(unit)
            return value

        best: tuple[float, dict[WeightKey, Tensor]] | None = None
        for _ in range(rounds):
            optimiser.step(closure)
            with torch.no_grad():
                for leaf, value, scale in zip(leaves, unit, scales, strict=True):
                    leaf.copy_(value * scale)
            found = objective.measure_choose(point.tensors()).value
            if best is not None and not found < best[0]:
                break
            best = found, point.values()
        return best


@dataclass(frozen=True, eq=False)
class _Point:
    """The tensors a repair moves, and where their entries are pinned to zero."""

    leaves: dict[WeightKey, Tensor]
    supports: dict[WeightKey, Tensor]
    masks: dict[WeightKey, Tensor]
    fixed: dict[WeightKey, Tensor]
    roundings: Mapping[WeightKey, Rounding]

    @classmethod
    def of(cls, state: State, problem: Problem, *, extras: bool) -> _Point:
        free = {key: state.weights[key] for key in sorted(state.free)}
        leaves = {
            key: torch.where(form.support, form.values.detach(), 0.0) for key, form in free.items()
        }
        if extras:
            leaves.update({k: v.detach().clone() for k, v in sorted(state.extras.items())})
        for leaf in leaves.values():
            leaf.requires_grad_()
        fixed = {key: value for key, value in state.tensors.items() if key not in leaves}
        supports = {key: form.support for key, form in free.items()}
        masks = {key: support.to(leaves[key].dtype) for key, support in supports.items()}
        return cls(leaves, supports, masks, fixed, roundings(state, problem))

    def tensors(self, given: dict[WeightKey, Tensor] | None = None) -> dict[WeightKey, Tensor]:
        """Everything to lay over the reference, as the file will hold it."""
        moved = given or self.leaves
        rounded = {
            key: through(value, self.roundings[key])
            for key, value in moved.items()
            if key in self.roundings
        }
        return {**self.fixed, **moved, **rounded}

    def pin(self, leaves: Sequence[Tensor]) -> None:
        """Keep the zeros still: no gradient off the supports, so that no step moves them.

        Cheaper than to mask the values before every pass.
        """
        for key, leaf in zip(self.leaves, leaves, strict=True):
            if key in self.masks and leaf.grad is not None:
                leaf.grad.mul_(self.masks[key])

    def move(self, values: Mapping[WeightKey, Tensor]) -> None:
        """Put the leaves where they stood."""
        with torch.no_grad():
            for key, leaf in self.leaves.items():
                leaf.copy_(values[key])

    def values(self) -> dict[WeightKey, Tensor]:
        """A copy of where the leaves stand."""
        return {key: leaf.detach().clone() for key, leaf in self.leaves.items()}

    def scale(self, key: WeightKey) -> float:
        """Root mean square of the entries that may move; 0.01 for a tensor of zeros."""
        leaf = self.leaves[key].detach()
        if key in self.supports:
            leaf = leaf[self.supports[key]]
        size = float(leaf.square().mean().sqrt()) if leaf.numel() else 0.0
        return size or 0.01

    def put(self, state: State, values: dict[WeightKey, Tensor]) -> State:
        """Give the state with these values."""
        weights = {
            key: Dense(torch.where(support, values[key], 0.0), support)
            for key, support in self.supports.items()
        }
        extras = {key: value for key, value in values.items() if key not in self.supports}
        return state.with_weights(weights).with_extras(extras)


def _adam_of(point: _Point, rate: float) -> tuple[torch.optim.Adam, list[float]]:
    """Give Adam for the leaves, with the first step of each as a share of its tensor's size."""
    sizes = [rate * point.scale(key) for key in point.leaves]
    groups = [
        {"params": [leaf], "lr": size}
        for leaf, size in zip(point.leaves.values(), sizes, strict=True)
    ]
    return torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True), sizes


def state_size(point: _Point) -> int:
    """Count the entries that may move, to give each repair of a run its own random stream."""
    return sum(int(support.sum()) for support in point.supports.values())
