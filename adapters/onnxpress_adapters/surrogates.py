"""Surrogate gradients: what a descent follows where an operator's own derivative is zero.

Rounding and signs are flat almost everywhere, and quantisation leaves the real numbers: behind them
no weight has a gradient, so a network that is quantised or binary could be pruned and not repaired.
Their results stay what the operators give; only the way back is that of a slope that looks like
them from further off.

Source:
    Bengio, Léonard & Courville 2013, section 4 (the straight-through estimator). Its cut where a
    sign or a range saturates: Hubara et al. 2016, section 1.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.narrow import INTEGERS
from onnxpress_adapters.ops.quantize import kind_of, limits, spread

SIGN_REACH = 1.5
"""How far from zero, in root mean squares of a tensor, a sign still passes a gradient."""

Slope = Callable[[NodeView, Sequence[Any], Tensor], Tensor]
"""Gives the slope to follow from a node's inputs and its result: one per entry of the first."""


def followed(node: NodeView, inputs: Sequence[Any], result: Any) -> Any:
    """Give a node's result with a slope to follow, where its operator has none of its own.

    Args:
        node: that ran.
        inputs: as its converter took them.
        result: of the converter. Whole numbers come back as real ones of the same values: only
            those can carry a gradient.
    """
    slope = SLOPES.get(node.operator)
    if slope is None or not inputs[0].is_floating_point():
        return result
    towards = slope(node, inputs, result)
    return _Followed.apply(inputs[0], result, towards)  # type: ignore[no-untyped-call]


def _even(node: NodeView, inputs: Sequence[Any], result: Tensor) -> Tensor:
    """Follow the real number that was rounded."""
    return torch.ones((), dtype=inputs[0].dtype, device=inputs[0].device)


def _of_sign(node: NodeView, inputs: Sequence[Any], result: Tensor) -> Tensor:
    """Follow a line through the middle, as steep as what runs together is narrow."""
    x = inputs[0].detach()
    size = x.square().mean().sqrt()
    return torch.where((size > 0) & (x.abs() <= SIGN_REACH * size), 1 / size, 0.0).to(x.dtype)


def _of_quantised(node: NodeView, inputs: Sequence[Any], result: Tensor) -> Tensor:
    """Follow what is quantised, where it lies within the range."""
    x, scale, *rest = inputs
    size = spread(node, scale, x).to(x.dtype)
    if result.dtype.is_floating_point:
        return torch.where(result.isfinite(), 1 / size, 0.0)
    low, high = INTEGERS.get(kind_of(node)) or limits(result.dtype)
    shift = spread(node, rest[0].to(x.dtype), x) if rest and rest[0] is not None else 0
    place = (x / size + shift).detach()
    return torch.where((place > low - 0.5) & (place < high + 0.5), 1 / size, 0.0)


SLOPES: dict[str, Slope] = {
    "Ceil": _even,
    "Floor": _even,
    "QuantizeLinear": _of_quantised,
    "Round": _even,
    "Sign": _of_sign,
}
"""By operator, of ai.onnx and of com.microsoft alike."""


class _Followed(torch.autograd.Function):
    """Gives the result on the way forward and the slope of the first input on the way back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, result: Tensor, slope: Tensor) -> Tensor:
        return result.to(x.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None, None
