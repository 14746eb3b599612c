"""Softmax and its family."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.registry import Converter, converter


def hardmax(x: Tensor, dim: int) -> Tensor:
    """Mark the first largest entry along an axis by one, the others by zero."""
    best = torch.argmax(x, dim, keepdim=True)
    shape = [1] * x.dim()
    shape[dim] = x.shape[dim]
    places = torch.arange(x.shape[dim], device=x.device).reshape(shape)
    return (places == best).to(x.dtype)


FAMILY: dict[str, Callable[[Tensor, int], Tensor]] = {
    "Hardmax": hardmax,
    "LogSoftmax": functional.log_softmax,
    "Softmax": functional.softmax,
}


def _along(function: Callable[[Tensor, int], Tensor]) -> Converter:
    return lambda node, x: function(x, node.get("axis", -1))


def _flattened(function: Callable[[Tensor, int], Tensor]) -> Converter:
    def run(node: NodeView, x: Tensor) -> Tensor:
        axis = node.get("axis", 1)
        axis = axis + x.dim() if axis < 0 else axis
        rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
        return function(rows, 1).reshape(x.shape)

    return run


# Before opset 13 the family normalises over all axes from `axis` on at once.
for _name, _function in FAMILY.items():
    converter(_name, until=12)(_flattened(_function))
    converter(_name, since=13)(_along(_function))
