"""Gathered weights in a graph: Gather, a batched MatMul, and what brings the axes in order.

A MatMul, Gemm or pointwise Conv whose weight is gathered leaves the graph; a few standard operators
that compute the same take its place. The samples stand last on the way, so that what is gathered
are whole rows in memory, and the product is one of matrices even for a single sample.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from onnxpress_adapters.element_types import ranks_of
from onnxpress_adapters.gathered_tensors import MARK
from onnxpress_adapters.node import NodeView, view
from onnxpress_adapters.walk import STANDARD_DOMAINS, constant_value, graphs, is_constant
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.gathered import Gathered, best_height, gathered
from onnxpress_exporters.packed_parts import Parts
from onnxpress_exporters.protos import free_prefix, replace_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import GraphProto, NodeProto

SIGN = "@"
"""What the names made here begin with."""

TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})


@dataclass(frozen=True, eq=False)
class Placed:
    """A model with gathered weights.

    Attributes:
        model: a copy.
        weights: those that are gathered.
        reasons: why others are not.
    """

    model: ModelProto
    weights: Mapping[WeightKey, Gathered]
    reasons: Mapping[WeightKey, str]


def heights_of(
    model: ModelProto, changed: Mapping[WeightKey, np.ndarray]
) -> tuple[dict[WeightKey, int], dict[WeightKey, str]]:
    """Choose how many rows of each weight share their columns.

    Args:
        model: all data inline and dense.
        changed: the values weights are to have, in the shape of the constants.

    Returns:
        The height of the groups where gathering pays; and why not, for the others.
    """
    ranks = ranks_of(model)
    heights: dict[WeightKey, int] = {}
    reasons: dict[WeightKey, str] = {}
    for key, array in changed.items():
        found = _find(model, key, ranks)
        if isinstance(found, str):
            reasons[key] = found
        elif height := best_height(_matrix(array, found.layout)):
            heights[key] = height
        else:
            reasons[key] = "its rows share too few columns"
    return heights, reasons


def gather_weights(model: ModelProto, heights: Mapping[WeightKey, int]) -> Placed:
    """Write weights as groups of rows that share their columns.

    Args:
        model: all data inline and dense, zeros where they belong; untouched.
        heights: rows in a group, by weight.

    Returns:
        A copy, or the model itself where there is nothing to do. Gathered weights leave it, and the
        nodes that used them; names of values stay.
    """
    if not heights:
        return Placed(model, {}, {})
    made = ModelProto()
    made.CopyFrom(model)
    prefix = free_prefix(made, SIGN)
    ranks = ranks_of(made)
    weights: dict[WeightKey, Gathered] = {}
    reasons: dict[WeightKey, str] = {}
    records: list[dict[str, Any]] = []
    for number, key in enumerate(sorted(heights)):
        found = _find(made, key, ranks)
        if isinstance(found, str):
            reasons[key] = found
            continue
        matrix = _matrix(numpy_helper.to_array(found.tensor), found.layout)
        weights[key] = gathered(matrix, heights[key])
        records.append(_put(made, key, found, weights[key], f"{prefix}{number}."))
    if records:
        value = json.dumps({"prefix": prefix, "weights": records}, separators=(",", ":"))
        made.metadata_props.add(key=MARK, value=value)
    return Placed(made, weights, reasons)


@dataclass(frozen=True, eq=False)
class _Found:
    """A weight that can be gathered: what it is, and where it is used."""

    tensor: TensorProto
    layout: str
    uses: tuple[tuple[int, NodeView, int], ...]  # place of the node, the node, rank of its input


def _find(model: ModelProto, key: WeightKey, ranks: Mapping[str, int]) -> _Found | str:
    """Find a weight and its uses, or say why it cannot be gathered."""
    if key.path:
        return "it stands in a body or a function"
    tensor = _tensor(model.graph, key.name)
    if tensor is None:
        return "it is no dense constant"
    if tensor.data_type not in TYPES:
        return "it does not hold real numbers of 16, 32 or 64 bits"
    if key.name in {value.name for value in (*model.graph.input, *model.graph.output)}:
        return "it is an input or an output of the model"
    inside = {n for path, g in graphs(model) if path for node in g.node for n in node.input}
    if key.name in inside:
        return "a body reads it as well"
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    version = opsets.get("", opsets.get("ai.onnx", 1))
    uses, layouts = [], set[str]()
    for place, node in enumerate(model.graph.node):
        slots = [slot for slot, name in enumerate(node.input) if name == key.name]
        if not slots:
            continue
        seen = view(node, version)
        rank = ranks.get(node.input[0], 0)
        layout = _layout(seen, tuple(tensor.dims), rank) if slots == [1] else ""
        if not layout or node.domain not in STANDARD_DOMAINS:
            return f"{seen} does not use it as a plain matrix on the right"
        layouts.add(layout)
        uses.append((place, seen, rank))
    if len(layouts) != 1:
        return "no node uses it" if not uses else "nodes use it in different ways"
    (layout,) = layouts
    return _Found(tensor, layout, tuple(uses))


def _matrix(array: np.ndarray, layout: str) -> np.ndarray:
    """See a weight as ``[rows, columns]``."""
    if layout == "conv":
        return array.reshape(len(array), -1)
    return array.T if layout == "columns" else array


def _tensor(graph: GraphProto, name: str) -> TensorProto | None:
    """Find a constant by its name."""
    for tensor in graph.initializer:
        if tensor.name == name:
            found: TensorProto = tensor
            return found
    for node in graph.node:
        if is_constant(node) and node.output and node.output[0] == name:
            return constant_value(node)
    return None


def _layout(node: NodeView, shape: Sequence[int], rank: int) -> str:
    """Say how a weight stands: ``columns`` first, ``rows`` first, ``conv``; empty if not so."""
    if node.operator == "MatMul" and len(shape) == 2 and rank >= 2:
        return "columns"
    if node.operator == "Gemm" and node.get("alpha", 1.0) == node.get("beta", 1.0) == 1.0:
        plain = len(shape) == 2 and not node.get("transA", 0)
        return ("rows" if node.get("transB", 0) else "columns") if plain else ""
    if node.operator == "Conv" and len(shape) > 2 and set(shape[2:]) == {1}:
        strides = node.get("strides") or [1]
        pads = node.get("pads") or [0]
        padded = node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")  # a kernel of 1: none
        plain = set(strides) == {1} and set(pads) == {0} and not padded
        return "conv" if plain and node.get("group", 1) == 1 else ""
    return ""


def _put(
    model: ModelProto, key: WeightKey, found: _Found, weight: Gathered, prefix: str
) -> dict[str, Any]:
    """Put one weight into a model; give what it takes to undo that."""
    graph = model.graph
    parts = Parts(prefix, prefix, opset=0)
    columns = parts.constant("columns", weight.columns)
    values = parts.constant("values", weight.values)
    order = "" if weight.order is None else parts.constant("order", weight.order)
    names = (columns, values, order)
    originals = []
    nodes = list(graph.node)
    made: dict[int, list[NodeProto]] = {}
    for number, (place, seen, rank) in enumerate(found.uses):
        site = _Site(Parts(f"{prefix}{number}.", prefix, opset=0), weight, names)
        (site.pointwise if found.layout == "conv" else site.product)(seen, rank)
        parts.tensors += site.parts.tensors
        site.parts.nodes[-1].name = nodes[place].name
        made[place] = site.parts.nodes
        originals.append(base64.b64encode(nodes[place].SerializeToString()).decode("ascii"))
    held = next((n for n in nodes if is_constant(n) and list(n.output) == [key.name]), None)
    constant = "" if held is None else base64.b64encode(_without_value(held)).decode("ascii")
    kept = [
        one
        for place, node in enumerate(nodes)
        if node is not held
        for one in made.get(place, [node])
    ]
    replace_all(graph.node, kept)
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name == key.name:
            del graph.initializer[place]
    graph.initializer.extend(parts.tensors)
    return {
        "name": key.name,
        "part": prefix,
        "layout": found.layout,
        "shape": list(found.tensor.dims),
        "doc": found.tensor.doc_string,
        "constant": constant,
        "uses": originals,
    }


def _without_value(node: NodeProto) -> bytes:
    """Give a Constant node without what it holds."""
    empty = onnx.NodeProto(op_type=node.op_type, output=node.output)
    for field in ("name", "domain", "doc_string"):
        if node.HasField(field):
            setattr(empty, field, getattr(node, field))
    data: bytes = empty.SerializeToString()
    return data


@dataclass(frozen=True, eq=False)
class _Site:
    """The nodes that take the place of one node."""

    parts: Parts
    weight: Gathered
    names: tuple[str, str, str]

    def product(self, node: NodeView, rank: int) -> None:
        """A MatMul or Gemm ``[..., columns] -> [..., rows]``."""
        rows, columns = self.weight.shape
        groups, height, _ = self.weight.values.shape
        add, constant = self.parts.node, self.parts.constant
        x = node.inputs[0]
        if rank != 2 and node.operator != "Gemm":
            x = add("Reshape", [x, constant("flat", np.array([-1, columns], np.int64))], "x")
        turned = add("Transpose", [x], "t", perm=[1, 0])
        met = add("Gather", [turned, self.names[0]], "g", axis=0)
        product = add("MatMul", [self.names[1], met], "m")
        extents = constant("rows", np.array([groups * height, -1], np.int64))
        value = self._ordered(add("Reshape", [product, extents], "r"), axis=0)
        bias = node.inputs[2] if len(node.inputs) > 2 else ""
        last = node.outputs[0]
        if bias:
            self._end("Add", [add("Transpose", [value], "y", perm=[1, 0]), bias], last)
        elif rank != 2 and node.operator != "Gemm":
            value = add("Transpose", [value], "y", perm=[1, 0])
            shape = add("Shape", [node.inputs[0]], "s")
            leading = add("Gather", [shape, constant("axes", np.arange(rank - 1))], "l", axis=0)
            whole = add("Concat", [leading, constant("n", np.array([rows]))], "w", axis=0)
            self._end("Reshape", [value, whole], last)
        else:
            self._end("Transpose", [value], last, perm=[1, 0])

    def pointwise(self, node: NodeView, rank: int) -> None:
        """A Conv with a kernel of 1: ``[samples, columns, *axes] -> [samples, rows, *axes]``."""
        rows, _ = self.weight.shape
        groups, height, _ = self.weight.values.shape
        add, constant = self.parts.node, self.parts.constant
        x = node.inputs[0]
        flat = add("Reshape", [x, constant("flat", np.array([0, 0, -1], np.int64))], "x")
        met = add("Gather", [flat, self.names[0]], "g", axis=1)
        product = add("MatMul", [self.names[1], met], "m")
        extents = constant("rows", np.array([0, groups * height, -1], np.int64))
        value = self._ordered(add("Reshape", [product, extents], "r"), axis=1)
        if len(node.inputs) > 2 and node.inputs[2]:
            tall = constant("tall", np.array([rows, 1], np.int64))
            value = add("Add", [value, add("Reshape", [node.inputs[2], tall], "b")], "a")
        shape = add("Shape", [x], "s")
        sides = [
            add("Gather", [shape, constant(f"i{name}", np.array(axes, np.int64))], name, axis=0)
            for name, axes in (("d", [0]), ("e", range(2, rank)))
        ]
        whole = [sides[0], constant("n", np.array([rows])), sides[1]]
        self._end("Reshape", [value, add("Concat", whole, "w", axis=0)], node.outputs[0])

    def _ordered(self, value: str, axis: int) -> str:
        """Bring rows back in order, and drop those that filled up a group."""
        if not self.names[2]:
            return value
        return self.parts.node("Gather", [value, self.names[2]], "o", axis=axis)

    def _end(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add the node that makes what the original made."""
        self.parts.node(operator, inputs, "", **attributes)
        self.parts.nodes[-1].output[0] = output
