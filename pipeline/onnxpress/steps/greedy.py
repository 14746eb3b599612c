"""Greedy functional distance: always to the nearest sparser network, as far as that can be seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from onnxpress.curvature import gauss_newton
from onnxpress.layerwise import allocated, curves_of
from onnxpress.nearest import Rounds
from onnxpress.objective import Objective, objective_of
from onnxpress.pattern import FREE, Pattern
from onnxpress.removal import layers_by_key, without
from onnxpress.step import checked, target_count
from onnxpress.steps.repair import Repair
from onnxpress.storage import stored
from onnxpress.support import keep_patterned, touched, unpatterned
from onnxpress_adapters.errors import MisuseError, StepError
from onnxpress_adapters.layers import Layer
from onnxpress_adapters.weights import Dense, WeightKey

if TYPE_CHECKING:
    from onnxpress.cost import Cost
    from onnxpress.problem import Problem
    from onnxpress.state import State

DRAWS = 24
"""Backward passes behind one diagonal of the Gauss-Newton matrix."""

DAMPING = 0.1
"""First share of a weight's mean curvature added to each of its curvatures."""

PROMISED = 0.5
"""Share that counts of what a gradient promises: a repair has much of it without the removal. With
half of it d was 3 to 4 % less after the last repair, on two image classifiers at 80 and 90 %, and
the same on a perceptron."""

STIFFER = 8.0
"""How much larger that share is each time a block is taken back."""

LEAST_BLOCK = 0.02
"""Share of the remaining entries below which a block is not halved further."""

LARGEST_BLOCK = 0.3
GROWTH = 1.5

SLACK, LOOSER = 0.02, 4.0
"""What d may rise by beyond the prediction, were all entries removed in blocks at this rate, and
how many times the d there is. Far on, small blocks took twice the time and came out no nearer."""

LARGEST_BITE = 0.5
"""Share of its remaining entries one weight may lose in one block."""

BLOCK_UNITS = 6.0
"""Work that one look at all points may take while a block is chosen; where it would be more, there
are fewer points."""

FEWEST_POINTS = 16
"""Inputs a block is measured on at least, and as many points between them."""


@dataclass(frozen=True)
class Greedy:
    """Remove what d misses least, and let the rest adapt.

    Two phases. *Layer by layer*, from a network that is not pruned yet: optimal brain surgery gives
    every layer an order of removal and the values that remain, d is measured for each layer at
    each level, and dynamic programming shares the budget out. *In blocks*, from a network that is
    already pruned or when the budget lies beyond ``layerwise``: entries with the smallest predicted
    increase of d, -w·g/2 + w²·h with the gradient g of d and its Gauss-Newton diagonal h, leave
    together; the layers adapt, where that is nearer; and the increase is measured. Half of the
    points for it lie between the inputs, as ``between`` draws them: on what a repair has learned by
    heart, nothing seems to matter. Where the increase is far above the prediction the block is
    taken back and halved (a trust region), where it is as predicted the next one is larger; where
    no prediction holds, the layers' own order is tried as well and the better block stays. With
    ``spare`` the last entries leave after a repair: what a network that has adapted can do without
    is no longer what surgery on the original would have named.

    With the score ``exact`` it is the greedy of the source to the letter: the true distance of
    every neighbour (one more zero) is measured, the closest one is taken, what stays is
    re-optimised, and so on until the sparsity. It is what the other ways are judged by, and takes
    a round for each entry that leaves: for thousands of weights, not for millions.

    Attributes:
        sparsity: share of zeros over the free weights, 0 to 1; None for a search to find.
        layerwise: sparsity up to which the first phase goes.
        block: share of the remaining entries that leave in one block, to begin with.
        trust: a block is taken back when d rises by more than so many times the prediction.
        between: the repair after each block.
        spare: entries, as a share of those that are to stay, that leave only after ``rehearsal``.
        rehearsal: the repair of the network that still has them.
        pattern: what may stay together: ``none``, ``2:4``, ``block:4x8``,
            ``rows:32``, ``even:32`` (``Pattern.parse``).
        score: ``predicted``, as above, or ``exact``; ``layerwise``, ``block``, ``trust`` and
            ``spare`` are for the first.
        per_round: with the score ``exact``, how many of the closest neighbours leave at once. More
            than one is quicker by so much, and no longer the source's algorithm: together they may
            cost more than one by one.
        hours: of one core that the score ``exact`` may take, by count.

    Source:
        seeds/sparsification_mathematics.md, "The Algorithm": the closest neighbour, a constrained
        optimisation, repeat. LeCun, Denker, Solla 1989 for the
        score, with the linear term they drop: FACTS section 4 says why it must stay.
    """

    sparsity: float | None = None
    layerwise: float = 1.0
    block: float = 0.15
    trust: float = 3.0
    between: Repair = field(default_factory=lambda: Repair(work=2.0))
    spare: float = 0.0
    rehearsal: Repair = field(default_factory=lambda: Repair(work=8.0))
    pattern: str = "none"
    score: Literal["predicted", "exact"] = "predicted"
    per_round: int = 1
    hours: float = 4.0

    def __post_init__(self) -> None:
        """Refuse a pattern that is none, and one that single entries cannot keep to."""
        if not Pattern.parse(self.pattern).is_free and self.score == "exact":
            raise MisuseError(
                f"the exact score looks at single entries, which do not keep to '{self.pattern}'; "
                "leave out the pattern or the score"
            )
        if not 0 <= self.spare < inf:
            raise MisuseError(f"spare is a share of what stays, 0 or more, not {self.spare:g}")
        if self.per_round < 1:
            raise MisuseError(f"a round takes one entry or more, not {self.per_round}")

    @property
    def is_surgery(self) -> bool:
        """Whether it goes layer by layer all the way, and repairs nothing."""
        return self.score == "predicted" and self.layerwise >= 1 and not self.spare

    def at(self, sparsity: float) -> Greedy:
        """Give the same step with its sparsity fixed."""
        return replace(self, sparsity=sparsity)

    def following(self, pattern: str) -> Greedy:
        """Give the same step with its pattern set."""
        return replace(self, pattern=pattern)

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Prune to the sparsity; entries already pruned stay pruned."""
        if self.sparsity is None:
            raise StepError(f"{self} has no sparsity: give it one, or put it in a search")
        objective = objective_of(problem)
        goal = target_count(state, self.sparsity)
        if self.score == "exact":
            return Rounds(self.between, self.per_round, self.hours).walk(state, problem, goal)
        note = unpatterned(state.free, Pattern.parse(self.pattern), layers_by_key(objective))
        state = state.noted(note) if note else state
        spared = int(goal * (1 + self.spare))
        if not goal < spared < state.kept:
            return self._to(state, objective, goal)
        state = checked(self.rehearsal, self._to(state, objective, spared), problem)
        return self._to(state, objective, goal)

    def _to(self, state: State, objective: Objective, goal: int) -> State:
        """Remove entries until so many are left."""
        if is_untouched(state, objective.problem):
            first = max(goal, target_count(state, min(self.layerwise, 1.0)))
            state = self._layer_by_layer(state, objective, first)
        elif excess := self._excess(state, objective):
            state = checked(self.between, without(state, objective, excess), objective.problem)
        share = self.block
        while state.kept > goal:
            state, share = self._block(state, objective, goal, share)
        return state

    def _drawn(self, state: State, objective: Objective) -> Objective:
        """Give the objective on some inputs and as many points between inputs."""
        problem, drawing = objective.problem, self.between.suited(objective, state).drawing
        if not drawing.interpolate:
            return objective
        known = problem.memo.get(drawing)
        if isinstance(known, Objective):
            return known
        count = points_of(objective.cost, len(problem.fit[0]))
        between = drawing.points(problem.fit, count, problem.generator("between"))
        fit = [
            torch.cat((own[:count], more)) for own, more in zip(problem.fit, between, strict=True)
        ]
        targets = None if objective.targets is None else tuple(objective.reference(fit))
        problem.memo[drawing] = drawn = objective.on(fit, targets)
        return drawn

    def _layer_by_layer(self, state: State, objective: Objective, count: int) -> State:
        """Surgery in every layer, at the levels the allocation chose."""
        curves = curves_of(objective, state, Pattern.parse(self.pattern))
        shares = allocated(curves, count)
        changed = {curve.key: curve.at(shares[curve.key]) for curve in curves}
        after = stored(state.with_weights(changed), state, objective.problem)
        return after.noted(f"layer by layer to {count} entries")

    def _excess(self, state: State, objective: Objective) -> dict[WeightKey, Tensor]:
        """Mark what has to go at once, for the pattern's sake, from a network pruned otherwise."""
        pattern = Pattern.parse(self.pattern)
        if not pattern.most:  # blocks that are not whole cost less to finish than to keep
            return {}
        free = sorted(state.free)
        layers = layers_by_key(objective)
        gradient = objective.gradient(state.tensors, free)[1]
        generator = objective.problem.generator("excess")
        curvature = gauss_newton(objective, state.tensors, free, DRAWS, generator)
        taken = {}
        for key in free:
            form = state.weights[key]
            scores = _scores(form, gradient[key], curvature[key], DAMPING)
            scores = torch.where(form.support, scores, -1.0)
            kept = keep_patterned({key: scores}, scores.numel(), pattern, layers)[key]
            taken[key] = form.support & ~kept
        return {key: gone for key, gone in taken.items() if bool(gone.any())}

    def _block(
        self, state: State, objective: Objective, goal: int, share: float
    ) -> tuple[State, float]:
        """Remove one block within the trust region, then repair.

        Args:
            state: pruned or not.
            objective: the problem's.
            goal: entries to keep in the end.
            share: of the remaining entries to remove.

        Returns:
            The state, and the share for the next block.
        """
        free, drawn = sorted(state.free), self._drawn(state, objective)
        before, gradient = drawn.gradient(state.tensors, free)
        kept = state.kept
        generator = objective.problem.generator(f"block {kept}")
        curvature = gauss_newton(drawn, state.tensors, free, DRAWS, generator)
        pattern, layers = Pattern.parse(self.pattern), layers_by_key(objective)
        damping = DAMPING
        size = min(kept - goal, max(1, int(share * kept)))
        least = max(1, int(LEAST_BLOCK * kept))
        while True:
            scores = {
                key: _scores(state.weights[key], gradient[key], curvature[key], damping)
                for key in free
            }
            taken = _smallest(scores, state, size, _blocked(pattern), layers)
            predicted = max(0.0, sum(float(scores[k][gone].sum()) for k, gone in taken.items()))
            allowed = self.trust * predicted + (SLACK + LOOSER * before) * size / kept
            candidate, level = _nearer(state, objective, drawn, taken, before + allowed)
            rise = level - before
            if rise <= allowed or size <= least:
                break
            size, damping = max(least, size // 2), STIFFER * damping
        accepted = rise <= allowed
        larger = GROWTH * share if accepted and size >= int(share * kept) else size / kept
        note = f"block of {size}: d {before:.3g}, predicted +{predicted:.3g}, measured {rise:+.3g}"
        if not accepted:
            whole = min(kept - goal, max(1, int(share * kept)))
            gone = _by_surgery(state, objective, whole, pattern)
            other, level = _nearer(state, objective, drawn, gone, -inf)
            if (level - before) / whole < rise / size:
                candidate, larger = other, share
                note = f"{note}; by surgery a block of {whole}: measured {level - before:+.3g}"
        repaired = checked(self.between, candidate.noted(note), objective.problem)
        return repaired, min(LARGEST_BLOCK, max(larger, LEAST_BLOCK))


def _nearer(
    state: State,
    objective: Objective,
    drawn: Objective,
    taken: dict[WeightKey, Tensor],
    enough: float,
) -> tuple[State, float]:
    """Take entries out, and give what all outputs lose; layers adapt where it is enough or nearer.

    Layers adapt to what the original network sends them. The more a network has been repaired, the
    less that is what they get: then the removal alone is nearer.
    """
    found = []
    for adapt in (True, False):
        candidate = without(state, objective, taken, adapt=adapt)
        level = float(drawn.measure_fit(candidate.tensors).per_output.sum())
        found.append((level if isfinite(level) else inf, candidate))
        if level <= enough:
            break
    level, candidate = min(found, key=lambda one: one[0])
    return candidate, level


def points_of(cost: Cost, given: int) -> int:
    """Say on how many of the given inputs a block is measured, and on as many between them."""
    paid = cost.steps(BLOCK_UNITS, cost.batch) * cost.batch // 2
    return min(given, max(FEWEST_POINTS, paid))


def _scores(form: Dense, gradient: Tensor, curvature: Tensor, damping: float) -> Tensor:
    """Predict what d gains from removing each entry, w²·(h + λ) less ``PROMISED`` of w·g.

    Off the support it is infinite. λ is ``damping`` times the mean curvature of the weight. Where
    outputs saturate, h is blind to what a removal as large as w does, and g promises gains that end
    long before w is zero: both call for large entries to leave last. What d does not depend on at
    all is free to leave at any size; and where d is not finite, so that its derivatives say
    nothing, size alone decides.
    """
    share = damping * curvature[form.support].mean() if bool(form.support.any()) else 0.0
    seen = (curvature != 0) | (gradient != 0)
    score = form.values * (form.values * (curvature + share * seen) - PROMISED * gradient)
    score = torch.where(score.isfinite(), score, form.values.square())
    return torch.where(form.support, score.clamp_min(0.0) + 1e-12 * form.values.square(), torch.inf)


def _blocked(pattern: Pattern) -> Pattern:
    """Give the pattern removals must follow: n:m holds whatever leaves, blocks leave whole."""
    return pattern if pattern.is_blocked else FREE


def _smallest(
    scores: dict[WeightKey, Tensor],
    state: State,
    size: int,
    pattern: Pattern,
    layers: dict[WeightKey, Layer],
) -> dict[WeightKey, Tensor]:
    """Mark the ``size`` smallest scores, at most ``LARGEST_BITE`` of each weight's support."""
    limited = {}
    for key, score in scores.items():
        support = state.weights[key].support
        whole = touched(support, pattern, layers.get(key))
        score = torch.where(whole & ~support, 0.0, score)
        bite = max(1, int(LARGEST_BITE * int(support.sum())))
        least = score.numel() - min(bite, score.numel())
        spared = keep_patterned({key: score}, least, pattern, layers)[key]
        limited[key] = torch.where(spared, torch.inf, score)
    available = sum(int(torch.isfinite(score).sum()) for score in limited.values())
    size = min(size, available)
    total = sum(score.numel() for score in limited.values())
    kept = keep_patterned(limited, total - size, pattern, layers)
    gone = {key: ~mask & state.weights[key].support for key, mask in kept.items()}
    return {key: mask for key, mask in gone.items() if bool(mask.any())}


def _by_surgery(
    state: State, objective: Objective, size: int, pattern: Pattern
) -> dict[WeightKey, Tensor]:
    """Mark ``size`` entries of the support by the layers' own order and the allocation.

    Where outputs saturate the Gauss-Newton diagonal is nearly zero and its order says little; what
    a layer's outputs lose is then the better guide.
    """
    reference = objective.problem.reference
    dense = {key: Dense(reference[key], reference[key] != 0) for key in state.free}
    curves = curves_of(objective, state.with_weights(dense), pattern)
    layers, blocked = layers_by_key(objective), _blocked(pattern)
    shares = allocated(curves, state.kept - size)
    held = {key: state.weights[key].nonzeros for key in shares}
    left = {key: min(held[key], share) for key, share in shares.items()}
    for key in sorted(left, key=lambda key: left[key] - held[key]):
        missing = state.kept - size - sum(left.values())
        left[key] += max(0, min(held[key] - left[key], missing))
    taken = {}
    for curve in curves:
        support = state.weights[curve.key].support
        whole = touched(support, blocked, layers.get(curve.key))
        costs = torch.where(support, curve.costs, torch.where(whole, 0.0, -1.0))
        kept = keep_patterned({curve.key: costs}, left[curve.key], blocked, layers)[curve.key]
        taken[curve.key] = support & ~kept
    return taken


def is_untouched(state: State, problem: Problem) -> bool:
    """Say whether every free weight still is what it was in the original."""
    return all(
        state.weights[key].values is problem.reference[key]
        or bool((state.weights[key].values == problem.reference[key]).all())
        for key in state.free
    )
