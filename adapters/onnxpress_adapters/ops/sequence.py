"""Sequences, optionals and maps, and what hands any value on: Identity, Shape, Size.

A sequence is a Python list of values, an empty optional is None and a full one the value it holds,
and a map is a dict. These converters are raw: they see tensors and host arrays as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import to_tensor
from onnxpress_adapters.registry import converter
from onnxpress_adapters.trace import Array, Value

SEQUENCES = frozenset(
    {
        *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
        *("SequenceLength", "SplitToSequence", "ConcatFromSequence"),
        *("Optional", "OptionalGetElement", "OptionalHasElement", "ZipMap"),
    }
)
"""Operators whose results may take another shape for inputs of the same shapes."""

LEARNING = "ai.onnx.ml"


@converter("Identity", raw=True)
def identity(node: NodeView, x: Value) -> Value:
    """Hand a value on, of whatever kind."""
    return x


@converter("Shape", raw=True)
def shape(node: NodeView, x: Tensor | Array) -> Array:
    """Give the sizes of some axes, all by default."""
    return np.array(list(x.shape)[node.get("start", 0) : node.get("end")], np.int64)


@converter("Size", raw=True)
def size(node: NodeView, x: Tensor | Array) -> Array:
    """Count the entries."""
    return np.array(np.prod(x.shape, dtype=np.int64))


@converter("SequenceEmpty", raw=True)
def sequence_empty(node: NodeView) -> list[Value]:
    """Make a sequence of nothing."""
    return []


@converter("SequenceConstruct", raw=True)
def sequence_construct(node: NodeView, *values: Value) -> list[Value]:
    """Make a sequence of tensors."""
    return list(values)


@converter("SequenceInsert", raw=True)
def sequence_insert(
    node: NodeView, values: list[Value], value: Value, position: Value | None = None
) -> list[Value]:
    """Put a tensor before a place, behind the last one by default."""
    place = len(values)
    if position is not None and int(position) != place:  # type: ignore[arg-type]
        place = _place(node, position, len(values))
    return [*values[:place], value, *values[place:]]


@converter("SequenceErase", raw=True)
def sequence_erase(
    node: NodeView, values: list[Value], position: Value | None = None
) -> list[Value]:
    """Leave out the tensor at a place, the last one by default."""
    place = len(values) - 1 if position is None else _place(node, position, len(values))
    return [*values[:place], *values[place + 1 :]]


@converter("SequenceAt", raw=True)
def sequence_at(node: NodeView, values: list[Value], position: Value) -> Value:
    """Take the tensor at a place, counted from the end where it is negative."""
    return values[_place(node, position, len(values))]


def _place(node: NodeView, position: Value, count: int) -> int:
    place = int(position)  # type: ignore[arg-type]
    if not -count <= place < count:
        raise AdapterError(f"{node} asks for place {place} of a sequence of {count}")
    return place % count


@converter("SequenceLength", raw=True)
def sequence_length(node: NodeView, values: list[Value]) -> Array:
    """Count the tensors of a sequence."""
    return np.array(len(values), np.int64)


@converter("SplitToSequence", raw=True)
def split_to_sequence(
    node: NodeView, x: Tensor | Array, split: Tensor | Array | None = None
) -> list[Value]:
    """Cut along an axis into parts of given sizes, of one size, or into single slices."""
    axis = node.get("axis", 0) % x.ndim
    total = x.shape[axis]
    if split is None:
        sizes = [1] * total
    elif split.ndim == 0:
        most = int(split)
        sizes = [min(most, total - start) for start in range(0, total, most)]
    else:
        sizes = [int(size) for size in split]
    ends = np.cumsum([0, *sizes])
    before: tuple[Any, ...] = (slice(None),) * axis
    if split is None and not node.get("keepdims", 1):
        return [x[(*before, place)] for place in range(total)]
    return [x[(*before, slice(a, b))] for a, b in pairwise(ends)]


@converter("ConcatFromSequence", raw=True)
def concat_from_sequence(node: NodeView, values: list[Value]) -> Value:
    """Join the tensors of a sequence along an axis, a new one with ``new_axis=1``."""
    axis = node.get("axis", 0)
    return joined(values, axis, stack=bool(node.get("new_axis", 0)))


def joined(values: Sequence[Any], axis: int, *, stack: bool) -> Value:
    """Concatenate or stack values; one tensor among them makes tensors of all."""
    on_device = next((v for v in values if isinstance(v, Tensor)), None)
    if on_device is None:
        return np.stack(values, axis) if stack else np.concatenate(values, axis)
    device = on_device.device
    tensors = [v if isinstance(v, Tensor) else to_tensor(v).to(device) for v in values]
    return torch.stack(tensors, axis) if stack else torch.cat(tensors, axis)


@converter("Optional", raw=True)
def optional(node: NodeView, value: Value | None = None) -> Value | None:
    """Hold a value, or nothing."""
    return value


@converter("OptionalHasElement", raw=True)
def optional_has_element(node: NodeView, value: Value | None = None) -> Array:
    """Say whether there is a value."""
    return np.array(value is not None)


@converter("OptionalGetElement", raw=True)
def optional_get_element(node: NodeView, value: Value | None) -> Value:
    """Take the value out."""
    if value is None:
        raise AdapterError(f"{node} opens an optional that holds nothing")
    return value


@converter("ZipMap", domain=LEARNING, raw=True)
def zip_map(node: NodeView, scores: Tensor | Array) -> list[Value]:
    """Give each row of scores as a map from the classes' labels to their scores."""
    labels = node.get("classlabels_int64s") or node.get("classlabels_strings")
    if not labels or scores.shape[-1] != len(labels):
        raise AdapterError(f"{node} has {len(labels or ())} labels for {scores.shape[-1]} scores")
    rows = scores.reshape(-1, len(labels))
    return [dict(zip(labels, row, strict=True)) for row in rows]
