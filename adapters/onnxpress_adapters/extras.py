"""Which constants may adapt beside the prunable weights: biases, and scales and shifts of norms.

They are free in a repair and never counted in a sparsity. Means and variances of a
BatchNormalization are left alone: its scale and shift can do whatever they could.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from onnx import ModelProto, NodeProto, TensorProto

from onnxpress_adapters.functions import functions_of, key_of
from onnxpress_adapters.prunable import FLOATS, prunable
from onnxpress_adapters.scopes import constant, places
from onnxpress_adapters.weights import WeightKey

SLOTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "FusedConv": (2,),
    "Gemm": (2,),
    "FusedGemm": (2,),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LSTM": (3,),
    "GRU": (3,),
    "RNN": (3,),
}
"""Operator to the places of its inputs that hold a bias, a scale or a shift."""


def extras(model: ModelProto, *, tables: bool = False) -> tuple[WeightKey, ...]:
    """List the biases and norms of a model, in the order of the graph.

    A constant operand of Add counts as a bias when at most one of its dimensions is larger than 1,
    and more than one entry is there. A constant that any other operator reads as well is left out.

    Args:
        model: as ``read_model`` gives it.
        tables: whether the tables of Gather count as prunable.
    """
    pruned = {weight.key for weight in prunable(model, tables=tables)}
    found: dict[WeightKey, None] = {}
    refused: set[WeightKey] = set()
    functions = functions_of(model)
    for place in places(model):
        if key_of(place.node) in functions:
            continue  # what a function does with its inputs is seen inside it
        for slot, name in enumerate(place.node.input):
            known = constant(name, place.scopes) if name else None
            if known is None:
                continue
            key, tensor = known
            if _adapts(place.node, slot, tensor) and key not in pruned:
                found[key] = None
            else:
                refused.add(key)
    return tuple(key for key in found if key not in refused)


def _adapts(node: NodeProto, place: int, tensor: TensorProto) -> bool:
    if tensor.data_type not in FLOATS or not tensor.dims:
        return False
    if node.op_type == "Add":
        size = prod(tensor.dims)
        return size > 1 and size in tensor.dims
    return place in SLOTS.get(node.op_type, ())
