"""Every layer's own curve: what it keeps at each level, and what that does to d.

For each free weight: an order in which entries leave (from the layer's Hessian), the values the
rest should take then, and d measured with only this weight pruned. Allocation adds these up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from onnxpress import obs
from onnxpress.allocate import allocate
from onnxpress.cost import MACS_PER_UNIT, NODE_MACS
from onnxpress.curvature import gauss_newton, layer_hessians
from onnxpress.objective import Objective
from onnxpress.support import cut, keep_largest
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

HESSIAN_ENTRIES = 200_000_000
"""Entries of layer Hessians held at the same time."""

REFIT_ROUNDS = 25


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
    """

    key: WeightKey
    values: Tensor
    costs: Tensor
    layer: Layer | None
    hessian: Tensor | None
    losses: tuple[float, ...] = ()

    def at(self, count: int) -> Dense:
        """Keep the best ``count`` entries and let the rest of each row adapt."""
        support = keep_largest(self.costs, count) & (self.values != 0)
        if self.layer is None or self.hessian is None or count in (0, self.values.numel()):
            return cut(self.values, support)
        matrix, mask = self.layer.matrix(self.values), self.layer.matrix(support)
        fitted = obs.refit(matrix, self.hessian, mask, matrix, REFIT_ROUNDS)
        return cut(self.layer.weight(fitted).contiguous(), support)

    def counts(self) -> list[int]:
        """Entries kept at each of ``DENSITIES``."""
        return [round(density * self.values.numel()) for density in DENSITIES]


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


def curves_of(objective: Objective, state: State) -> list[Curve]:
    """Trace every free weight of a state that is not pruned yet; computed once per problem.

    Args:
        objective: the problem's.
        state: with the free weights as the reference has them. Nothing else of it counts: the
            curves are those of the reference network, whatever a search did to other weights.
    """
    known = objective.problem.memo.get(("curves", state.free))
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
    exact = _affordable([layers[key] for key in hessians], objective.cost.effort)
    curves = []
    for key in sorted(state.free):
        values = tensors[key]
        if key in hessians:
            layer, gram = layers[key], hessians[key]
            score = obs.removal_costs if key in exact else obs.one_shot_costs
            costs = layer.entries(score(layer.matrix(values), gram)).contiguous()
            curves.append(Curve(key, values, costs, layer, gram))
        else:
            curves.append(Curve(key, values, values.square() * diagonals[key], None, None))
    measured = [_measured(objective, curve, len(curves)) for curve in curves]
    objective.problem.memo[("curves", state.free)] = measured
    return measured


def _affordable(layers: Sequence[Layer], effort: float) -> set[WeightKey]:
    """Pick the layers to operate on exactly: the cheapest first, within the work allowed."""
    budget = effort * SURGERY_UNITS * MACS_PER_UNIT
    chosen: set[WeightKey] = set()
    price = {x.key: x.groups * x.rows * x.columns**3 / 3 for x in layers}
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
    samples = max(8, min(256, len(problem.choose[0]), int(forwards / levels / each)))
    picked = max(4, min(levels, int(forwards / (samples * each))))
    places = sorted({round(x) for x in np.linspace(1, levels, picked)})
    counts = curve.counts()
    seen = [0.0]
    for place in places:
        tensors = {curve.key: curve.at(counts[place]).values}
        value = objective.measure_choose(tensors, samples).value
        seen.append(value if np.isfinite(value) else 1e30)
    # In log d against the level: curves are close to straight there.
    logs = np.log(np.maximum(np.maximum.accumulate(seen), 1e-12))
    losses = np.exp(np.interp(range(levels + 1), [0, *places], logs))
    losses[0] = 0.0
    return Curve(
        curve.key, curve.values, curve.costs, curve.layer, curve.hessian, tuple(losses.tolist())
    )


def allocated(curves: Sequence[Curve], count: int) -> dict[WeightKey, int]:
    """Choose how many entries each weight keeps, ``count`` over all of them, exactly."""
    sizes = [curve.counts() for curve in curves]
    levels = allocate([curve.losses for curve in curves], sizes, count)
    kept = [sizes[place][level] for place, level in enumerate(levels)]
    whole = [curve.values.numel() for curve in curves]
    spare = count - sum(kept)
    # What rounding to levels left over goes to the layers in proportion to what they lost.
    lost = sum(whole) - sum(kept)
    if spare > 0 and lost > 0:
        kept = [k + int(spare * (w - k) / lost) for k, w in zip(kept, whole, strict=True)]
        for place in sorted(range(len(kept)), key=lambda i: kept[i] - whole[i]):
            more = min(count - sum(kept), whole[place] - kept[place])
            kept[place] += more
    return {curve.key: k for curve, k in zip(curves, kept, strict=True)}
