"""How the tensor in a weight slot is made of the constant behind it.

Between a constant and its slot may stand operators that only move entries, change their type or
scale them. Where every entry of the constant arrives exactly once, the way can be walked both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, numpy_helper
from torch import Tensor

from onnxpress_adapters import ops
from onnxpress_adapters.functions import plain
from onnxpress_adapters.node import NodeView, view
from onnxpress_adapters.ops.quantize import spread
from onnxpress_adapters.registry import Registry
from onnxpress_adapters.scopes import Scopes, constant, maker
from onnxpress_adapters.weights import WeightKey

MOVES = frozenset(
    {
        *("Transpose", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"),
        *("Slice", "Concat", "DequantizeLinear", "Split"),
    }
)
"""Operators a weight may pass on its way; all but Concat pass their first input on."""

PLAIN = frozenset({"Identity", "Cast", "DequantizeLinear"})
"""Those that leave every entry where it is."""

INDEXED = MOVES - PLAIN
"""Those that move entries."""

WHOLE = (TensorProto.INT64, TensorProto.INT32)
MOST_ENTRIES = 1 << 26
"""Entries up to which a way is followed entry by entry."""


@dataclass(frozen=True, eq=False)
class Moves:
    """A way from a constant to a slot that loses nothing.

    Attributes:
        source: shape of the constant.
        target: shape of what arrives in the slot.
        axes: the order of the constant's axes in the slot, where that and a reshape are all.
        places: otherwise, int64 of the target's shape: which entry of the flat constant stands
            there.
        scale: what the entries are multiplied with, broadcast to the target's shape; None for 1.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    axes: tuple[int, ...] | None = None
    places: Tensor | None = None
    scale: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Turn a tensor of the constant's shape into what arrives in the slot."""
        if self.places is not None:
            moved = weight.reshape(-1)[self.places.to(weight.device)]
        else:
            axes = self.axes or tuple(range(len(self.source)))
            moved = weight.reshape(self.source).permute(axes).reshape(self.target)
        if self.scale is None or not weight.is_floating_point():
            return moved
        return moved * self.scale.to(weight)

    def backward(self, arrived: Tensor) -> Tensor:
        """Turn a tensor of the slot's shape into one of the constant's: undo ``forward``."""
        if self.scale is not None:
            arrived = arrived / self.scale.to(arrived)
        return self.placed(arrived)

    def placed(self, arrived: Tensor) -> Tensor:
        """Put what belongs to the entries in the slot where they stand in the constant."""
        if self.places is not None:
            flat = arrived.new_empty(prod(self.source))
            flat[self.places.to(arrived.device).reshape(-1)] = arrived.reshape(-1)
            return flat.reshape(self.source)
        axes = self.axes or tuple(range(len(self.source)))
        permuted = arrived.reshape([self.source[axis] for axis in axes])
        return permuted.permute(tuple(np.argsort(axes).tolist()))


def unmoved(shape: Sequence[int]) -> Moves:
    """Give the way of a constant that stands in its slot directly."""
    return Moves(tuple(shape), tuple(shape))


def moves(name: str, scopes: Scopes, key: WeightKey) -> Moves | None:
    """Follow the way from a constant to a slot.

    Args:
        name: what the slot reads.
        scopes: where it is read.
        key: the constant.

    Returns:
        The way, or None where entries are lost, doubled or mixed with others, where it depends on
        more than constants, or where the constant is too large to follow.
    """
    found = constant(name, scopes)
    if found is not None:
        return unmoved(found[1].dims) if found[0] == key else None
    simple = _simple(name, scopes, key)
    if simple is not None:
        return simple
    walker = _Walker(key, ops.load())
    try:
        places, scale = walker.arrived(name, scopes)
    except _Lost:
        return None
    size = prod(walker.source)
    if not torch.equal(places.reshape(-1).sort()[0], torch.arange(size)):
        return None
    return Moves(walker.source, tuple(places.shape), None, places, scale)


def _simple(name: str, scopes: Scopes, key: WeightKey) -> Moves | None:
    """Follow a way of Transposes without anything else that moves entries."""
    perms: list[list[int]] = []
    while True:
        made = maker(name, scopes)
        if made is None:
            break
        node, scopes = made
        if node.op_type == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            perms.append(perm if perm is not None else [])
        elif node.op_type not in ("Identity", "Cast"):
            return None
        name = node.input[0]
    found = constant(name, scopes)
    if found is None or found[0] != key:
        return None
    shape = tuple(found[1].dims)
    axes = list(range(len(shape)))
    for perm in reversed(perms):
        axes = [axes[axis] for axis in (perm or range(len(shape) - 1, -1, -1))]
    return Moves(shape, tuple(shape[axis] for axis in axes), tuple(axes))


class _Lost(Exception):
    """The way cannot be followed."""


class _Walker:
    """Follows one constant by running what stands on its way on the numbers of its entries."""

    def __init__(self, key: WeightKey, registry: Registry) -> None:
        self.key = key
        self.registry = registry
        self.source: tuple[int, ...] = ()

    def arrived(self, name: str, scopes: Scopes) -> tuple[Tensor, Tensor | None]:
        """Give which entries of the constant a name holds (-1: of another), and their scale."""
        found = constant(name, scopes)
        if found is not None:
            key, tensor = found
            size = prod(tensor.dims)
            if size > MOST_ENTRIES:
                raise _Lost
            shape = tuple(tensor.dims)
            if key != self.key:
                return torch.full(shape, -1), None
            self.source = shape
            return torch.arange(size).reshape(shape), None
        made = maker(name, scopes)
        if made is None or made[0].op_type not in MOVES:
            raise _Lost
        node, scopes = made
        bound = view(node, scopes[0].opsets.get(plain(node.domain), 1))
        if node.op_type == "Concat":
            parts = [self.arrived(each, scopes) for each in node.input]
            scales = [_scales(places, scale) for places, scale in parts]
            joined = torch.cat([places for places, _ in parts], bound.get("axis", 1))
            scaled = any(scale is not None for _, scale in parts)
            return joined, torch.cat(scales, bound.get("axis", 1)) if scaled else None
        places, scale = self.arrived(node.input[0], scopes)
        if node.op_type == "DequantizeLinear":
            found = constant(node.input[1], scopes)
            if found is None or scale is not None:
                raise _Lost
            own = torch.from_numpy(numpy_helper.to_array(found[1]).astype(np.float32))
            return places, spread(bound, own, places).expand(places.shape)
        if node.op_type in PLAIN:
            return places, scale
        at = list(node.output).index(name)
        moved = self._run(bound, node, scopes, places)[at]
        return moved, None if scale is None else self._run(bound, node, scopes, scale)[at]

    def _run(
        self, bound: NodeView, node: NodeProto, scopes: Scopes, first: Tensor
    ) -> tuple[Tensor, ...]:
        """Run a moving operator; its further inputs have to be constants of whole numbers."""
        entry = self.registry.find(bound.domain, bound.operator, bound.version)
        if entry is None:
            raise _Lost
        arguments: list[Any] = [first]
        for name in node.input[1:]:
            found = constant(name, scopes) if name else None
            if name and (found is None or found[1].data_type not in WHOLE):
                raise _Lost
            arguments.append(None if found is None else numpy_helper.to_array(found[1]))
        result = entry.convert(bound, *arguments)
        return result if isinstance(result, tuple) else (result,)


def _scales(places: Tensor, scale: Tensor | None) -> Tensor:
    return torch.ones(places.shape) if scale is None else scale.expand(places.shape)
