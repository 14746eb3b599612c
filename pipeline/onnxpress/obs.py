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
from torch.nn.functional import pad

from onnxpress.pattern import FREE, Pattern

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


def removal_costs(matrix: Tensor, hessian: Tensor, pattern: Pattern = FREE) -> Tensor:
    """Score every entry with what its removal costs, in the order a surgeon removes them.

    Args:
        matrix: ``[groups, rows, columns]``.
        hessian: ``[groups, columns, columns]``, the mean of X Xᵀ, undamped.
        pattern: under n:m the surgeon first takes what has to go, m - n of every m columns and
            never more, then the rest; whole blocks are for ``block_costs``.

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
            costs[group, start : start + chunk] = _row_costs(
                rows[start : start + chunk], inverse, pattern
            )
        costs[group][:, dead] = 0.0
    return costs


def _row_costs(rows: Tensor, inverse: Tensor, pattern: Pattern) -> Tensor:
    """Run the surgeon on rows ``[rows, columns]`` that share one inverse Hessian to begin with."""
    count, columns = rows.shape
    costs = torch.zeros_like(rows)
    weights = rows.clone()
    places = torch.arange(columns, device=rows.device).expand(count, columns)
    inverses = inverse.expand(count, columns, columns)
    floor = rows.new_zeros(count, 1)
    tiny = torch.finfo(rows.dtype).tiny
    due = columns - pattern.capacity(1, 1, columns)
    while weights.shape[1] > 1:
        left = weights.shape[1]
        block = max(1, min(left - 1, int(BLOCK * left)))
        diagonal = inverses.diagonal(dim1=1, dim2=2).clamp_min(tiny)
        scores = weights.square() / diagonal
        if due:
            block = min(block, due)
            due -= block
            full = torch.full_like(rows, -torch.inf).scatter_(1, places, scores)
            held = pattern.allowed(full[None])[0].gather(1, places)
            scores = torch.where(held, torch.inf, scores)
        order = scores.argsort(stable=True, dim=1)
        gone, kept = order[:, :block], order[:, block:].sort(1).values
        paid = torch.maximum(scores.gather(1, gone), floor)
        paid = paid.cummax(1).values
        costs.scatter_(1, places.gather(1, gone), paid)
        floor = paid[:, -1:]
        if pattern.most and not due:
            floor = (1 + 1e-5) * floor + tiny  # what had to go stays below all that could
            pattern = FREE
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

    Minimises ``tr (W - T) H (W - T)ᵀ`` over ``W`` that vanish outside the support.

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
    current = torch.where(support, start, 0.0)
    return descended(current, (target - current) @ gram, gram, support, rounds)


def descended(
    current: Tensor, residual: Tensor, gram: Tensor, support: Tensor, rounds: int
) -> Tensor:
    """Minimise ``tr W G Wᵀ / 2 - tr B Wᵀ`` over ``W`` on a support, by conjugate gradients.

    All rows at once, preconditioned with the diagonal.

    Args:
        current: where to begin, ``[groups, rows, columns]``, zero off the support.
        residual: B - W G there, as ``current``.
        gram: G, ``[groups, columns, columns]``, positive definite.
        support: bool, as ``current``.
        rounds: iterations; each costs one product with G.

    Returns:
        W, exactly zero off the support.
    """
    preconditioner = gram.diagonal(dim1=1, dim2=2)[:, None, :].clamp_min(1e-30).reciprocal()
    zero = torch.zeros_like(current)
    residual = torch.where(support, residual, zero)
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


def block_costs(
    matrix: Tensor, hessian: Tensor, pattern: Pattern, *, in_order: bool = True
) -> Tensor:
    """Score every entry with its share of what the removal of its block costs.

    Removing the columns B of a row and moving the rest optimally costs w_B ([H⁻¹]_BB)⁻¹ w_Bᵀ; the
    rows of a block add up.

    Args:
        matrix: ``[groups, rows, columns]``.
        hessian: ``[groups, columns, columns]``, the mean of X Xᵀ, undamped.
        pattern: says how large blocks are.
        in_order: as the surgeon of ``removal_costs`` does it, the cheapest first and the rest
            adapting each time; otherwise all from the whole layer, at once.

    Returns:
        ``[groups, rows, columns]``, the same for all entries of a block.

    Source:
        Kurtic et al. 2022 ("The Optimal BERT Surgeon"), equation 6; Frantar & Alistarh 2022.
    """
    rows, columns = matrix.shape[1:]
    high, wide = pattern.rows, min(pattern.columns, columns)
    across = -(-columns // wide)
    padded = across * wide - columns
    filled = pad(matrix, (0, padded, 0, -rows % high))
    sizes = pattern.pooled(torch.ones_like(matrix))
    found = torch.empty_like(sizes)
    for group, gram in enumerate(damped(hessian)):
        # Columns that fill the last block meet nothing and cost nothing.
        inverse = torch.eye(columns + padded).to(gram)
        inverse[:columns, :columns] = torch.linalg.inv(gram.double()).to(gram.dtype)
        stacks = filled[group].reshape(-1, high, columns + padded)
        chunk = max(1, ROW_ENTRIES // inverse.numel())
        for start in range(0, len(stacks), chunk):
            part = slice(start, start + chunk)
            found[group, part] = _stack_costs(
                stacks[part], inverse, wide, sizes[group, part], in_order
            )
        dead = (hessian[group].diagonal() <= 0)[None, None, :].expand(1, rows, columns)
        alive = pattern.pooled(~dead)[0] > 0
        found[group] = torch.where(alive, found[group], 0.0)
    return pattern.spread(found, rows, columns).to(matrix.dtype)


def _stack_costs(
    stacks: Tensor, inverse: Tensor, wide: int, sizes: Tensor, in_order: bool
) -> Tensor:
    """Run the surgeon on stacks ``[count, rows, columns]``; give ``[count, blocks]`` by entry."""
    count, _, columns = stacks.shape
    blocks = columns // wide
    costs = torch.zeros_like(sizes)
    weights, inverses = stacks, inverse.expand(count, columns, columns)
    places = torch.arange(blocks, device=stacks.device).expand(count, blocks)
    inner = torch.arange(wide, device=stacks.device)
    floor = sizes.new_zeros(count, 1)
    while True:
        left = places.shape[1]
        corners = inverses.reshape(count, left, wide, left, wide).diagonal(dim1=1, dim2=3)
        parts = weights.reshape(count, -1, left, wide).permute(0, 2, 3, 1)
        solved = torch.linalg.solve(corners.permute(0, 3, 1, 2), parts)
        scores = (parts * solved).sum((2, 3)).clamp_min(0).double() / sizes.gather(1, places)
        taken = max(1, int(BLOCK * left)) if in_order else left
        order = scores.argsort(stable=True, dim=1)
        gone, kept = order[:, :taken], order[:, taken:].sort(1).values
        paid = torch.maximum(scores.gather(1, gone), floor).cummax(1).values
        costs.scatter_(1, places.gather(1, gone), paid)
        if taken == left:
            return costs
        floor = paid[:, -1:]
        out = (gone[:, :, None] * wide + inner).reshape(count, -1)
        stay = (kept[:, :, None] * wide + inner).reshape(count, -1)
        corner, side = _take(inverses, out, out), _take(inverses, stay, out)
        jitter = 1e-6 * corner.diagonal(dim1=1, dim2=2).mean(1)
        corner = corner + torch.diag_embed(jitter[:, None].expand(-1, out.shape[1]))
        moved = torch.linalg.solve(corner, side.transpose(1, 2))
        tall = weights.shape[1]
        removed = weights.gather(2, out[:, None].expand(-1, tall, -1))
        weights = weights.gather(2, stay[:, None].expand(-1, tall, -1)) - removed @ moved
        inverses = torch.baddbmm(_take(inverses, stay, stay), side, moved, alpha=-1)
        places = places.gather(1, kept)


def operation_cost(shapes: Mapping[str, int]) -> float:
    """Multiply-adds of ``removal_costs`` for ``groups``, ``rows`` and ``columns``."""
    return shapes["groups"] * shapes["rows"] * shapes["columns"] ** 3 / 3
