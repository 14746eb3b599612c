"""Reductions over axes, running sums and the largest entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import widened
from onnxpress_adapters.registry import Converter, converter

Axes = tuple[int, ...]
Reduction = Callable[[Tensor, Axes, bool], Tensor]


def _sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=keep)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


def _prod(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(function: Callable[..., Tensor], smallest: bool) -> Reduction:
    def run(x: Tensor, axes: Axes, keep: bool) -> Tensor:
        if all(x.shape[axis] for axis in axes):
            return function(x, axes, keepdim=keep)
        # No entries: the neutral element of the reduction.
        if x.dtype == torch.bool:
            worst: float | bool = smallest
        elif x.is_floating_point():
            worst = torch.inf if smallest else -torch.inf
        else:
            info = torch.iinfo(x.dtype)
            worst = info.max if smallest else info.min
        return torch.full_like(torch.sum(x, axes, keepdim=keep), worst, dtype=x.dtype)

    return run


def _root_of_squares(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if x.is_floating_point():
        norm: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=keep)
        return norm
    return torch.sqrt(_sum(x * x, axes, keep).to(torch.float64)).to(x.dtype)


def _log(x: Tensor) -> Tensor:
    return torch.log(x) if x.is_floating_point() else torch.log(x.to(torch.float64)).to(x.dtype)


def _log_sum_exp(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.logsumexp(x, axes, keepdim=keep)
    return torch.logsumexp(x.to(torch.float64), axes, keepdim=keep).to(x.dtype)


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keep: _sum(torch.abs(x), axes, keep),
    "ReduceL2": _root_of_squares,
    "ReduceLogSum": lambda x, axes, keep: _log(_sum(x, axes, keep)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extreme(torch.amax, smallest=False),
    "ReduceMean": _mean,
    "ReduceMin": _extreme(torch.amin, smallest=True),
    "ReduceProd": _prod,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
}


def _reduce(node: NodeView, reduction: Reduction, x: Tensor, axes: Sequence[int] | None) -> Tensor:
    """Reduce over the axes; over all of them where none is named, unless the node says not to."""
    if axes is None or len(axes) == 0:
        if node.get("noop_with_empty_axes", 0):
            # A reduction over no axis still applies what is done to each entry.
            lifted = widened(lambda y: reduction(y.unsqueeze(-1), (y.dim(),), False))
            return lifted(x)
        axes = range(x.dim())
    places = tuple(sorted({int(axis) % x.dim() for axis in axes}))
    if not places:
        return widened(lambda y: reduction(y.unsqueeze(0), (0,), False))(x)
    keep = bool(node.get("keepdims", 1))
    return widened(lambda y: reduction(y, places, keep))(x)


def _by_attribute(reduction: Reduction) -> Converter:
    return lambda node, x: _reduce(node, reduction, x, node.get("axes"))


def _by_input(reduction: Reduction) -> Converter:
    def run(node: NodeView, x: Tensor, axes: np.ndarray | None = None) -> Tensor:
        return _reduce(node, reduction, x, None if axes is None else axes.reshape(-1).tolist())

    return run


for _name, _reduction in REDUCTIONS.items():
    _change = 13 if _name == "ReduceSum" else 18
    converter(_name, until=_change - 1)(_by_attribute(_reduction))
    converter(_name, since=_change, host=(1,))(_by_input(_reduction))


def _position(node: NodeView, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    """Find the first extreme entry along an axis, or the last one if the node asks for it."""
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    if not node.get("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    backwards = function(torch.flip(x, (axis,)), axis, keepdim=keep)
    return torch.sub(x.shape[axis] - 1, backwards)


@converter("ArgMax")
def arg_max(node: NodeView, x: Tensor) -> Tensor:
    """Place of the largest entry along an axis, int64."""
    return _position(node, x, torch.argmax)


@converter("ArgMin")
def arg_min(node: NodeView, x: Tensor) -> Tensor:
    """Place of the smallest entry along an axis, int64."""
    return _position(node, x, torch.argmin)


def _running(
    node: NodeView, x: Tensor, axis: np.ndarray, function: Callable[..., Tensor], neutral: int
) -> Tensor:
    place = int(axis.reshape(-1)[0]) % x.dim()
    if node.get("reverse", 0):
        x = torch.flip(x, (place,))
    if node.get("exclusive", 0):
        start = torch.full_like(x.narrow(place, 0, 1), neutral)
        x = torch.cat([start, x.narrow(place, 0, x.shape[place] - 1)], place)
    result = function(x, place, dtype=x.dtype)
    return torch.flip(result, (place,)) if node.get("reverse", 0) else result


@converter("CumSum", host=(1,))
def cumulative_sum(node: NodeView, x: Tensor, axis: np.ndarray) -> Tensor:
    """Running sum along an axis, from either end, with or without the entry itself."""
    return _running(node, x, axis, torch.cumsum, 0)


@converter("CumProd", host=(1,))
def cumulative_product(node: NodeView, x: Tensor, axis: np.ndarray) -> Tensor:
    """Running product along an axis, from either end, with or without the entry itself."""
    return _running(node, x, axis, torch.cumprod, 1)


def _top(node: NodeView, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Take the extreme entries in order; equal ones by lower place first, as ONNX asks."""
    axis = node.get("axis", -1)
    largest = bool(node.get("largest", 1))
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@converter("TopK", until=9)
def top_k_old(node: NodeView, x: Tensor) -> tuple[Tensor, Tensor]:
    """The ``k`` largest entries along an axis and their places; ``k`` is an attribute."""
    return _top(node, x, node.get("k"))


@converter("TopK", since=10, host=(1,))
def top_k(node: NodeView, x: Tensor, count: np.ndarray) -> tuple[Tensor, Tensor]:
    """The extreme entries along an axis and their places; how many is an input."""
    return _top(node, x, int(count.reshape(-1)[0]))
