"""Operators whose places come from a tensor: gather, scatter, one-hot, reversed sequences."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import widened
from onnxpress_adapters.registry import converter

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def wrapped(indices: Tensor, size: int) -> Tensor:
    """Count negative places from the end; the result is int64."""
    places = indices.to(torch.int64)
    return torch.where(places < 0, places + size, places)


@converter("Gather")
def gather(node: NodeView, x: Tensor, indices: Tensor) -> Tensor:
    """Pick slices along an axis; the shape of ``indices`` takes the place of the axis."""
    axis = node.get("axis", 0) % x.dim()
    places = wrapped(indices, x.shape[axis]).reshape(-1)
    picked = widened(lambda y: torch.index_select(y, axis, places))(x)
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@converter("GatherElements")
def gather_elements(node: NodeView, x: Tensor, indices: Tensor) -> Tensor:
    """Pick single entries along an axis."""
    axis = node.get("axis", 0)
    places = wrapped(indices, x.shape[axis])
    return widened(lambda y: torch.gather(y, axis, places))(x)


def _flat_places(shape: torch.Size, indices: Tensor) -> Tensor:
    """Turn index tuples ``[..., depth]`` into places in the first ``depth`` axes laid flat."""
    places = torch.zeros_like(indices[..., 0], dtype=torch.int64)
    for depth in range(indices.shape[-1]):
        places = places * shape[depth] + wrapped(indices[..., depth], shape[depth])
    return places


@converter("GatherND")
def gather_nd(node: NodeView, x: Tensor, indices: Tensor) -> Tensor:
    """Pick slices by tuples of places, separately for each entry of the first batch axes."""
    batch, depth = node.get("batch_dims", 0), indices.shape[-1]
    places = _flat_places(x.shape[batch : batch + depth], indices)
    rest = x.shape[batch + depth :]
    groups = math.prod(x.shape[:batch])
    rows = x.reshape(groups, math.prod(x.shape[batch : batch + depth]), math.prod(rest))
    at = places.reshape(groups, -1, 1).expand(-1, -1, rows.shape[2])
    return widened(lambda y: torch.gather(y, 1, at))(rows).reshape(places.shape + rest)


def _scatter(node: NodeView, x: Tensor, axis: int, places: Tensor, updates: Tensor) -> Tensor:
    """Replace entries along an axis, or combine them as the node's ``reduction`` says."""
    reduction = node.get("reduction", "none")
    if reduction == "none":
        return widened(lambda y, u: torch.scatter(y, axis, places, u))(x, updates)
    if reduction not in REDUCTIONS:
        raise AdapterError(f"{node} combines by '{reduction}', which is not an ONNX reduction")
    combine = REDUCTIONS[reduction]
    return widened(lambda y, u: torch.scatter_reduce(y, axis, places, u, combine))(x, updates)


@converter("Scatter", "ScatterElements")
def scatter_elements(node: NodeView, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Replace or combine single entries along an axis."""
    axis = node.get("axis", 0)
    return _scatter(node, x, axis, wrapped(indices, x.shape[axis]), updates)


@converter("ScatterND")
def scatter_nd(node: NodeView, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Replace or combine slices, found by tuples of places."""
    depth = indices.shape[-1]
    rows = x.reshape(math.prod(x.shape[:depth]), math.prod(x.shape[depth:]))
    places = _flat_places(x.shape[:depth], indices).reshape(-1, 1).expand(-1, rows.shape[1])
    values = updates.reshape(-1, rows.shape[1])
    return _scatter(node, rows, 0, places, values).reshape(x.shape)


@converter("OneHot", host=(1,))
def one_hot(node: NodeView, indices: Tensor, depth: np.ndarray, values: Tensor) -> Tensor:
    """Write ``values[1]`` at each place along a new axis and ``values[0]`` elsewhere."""
    count = int(depth.reshape(-1)[0])
    axis = node.get("axis", -1) % (indices.dim() + 1)
    shape = [1] * (indices.dim() + 1)
    shape[axis] = count
    counter = torch.arange(count, device=indices.device).reshape(shape)
    hot = wrapped(indices, count).unsqueeze(axis) == counter
    return torch.where(hot, values[1], values[0])


@converter("ReverseSequence")
def reverse_sequence(node: NodeView, x: Tensor, lengths: Tensor) -> Tensor:
    """Turn round the first ``lengths[b]`` entries of each sequence ``b``."""
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    front = torch.movedim(x, (time, batch), (0, 1))
    places = reversed_places(x.shape[time], lengths)
    at = places.reshape(places.shape + (1,) * (front.dim() - 2)).expand(front.shape)
    return torch.movedim(torch.gather(front, 0, at), (0, 1), (time, batch))


def reversed_places(steps: int, lengths: Tensor) -> Tensor:
    """Give the time ``[steps, batch]`` whose entry comes to each time when sequences turn round.

    Args:
        steps: length of the time axis.
        lengths: used steps of each sequence, ``[batch]``; the steps behind them stay.
    """
    time = torch.arange(steps, device=lengths.device).unsqueeze(1)
    last = lengths.to(torch.int64).unsqueeze(0) - 1
    return torch.where(time <= last, last - time, time)
