"""Repair: with the support fixed, the remaining weights move to bring d down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import cos, inf, isfinite, log2, pi
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from onnxpress.drawing import Drawing, are_pictures
from onnxpress.gains import regained
from onnxpress.movable import Movable
from onnxpress.storage import has_grid
from onnxpress.task import Goal, GoalName, goal_of

if TYPE_CHECKING:
    from onnxpress.objective import Objective
    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress_adapters.weights import WeightKey

STEPS_AT_LEAST, STEPS_PER_ENTRY = 1000, 10
"""Adam steps after which a network of so few entries has long arrived: what is left of the work of
a repair is not done."""

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

WHOLE_BATCH_SHARE = 0.15
"""Share of the work of ``auto`` that is for L-BFGS: it was better in 4 of 90 runs over the zoo."""

FIRST_LOOK = 16
"""An Adam run first looks at the choose set after one part in so many of its steps."""

SHOCK, CALMER, MOST_FALLS = 1.5, 3.0, 3
"""Where d is then more than so many times what it was, or halfway still no less, it begins anew
with steps so many times shorter; so many times at most."""

MANY_STEPS = 800
"""Adam steps from which on ``rate`` holds; fewer steps are shorter."""

POWERS = (0.5, 1.0, 2.0)
"""How much shorter, as powers of the share of those steps that there are: each is tried."""

TRIAL = 12
"""What part of the steps each of them is tried for."""

FAR = 0.25
"""d from which on, behind signs and rounding, the lengths of layers are tried before anything
descends. A network with gradients of its own finds them by those: where they were tried all the
same, three networks at 90 % zeros came out 6, 7 and 13 % further."""

REGAINING = 0.1
"""Share of the work that goes into that, at most."""

WORTH = 0.9
"""Share of d on the choose set that they have to leave at most: less is not worth another way."""

STRANGERS, FEWEST_STRANGERS = 64, 16
"""Moved pictures on which d is measured before a repair learns from them; the fewer where its work
pays for less than ``FEWEST_STEPS`` steps on as many."""

STRANGE_NOTE = "moved as pictures, inputs are others than those that matter, and are not moved"

STRANGE = 30.0
"""Where d on them is so many times d on inputs, they are not inputs that matter: it was at most 7
times for pictures, and 9,000 times for windows of sensor readings, whose shape is the same."""


@dataclass(frozen=True)
class Repair:
    """Minimise d over the entries of the supports, biases and norms.

    Labels are free: the original network gives the target of any input, so batches are made of
    random interpolations between pairs of given inputs. Where d is large and gradients are those of
    surrogates, the length of each layer's weight is tried first (``gains``). The point that was
    best on the choose set is kept, so a repair never makes things worse there. The loss of a task
    needs ``--labels``, and learns from their samples alone.

    Attributes:
        method: ``lbfgs`` on the whole fit set, ``adam`` on batches; ``auto`` runs Adam, and, where
            a pass over the fit set is cheap, L-BFGS for a small part of the work; it keeps the
            better on the choose set.
        work: units of work (about seconds of one core) at effort 1.
        rate: Adam's first step, as a share of each tensor's root mean square; falls to zero along
            a cosine.
        batch: samples per Adam step, at most.
        interpolate: share of each batch that lies between two inputs, 0 to 1. On the inputs
            themselves a few hundred steps fit d ten times closer than it holds on others; between
            them there are as many as one likes, but none at the edges of what is possible.
        move: share of those that are shifted and mirrored, 0 to 1, where inputs are pictures. With
            crops of six photographs to learn from, d on other photographs fell by a fifth. Tables
            of the shape of pictures are told from them by d, and are not moved.
        paste: share of those that have a part of another picture in them, likewise.
        extras: whether biases and norms move too.
        objective: what is minimised: the ``distance``, or the loss of a task.
        enough: share of the tolerance below which d is left as it is, 0 to 1; for candidates of
            which nobody asks more than to be within it.

    Source:
        seeds/sparsification_mathematics.md, "The Algorithm", step 2: minimise the distance while
        keeping the sparsity gained. Kingma & Ba 2015 (Adam); Liu & Nocedal 1989 (L-BFGS).
    """

    method: Literal["auto", "adam", "lbfgs"] = "auto"
    work: float = 12.0
    rate: float = 0.01
    batch: int = 128
    interpolate: float = 0.8
    move: float = 0.75
    paste: float = 0.5
    extras: bool = True
    objective: GoalName = "distance"
    enough: float = 0.0

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Move the values; supports stay as they are."""
        goal = goal_of(problem, self.objective)
        if not (state.free or (self.extras and state.extras)):
            return state
        before = goal.on_choose(state.tensors)
        if self.objective == "distance" and before <= self._enough(problem):
            return state.noted(f"{self}: d = {before:.3g} on choose, there is nothing to mend")
        if self.objective == "distance":
            suited = self.suited(goal.objective, state)
            if suited is not self:
                return suited(state.noted(f"{self}: {STRANGE_NOTE}"), problem)
            if before > FAR and problem.network.needs_surrogates and not has_grid(state, problem):
                return self._regained(goal, state, before)
        return self._descended(goal, state, before, self.work)

    def _regained(self, goal: Goal, state: State, before: float) -> State:
        """Give each layer the length that is best, if d is lower then on the choose set as well."""
        point = Movable.of(state, goal.objective.problem, extras=False)
        values, spent = regained(goal, point, REGAINING * self.work)
        after = goal.on_choose(point.tensors(values))
        if after < WORTH * before:
            line = f"{self}: d {before:.3g} -> {after:.3g} on choose, by the lengths of layers"
            state, before = point.put(state, values).noted(line), after
        return self._descended(goal, state, before, self.work - spent)

    def _descended(self, goal: Goal, state: State, before: float, work: float) -> State:
        """Keep the better of both methods, or what there was."""
        problem = goal.objective.problem
        point = Movable.of(state, problem, extras=self.extras)
        cheap = self._is_cheap(goal) and not has_grid(state, problem)
        share = WHOLE_BATCH_SHARE if self.method == "auto" and cheap else 0.0
        found: list[tuple[float, dict[WeightKey, Tensor], str]] = []
        if self.method == "lbfgs" or (self.method == "auto" and cheap):
            best = self._lbfgs(goal, point, work * (1 if self.method == "lbfgs" else share))
            found += [] if best is None else [(*best, "L-BFGS")]
        if self.method == "adam" or self.method == "auto":
            fresh = Movable.of(state, problem, extras=self.extras)
            best = replace(self, work=work * (1 - share))._adam(goal, fresh, before)
            found += [] if best is None else [(*best, "Adam")]
        after, values, how = min(found, key=lambda one: one[0], default=(before, {}, ""))
        if not after < before:
            kept = f"{self._loss} = {before:.3g} on choose"
            return state.noted(f"{self}: kept {kept}, nothing was better")
        line = f"{self}: {self._loss} {before:.3g} -> {after:.3g} on choose, by {how}"
        return point.put(state, values).noted(line)

    def suited(self, objective: Objective, state: State) -> Repair:
        """Give the repair that moves no pictures where what has their shape is none.

        Args:
            objective: the problem's.
            state: to be repaired.
        """
        problem = objective.problem
        if not (self.interpolate and (self.move or self.paste)) or not are_pictures(problem.fit):
            return self
        dear = objective.cost.steps(self.work, STRANGERS) < FEWEST_STEPS
        count = min(FEWEST_STRANGERS if dear else STRANGERS, len(problem.choose[0]))
        drawn = self.drawing.points(problem.fit, count, problem.generator("strangers"))
        there = objective.measure(state.tensors, drawn).value
        if there <= STRANGE * objective.measure_choose(state.tensors, count).value:
            return self
        return replace(self, move=0.0, paste=0.0)

    def _enough(self, problem: Problem) -> float:
        """Give the d that needs no repair."""
        tolerance = problem.tolerance
        return 0.0 if tolerance is None or tolerance.absolute else self.enough * tolerance.value

    @property
    def _loss(self) -> str:
        return "d" if self.objective == "distance" else self.objective

    @property
    def drawing(self) -> Drawing:
        """What samples it learns from."""
        return Drawing(self.interpolate, self.move, self.paste)

    def _is_cheap(self, goal: Goal) -> bool:
        samples = len(goal.objective.problem.fit[0])
        return goal.objective.cost.steps(1.0, samples) > 1 / WHOLE_BATCH_SECONDS

    def _adam(
        self, goal: Goal, point: Movable, before: float
    ) -> tuple[float, dict[WeightKey, Tensor]] | None:
        """Adam with a cosine schedule on drawn batches; the best look at choose wins.

        Where a look finds d far above where it began, or halfway still above it, the steps are too
        long for what there is to mend, and it begins again with shorter ones.
        """
        problem, cost = goal.objective.problem, goal.objective.cost
        batch = min(self.batch, cost.batch, len(problem.fit[0]))
        batch = max(2, min(batch, cost.steps(self.work, 1) // FEWEST_STEPS))
        entries = sum(leaf.numel() for leaf in point.leaves.values())
        steps = min(cost.steps(self.work, batch), STEPS_AT_LEAST + STEPS_PER_ENTRY * entries)
        passes = cost.steps(LOOKING * self.work, len(problem.choose[0])) * 2
        take = partial(self._steps, goal, point, batch, problem.generator(f"repair {point.size}"))
        start = point.values()
        rate, tried = self._rate(goal, point, take, steps, passes)
        steps -= tried
        best: tuple[float, dict[WeightKey, Tensor]] | None = None
        looks = max(1, min(LOOKS, passes))
        early = steps // FIRST_LOOK if looks > 2 else 0
        for falls in range(MOST_FALLS + 1):
            point.move(start)
            for done in take(rate, steps):
                again = done % max(1, steps // looks) == 0 or done == steps
                if not (again or done == early):
                    continue
                found = goal.on_choose(point.tensors())
                if again and found < (before if best is None else best[0]):
                    best = found, point.values()
                if best is not None or falls == MOST_FALLS or done > steps / 2:
                    continue
                halfway = done / steps > 1 / 2 - 1 / looks
                if not found <= (before if halfway else SHOCK * before):
                    steps, rate = steps - done, rate / CALMER
                    break
            else:
                break
        return best

    def _rate(
        self,
        goal: Goal,
        point: Movable,
        take: Callable[[float, int], Iterator[int]],
        steps: int,
        passes: int,
    ) -> tuple[float, int]:
        """Choose the first step, and say how many steps that took.

        Few noisy steps must be short ones, or they undo more than they mend; how short depends on
        the network and on how much is broken. So a few short descents try.
        """
        share = min(1.0, steps / MANY_STEPS)
        count = steps // TRIAL
        if share == 1.0 or passes < 2 * len(POWERS) or not count:
            return self.rate * share, 0
        start, found = point.values(), {}
        for power in POWERS:
            rate = self.rate * share**power
            point.move(start)
            for _ in take(rate, count):
                pass
            after = goal.on_choose(point.tensors())
            found[rate] = after if isfinite(after) else inf
        return min(found, key=lambda rate: found[rate]), count * len(POWERS)

    def _steps(
        self,
        goal: Goal,
        point: Movable,
        batch: int,
        generator: torch.Generator,
        rate: float,
        count: int,
    ) -> Iterator[int]:
        """Take Adam's steps along a cosine, and give the number of each when it is done."""
        leaves = list(point.leaves.values())
        adam, first = _adam_of(point, rate)
        for step in range(count):
            for group, size in zip(adam.param_groups, first, strict=True):
                group["lr"] = size * 0.5 * (1 + cos(pi * step / count))
            inputs, wanted = goal.draw(batch, generator, self.drawing)
            goal.push(point.tensors, leaves, inputs, wanted)
            point.pin(leaves)
            adam.step()
            yield step + 1

    def _lbfgs(
        self, goal: Goal, point: Movable, work: float
    ) -> tuple[float, dict[WeightKey, Tensor]] | None:
        """L-BFGS on the fit set and as many interpolations, in rounds; choose stops it."""
        problem, cost = goal.objective.problem, goal.objective.cost
        generator = problem.generator(f"repair {point.size}")
        samples = len(problem.fit[0])
        drawn = int(samples * self.interpolate / max(1e-9, 1 - self.interpolate))
        inputs, wanted = goal.part()
        if drawn and goal.name == "distance":
            between = self.drawing.points(problem.fit, min(drawn, samples), generator)
            inputs = [torch.cat(pair) for pair in zip(inputs, between, strict=True)]
            wanted = goal.objective.reference(inputs)
        evaluations = cost.steps(min(work, WHOLE_BATCH_WORK), len(inputs[0]))
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
            value = goal.push(laid, unit, inputs, wanted)
            point.pin(unit)
            return value

        best: tuple[float, dict[WeightKey, Tensor]] | None = None
        for _ in range(rounds):
            optimiser.step(closure)
            with torch.no_grad():
                for leaf, value, scale in zip(leaves, unit, scales, strict=True):
                    leaf.copy_(value * scale)
            found = goal.on_choose(point.tensors())
            if best is not None and not found < best[0]:
                break
            best = found, point.values()
        return best


def _adam_of(point: Movable, rate: float) -> tuple[torch.optim.Adam, list[float]]:
    """Give Adam for the leaves, and the first step of each."""
    groups = point.groups(rate)
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    return adam, [group["lr"] for group in adam.param_groups]
