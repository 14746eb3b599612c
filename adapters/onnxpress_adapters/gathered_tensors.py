"""Gathered weights, as onnxpress writes them, made plain matrices again.

The metadata of such a model says under ``MARK`` which weights are gathered and holds the nodes that
used them. What another tool has changed since is no longer what the mark says: such a model stays
as it is, for it computes what it computes with standard operators alone.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from onnx import GraphProto

MARK = "onnxpress.gathered"
"""The key in a model's metadata."""


def make_whole(model: ModelProto) -> bool:
    """Turn the gathered weights of a model into matrices, and their nodes into the original ones.

    Args:
        model: changed in place, or untouched where the mark does not fit it; all data inline and
            dense.

    Returns:
        Whether there are gathered weights no more, that is also where there were none.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == MARK), "")
    if not text:
        return True
    try:
        record = json.loads(text)
        prefix = str(record["prefix"])
        weights = [_Weight(model.graph, one, prefix) for one in record["weights"]]
    except (KeyError, TypeError, ValueError, IndexError, binascii.Error, DecodeError):
        return False
    if not prefix or not _only_ours(model.graph, prefix, weights):
        return False
    for weight in weights:
        weight.restore(model.graph)
    _drop(model.graph, prefix)
    kept = [entry for entry in model.metadata_props if entry.key != MARK]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return True


class _Weight:
    """One gathered weight as the mark describes it; making one fails where that does not fit."""

    def __init__(self, graph: GraphProto, record: dict[str, Any], prefix: str) -> None:
        part = str(record["part"])
        if not part.startswith(prefix):
            raise ValueError(part)
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.tensor = _matrix(tensors, part, record)
        self.tensor.name, self.tensor.doc_string = str(record["name"]), str(record["doc"])
        if not self.tensor.doc_string:
            self.tensor.ClearField("doc_string")
        self.uses = [_node(text) for text in record["uses"]]
        self.held = _node(record["constant"]) if record["constant"] else None

    def restore(self, graph: GraphProto) -> None:
        """Put the matrix and the nodes that used it back."""
        if self.held is None:
            graph.initializer.append(self.tensor)
        else:
            self.tensor.ClearField("name")
            self.held.attribute.append(helper.make_attribute("value", self.tensor))
            graph.node.insert(0, self.held)
        for use in self.uses:
            end = use.output[0]
            next(node for node in graph.node if node.output[:1] == [end]).CopyFrom(use)


def _matrix(tensors: dict[str, TensorProto], part: str, record: dict[str, Any]) -> TensorProto:
    """Rebuild a weight from its groups."""
    columns = numpy_helper.to_array(tensors[f"{part}columns"])
    values = numpy_helper.to_array(tensors[f"{part}values"])
    shape = [int(size) for size in record["shape"]]
    layout = record["layout"]
    rows, width = (shape[1], shape[0]) if layout == "columns" else (shape[0], shape[1])
    groups, height, _ = values.shape
    if layout not in ("columns", "rows", "conv") or columns.shape != (groups, values.shape[2]):
        raise ValueError(layout)
    if columns.min() < 0 or groups * height < rows:
        raise ValueError(part)
    order = tensors.get(f"{part}order")
    places = None if order is None else numpy_helper.to_array(order)
    matrix = whole_matrix(columns, values, places, (rows, width))
    matrix = matrix.T if layout == "columns" else matrix
    return numpy_helper.from_array(np.ascontiguousarray(matrix.reshape(shape)))


def whole_matrix(
    columns: np.ndarray, values: np.ndarray, order: np.ndarray | None, shape: tuple[int, int]
) -> np.ndarray:
    """Spread groups of rows that share their columns over a matrix, zeros elsewhere.

    Args:
        columns: ``[groups, width]``; what fills a group up stands behind what it repeats.
        values: ``[groups, height, width]``.
        order: ``[rows]``, the place of each row among those of all groups; None where that is its
            own.
        shape: rows and columns of the matrix.

    >>> whole_matrix(np.array([[1, 1]]), np.float32([[[5, 0], [6, 0]]]), np.array([1, 0]), (2, 3))
    array([[0., 6., 0.],
           [0., 5., 0.]], dtype=float32)
    """
    whole = np.zeros((*values.shape[:2], shape[1]), values.dtype)
    for group, (places, kept) in enumerate(zip(columns, values, strict=True)):
        whole[group][:, places[::-1]] = kept[:, ::-1]
    rows = whole.reshape(-1, shape[1])
    found: np.ndarray = rows[: shape[0]] if order is None else rows[order]
    return found


def _node(text: str) -> NodeProto:
    node: NodeProto = NodeProto.FromString(base64.b64decode(text, validate=True))
    if not node.output:
        raise ValueError(text)
    return node


def _only_ours(graph: GraphProto, prefix: str, weights: list[_Weight]) -> bool:
    """Whether what the mark speaks of is all there and nothing else reads it."""
    ends = {use.output[0] for weight in weights for use in weight.uses}
    made = [node.output[0] for node in graph.node if node.output]
    if any(made.count(end) != 1 for end in ends):
        return False
    return all(
        all(name.startswith(prefix) or name in ends for name in node.output)
        for node in graph.node
        if any(name.startswith(prefix) for name in node.input)
    )


def _drop(graph: GraphProto, prefix: str) -> None:
    """Remove what only gathered weights needed."""
    for place in reversed(range(len(graph.node))):
        if all(name.startswith(prefix) for name in graph.node[place].output):
            del graph.node[place]
    for field in (graph.initializer, graph.value_info):
        for place in reversed(range(len(field))):
            if field[place].name.startswith(prefix):
                del field[place]
