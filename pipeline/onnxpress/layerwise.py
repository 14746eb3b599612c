"""Every layer's own curve: what it keeps at each level, and what that does to d.

For each free weight: an order in which entries leave (from the layer's Hessian), the values the
rest should take then, and d measured with only this weight pruned. Allocation adds these up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from onnxpress import admm, obs
from onnxpress.allocate import allocate
from onnxpress.cost import MACS_PER_UNIT, NODE_MACS
from onnxpress.curvature import gauss_newton, layer_hessians
from onnxpress.objective import Objective
from onnxpress.pattern import FREE, Pattern
from onnxpress.support import cut, keep_patterned
from onnxpress_adapters.layers import Layer
from onnxpress_adapters.weights import Dense, WeightKey

if TYPE_CHECKING:
    from onnxpress.state import State

DENSITIES = (
    1.0,
    0.85,
    0.7,
    0.55,
    0.42,
    0.32,
    0.24,
    0.18,
    0.13,
    0.09,
    0.06,
    0.04,
    0.025,
    0.015,
    0.0,
)
"""The levels a layer can be given."""

SURGERY_UNITS = 12.0
"""Work spent on exact removal orders; wider layers beyond it get the one-shot order."""

MEASURE_UNITS = 8.0
"""Work spent on measuring d with one layer pruned."""

FEWEST_SAMPLES, FEWEST_LEVELS = 6, 3
"""Of such a measurement, however dear they are."""

HESSIAN_ENTRIES = 200_000_000
"""Entries of layer Hessians held at the same time."""

REFIT_ROUNDS = 25

FEWEST_ROUNDS = 3
"""Rounds of a refit worth having; a layer too wide for them leaves all of it to the repair."""

REFIT_UNITS = 100.0
"""Work spent on letting the rest of the rows adapt, over all layers, levels and candidates."""

ADMM_UNITS = 12.0
"""Work spent on alternating directions for the layers too wide for surgery."""

ADMM_ROUNDS = 12

CANDIDATES = 8
"""How many states of a layer a run asks for beside those that are measured; for planning."""


@dataclass(frozen=True, eq=False)
class Curve:
    """What one weight can give.

    Attributes:
        key: the weight.
        values: its values before, in the shape of the file.
        costs: what removing each entry costs its layer, same shape; larger is kept longer.
        layer: its matrix view, or None where it has none.
        hessian: ``[groups, columns, columns]`` of its inputs, or None.
        losses: d measured with only this weight at each of ``DENSITIES``.
        pattern: what may stay together.
        rounds: of ADMM, towards each count anew, beside the order of ``costs``; 0 for none.
        refits: rounds of conjugate gradients that let the rest of a row adapt; 0 for none.
    """

    key: WeightKey
    values: Tensor
    costs: Tensor
    layer: Layer | None
    hessian: Tensor | None
    losses: tuple[float, ...] = ()
    pattern: Pattern = FREE
    rounds: int = 0
    refits: int = REFIT_ROUNDS

    def at(self, count: int) -> Dense:
        """Keep the best ``count`` entries and let the rest of each row adapt."""
        support = self._kept(self.costs, count)
        whole = count == self.values.numel() and not self.pattern.most
        if self.layer is None or self.hessian is None or not self.refits or count == 0 or whole:
            return cut(self.values, support)
        fitted, error = self._refitted(self.layer, self.hessian, support)
        if self.rounds:
            found = self._alternated(self.layer, self.hessian, count)
            other, less = self._refitted(self.layer, self.hessian, found)
            if less < error:
                fitted, support = other, found
        return cut(self.layer.weight(fitted).contiguous(), support)

    def _kept(self, scores: Tensor, count: int) -> Tensor:
        """Mark the best entries the pattern allows, but for zeros of the original."""
        layers = {} if self.layer is None else {self.key: self.layer}
        kept = keep_patterned({self.key: scores}, count, self.pattern, layers)[self.key]
        return kept & (self.values != 0)

    def _refitted(self, layer: Layer, hessian: Tensor, support: Tensor) -> tuple[Tensor, float]:
        """Give the values that belong to a support, as a matrix, and what the layer then loses."""
        matrix, mask = layer.matrix(self.values), layer.matrix(support)
        fitted = obs.refit(matrix, hessian, mask, matrix, self.refits)
        error = obs.layer_error(fitted - matrix, hessian) if self.rounds else 0.0
        return fitted, error

    def _alternated(self, layer: Layer, hessian: Tensor, count: int) -> Tensor:
        """Choose a support by alternating directions."""

        def project(scores: Tensor, kept: int) -> Tensor:
            if self.pattern.is_free:  # a threshold does, and costs a tenth of a sort
                flat = scores.reshape(-1)
                return scores >= flat.kthvalue(max(1, flat.numel() - kept + 1)).values
            return layer.matrix(self._kept(layer.entries(scores), kept))

        matrix = layer.matrix(self.values)
        scores = admm.final_scores(matrix, hessian, count, project, self.rounds)
        return self._kept(layer.entries(scores).contiguous(), count)

    def capacity(self) -> int:
        """Count the entries that can stay at most."""
        if self.layer is None:
            return self.values.numel()
        return self.pattern.capacity(self.layer.groups, self.layer.rows, self.layer.columns)

    def counts(self) -> list[int]:
        """Entries kept at each of ``DENSITIES``; no more than the pattern allows."""
        most = self.capacity()
        return [min(most, round(density * self.values.numel())) for density in DENSITIES]


def hessians_of(
    objective: Objective, keys: frozenset[WeightKey], tensors: Mapping[WeightKey, Tensor]
) -> dict[WeightKey, Tensor]:
    """Average X Xᵀ for the viewed layers among ``keys``, some layers at a time."""
    layers = [layer for layer in objective.problem.network.layers if layer.key in keys]
    found: dict[WeightKey, Tensor] = {}
    group: list[Layer] = []
    size = 0
    for layer in layers:
        entries = layer.groups * layer.columns**2
        if group and size + entries > HESSIAN_ENTRIES:
            found.update(layer_hessians(objective, tensors, group))
            group, size = [], 0
        group.append(layer)
        size += entries
    if group:
        found.update(layer_hessians(objective, tensors, group))
    return found


def curves_of(objective: Objective, state: State, pattern: Pattern = FREE) -> list[Curve]:
    """Trace every free weight of a state that is not pruned yet; computed once per problem.

    Args:
        objective: the problem's.
        state: with the free weights as the reference has them. Nothing else of it counts: the
            curves are those of the reference network, whatever a search did to other weights.
        pattern: what may stay together in each weight.
    """
    name = ("curves", state.free, pattern)
    known = objective.problem.memo.get(name)
    if isinstance(known, list):
        return known
    tensors = objective.problem.reference
    layers = {layer.key: layer for layer in objective.problem.network.layers}
    hessians = hessians_of(objective, state.free, {})
    unseen = sorted(key for key in state.free if key not in hessians)
    diagonals = (
        gauss_newton(objective, tensors, unseen, 8, objective.problem.generator("unseen"))
        if unseen
        else {}
    )
    viewed = [layers[key] for key in hessians]
    exact = _affordable(viewed, objective.cost.effort, pattern)
    wide = [layer for layer in viewed if layer.key not in exact]
    refits = _refits(viewed, objective.cost.effort)
    alternating = _alternating(wide, objective.cost.effort) if refits else set()
    curves = []
    for key in sorted(state.free):
        values = tensors[key]
        if key in hessians:
            layer, gram = layers[key], hessians[key]
            scores = _costs(layer.matrix(values), gram, pattern, in_order=key in exact)
            costs = layer.entries(scores).contiguous()
            rounds = ADMM_ROUNDS if key in alternating else 0
            curves.append(Curve(key, values, costs, layer, gram, (), pattern, rounds, refits))
        else:
            costs = values.square() * diagonals[key]
            curves.append(Curve(key, values, costs, None, None, (), pattern))
    measured = [_measured(objective, curve, len(curves)) for curve in curves]
    objective.problem.memo[name] = measured
    return measured


def _costs(matrix: Tensor, hessian: Tensor, pattern: Pattern, *, in_order: bool) -> Tensor:
    """Score the entries of a layer: by surgery in order, or all at once."""
    if pattern.is_blocked:
        return obs.block_costs(matrix, hessian, pattern, in_order=in_order)
    if in_order:
        return obs.removal_costs(matrix, hessian, pattern)
    return obs.one_shot_costs(matrix, hessian)


def _affordable(layers: Sequence[Layer], effort: float, pattern: Pattern) -> set[WeightKey]:
    """Pick the layers to operate on exactly: the cheapest first, within the work allowed."""
    # The rows of a block share one inverse.
    price = {x.key: x.groups * -(-x.rows // pattern.rows) * x.columns**3 / 3 for x in layers}
    return _cheapest(price, effort * SURGERY_UNITS * MACS_PER_UNIT)


def _alternating(layers: Sequence[Layer], effort: float) -> set[WeightKey]:
    """Pick the layers to press by alternating directions too, likewise."""
    calls = len(DENSITIES) + CANDIDATES
    price = {x.key: calls * admm.work(x.groups, x.rows, x.columns, ADMM_ROUNDS) for x in layers}
    return _cheapest(price, effort * ADMM_UNITS * MACS_PER_UNIT)


def _refits(layers: Sequence[Layer], effort: float) -> int:
    """Say how many rounds of a refit can be afforded, the same for all layers."""
    calls = len(DENSITIES) + CANDIDATES
    price = calls * sum(layer.groups * layer.rows * layer.columns**2 for layer in layers)
    rounds = int(effort * REFIT_UNITS * MACS_PER_UNIT / max(1, price))
    return min(REFIT_ROUNDS, rounds) if rounds >= FEWEST_ROUNDS else 0


def _cheapest(price: Mapping[WeightKey, float], budget: float) -> set[WeightKey]:
    chosen: set[WeightKey] = set()
    for key in sorted(price, key=lambda key: (price[key], key)):
        budget -= price[key]
        if budget < 0:
            break
        chosen.add(key)
    return chosen


def _measured(objective: Objective, curve: Curve, curves: int) -> Curve:
    """Measure d with one weight at some levels and interpolate the others."""
    problem, cost = objective.problem, objective.cost
    levels = len(DENSITIES) - 1
    forwards = cost.effort * MEASURE_UNITS * MACS_PER_UNIT / curves
    each = cost.macs + NODE_MACS * cost.nodes / 3 / 32
    samples = max(FEWEST_SAMPLES, min(256, len(problem.choose[0]), int(forwards / levels / each)))
    picked = max(FEWEST_LEVELS, min(levels, int(forwards / (samples * each))))
    places = sorted({round(x) for x in np.linspace(1, levels, picked)})
    counts = curve.counts()
    whole = counts[0] == curve.values.numel()
    if not whole:  # the pattern takes its share even of the densest level
        places = [0, *places]
    seen = [0.0] if whole else []
    for place in places:
        tensors = {curve.key: curve.at(counts[place]).values}
        value = objective.measure_choose(tensors, samples).value
        seen.append(value if np.isfinite(value) else 1e30)
    # In log d against the level: curves are close to straight there.
    logs = np.log(np.maximum(np.maximum.accumulate(seen), 1e-12))
    losses = np.exp(np.interp(range(levels + 1), [0, *places] if whole else places, logs))
    if whole:
        losses[0] = 0.0
    return replace(curve, losses=tuple(losses.tolist()))


def allocated(curves: Sequence[Curve], count: int) -> dict[WeightKey, int]:
    """Choose how many entries each weight keeps, ``count`` over all of them, exactly.

    Where patterns allow fewer than ``count``, all keep what they can.
    """
    sizes = [curve.counts() for curve in curves]
    levels = allocate([curve.losses for curve in curves], sizes, count)
    kept = [sizes[place][level] for place, level in enumerate(levels)]
    whole = [curve.capacity() for curve in curves]
    count = min(count, sum(whole))
    spare = count - sum(kept)
    # What rounding to levels left over goes to the layers in proportion to what they lost.
    lost = sum(whole) - sum(kept)
    if spare > 0 and lost > 0:
        kept = [k + int(spare * (w - k) / lost) for k, w in zip(kept, whole, strict=True)]
        for place in sorted(range(len(kept)), key=lambda i: kept[i] - whole[i]):
            more = min(count - sum(kept), whole[place] - kept[place])
            kept[place] += more
    return {curve.key: k for curve, k in zip(curves, kept, strict=True)}
