"""A prunable weight seen as a matrix, and the columns its input makes.

A layer computes ``Y = W X`` in each of its groups, with ``W`` ``[rows, columns]``: rows are outputs
(features, channels), columns are what one output reads. Layer-wise methods (OBS, least squares)
only need ``W`` and the second moment of ``X``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from onnx import ModelProto, NodeProto
from torch import Tensor

from onnxpress_adapters.node import NodeView, view
from onnxpress_adapters.ops.conv import bordered, transposed_window, window
from onnxpress_adapters.prunable import Prunable, prunable
from onnxpress_adapters.trace import Site
from onnxpress_adapters.weights import WeightKey

VIEWED = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "FusedConv"})
"""Operators whose weights have a layer view."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv"})


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight as ``[groups, rows, columns]``.

    Attributes:
        key: the weight.
        node: the node that uses it.
        slot: the weight's place among the node's inputs.
        sites: the inputs that meet the weight, one per use; all make columns of the same kind.
        shape: of the weight in the ONNX file.
    """

    key: WeightKey
    node: NodeView
    slot: int
    sites: tuple[Site, ...]
    shape: tuple[int, ...]

    @property
    def groups(self) -> int:
        """How many independent matrices the weight is."""
        if self._convolves:
            return int(self.node.get("group", 1))
        return prod(self.shape[:-2])

    @property
    def rows(self) -> int:
        """Outputs of one group."""
        if self.node.operator == "ConvTranspose":
            return self.shape[1]
        if self._convolves:
            return self.shape[0] // self.groups
        return self.shape[-1] if self._columns_first else self.shape[-2]

    @property
    def columns(self) -> int:
        """Entries one output reads."""
        return prod(self.shape) // max(1, self.groups * self.rows)

    @property
    def _convolves(self) -> bool:
        return self.node.operator in CONVOLUTIONS

    @property
    def _columns_first(self) -> bool:
        """Whether the weight stands as ``[columns, rows]`` in the file."""
        if self.node.operator == "MatMul":
            return self.slot == 1
        transposed = bool(self.node.get("transB" if self.slot == 1 else "transA", 0))
        return transposed != (self.slot == 1)

    def matrix(self, weight: Tensor) -> Tensor:
        """See a tensor of the weight's shape as ``[groups, rows, columns]``."""
        groups = self.groups
        if self.node.operator == "ConvTranspose":
            split = weight.reshape(groups, -1, *self.shape[1:])
            spatial = tuple(range(3, split.ndim))
            return split.flip(spatial).transpose(1, 2).reshape(groups, self.rows, self.columns)
        if self._convolves:
            return weight.reshape(groups, self.rows, self.columns)
        stacked = weight.reshape(groups, *self.shape[-2:])
        return stacked.transpose(1, 2) if self._columns_first else stacked

    def weight(self, matrix: Tensor) -> Tensor:
        """Put ``[groups, rows, columns]`` back into the weight's shape: undo ``matrix``."""
        if self.node.operator == "ConvTranspose":
            inner = self.shape[0] // self.groups
            split = matrix.reshape(self.groups, self.rows, inner, *self.shape[2:]).transpose(1, 2)
            return split.flip(tuple(range(3, split.ndim))).reshape(self.shape)
        if not self._convolves and self._columns_first:
            matrix = matrix.transpose(1, 2)
        return matrix.reshape(self.shape)

    def columns_of(self, value: Tensor, limit: int | None = None) -> Tensor:
        """Turn what the node was given into the columns ``X`` of ``Y = W X``.

        Args:
            value: the input that meets the weight, as ``Network.run`` watches it; further leading
                dimensions (samples) are welcome.
            limit: keep at most so many columns, evenly spread; all by default.

        Returns:
            ``[groups, count, columns]``: one row per column of ``X``.
        """
        if self._convolves:
            return self._windows(value, limit)
        alpha = self.node.get("alpha", 1.0)
        if alpha != 1:
            value = alpha * value
        if self._meets_rows:
            value = value.transpose(-1, -2) if value.ndim > 1 else value
        return _pick(self._stacked(value), limit)

    @property
    def _meets_rows(self) -> bool:
        """Whether the columns of X are columns, not rows, of the input."""
        if self.node.operator == "MatMul":
            return self.slot == 0
        transposed = bool(self.node.get("transA" if self.slot == 1 else "transB", 0))
        return transposed == (self.slot == 1)

    def _stacked(self, value: Tensor) -> Tensor:
        """Bring ``[..., columns]`` to ``[groups, count, columns]``."""
        if self.groups == 1:
            return value.reshape(1, -1, self.columns)
        batch = self.shape[:-2]
        value = value[(None,) * max(0, len(batch) + 2 - value.ndim)]
        first = value.ndim - len(batch) - 2
        # Where the weight has a 1, one matrix serves all the input has there: more columns.
        grouped = [first + axis for axis, size in enumerate(batch) if size > 1]
        sizes = list(value.shape)
        for axis in grouped:
            sizes[axis] = batch[axis - first]
        rest = [axis for axis in range(value.ndim) if axis not in grouped]
        value = value.expand(sizes).permute(*grouped, *rest)
        return value.reshape(self.groups, -1, self.columns)

    def _windows(self, value: Tensor, limit: int | None) -> Tensor:
        """Cut the windows a convolution reads out of its input ``[..., channels, *spatial]``."""
        kernel = self.shape[2:]
        rank = len(kernel)
        value = value.reshape(-1, *value.shape[value.ndim - rank - 1 :])
        if self.node.operator == "ConvTranspose":
            grown = self.node.get("output_padding") or [0] * rank
            place = transposed_window(self.node, value.shape[2:], kernel, grown)
            value = _spread(value, place.strides)
            begins = [r - 1 - b for r, b in zip(place.reach, place.begins, strict=True)]
            ends = [r - 1 - e for r, e in zip(place.reach, place.ends, strict=True)]
            value = bordered(value, begins, [e + g for e, g in zip(ends, grown, strict=True)])
            strides: Sequence[int] = (1,) * rank
        else:
            place = window(self.node, value.shape[2:], kernel)
            value = bordered(value, place.begins, place.ends)
            strides = place.strides
        for axis, (reach, dilation) in enumerate(zip(place.reach, place.dilations, strict=True)):
            value = value.unfold(2 + axis, reach, strides[axis])[..., ::dilation]
        # [batch, channels, *positions, *kernel] -> [batch, *positions, channels, *kernel], a view
        view = value.movedim(1, 1 + rank)
        grid = view.shape[: 1 + rank]
        total = prod(grid)
        if limit is not None and total > limit:
            flat = torch.linspace(0, total - 1, limit, dtype=torch.float64).long()
            places = torch.unravel_index(flat.to(value.device), grid)
            picked = view[places]
        else:
            picked = view.reshape(total, *view.shape[1 + rank :])
        return picked.reshape(len(picked), self.groups, self.columns).transpose(0, 1)


def layers_of(model: ModelProto) -> tuple[Layer, ...]:
    """List the layer views of a model's floating-point prunable weights.

    A weight has a view when every use of it is direct (nothing stands between the constant and the
    node), by nodes of ``VIEWED`` with the same attributes, which fit its shape.
    """
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    layers = (_layer(weight, opsets) for weight in prunable(model) if weight.is_float)
    return tuple(layer for layer in layers if layer is not None)


def _layer(weight: Prunable, opsets: dict[str, int]) -> Layer | None:
    node = weight.uses[0].node
    direct = all(use.via == () for use in weight.uses)
    alike = len({(use.slot, use.node.op_type, _attributes(use.node)) for use in weight.uses}) == 1
    if not direct or not alike or node.op_type not in VIEWED or not weight.elements:
        return None
    shape = tuple(weight.tensor.dims)
    bound = view(node, opsets.get(node.domain, 1))
    if node.op_type in CONVOLUTIONS and not _fits(bound, shape):
        return None
    slot = weight.uses[0].slot
    other = 0 if slot == 1 else 1
    return Layer(
        key=weight.key,
        node=bound,
        slot=slot,
        sites=tuple((use.path, use.place, other) for use in weight.uses),
        shape=shape,
    )


def _fits(node: NodeView, shape: Sequence[int]) -> bool:
    """Say whether a convolution's attributes fit its weight; the checker of onnx does not ask."""
    groups = node.get("group", 1)
    lists = [node.get(name) for name in ("kernel_shape", "strides", "dilations")]
    return (
        groups > 0
        and shape[0] % groups == 0
        and all(values is None or len(values) == len(shape) - 2 for values in lists)
        and tuple(lists[0] or shape[2:]) == tuple(shape[2:])
    )


def _attributes(node: NodeProto) -> bytes:
    return b"".join(sorted(a.SerializeToString() for a in node.attribute))


def _pick(columns: Tensor, limit: int | None) -> Tensor:
    """Keep at most ``limit`` of ``[groups, count, columns]``, evenly spread."""
    count = columns.shape[1]
    if limit is None or count <= limit:
        return columns
    places = torch.linspace(0, count - 1, limit, dtype=torch.float64).long()
    return columns[:, places.to(columns.device)]


def _spread(value: Tensor, strides: Sequence[int]) -> Tensor:
    """Put ``stride - 1`` zeros between neighbours along each spatial dimension."""
    for axis, stride in enumerate(strides, start=2):
        if stride > 1:
            gaps = value.new_zeros(*value.shape[: axis + 1], stride - 1, *value.shape[axis + 1 :])
            woven = torch.cat([value.unsqueeze(axis + 1), gaps], axis + 1).flatten(axis, axis + 1)
            value = woven.narrow(axis, 0, woven.shape[axis] - (stride - 1))
    return value
