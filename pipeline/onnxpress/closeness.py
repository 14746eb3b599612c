"""ε-closeness: sup ‖f(x) - F(x)‖ over the unit ball, held from below and from above.

From below by projected gradient ascent, which finds an input that is as bad as it says; from above
by norms carried along the layers (``spectral.py``). The truth lies between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxpress.exact import precise_of
from onnxpress.memory import ran_out
from onnxpress.objective import Objective
from onnxpress.spectral import NoBoundError, largest_apart
from onnxpress_adapters.errors import OnnxpressError
from onnxpress_adapters.rest import Whole
from onnxpress_adapters.weights import WeightKey

RESTARTS = 24
"""Inputs of each kind the ascent starts from, side by side."""

UNITS = 20.0
"""Units of work it may take; large networks begin from fewer inputs."""

STEPS = 60
"""Steps of the ascent."""

LONGEST, SHORTEST = 0.5, 0.005
"""Lengths of its first and last step, in a ball of radius 1."""


@dataclass(frozen=True)
class Closeness:
    """What is known of sup ‖f(x) - F(x)‖ over ‖x‖ ≤ 1.

    Attributes:
        lower: what an input was found for; None where there is no unit ball of inputs.
        upper: what no input exceeds; None where no bound is known.
        why: what is missing, and why.
    """

    lower: float | None
    upper: float | None
    why: str = ""

    def __str__(self) -> str:
        """Say it in words.

        >>> print(Closeness(0.25, None, "'x' goes several ways"))
        over the unit ball the outputs move by at least 0.25; no upper bound: 'x' goes several ways
        """
        if self.lower is None:
            return f"closeness over the unit ball is not known: {self.why}"
        told = f"over the unit ball the outputs move by at least {self.lower:.4g}"
        if self.upper is None:
            return f"{told}; no upper bound: {self.why}"
        return f"{told} and at most {self.upper:.4g}"


def closeness(
    objective: Objective, tensors: Mapping[WeightKey, Tensor], generator: torch.Generator
) -> Closeness:
    """Measure how close a network is to the original over the unit ball.

    Args:
        objective: of the problem; the judged outputs are joined into one vector.
        tensors: the network, laid over the reference.
        generator: source of the inputs the ascent starts from.

    Source:
        seeds/magnitude_pruning_review.md, "Clarifying the Objects of Study": f is ε-close to F
        where the supremum of the distance over the unit ball is below ε. FACTS section 5.
    """
    used = precise_of(objective) or objective
    problem = used.problem
    for spec, value in zip(problem.network.inputs, problem.fit, strict=True):
        if not value.is_floating_point():
            return Closeness(None, None, f"the input '{spec.name}' holds no real numbers")
    laid = {key: value.to(problem.reference[key].dtype) for key, value in tensors.items()}
    lower = ascended(used, laid, generator)
    if used is objective:
        return Closeness(lower, None, "the graph does not run in float64")
    try:
        with torch.no_grad():
            feed = [value[0] for value in problem.fit]
            whole = [
                Whole.alone(problem.network, {**problem.reference, **extra}, feed)
                for extra in ({}, laid)
            ]
            return Closeness(lower, largest_apart(whole[0], whole[1], problem.judged))
    except NoBoundError as error:
        return Closeness(lower, None, str(error))
    except (OnnxpressError, RuntimeError) as error:
        if ran_out(error):
            raise
        return Closeness(lower, None, f"a layer cannot be bounded ({str(error).splitlines()[0]})")


def ascended(
    objective: Objective, tensors: Mapping[WeightKey, Tensor], generator: torch.Generator
) -> float:
    """Find an input of the unit ball where two networks are far apart, and say how far.

    Projected gradient ascent on ‖f(x) - F(x)‖² from points all over the ball and from given inputs
    drawn into it, with steps of fixed length that get shorter.

    Args:
        objective: whose inputs are all real numbers.
        tensors: of the type of its reference, laid over that.
        generator: source of the points.
    """
    cost = objective.cost
    starts = min(RESTARTS, cost.batch // 2, cost.steps(UNITS, 1) // (2 * STEPS))
    points = _begun(objective.problem.fit, max(1, starts), generator)
    best = 0.0
    for step in range(STEPS + 1):
        leaves = [point.requires_grad_() for point in points]
        found, wanted = objective.outputs(tensors, leaves), objective.outputs({}, leaves)
        far = torch.stack(
            [
                (ours - theirs).double().square().flatten(1).sum(1)
                for ours, theirs in zip(found, wanted, strict=True)
            ]
        ).sum(0)
        best = max(best, float(far.detach().max()) ** 0.5)
        if step == STEPS or best == 0.0 or not far.requires_grad:
            break
        slopes: Sequence[Tensor | None] = torch.autograd.grad(far.sum(), leaves, allow_unused=True)
        length = LONGEST * (SHORTEST / LONGEST) ** (step / STEPS)
        moved = _scaled(
            [
                torch.zeros_like(point) if slope is None else slope
                for point, slope in zip(points, slopes, strict=True)
            ],
            length,
            always=True,
        )
        points = _scaled(
            [p.detach() + m for p, m in zip(points, moved, strict=True)], 1.0, always=False
        )
    return best


def _begun(fit: Sequence[Tensor], starts: int, generator: torch.Generator) -> list[Tensor]:
    """Give points of the unit ball: some uniform in it, as many given inputs, and its centre."""
    size = sum(value[0].numel() for value in fit)
    drawn = [torch.randn(starts, *v.shape[1:], generator=generator).to(v) for v in fit]
    radii = torch.rand(starts, generator=generator, dtype=torch.float64) ** (1 / max(1, size))
    uniform = [
        value * radii.to(value).reshape(-1, *(1,) * (value.ndim - 1))
        for value in _scaled(drawn, 1.0, always=True)
    ]
    given = _scaled([value[:starts].clone() for value in fit], 1.0, always=True)
    return [torch.cat([a, b, torch.zeros_like(a[:1])]) for a, b in zip(uniform, given, strict=True)]


def _scaled(values: Sequence[Tensor], length: float, *, always: bool) -> list[Tensor]:
    """Scale each sample, its inputs taken together, to a length; or only those that are longer."""
    norms = torch.stack([value.flatten(1).square().sum(1) for value in values]).sum(0).sqrt()
    factors = length / norms.clamp_min(1e-30)
    factors = factors if always else factors.clamp_max(1.0)
    return [value * factors.reshape(-1, *(1,) * (value.ndim - 1)) for value in values]
