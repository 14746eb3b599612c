"""Exact neighbours: what d really does when one kept weight is set to zero, for every one of them.

The greedy of the seed moves to the nearest neighbour. Faster scores predict it, with -w·g + w²·h;
this is the truth they are judged by, the whole network run for every weight. ``exact.py`` gives the
same and computes less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onnxpress.cost import ACTIVATION_BYTES
from onnxpress.objective import Objective
from onnxpress_adapters.weights import WeightKey


def rises(
    objective: Objective, tensors: Mapping[WeightKey, Tensor], keys: Sequence[WeightKey]
) -> dict[WeightKey, Tensor]:
    """Measure by how much d on the fit set rises at every neighbour of a network.

    With the residual R = F' - F and the change Δ one zero makes to F', the rise is
    E 2⟨R, Δ⟩ + ‖Δ‖²: summed as it stands, in float64, and not as the difference of two distances
    that are nearly the same.

    Args:
        objective: d and its scales; d is summed over the judged outputs, as steps minimise it.
        tensors: the network whose neighbours are wanted, laid over the reference.
        keys: the weights whose entries are set to zero, one at a time.

    Returns:
        Key to a float64 tensor of the weight's shape; exactly zero where the entry is zero already.

    Source:
        seeds/sparsification_mathematics.md, "Sparsity graph": a neighbour differs in one entry,
        which is zero there; "The Algorithm", step 1.
    """
    samples = len(objective.problem.fit[0])
    found = {key: tensors[key].new_zeros(tensors[key].shape, dtype=torch.float64) for key in keys}
    with torch.no_grad():
        for inputs, wanted in objective.batches():
            base = objective.outputs(tensors, inputs)
            residuals = [a.double() - b.double() for a, b in zip(base, wanted, strict=True)]
            for key, rise in found.items():
                for places in _chunks(objective, tensors[key], len(inputs[0])):
                    rise.view(-1)[places] += (
                        added(objective, tensors, key, places, inputs, base, residuals) / samples
                    )
    return found


def added(
    objective: Objective,
    tensors: Mapping[WeightKey, Tensor],
    key: WeightKey,
    places: Tensor,
    inputs: Sequence[Tensor],
    base: Sequence[Tensor],
    residuals: Sequence[Tensor],
) -> Tensor:
    """Sum 2⟨R, Δ⟩ + ‖Δ‖² over some samples and the judged outputs, for some neighbours.

    Args:
        objective: d and its scales.
        tensors: the network, laid over the reference.
        key: the weight whose entries are set to zero.
        places: which of them, int64, in the flat weight.
        inputs: one per graph input, ``[samples, *feed shape]``.
        base: what the network answers to them, by judged output.
        residuals: by how much that differs from the original.

    Returns:
        Float64, one number per place.
    """
    moved = _without_each(objective, tensors, key, places, inputs)
    total = torch.zeros(len(places), dtype=torch.float64, device=places.device)
    for there, here, residual, scale in zip(
        moved, base, residuals, objective.scales.tolist(), strict=True
    ):
        change = there.double() - here.double()
        total += (change * (change + 2 * residual)).flatten(1).sum(1) / scale
    return total


def exact_gauss_newton(
    objective: Objective, tensors: Mapping[WeightKey, Tensor], keys: Sequence[WeightKey]
) -> dict[WeightKey, Tensor]:
    """Give the diagonal of the Gauss-Newton matrix of d without chance, from whole Jacobians.

    One backward pass per sample and output entry: for small networks with few outputs. The
    estimate for all others is ``curvature.gauss_newton``.

    Args:
        objective: d and its scales.
        tensors: the weights to linearise at, laid over the reference.
        keys: the weights wanted.

    Returns:
        Key to a float64 tensor of the weight's shape, E sum_k ‖∂F_k/∂w_j‖² / s_k.

    Source:
        LeCun, Denker, Solla 1989, section 3, the levels they drop included.
    """
    fit = objective.problem.fit
    samples = len(fit[0])
    found = {key: tensors[key].new_zeros(tensors[key].shape, dtype=torch.float64) for key in keys}
    for sample in range(samples):
        leaves = {key: tensors[key].detach().requires_grad_() for key in keys}
        part = [value[sample : sample + 1] for value in fit]
        outputs = objective.outputs({**tensors, **leaves}, part)
        scaled = [
            value.flatten() / scale**0.5
            for value, scale in zip(outputs, objective.scales.tolist(), strict=True)
        ]
        joined = torch.cat(scaled)
        if not joined.requires_grad:  # none of the weights reaches a judged output
            break
        rows = torch.autograd.grad(
            joined,
            list(leaves.values()),
            torch.eye(len(joined)).to(joined),
            is_grads_batched=True,
            allow_unused=True,
        )
        for key, jacobian in zip(keys, rows, strict=True):
            if jacobian is not None:
                found[key] += jacobian.double().square().sum(0) / samples
    return found


def _chunks(objective: Objective, weight: Tensor, samples: int) -> list[Tensor]:
    """Split the nonzero places of a weight into runs that fit into memory side by side."""
    places = torch.nonzero(weight.reshape(-1)).reshape(-1)
    each = 4 * (objective.cost.elements * samples + weight.numel())
    return list(places.split(max(1, ACTIVATION_BYTES // each)))


def _without_each(
    objective: Objective,
    tensors: Mapping[WeightKey, Tensor],
    key: WeightKey,
    places: Tensor,
    inputs: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Give the outputs ``[places, samples, *shape]`` with one place of a weight zero in each."""

    def without(place: Tensor) -> tuple[Tensor, ...]:
        spared = torch.arange(weight.numel(), device=weight.device) != place
        zeroed = torch.where(spared.reshape(weight.shape), weight, 0.0)
        return tuple(objective.outputs({**tensors, key: zeroed}, inputs))

    weight = tensors[key]
    if objective.problem.network.batching.mode != "loop":
        results: tuple[Tensor, ...] = torch.vmap(without)(places)
        return results
    # A graph that runs only sample by sample may decide by values, which vmap cannot follow.
    each = [without(place) for place in places]
    return tuple(torch.stack(values) for values in zip(*each, strict=True))
