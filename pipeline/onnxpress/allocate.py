"""How much each layer gives: the cheapest choice of one level per layer within a budget.

Source: FACTS section 4, "ExactOBS + DP allocation": non-uniform allocation by measured loss wins by
large factors. Multiple-choice knapsack by dynamic programming over a discretised budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxpress_adapters.errors import StepError

BUCKETS = 4096
"""Into how many parts the budget is divided."""


def allocate(
    losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int
) -> list[int]:
    """Choose one level for each layer: least total loss, total size within the budget.

    Args:
        losses: per layer and level what the level costs (d); finite, or infinite to forbid it.
        sizes: per layer and level how many entries it keeps.
        budget: how many entries may be kept over all layers.

    Returns:
        The chosen level of each layer.

    Raises:
        StepError: even the smallest levels together exceed the budget.

    Within one bucket per layer of the optimum: sizes are rounded up to ``budget / BUCKETS``.

    >>> allocate([[0.0, 1.0], [0.0, 9.0]], [[10, 5], [10, 5]], 15)
    [1, 0]
    """
    unit = max(1.0, budget / BUCKETS)
    units = int(budget / unit)
    best: NDArray[np.float64] = np.zeros(units + 1)
    choices: list[NDArray[np.int64]] = []
    for layer_losses, layer_sizes in zip(losses, sizes, strict=True):
        table = np.full((len(layer_losses), units + 1), np.inf)
        for level, (loss, size) in enumerate(zip(layer_losses, layer_sizes, strict=True)):
            need = int(np.ceil(size / unit - 1e-9))
            if need <= units and np.isfinite(loss):
                table[level, need:] = best[: units + 1 - need] + loss
        choices.append(table.argmin(0))
        best = table.min(0)
    if not np.isfinite(best[units]):
        least = sum(min(layer) for layer in sizes)
        raise StepError(f"no allocation keeps at most {budget} entries; the least is {least}")
    chosen, left = [], units
    for place in range(len(losses) - 1, -1, -1):
        level = int(choices[place][left])
        chosen.append(level)
        left -= int(np.ceil(sizes[place][level] / unit - 1e-9))
    return chosen[::-1]
