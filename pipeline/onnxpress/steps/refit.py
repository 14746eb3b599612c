"""Refit: layers in their order, each to answer what the original answers, given what reaches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onnxpress import obs
from onnxpress.cost import FORWARD_SHARE
from onnxpress.curvature import columns_met
from onnxpress.objective import Objective, objective_of
from onnxpress.support import cut
from onnxpress_adapters.layers import Layer
from onnxpress_adapters.weights import WeightKey

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

ROUNDS = 25
"""Iterations of conjugate gradients for one layer."""


@dataclass(frozen=True)
class Refit:
    """Least squares in every layer, with what pruned layers before it really send.

    Surgery lets a layer adapt as if its inputs were those of the original network. Behind other
    pruned layers they are not: here W' minimises ‖W X - W' X'‖² over its support, X being what
    reaches the layer in the original and X' what reaches it now, so that errors are mended where
    they pass and do not add up. Layers go in their order, some at a time; a group that makes d on
    the choose set larger stays as it was.

    Attributes:
        work: units of work (about seconds of one core) at effort 1 for the passes; they say how
            many layers go at a time.
        damping: share of the mean curvature that holds every weight where it is.

    Source:
        Least squares with asymmetric targets: Zhang, Zou, He & Sun 2016, "Accelerating very deep
        convolutional networks", section 3.2.
    """

    work: float = 8.0
    damping: float = 0.03

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Move the values of the layers that have a view; supports stay as they are."""
        objective = objective_of(problem)
        layers = [layer for layer in problem.network.layers if layer.key in state.free]
        if not layers:
            return state
        layers.sort(key=lambda layer: layer.sites[0])
        passes = objective.cost.steps(self.work, len(problem.fit[0])) / (2 * FORWARD_SHARE)
        size = -(-len(layers) // max(1, min(len(layers), int(passes))))
        before = best = objective.measure_choose(state.tensors).value
        kept = 0
        for start in range(0, len(layers), size):
            group = layers[start : start + size]
            candidate = self._moved(state, objective, group)
            found = objective.measure_choose(candidate.tensors).value
            if found < best:
                state, best = candidate, found
                kept += len(group)
        many = f"{kept} of {len(layers)} layers"
        return state.noted(f"{self}: d {before:.3g} -> {best:.3g} on choose, {many} moved")

    def _moved(self, state: State, objective: Objective, layers: Sequence[Layer]) -> State:
        found = moments(objective, state.tensors, layers)
        changed = {}
        for layer in layers:
            if layer.key not in found:
                continue  # no sample reaches it
            form = state.weights[layer.key]
            original = layer.matrix(objective.problem.reference[layer.key])
            current, support = layer.matrix(form.values), layer.matrix(form.support)
            gram, cross = found[layer.key]
            diagonal = gram.diagonal(dim1=1, dim2=2)
            hold = self.damping * diagonal.mean(1, keepdim=True) + 1e-12
            stiff = gram + torch.diag_embed(hold.expand_as(diagonal))
            residual = original @ cross - current @ gram
            fitted = obs.descended(current, residual, stiff, support, ROUNDS)
            changed[layer.key] = cut(layer.weight(fitted).contiguous(), form.support)
        return state.with_weights(changed)


def moments(
    objective: Objective, tensors: Mapping[WeightKey, Tensor], layers: Sequence[Layer]
) -> dict[WeightKey, tuple[Tensor, Tensor]]:
    """Average X' X'ᵀ and X X'ᵀ over the fit set, X of the original network and X' of another.

    Args:
        objective: says on which inputs.
        tensors: the other network, laid over the reference weights.
        layers: the layers to look at.

    Returns:
        Key to two tensors ``[groups, columns, columns]``; nothing for a layer no sample reaches.
    """
    sums: dict[WeightKey, tuple[Tensor, Tensor]] = {}
    counts: dict[WeightKey, int] = {}
    for layer, (was, now) in columns_met(objective, ({}, tensors), layers):
        gram, cross = now.transpose(1, 2) @ now, was.transpose(1, 2) @ now
        known = sums.get(layer.key)
        sums[layer.key] = (gram, cross) if known is None else (known[0] + gram, known[1] + cross)
        counts[layer.key] = counts.get(layer.key, 0) + now.shape[1]
    return {key: (a / counts[key], b / counts[key]) for key, (a, b) in sums.items()}
