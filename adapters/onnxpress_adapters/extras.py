"""Which constants may adapt beside the prunable weights: biases, and scales and shifts of norms.

They are free in a repair and never counted in a sparsity. Means and variances of a
BatchNormalization are left alone: its scale and shift can do whatever they could.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxpress_adapters import walk
from onnxpress_adapters.prunable import FLOATS, prunable
from onnxpress_adapters.weights import WeightKey

SLOTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "FusedConv": (2,),
    "Gemm": (2,),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LSTM": (3,),
    "GRU": (3,),
    "RNN": (3,),
}
"""Operator to the places of its inputs that hold a bias, a scale or a shift."""


def extras(model: ModelProto) -> tuple[WeightKey, ...]:
    """List the biases and norms of a model, in the order of the graph.

    A constant operand of Add counts as a bias when at most one of its dimensions is larger than 1,
    and more than one entry is there. A constant that any other operator reads as well is left out.

    Args:
        model: as ``read_model`` gives it.
    """
    pruned = {weight.key for weight in prunable(model)}
    found: dict[WeightKey, None] = {}
    refused: set[WeightKey] = set()
    for path, graph in walk.graphs(model):
        known = dict(walk.constants(graph))
        for node, place, name in _reads(graph):
            if name not in known:
                continue
            key = WeightKey(path, name)
            if _adapts(node, place, known[name]) and key not in pruned:
                found[key] = None
            else:
                refused.add(key)
    return tuple(key for key in found if key not in refused)


def _reads(graph: GraphProto) -> Iterator[tuple[NodeProto, int, str]]:
    """Give every read of a name by a node of the graph or of the bodies in it."""
    for index, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            yield node, place, name
        for _, body in walk.bodies(node, index):
            yield from _reads(body)


def _adapts(node: NodeProto, place: int, tensor: TensorProto) -> bool:
    if tensor.data_type not in FLOATS or not tensor.dims:
        return False
    if node.op_type == "Add":
        size = prod(tensor.dims)
        return size > 1 and size in tensor.dims
    return place in SLOTS.get(node.op_type, ())
