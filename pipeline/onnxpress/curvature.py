"""Second-order facts: layer Hessians, Gauss-Newton diagonals, the curvature along a direction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from onnxpress.memory import accumulate
from onnxpress.objective import Objective
from onnxpress_adapters.layers import Layer
from onnxpress_adapters.weights import WeightKey

HESSIAN_COLUMNS = 40_000
"""Columns a second moment is averaged over, at most; ten times its width if that is more."""

DIAGONAL_UNITS = 2.0
"""Work that may go into one diagonal beyond the draws asked for."""

MOST_DRAWS = 128
"""Draws that are enough: each entry is then known to about 12 %."""


def layer_hessians(
    objective: Objective, tensors: Mapping[WeightKey, Tensor], layers: Sequence[Layer]
) -> dict[WeightKey, Tensor]:
    """Average X Xᵀ over the fit set for each layer.

    Given inputs only. Interpolations between pairs of them, as a repair uses, were measured beside
    them (held-out d after surgery to 90 %): a fifth worse on a fully connected network, no change
    on a convolutional one; with 192 inputs the first was still worse and the second 15 % better,
    and the choose set does not tell which of the two a network is.

    Where columns are thinned out, which of them stay depends on how many samples run together.

    Args:
        objective: says on which inputs.
        tensors: laid over the reference weights; ``{}`` for the inputs the original network makes.
        layers: the layers to look at; the caller keeps their number small where they are wide.

    Returns:
        Key to ``[groups, columns, columns]``, in the type the weight is computed with, on the
        problem's device: the mean over the columns seen, damped by nothing.

    Source:
        LeCun, Denker, Solla 1989; Hassibi & Stork 1993: for ‖WX - W'X‖² the Hessian of every row
        is 2 X Xᵀ.
    """
    sums: dict[WeightKey, Tensor] = {}
    counts: dict[WeightKey, int] = {}
    for layer, (columns,) in columns_met(objective, (tensors,), layers):
        moment = columns.transpose(1, 2) @ columns
        known = sums.get(layer.key)
        sums[layer.key] = moment if known is None else known + moment
        counts[layer.key] = counts.get(layer.key, 0) + columns.shape[1]
    return {key: total / counts[key] for key, total in sums.items()}


def columns_met(
    objective: Objective,
    networks: Sequence[Mapping[WeightKey, Tensor]],
    layers: Sequence[Layer],
) -> Iterator[tuple[Layer, tuple[Tensor, ...]]]:
    """Stream what reaches layers over the fit set, in networks side by side.

    Args:
        objective: says on which inputs.
        networks: each as tensors laid over the reference weights.
        layers: the layers to look at.

    Yields:
        A layer and its columns ``[groups, samples, columns]``, one tensor for each network, the
        same places of the same samples. A loop that ran another number of times in another network
        leaves nothing to pair and is passed over.
    """
    problem = objective.problem
    samples = len(problem.fit[0])
    sites = [
        (layer, site, node)
        for layer in layers
        for site, node in zip(layer.sites, layer.nodes, strict=True)
    ]
    places = [site for _, site, _ in sites]

    def met(start: int, stop: int) -> tuple[float, list[tuple[tuple[Tensor, ...], ...]]]:
        part = [value[start:stop] for value in problem.fit]
        with torch.no_grad():
            traces = [
                problem.network.batching.run(
                    problem.network, {**problem.reference, **tensors}, part, places
                )
                for tensors in networks
            ]
        return (stop - start) / samples, [trace.watched for trace in traces]

    for share, watched in objective.batch.parts(samples, met):
        for (layer, _, node), *calls in zip(sites, *watched, strict=True):
            if len({len(call) for call in calls}) > 1:
                continue
            limit = int(max(HESSIAN_COLUMNS, 10 * layer.columns) * share) + 1
            dtype = problem.reference[layer.key].dtype
            for values in zip(*calls, strict=True):
                most = limit // len(calls[0]) + 1
                yield (
                    layer,
                    tuple(layer.columns_of(value, most, node).to(dtype) for value in values),
                )


def gauss_newton(
    objective: Objective,
    tensors: Mapping[WeightKey, Tensor],
    keys: Sequence[WeightKey],
    draws: int,
    generator: torch.Generator,
) -> dict[WeightKey, Tensor]:
    """Estimate the diagonal of the Gauss-Newton matrix of d: h_j = E sum_k ‖∂F_k/∂w_j‖² / s_k.

    A random sign per sample and output entry turns one backward pass over a few samples into an
    unbiased draw of the whole diagonal (Hutchinson). What one draw says of an entry spreads as
    widely as its value, however many samples share the signs: so many draws on few samples each
    beat few draws on many. Draws go round the fit set in a random order, every sample as often,
    give or take one.

    Args:
        objective: d and its scales.
        tensors: the weights to linearise at, laid over the reference.
        keys: the weights wanted.
        draws: how many backward passes to average, at least; up to ``MOST_DRAWS`` where
            ``DIAGONAL_UNITS`` of work pay for them.
        generator: source of the signs.

    Returns:
        Key to a tensor of the weight's shape, non-negative.

    Source:
        Hutchinson 1990; the diagonal Gauss-Newton of LeCun, Denker, Solla 1989, section 3.
    """
    totals = {key: torch.zeros_like(tensors[key]) for key in keys}
    draws = enough_draws(objective, draws)
    for gradients in signed_gradients(objective, tensors, keys, draws, generator):
        for key, gradient in gradients.items():
            totals[key] += gradient.square() / draws
    return totals


def enough_draws(objective: Objective, draws: int) -> int:
    """Give the draws asked for, or as many up to ``MOST_DRAWS`` as ``DIAGONAL_UNITS`` pay for."""
    cost = objective.cost
    size = cost.draw_size(len(objective.problem.fit[0]))
    return max(draws, min(MOST_DRAWS, cost.steps(DIAGONAL_UNITS, size)))


def signed_gradients(
    objective: Objective,
    tensors: Mapping[WeightKey, Tensor],
    keys: Sequence[WeightKey],
    draws: int,
    generator: torch.Generator,
) -> Iterator[dict[WeightKey, Tensor]]:
    """Draw gradients g of the outputs under random signs, so that E (vᵀg)² = vᵀGv for every v.

    G is the Gauss-Newton matrix of d. See ``gauss_newton``, which squares entry by entry.

    Args:
        objective: d and its scales.
        tensors: the weights to linearise at, laid over the reference.
        keys: the weights wanted.
        draws: how many.
        generator: source of the signs.

    Yields:
        Key to gradient; a weight without one is missing.
    """
    problem, cost = objective.problem, objective.cost
    samples = len(problem.fit[0])
    size = cost.draw_size(samples)
    order = torch.randperm(samples, generator=generator).to(problem.device)
    for draw in range(draws):
        places = order[torch.arange(draw * size, (draw + 1) * size, device=order.device) % samples]
        leaves = {key: tensors[key].detach().requires_grad_() for key in keys}
        signs: list[Tensor] = []

        def signed(
            start: int,
            stop: int,
            places: Tensor = places,
            leaves: dict[WeightKey, Tensor] = leaves,
            signs: list[Tensor] = signs,
        ) -> Tensor:
            part = [value[places[start:stop]] for value in problem.fit]
            outputs = objective.outputs({**tensors, **leaves}, part)
            if not signs:  # for the whole draw at once, so that halves of it add up to the same
                shapes = [(size, *value.shape[1:]) for value in outputs]
                signs += [
                    torch.randint(0, 2, shape, generator=generator) * 2 - 1 for shape in shapes
                ]
            total = outputs[0].new_zeros(())
            for value, sign, scale in zip(outputs, signs, objective.scales.tolist(), strict=True):
                total = total + (value * sign[start:stop].to(value)).sum() / (size * scale) ** 0.5
            return total

        accumulate(objective.batch, list(leaves.values()), size, signed)
        yield {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


def predicted_rise(values: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
    """Predict what d gains when each entry, alone, becomes zero: -w·g + w²·h, all of one shape.

    The linear term is no luxury: away from a minimum of d (pruned and not repaired) the order of
    the squares alone has little to do with the true one.

    Source:
        LeCun, Denker, Solla 1989, equation 2, kept to second order; FACTS section 4.
    """
    return values * (values * curvature - gradient)
