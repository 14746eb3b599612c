"""What it costs and what it gains when a unit leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onnxpress.curvature import enough_draws, signed_gradients
from onnxpress.removal import first_hessians, layers_by_key
from onnxpress_adapters.axes import Role

if TYPE_CHECKING:
    from onnxpress.objective import Objective
    from onnxpress.state import State
    from onnxpress_adapters.groups import Group
    from onnxpress_adapters.weights import WeightKey

DRAWS = 48
"""Backward passes behind one estimate; a unit's is known to about a fifth then."""

DAMPING = 0.01
"""Share of a Hessian's mean diagonal added before it is inverted."""


def unit_rises(
    objective: Objective, state: State, groups: Sequence[Group], generator: torch.Generator
) -> list[Tensor]:
    """Predict what d gains when each unit leaves and nothing makes up for it.

    All that reads a unit is scaled by a gate; closing it moves the weights by -w, all of them at
    once: -Σw·g + E(Σw·∂F/∂w)² over what reads the unit. Entry by entry the second term would miss
    that what several readers lose may cancel or add up.

    Args:
        objective: d and its scales.
        state: where the network stands.
        groups: everything that reads their units is a weight of the state.
        generator: source of the signs.

    Returns:
        Per group ``[units]``, at least 0.
    """
    tensors = state.tensors
    readers = {m.key for group in groups for m in group.members if m.role & Role.READ}
    keys = sorted(readers & state.free)
    draws = enough_draws(objective, DRAWS)
    squares = [torch.zeros(group.units) for group in groups]
    for gradients in signed_gradients(objective, tensors, keys, draws, generator):
        moved = {key: tensors[key].detach() * gradients[key] for key in gradients}
        for total, group in zip(squares, groups, strict=True):
            total += group.sums(moved, Role.READ).cpu().square() / draws
    gradient = objective.gradient(tensors, keys)[1]
    linear = {key: tensors[key].detach() * gradient[key] for key in keys}
    return [
        (square - group.sums(linear, Role.READ).cpu()).clamp_min(0.0) + 1e-12 * square
        for square, group in zip(squares, groups, strict=True)
    ]


def recoverable(objective: Objective, state: State, groups: Sequence[Group]) -> list[Tensor]:
    """Say what share of a layer's loss stays when the other columns make up for a unit's.

    Of one column j it is 1 / (H_jj · [H⁻¹]_jj) of what it is without; of a unit the mean over the
    entries that read it, each counted by what it loses.

    Returns:
        Per group ``[units]``, 0 to 1; 1 where no layer that reads the unit has a Hessian.

    Source:
        Hassibi & Stork 1993, equation 5.
    """
    hessians, layers = first_hessians(objective, state), layers_by_key(objective)
    plain: dict[WeightKey, Tensor] = {}
    mended: dict[WeightKey, Tensor] = {}
    for key, hessian in hessians.items():
        diagonal = hessian.diagonal(dim1=1, dim2=2).double()
        damped = hessian.double() + torch.diag_embed(
            (DAMPING * diagonal.mean(1, keepdim=True)).clamp_min(1e-12).expand_as(diagonal)
        )
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        share = 1 / (damped.diagonal(dim1=1, dim2=2) * inverse.diagonal(dim1=1, dim2=2))
        layer = layers[key]
        losses = layer.matrix(state.weights[key].values).double().square() * diagonal[:, None]
        plain[key] = layer.entries(losses.float())
        mended[key] = layer.entries((losses * share[:, None]).float())
    found = []
    for group in groups:
        before = group.sums(plain, Role.READ).cpu()
        after = group.sums(mended, Role.READ).cpu()
        found.append(torch.where(before > 0, after / before.clamp_min(1e-30), 1.0).clamp(0.0, 1.0))
    return found


def runs_of(objective: Objective, state: State) -> dict[WeightKey, float]:
    """Count how often one sample multiplies by each entry of a weight, as far as that is known."""
    known = objective.problem.memo.get("runs")
    if isinstance(known, dict):
        return known
    problem = objective.problem
    layers = [layer for layer in problem.network.layers if layer.key in state.weights]
    sites = [
        (layer, site, node)
        for layer in layers
        for site, node in zip(layer.sites, layer.nodes, strict=True)
    ]
    sample = [value[:1] for value in problem.fit]
    with torch.no_grad():
        trace = problem.network.batching.run(
            problem.network, problem.reference, sample, [site for _, site, _ in sites]
        )
    counts: dict[WeightKey, float] = {}
    for (layer, _, node), calls in zip(sites, trace.watched, strict=True):
        runs = sum(layer.columns_of(value, None, node).shape[1] for value in calls)
        counts[layer.key] = counts.get(layer.key, 0.0) + runs
    problem.memo["runs"] = counts
    return counts
