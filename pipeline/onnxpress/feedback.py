"""Rounding a layer so that its errors cancel: each entry makes up for what the others lost.

With ``Y = W X`` and ``H = X Xᵀ``, rounding T to W costs ``tr (W - T) H (W - T)ᵀ``. In one entry,
the others held, that is a parabola: the best value on a grid is the one nearest its lowest point.
Going through the columns in turn, all rows at once, the cost never rises, whatever the support and
the grid are; and no Hessian has to be inverted for every row's own support.

Source: Behdin et al. 2023 (QuantEase, coordinate descent on the grid); Frantar et al. 2022 (GPTQ,
the same objective, and the blocks of columns).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxpress.obs import damped

PASSES = 4
"""Rounds through all columns; more were not measured to matter."""

BLOCK = 64
"""Columns after which the errors of a block reach the rest of the row."""

Nearest = Callable[[Tensor, slice], Tensor]
"""Rounds the entries of some columns, ``[groups, rows, some]``, to what they can be."""


def fed_back(target: Tensor, hessian: Tensor, support: Tensor, nearest: Nearest) -> Tensor:
    """Round a layer's entries to a grid so that the layer answers as nearly as before.

    Args:
        target: T, ``[groups, rows, columns]``, exactly zero outside the support.
        hessian: H, ``[groups, columns, columns]``, undamped.
        support: bool, as ``target``.
        nearest: the grid.

    Returns:
        ``[groups, rows, columns]``, on the grid, exactly zero outside the support. In no row is
        the error, with H damped as in ``obs``, larger than that of rounding entry by entry.
    """
    gram = damped(hessian)
    best = torch.where(support, nearest(target, slice(None)), 0.0)
    least = _errors(best - target, gram)
    current = target
    for _ in range(PASSES):
        current = _swept(current, target, gram, support, nearest)
        errors = _errors(current - target, gram)
        better = errors < least
        if not bool(better.any()):
            break
        best, least = torch.where(better, current, best), torch.where(better, errors, least)
        current = best
    return best


def _errors(change: Tensor, gram: Tensor) -> Tensor:
    """Give the error of every row, ``[groups, rows, 1]``."""
    return ((change @ gram) * change).sum(2, keepdim=True)


def _swept(
    current: Tensor, target: Tensor, gram: Tensor, support: Tensor, nearest: Nearest
) -> Tensor:
    """Go once through the columns and put each where the error of its rows is least."""
    current = current.clone()
    slope = (current - target) @ gram  # half the gradient
    curvature = gram.diagonal(dim1=1, dim2=2)
    columns = target.shape[2]
    for start in range(0, columns, BLOCK):
        part = slice(start, min(columns, start + BLOCK))
        before, local = current[:, :, part].clone(), slope[:, :, part].clone()
        corner = gram[:, part, part]
        for place in range(part.stop - part.start):
            column = slice(start + place, start + place + 1)
            held = current[:, :, column]
            lowest = held - local[:, :, place : place + 1] / curvature[:, None, column]
            found = torch.where(support[:, :, column], nearest(lowest, column), 0.0)
            local += (found - held) * corner[:, place : place + 1]
            current[:, :, column] = found
        slope += (current[:, :, part] - before) @ gram[:, part]
    return current


def work(groups: int, rows: int, columns: int) -> float:
    """Count the multiply-adds of ``fed_back``, at most."""
    return float(groups * rows * columns**2 * (2 * PASSES + 1))
