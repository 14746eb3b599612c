"""Optimal brain surgery on one layer: what each weight is worth when the others may adapt.

For ``Y = W X`` and ``H = X Xᵀ``, removing entry p of a row and moving the rest of the row optimally
costs ``w_p² / [H⁻¹]_pp``. Rows do not interact.

Source: Hassibi & Stork 1993; Frantar & Alistarh 2022 (rows independently, several levels from one
order); FACTS section 4: dead inputs first, damping of 1 %.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

DAMP = 0.03
"""What is added to the Hessian's diagonal, as a share of its mean."""

BLOCK = 0.06
"""Share of a row's remaining entries removed before its inverse is brought up to date."""

ROW_ENTRIES = 6_000_000
"""Entries of inverses worked on together: they should stay near the processor."""


def damped(hessian: Tensor) -> Tensor:
    """Add ``DAMP`` of the mean diagonal to the diagonal of ``[groups, columns, columns]``."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    amount = DAMP * diagonal.mean(1, keepdim=True) + 1e-12
    return hessian + torch.diag_embed(amount.expand_as(diagonal))


def removal_costs(matrix: Tensor, hessian: Tensor) -> Tensor:
    """Score every entry with what its removal costs, in the order a surgeon removes them.

    Args:
        matrix: ``[groups, rows, columns]``.
        hessian: ``[groups, columns, columns]``, the mean of X Xᵀ, undamped.

    Returns:
        ``[groups, rows, columns]``, non-negative: the increase of the layer's squared error when
        the entry goes, given that the cheaper ones of its row went before. Within a row the costs
        never fall along the order of removal, so thresholding them at any level keeps the entries
        the order keeps.
    """
    if matrix.shape[2] == 1:  # nothing in the row could adapt
        return matrix.square() * torch.where(hessian > 0, damped(hessian), 0.0)
    costs = torch.empty_like(matrix)
    for group, (rows, gram) in enumerate(zip(matrix, damped(hessian), strict=True)):
        dead = hessian[group].diagonal() <= 0
        inverse = torch.linalg.inv(gram.double()).to(gram.dtype)
        chunk = max(1, ROW_ENTRIES // inverse.numel())
        for start in range(0, len(rows), chunk):
            costs[group, start : start + chunk] = _row_costs(rows[start : start + chunk], inverse)
        costs[group][:, dead] = 0.0
    return costs


def _row_costs(rows: Tensor, inverse: Tensor) -> Tensor:
    """Run the surgeon on rows ``[rows, columns]`` that share one inverse Hessian to begin with."""
    count, columns = rows.shape
    costs = torch.zeros_like(rows)
    weights = rows.clone()
    places = torch.arange(columns, device=rows.device).expand(count, columns)
    inverses = inverse.expand(count, columns, columns)
    floor = rows.new_zeros(count, 1)
    tiny = torch.finfo(rows.dtype).tiny
    while weights.shape[1] > 1:
        left = weights.shape[1]
        block = max(1, min(left - 1, int(BLOCK * left)))
        diagonal = inverses.diagonal(dim1=1, dim2=2).clamp_min(tiny)
        scores = weights.square() / diagonal
        order = scores.argsort(stable=True, dim=1)
        gone, kept = order[:, :block], order[:, block:].sort(1).values
        paid = torch.maximum(scores.gather(1, gone), floor)
        paid = paid.cummax(1).values
        costs.scatter_(1, places.gather(1, gone), paid)
        floor = paid[:, -1:]
        corner = _take(inverses, gone, gone)
        side = _take(inverses, kept, gone)
        jitter = 1e-6 * corner.diagonal(dim1=1, dim2=2).mean(1)
        corner = corner + torch.diag_embed(jitter[:, None].expand(-1, block))
        solved = torch.linalg.solve(corner, side.transpose(1, 2))
        weights = weights.gather(1, kept) - torch.einsum(
            "rb,rbk->rk", weights.gather(1, gone), solved
        )
        inverses = torch.baddbmm(_take(inverses, kept, kept), side, solved, alpha=-1)
        places = places.gather(1, kept)
    diagonal = inverses.diagonal(dim1=1, dim2=2).clamp_min(tiny)
    costs.scatter_(1, places, torch.maximum(weights.square() / diagonal, floor))
    return costs


def _take(stack: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick a submatrix of each matrix of ``[count, n, n]``."""
    count, size = rows.shape
    picked = stack.gather(1, rows[:, :, None].expand(count, size, stack.shape[2]))
    return picked.gather(2, columns[:, None, :].expand(count, size, columns.shape[1]))


def one_shot_costs(matrix: Tensor, hessian: Tensor) -> Tensor:
    """Score every entry with ``w² / [H⁻¹]_pp`` of the whole layer: for layers too wide for surgery.

    Shapes as in ``removal_costs``.
    """
    gram = damped(hessian)
    inverse = torch.linalg.inv(gram)
    diagonal = inverse.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(gram.dtype).tiny)
    costs = matrix.square() / diagonal[:, None, :]
    dead = hessian.diagonal(dim1=1, dim2=2) <= 0
    return torch.where(dead[:, None, :], torch.zeros_like(costs), costs)


def refit(target: Tensor, hessian: Tensor, support: Tensor, start: Tensor, rounds: int) -> Tensor:
    """Move the entries of a support so that the layer answers as before, by conjugate gradients.

    Minimises ``tr (W - T) H (W - T)ᵀ`` over ``W`` that vanish outside the support; all rows at
    once, preconditioned with the diagonal.

    Args:
        target: T, ``[groups, rows, columns]``.
        hessian: H, ``[groups, columns, columns]``, undamped.
        support: bool, as ``target``.
        start: where to begin, as ``target``; cut to the support.
        rounds: iterations; each costs one product with H.

    Returns:
        ``[groups, rows, columns]``, exactly zero outside the support.
    """
    gram = damped(hessian)
    preconditioner = gram.diagonal(dim1=1, dim2=2)[:, None, :].clamp_min(1e-30).reciprocal()
    zero = torch.zeros_like(target)
    current = torch.where(support, start, zero)
    residual = torch.where(support, (target - current) @ gram, zero)
    aimed = preconditioner * residual
    direction = aimed
    energy = (residual * aimed).sum(2, keepdim=True)
    for _ in range(rounds):
        pushed = torch.where(support, direction @ gram, zero)
        curvature = (direction * pushed).sum(2, keepdim=True)
        step = torch.where(curvature > 0, energy / curvature.clamp_min(1e-30), 0.0)
        current = current + step * direction
        residual = residual - step * pushed
        aimed = preconditioner * residual
        fresh = (residual * aimed).sum(2, keepdim=True)
        direction = (
            aimed + torch.where(energy > 0, fresh / energy.clamp_min(1e-30), 0.0) * direction
        )
        energy = fresh
    return torch.where(support, current, zero)


def layer_error(change: Tensor, hessian: Tensor) -> float:
    """Give ``tr Δ H Δᵀ``, what a change of the weights does to the layer's outputs.

    Args:
        change: Δ, ``[groups, rows, columns]``.
        hessian: ``[groups, columns, columns]``.
    """
    return float(((change @ hessian) * change).sum())


def operation_cost(shapes: Mapping[str, int]) -> float:
    """Multiply-adds of ``removal_costs`` for ``groups``, ``rows`` and ``columns``."""
    return shapes["groups"] * shapes["rows"] * shapes["columns"] ** 3 / 3
