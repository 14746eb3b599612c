"""A prunable weight seen as a matrix, and the columns its input makes.

A layer computes ``Y = W X`` in each of its groups, with ``W`` ``[rows, columns]``: rows are outputs
(features, channels, gates), columns are what one output reads. Layer-wise methods (OBS, least
squares) only need ``W`` and the second moment of ``X``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from onnx import ModelProto
from torch import Tensor

from onnxpress_adapters.functions import plain
from onnxpress_adapters.moves import Moves, moves
from onnxpress_adapters.node import NodeView, view
from onnxpress_adapters.ops.activation import MICROSOFT
from onnxpress_adapters.ops.conv import bordered, transposed_window, window
from onnxpress_adapters.ops.recurrent import RECURRENT
from onnxpress_adapters.prunable import Prunable, Use, prunable
from onnxpress_adapters.trace import Site
from onnxpress_adapters.weights import WeightKey

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv"})
TRANSPOSING = frozenset({"Gemm", "FusedGemm", "FusedMatMul"})
"""Matrix products whose attributes may transpose their sides."""

LOOKUP = "Gather"
PROJECTION = "Attention"


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight as ``[groups, rows, columns]``.

    Attributes:
        key: the weight.
        node: the first node that uses it.
        slot: the weight's place among the node's inputs.
        sites: where it is used; all make columns of the same kind.
        nodes: the node at each site.
        moves: how the tensor in the slot is made of the constant in the file.
    """

    key: WeightKey
    node: NodeView
    slot: int
    sites: tuple[Site, ...]
    nodes: tuple[NodeView, ...]
    moves: Moves

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor in the slot."""
        return self.moves.target

    @property
    def groups(self) -> int:
        """How many independent matrices the weight is."""
        operator = self.node.operator
        if operator in CONVOLUTIONS:
            return int(self.node.get("group", 1))
        if operator in RECURRENT:
            return self.shape[0] * (3 if self._resets_first else 1)
        if operator == LOOKUP:
            return self.shape[0]
        return prod(self.shape[:-2])

    @property
    def rows(self) -> int:
        """Outputs of one group."""
        operator = self.node.operator
        if operator == "ConvTranspose":
            return self.shape[1]
        if operator in CONVOLUTIONS:
            return self.shape[0] // self.groups
        if operator in RECURRENT:
            return self.shape[1] // (3 if self._resets_first else 1)
        if operator == LOOKUP:
            return prod(self.shape[1:])
        return self.shape[-1] if self._columns_first else self.shape[-2]

    @property
    def columns(self) -> int:
        """Entries one output reads."""
        return prod(self.shape) // max(1, self.groups * self.rows)

    @property
    def _resets_first(self) -> bool:
        """Whether the gates of a GRU meet different states: then each gate is a group."""
        late = self.node.get("linear_before_reset", 0)
        return self.node.operator == "GRU" and self.slot == 2 and not late

    @property
    def _columns_first(self) -> bool:
        """Whether the weight stands as ``[columns, rows]`` in its slot."""
        if self.node.operator not in TRANSPOSING:
            return self.slot == 1 and self.node.operator not in RECURRENT
        transposed = bool(self.node.get("transB" if self.slot == 1 else "transA", 0))
        return transposed != (self.slot == 1)

    def matrix(self, weight: Tensor) -> Tensor:
        """See a tensor of the weight's shape in the file as ``[groups, rows, columns]``."""
        groups, weight = self.groups, self.moves.forward(weight)
        if self.node.operator == "ConvTranspose":
            split = weight.reshape(groups, -1, *self.shape[1:])
            spatial = tuple(range(3, split.ndim))
            return split.flip(spatial).transpose(1, 2).reshape(groups, self.rows, self.columns)
        if self.node.operator in CONVOLUTIONS or self.node.operator in (*RECURRENT, LOOKUP):
            return weight.reshape(groups, self.rows, self.columns)
        stacked = weight.reshape(groups, *self.shape[-2:])
        return stacked.transpose(1, 2) if self._columns_first else stacked

    def weight(self, matrix: Tensor) -> Tensor:
        """Put ``[groups, rows, columns]`` back into the weight's shape: undo ``matrix``."""
        return self.moves.backward(self._in_slot(matrix))

    def entries(self, matrix: Tensor) -> Tensor:
        """Put what belongs to the entries of the matrix (costs, say) into the weight's shape."""
        return self.moves.placed(self._in_slot(matrix))

    def _in_slot(self, matrix: Tensor) -> Tensor:
        operator = self.node.operator
        if operator == "ConvTranspose":
            inner = self.shape[0] // self.groups
            split = matrix.reshape(self.groups, self.rows, inner, *self.shape[2:]).transpose(1, 2)
            return split.flip(tuple(range(3, split.ndim))).reshape(self.shape)
        if operator not in (*CONVOLUTIONS, *RECURRENT, LOOKUP) and self._columns_first:
            matrix = matrix.transpose(1, 2)
        return matrix.reshape(self.shape)

    def columns_of(
        self, value: Tensor, limit: int | None = None, node: NodeView | None = None
    ) -> Tensor:
        """Turn what the weight met into the columns ``X`` of ``Y = W X``.

        Args:
            value: what the weight met, as ``meets.met`` gives it; further leading dimensions
                (samples, calls) are welcome.
            limit: keep at most so many columns, evenly spread; all by default.
            node: where it was met, ``node`` of the layer by default; of several sites the nodes
                may differ in strides and pads.

        Returns:
            ``[groups, count, columns]``: one row per column of ``X``. A table gives one column per
            row, the root of how often that row was looked up: the second moment is the same.
        """
        node = node or self.node
        operator = self.node.operator
        if operator in CONVOLUTIONS:
            return self._windows(node, value, limit)
        if operator in RECURRENT:
            return _pick(self._steps(value), limit)
        if operator == LOOKUP:
            table = self.shape[0]
            counts = torch.bincount(value.reshape(-1).long() % table, minlength=table)
            return counts.to(torch.float32).sqrt().reshape(table, 1, 1)
        alpha = node.get("alpha", 1.0) if operator in TRANSPOSING else 1.0
        if alpha != 1:
            value = alpha * value
        if self._meets_rows:
            value = value.transpose(-1, -2) if value.ndim > 1 else value
        return _pick(self._stacked(value), limit)

    @property
    def _meets_rows(self) -> bool:
        """Whether the columns of X are columns, not rows, of what is met."""
        if self.node.operator not in TRANSPOSING:
            return self.slot == 0
        transposed = bool(self.node.get("transA" if self.slot == 1 else "transB", 0))
        return transposed == (self.slot == 1)

    def _steps(self, value: Tensor) -> Tensor:
        """Bring what an LSTM, GRU or RNN met, step by step, to ``[groups, count, columns]``."""
        if self.slot == 1:
            # Every direction reads the same input.
            return value.reshape(1, -1, self.columns).expand(self.groups, -1, -1)
        first = value.ndim - (5 if self._resets_first else 4)
        own = (first, first + 1) if self._resets_first else (first,)
        return value.movedim(own, tuple(range(len(own)))).reshape(self.groups, -1, self.columns)

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

    def _windows(self, node: NodeView, value: Tensor, limit: int | None) -> Tensor:
        """Cut the windows a convolution reads out of its input ``[..., channels, *spatial]``."""
        kernel = self.shape[2:]
        rank = len(kernel)
        value = value.reshape(-1, *value.shape[value.ndim - rank - 1 :])
        if node.operator == "ConvTranspose":
            grown = node.get("output_padding") or [0] * rank
            place = transposed_window(node, value.shape[2:], kernel, grown)
            value = _spread(value, place.strides)
            begins = [r - 1 - b for r, b in zip(place.reach, place.begins, strict=True)]
            ends = [r - 1 - e for r, e in zip(place.reach, place.ends, strict=True)]
            value = bordered(value, begins, [e + g for e, g in zip(ends, grown, strict=True)])
            strides: Sequence[int] = (1,) * rank
        else:
            place = window(node, value.shape[2:], kernel)
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


def layers_of(model: ModelProto, *, tables: bool = False) -> tuple[Layer, ...]:
    """List the layer views of the prunable weights of a model that steps can change.

    A weight has a view when every use of it sees the same matrix, and every entry arrives there
    once: by ``why_no_view``.

    Args:
        model: as ``read_model`` gives it.
        tables: whether the tables of Gather count as prunable.
    """
    layers = (layer_of(weight) for weight in prunable(model, tables=tables))
    return tuple(layer for layer in layers if isinstance(layer, Layer))


def layer_of(weight: Prunable) -> Layer | str:
    """Give the layer view of a weight, or say why it has none."""
    if weight.fixed:
        return weight.fixed
    if not weight.elements:
        return "it is empty"
    ways: list[Moves] = []
    nodes: list[NodeView] = []
    for use in weight.uses:
        node = view(use.node, use.scopes[0].opsets.get(plain(use.node.domain), 1))
        way = moves(use.node.input[use.slot], use.scopes, weight.key)
        if way is None:
            return f"on its way through {', '.join(use.via)} entries are lost, doubled or joined"
        reason = _why_not(node, use, way.target)
        if reason:
            return reason
        ways.append(way)
        nodes.append(node)
    layers = [
        Layer(weight.key, node, use.slot, (), (), way)
        for node, use, way in zip(nodes, weight.uses, ways, strict=True)
    ]
    first = layers[0]
    if any(not _alike(first, other) for other in layers[1:]):
        return "several nodes use it in different ways"
    sites = tuple((use.path, use.place, use.slot) for use in weight.uses)
    return Layer(weight.key, first.node, first.slot, sites, tuple(nodes), first.moves)


def _why_not(node: NodeView, use: Use, shape: tuple[int, ...]) -> str:
    """Say why a node's weight cannot be seen as a matrix; empty where it can."""
    operator = node.operator
    if operator == PROJECTION:
        if node.domain != MICROSOFT:
            return "Attention takes it as keys, not as a weight"
        return "" if len(shape) == 2 else "Attention takes a matrix"
    if operator in CONVOLUTIONS and not _fits(node, shape):
        return f"it does not fit the attributes of {node}"
    if operator in RECURRENT and len(shape) != 3:
        return f"it does not fit {node}"
    if node.get("transBatchA", 0) or node.get("transBatchB", 0):
        return "FusedMatMul moves its batch axes"
    if operator == LOOKUP and (node.get("axis", 0) != 0 or len(shape) < 2):
        return "Gather takes it apart along another axis than its first"
    return ""


def _alike(one: Layer, other: Layer) -> bool:
    """Say whether two uses see the same matrix and make columns of the same kind."""
    names = ("group", "transA", "transB", "linear_before_reset")
    kind = (one.node.operator in CONVOLUTIONS, one.node.operator == "ConvTranspose")
    same_kind = one.node.operator == other.node.operator or kind == (
        other.node.operator in CONVOLUTIONS,
        other.node.operator == "ConvTranspose",
    ) == (True, False)
    return (
        same_kind
        and one.slot == other.slot
        and all(one.node.get(name) == other.node.get(name) for name in names)
        and one.moves.target == other.moves.target
        and one.moves.axes == other.moves.axes
        and _equal(one.moves.places, other.moves.places)
        and _equal(one.moves.scale, other.moves.scale)
    )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


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
