"""Lengths before directions: where little is left of a network, and gradients are made up.

Behind signs and rounding a gradient is that of a surrogate, and where far too few weights are left,
what comes out is not only wrong but loud: a softmax saturates on the wrong side, and little comes
back through it either. How long the weight of each layer is is one number, found by trying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from onnxpress.cost import FORWARD_SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from onnxpress.movable import Movable
    from onnxpress.task import Goal
    from onnxpress_adapters.weights import WeightKey

FACTORS = (0.5, 2.0)
"""What a weight is multiplied by, again and again while that helps: powers of two round nothing."""

BETTER = 0.98
"""Share of the loss that each such change has to leave at most."""

TRIALS = 4
"""Evaluations of the loss for each layer, as a rule."""

SAMPLES, FEWEST = 128, 16
"""Of the fit set they are tried on, at most; fewer where a pass is dear."""


def regained(goal: Goal, point: Movable, work: float) -> tuple[dict[WeightKey, Tensor], float]:
    """Make the weight of each layer of a point as long as is best for the loss.

    Layers are gone through once, from the output to the input: what is too loud saturates there.

    Args:
        goal: its loss on samples of the fit set decides.
        point: where to begin; it is left as it is.
        work: units of it, at most; where they do not pay for every layer, those nearest the input
            stay as they are.

    Returns:
        The values, and the units of work that finding them took.
    """
    problem = goal.objective.problem
    keys = [each.key for each in reversed(problem.network.layers) if each.key in point.supports]
    passes = round(goal.objective.cost.steps(work, 1) / FORWARD_SHARE)
    samples = min(SAMPLES, max(FEWEST, passes // (TRIALS * max(1, len(keys)))), len(problem.fit[0]))
    chance = problem.generator("gains")
    places = torch.randperm(len(problem.fit[0]), generator=chance)[:samples]
    values = point.values()

    def loss(given: Mapping[WeightKey, Tensor]) -> float:
        return goal.on_fit(point.tensors(given), places)

    paid = max(1, passes // samples)
    level, left = loss(values), paid - 1
    for key in keys:
        for factor in FACTORS:
            began = level
            while left > 0:
                tried = {**values, key: values[key] * factor}
                found, left = loss(tried), left - 1
                if not found < BETTER * level:
                    break
                level, values = found, tried
            if level < began:
                break
    return values, work * (paid - left) / paid
