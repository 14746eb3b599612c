"""L0 by hard-concrete gates: a penalty closes gates, a loss keeps those open that it needs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import cos, pi
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from onnxpress.drawing import Drawing
from onnxpress.gated import Gated, UnitGates, WeightGates, noise_of
from onnxpress.gates import HardConcrete
from onnxpress.movable import Movable
from onnxpress.objective import objective_of
from onnxpress.steering import Feeler, Ramp, Steering
from onnxpress.step import target_count
from onnxpress.steps.repair import Repair
from onnxpress.steps.units import removable
from onnxpress.task import Goal, GoalName, goal_of
from onnxpress_adapters.errors import MisuseError, StepError

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress_adapters.weights import WeightKey

OPEN = 3.0
"""The location of a gate before training: 99 % of its samples are above 0, four in five are 1."""

SPREAD = 2.0
"""How much further open the gate of an entry begins that is e times as large as is usual."""

LEAST_SLOPE = 1e-16
"""Adam's epsilon for the gates: of 10⁷ gates each carries 10⁻⁷ of a penalty that may be 10⁻³."""

JITTER = 0.01
"""Standard deviation of the locations around ``OPEN`` where all gates begin alike; the paper's."""

GATE_MACS = 400.0
"""What sampling one gate and stepping it cost, in multiply-adds."""

FEWEST_STEPS = 150
"""Steps worth having: where a full batch allows fewer, the batch is cut instead."""

MANY_STEPS = 800
"""Steps from which on ``gate_rate`` holds; with fewer, gates move faster, ``LARGEST_RATE`` at most:
they have a way to go."""

LARGEST_RATE = 0.3

ABOVE = 1.02
"""By how much the share that is steered to lies above the one asked for: the gates that are closed
at the end cost less than gates that are opened again gain."""

PACE = 16.0
"""By how much the logarithm of the wanted share can fall in all steps, where a loss leads it."""

CLOSER = 0.98
"""Share of the L0 norm of what was kept until then, below which a point within the loss is kept."""

FIRST_WEIGHT = 1e-2
"""The penalty weight a controller begins with, for a loss about 1 where nothing is left."""

LOOKS = 8
"""How often the progress is told."""

MEMORY = 0.95
"""Share that stays of the mean loss from step to step, where the penalty follows the loss."""


@dataclass(frozen=True)
class L0:
    """Train gates and weights together, with a price on every entry whose gate may be open.

    Every entry is θ·z with a random gate z between 0 and 1. Minimised is the loss under sampled
    gates plus ``penalty`` times the expected share of entries that stay, which has a closed form;
    at the end the gates are deterministic, and where one is 0 the entry is exactly 0.

    Where the paper trains a fresh network for 10⁵ steps, this begins with a trained one and has a
    few hundred. So the gates of small entries begin nearer to closing (``start: even`` is the
    paper's way), the penalty weight finds itself where a sparsity is given, and what stays is
    repaired with the gates settled (``settle: {work: 0}`` leaves that out). A gate takes as much
    memory as a weight in a repair.

    Measured: with labels it loses nothing at 95 % zeros where few images were there to learn from
    (benchmarks/l0.md). On the distance alone, ``Greedy`` stays two to four times closer in as much
    time, and on a deep perceptron even magnitude with a long repair does (benchmarks/l0_zoo.md):
    which gates to close is learned from noise, and that takes steps.

    Attributes:
        sparsity: share of zeros over the free weights, 0 to 1, towards which the penalty is driven
            and which is met exactly; None for a search to find, or with one of the next two.
        penalty: λ, in units of the loss: what it costs to keep everything. Then the sparsity is
            what comes of it.
        within: the loss under sampled gates the penalty is driven to: as many gates close as that
            allows. For the distance a share of the output's variance, as in a relative tolerance.
        gates: on every ``weight``, or on every ``unit`` (channel, hidden unit, head: as ``Units``
            removes them), which leave the file whole.
        objective: the loss: the ``distance`` to the original, or that of a task with ``--labels``.
        l2: weight of the expected Σθ² of what stays, added to the loss.
        start: whether all gates begin alike (``even``), or by the ``magnitude`` of their weights.
        work: units of work (about seconds of one core) at effort 1 for the gates.
        rate: Adam's first step for weights, as a share of each tensor's root mean square.
        gate_rate: Adam's step for the locations of the gates.
        batch: samples per step, at most.
        interpolate: share of each batch between two inputs, 0 to 1; the distance alone.
        move: share of those that are shifted and mirrored, where inputs are pictures.
        extras: whether biases and norms move too.
        distribution: of the gates.
        settle: the repair afterwards; its objective is this step's.

    Source:
        Louizos, Welling & Kingma 2018, equations 9 to 13 and, for L2, appendix A;
        seeds/l0_regularization_notes.md, "Derivation of derivable l0 norm", steps 6 to 10, and "On
        to hard-concrete distributions".

    >>> L0(sparsity=0.9).is_bounded, L0(penalty=0.1).is_bounded
    (True, True)
    """

    sparsity: float | None = None
    penalty: float | None = None
    within: float | None = None
    gates: Literal["weight", "unit"] = "weight"
    objective: GoalName = "distance"
    l2: float = 0.0
    start: Literal["magnitude", "even"] = "magnitude"
    work: float = 20.0
    rate: float = 0.02
    gate_rate: float = 0.1
    batch: int = 128
    interpolate: float = 1.0
    move: float = 0.5
    extras: bool = True
    distribution: HardConcrete = field(default_factory=HardConcrete)
    settle: Repair = field(default_factory=lambda: Repair(method="adam", work=8.0, rate=0.02))

    def __post_init__(self) -> None:
        """Refuse several ends at once, and numbers that are none."""
        ends = {name: getattr(self, name) for name in ("sparsity", "penalty", "within")}
        given = [name for name, value in ends.items() if value is not None]
        if len(given) > 1:
            raise MisuseError(f"L0 is told by {' and by '.join(given)} how far to go; keep one")
        for name in ("penalty", "within"):
            if ends[name] is not None and not 0 < ends[name] < float("inf"):
                raise MisuseError(f"the {name} of L0 is a number above 0, not {ends[name]:g}")
        if not 0 <= self.l2 < float("inf"):
            raise MisuseError(f"the l2 of L0 is 0 or more, not {self.l2:g}")

    @property
    def is_bounded(self) -> bool:
        """Whether something says how far to go."""
        return any(value is not None for value in (self.sparsity, self.penalty, self.within))

    def at(self, sparsity: float) -> L0:
        """Give the same step with its sparsity fixed."""
        return replace(self, sparsity=sparsity)

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Train, settle the gates, and repair what stays.

        Raises:
            StepError: nothing says how far to go; or no units of the model can leave.
            SparsityError: with one unit left in every group there are still too few zeros.
        """
        if not self.is_bounded:
            raise StepError(
                f"{self} has no sparsity: give it one, a penalty or a loss to stay within, or put "
                "it in a search"
            )
        count = None if self.sparsity is None else target_count(state, self.sparsity)
        kept = state.kept
        if not kept or (count is not None and kept <= count):
            return state.noted(f"L0: {kept:,} entries are left, and no more have to leave")
        goal = goal_of(problem, self.objective)
        measure = objective_of(problem).measure_choose
        point = Movable.of(state, problem, extras=self.extras)
        gated = self._gated(state, problem, point)
        before, loss = measure(state.tensors).value, goal.on_choose(state.tensors)
        trained = self._train(problem, goal, point, gated, count)
        with torch.no_grad():
            expected = float(sum(chance.sum() for chance in gated.chances().values()))
            supports = gated.settle(count)
            values = {
                key: value.detach() for key, value in gated.through(point.leaves, None).items()
            }
        found = point.put(state, values, supports)
        after = measure(found.tensors).value
        found = found.noted(
            f"L0 by {goal.told}: {gated.told(supports)}, density {found.kept / kept:.4f} of what "
            f"there was, expected {expected / kept:.4f}; penalty weight {trained.weight:.3g}, loss "
            f"under sampled gates {trained.loss:.3g}, {trained.steps} steps; d {before:.3g} -> "
            f"{after:.3g} on choose"
        )
        if self.objective != "distance":
            settled = goal.on_choose(found.tensors)
            found = found.noted(f"L0: {self.objective} {loss:.3g} -> {settled:.3g} on choose")
        if self.within is not None and trained.loss > self.within:
            found = found.noted(
                f"L0: the loss under sampled gates never came within {self.within:g}; allow more, "
                "or give it more work"
            )
        if self.settle.work > 0:
            found = replace(self.settle, objective=self.objective)(found, problem)
        return found

    def _gated(self, state: State, problem: Problem, point: Movable) -> Gated:
        values = {key: point.leaves[key].detach() for key in point.supports}
        spread = SPREAD if self.start == "magnitude" else 0.0
        gated: Gated
        if self.gates == "unit":
            groups = removable(state, problem)
            gated = UnitGates(
                self.distribution, values, point.supports, groups, start=OPEN, spread=spread
            )
        else:
            gated = WeightGates(
                self.distribution, values, point.supports, start=OPEN, spread=spread
            )
        if self.start == "even":
            generator = problem.generator("l0 gates")
            for at in gated.locations:
                at += (JITTER * torch.randn(at.shape, generator=generator)).to(at)
        return gated

    def _train(
        self, problem: Problem, goal: Goal, point: Movable, gated: Gated, count: int | None
    ) -> _Trained:
        """Adam on drawn batches and sampled gates."""
        cost = goal.objective.cost
        beside = GATE_MACS * sum(at.numel() for at in gated.locations)
        batch = min(self.batch, cost.batch, len(problem.fit[0]))
        batch = max(2, min(batch, cost.steps(self.work, 1, beside) // FEWEST_STEPS))
        steps = cost.steps(self.work, batch, beside)
        hurried = min(LARGEST_RATE, self.gate_rate * MANY_STEPS / steps)
        gate_rate = max(self.gate_rate, hurried)
        generator = problem.generator(f"l0 {gated.entries}")
        drawing = Drawing(self.interpolate, self.move)
        leaves = list(point.leaves.values())
        for at in gated.locations:
            at.requires_grad_()
        adam = torch.optim.Adam(
            [
                *point.groups(self.rate),
                {"params": list(gated.locations), "lr": gate_rate, "eps": LEAST_SLOPE},
            ],
            betas=(0.9, 0.99),
            fused=True,
        )
        first = [group["lr"] for group in adam.param_groups[:-1]]
        steering = Steering(self.penalty or FIRST_WEIGHT, gate_rate)
        ramp = Ramp(ABOVE * (count or 0) / gated.entries)
        feeler = None if self.within is None else Feeler(self.within, PACE / steps)
        mean: float | None = None
        best: _Stand | None = None
        for step in range(steps):
            for group, size in zip(adam.param_groups[:-1], first, strict=True):
                group["lr"] = size * 0.5 * (1 + cos(pi * step / steps))
            inputs, answers = goal.draw(batch, generator, drawing)
            noise = noise_of(gated, generator)

            def laid(noise: list[Tensor] = noise) -> dict[WeightKey, Tensor]:
                return point.tensors(gated.through(point.leaves, noise))

            loss = goal.push(laid, [*leaves, *gated.locations], inputs, answers)
            mean = loss if mean is None else MEMORY * mean + (1 - MEMORY) * loss
            share = self._pushed(point, gated, steering.weight)
            if feeler is not None:
                if mean <= feeler.within and share < CLOSER * (1.0 if best is None else best.share):
                    best = _Stand.of(share, mean, steering.weight, point, gated)
                steering.towards(share, feeler.wanted(share, mean))
            elif self.penalty is None:
                steering.towards(share, ramp.wanted((step + 1) / steps))
            point.pin(leaves)
            adam.step()
            if step % max(1, steps // LOOKS) == 0:
                note = f"{share:.1%} of the L0 norm is left, penalty weight {steering.weight:.2g}"
                problem.progress("L0", step / steps, note)
        for at in gated.locations:
            at.requires_grad_(False)
        if best is None:
            return _Trained(steering.weight, mean or 0.0, steps)
        best.restore(point, gated)
        return _Trained(best.weight, best.loss, steps)

    def _pushed(self, point: Movable, gated: Gated, weight: float) -> float:
        """Add the gradient of the penalty, and of L2; give the expected share that stays."""
        chances = gated.chances()
        share = torch.stack([chance.sum() for chance in chances.values()]).sum() / gated.entries
        penalty = weight * share
        leaves = list(gated.locations)
        if self.l2:
            held = [point.leaves[key] for key in chances]
            for value, chance in zip(held, chances.values(), strict=True):
                penalty = penalty + self.l2 * (chance * value.square()).sum()
            leaves += held
        slopes = torch.autograd.grad(penalty, leaves)
        for leaf, slope in zip(leaves, slopes, strict=True):
            leaf.grad = slope if leaf.grad is None else leaf.grad.add_(slope)
        return float(share.detach())


@dataclass(frozen=True, eq=False)
class _Stand:
    """Where a training stood while its loss was within what is allowed."""

    share: float
    loss: float
    weight: float
    values: dict[WeightKey, Tensor]
    locations: list[Tensor]

    @classmethod
    def of(cls, share: float, loss: float, weight: float, point: Movable, gated: Gated) -> _Stand:
        """Copy where everything stands."""
        locations = [at.detach().clone() for at in gated.locations]
        return cls(share, loss, weight, point.values(), locations)

    def restore(self, point: Movable, gated: Gated) -> None:
        """Put everything back there."""
        point.move(self.values)
        for at, known in zip(gated.locations, self.locations, strict=True):
            at.copy_(known)


class _Trained(NamedTuple):
    """How a training ended."""

    weight: float
    loss: float
    steps: int
