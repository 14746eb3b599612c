"""Operators whose result is as large as what they find: Compress, NonZero, Unique."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import widened
from onnxpress_adapters.registry import converter


@converter("Compress")
def compress(node: NodeView, x: Tensor, condition: Tensor) -> Tensor:
    """Keep the slices a condition marks; it may be shorter than the axis."""
    axis = node.get("axis")
    flat = x.reshape(-1) if axis is None else x
    places = torch.nonzero(condition)[:, 0]
    return widened(lambda y: torch.index_select(y, axis or 0, places))(flat)


@converter("NonZero")
def non_zero(node: NodeView, x: Tensor) -> Tensor:
    """Give the places of entries other than zero, ``[axes, found]``.

    A lone number counts as a vector: so onnxruntime does it, where the specification asks for no
    axes at all.
    """
    return torch.nonzero(torch.atleast_1d(x) != 0).transpose(0, 1)


@converter("Unique")
def unique(node: NodeView, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give different entries, or slices, once each: sorted, or in the order they come.

    Returns:
        The entries; the place each first comes at; for all of the input, the place of their like
        among the entries; how often each comes.
    """
    axis = node.get("axis")
    rows = x.reshape(-1) if axis is None else x
    axis = axis or 0
    _, inverse, counts = torch.unique(_comparable(rows), True, True, True, dim=axis)
    total = inverse.shape[0]
    order = torch.arange(total, device=x.device)
    first = order.new_full(counts.shape, total).scatter_reduce(0, inverse, order, "amin")
    if not node.get("sorted", 1):
        turn = torch.argsort(first)
        inverse = torch.argsort(turn)[inverse]
        first, counts = first[turn], counts[turn]
    # Taken from the input itself, so that entries keep their gradients.
    return widened(lambda y: torch.index_select(y, axis, first))(rows), first, inverse, counts


def _comparable(x: Tensor) -> Tensor:
    """Give entries a type torch puts in order, without changing which are equal."""
    if x.is_floating_point():
        return x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if x.dtype == torch.uint64:
        # Below zero in int64 stand the largest numbers: the flipped highest bit orders them.
        return x.to(torch.int64) ^ torch.iinfo(torch.int64).min
    return x if x.dtype == torch.bool else x.to(torch.int64)
