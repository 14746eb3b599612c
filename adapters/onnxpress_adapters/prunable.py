"""Which constants of a model are prunable weights: the one definition.

A prunable weight is a constant of two or more dimensions that reaches the weight slot of an
operator in ``SLOTS``, directly or through operators that only move or scale entries
(``moves.MOVES``), subgraphs and functions included. Biases and norms are not; the tables of Gather
are where they are asked for. Every sparsity anywhere in onnxpress is the share of zeros over these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxpress_adapters.moves import MOVES
from onnxpress_adapters.scopes import Place, Scopes, constant, maker, places
from onnxpress_adapters.weights import WeightKey

SLOTS: Mapping[str, tuple[int, ...]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "FusedConv": (1,),
    "FusedMatMul": (0, 1),
    "FusedGemm": (0, 1),
    "Attention": (1,),
}
"""Operator to the places of its inputs that hold weights."""

TABLES: Mapping[str, tuple[int, ...]] = {"Gather": (0,)}
"""Operators that look rows of a weight up, prunable on request."""

FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
)

QUANTISED = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16})
"""Types of whole numbers steps can change, where 0 stands for zero."""


@dataclass(frozen=True, eq=False)
class Use:
    """One weight slot a constant reaches.

    Attributes:
        node: the node with the slot.
        path: of the graph that holds the node, as in ``Body.path``.
        place: of the node in its graph.
        slot: the place of the weight among the node's inputs.
        via: the operators passed on the way, from the node back to the constant.
        scopes: what the names the node reads mean.
    """

    node: NodeProto
    path: tuple[str, ...]
    place: int
    slot: int
    via: tuple[str, ...]
    scopes: Scopes


@dataclass(frozen=True, eq=False)
class Prunable:
    """A prunable weight.

    Attributes:
        key: where the constant stands.
        tensor: the constant itself, as it is in the file.
        uses: every weight slot it reaches, in the order of the graph.
        fixed: why steps cannot change it; empty where they can.
    """

    key: WeightKey
    tensor: TensorProto
    uses: tuple[Use, ...]
    fixed: str = ""

    @property
    def is_float(self) -> bool:
        """Whether its entries are floating-point numbers."""
        return self.tensor.data_type in FLOATS

    @property
    def elements(self) -> int:
        """How many entries it has."""
        return prod(self.tensor.dims)


def prunable(model: ModelProto, *, tables: bool = False) -> tuple[Prunable, ...]:
    """List the prunable weights of a model, in the order the graph first uses them.

    Args:
        model: without sparse initializers, as ``read_model`` gives it.
        tables: whether the tables that Gather looks rows up in count as well.
    """
    slots = {**SLOTS, **TABLES} if tables else SLOTS
    uses: dict[WeightKey, list[Use]] = {}
    tensors: dict[WeightKey, TensorProto] = {}
    whole: dict[WeightKey, str] = {}
    for place in places(model):
        node = place.node
        for slot in slots.get(node.op_type, ()):
            if slot < len(node.input) and node.input[slot]:
                for key, tensor, via in _sources(node.input[slot], place.scopes):
                    use = Use(node, place.path, place.index, slot, via, place.scopes)
                    uses.setdefault(key, []).append(use)
                    tensors.setdefault(key, tensor)
        for key, trouble in _fixed(place):
            whole.setdefault(key, trouble)
    return tuple(
        Prunable(
            key,
            tensors[key],
            tuple(found),
            "" if tensors[key].data_type in FLOATS else _why_fixed(tensors[key], whole.get(key)),
        )
        for key, found in uses.items()
    )


def quantised(model: ModelProto, *, tables: bool = False) -> frozenset[WeightKey]:
    """Give the weights of whole numbers that steps can change."""
    found = prunable(model, tables=tables)
    return frozenset(weight.key for weight in found if not weight.is_float and not weight.fixed)


def _why_fixed(tensor: TensorProto, trouble: str | None) -> str:
    if tensor.data_type not in QUANTISED:
        name = TensorProto.DataType.Name(tensor.data_type).lower()
        return f"its numbers are of type {name}"
    return trouble or ""


def _fixed(place: Place) -> Iterator[tuple[WeightKey, str]]:
    """Give the whole-number constants a node reads in a way that steps must not touch."""
    node = place.node
    for slot, name in enumerate(node.input):
        found = constant(name, place.scopes) if name else None
        if found is None or found[1].data_type not in QUANTISED:
            continue
        if node.op_type != "DequantizeLinear" or slot != 0:
            if node.op_type not in MOVES:
                yield found[0], f"{node.op_type} reads its whole numbers"
        elif len(node.input) > 2 and node.input[2]:
            zero = constant(node.input[2], place.scopes)
            if zero is None or np.any(numpy_helper.to_array(zero[1])):
                yield found[0], "its zero point is not 0, so a stored 0 is not a zero"


def count_zeros(model: ModelProto, *, tables: bool = False) -> tuple[int, int]:
    """Count the zeros and the entries over the prunable weights of a dense model."""
    zeros = elements = 0
    for weight in prunable(model, tables=tables):
        values = numpy_helper.to_array(weight.tensor)
        zeros += int((values == 0).sum())
        elements += values.size
    return zeros, elements


def _sources(name: str, scopes: Scopes) -> Iterator[tuple[WeightKey, TensorProto, tuple[str, ...]]]:
    """Follow a name back to the constants it is made of, inner scopes first; each is given once."""
    waiting: list[tuple[str, Scopes, tuple[str, ...]]] = [(name, scopes, ())]
    # A chain of Concats that read the same name twice has more ways through it than atoms exist.
    seen: set[tuple[str, tuple[str, ...], bool]] = set()
    while waiting:
        name, scopes, via = waiting.pop()
        dequantized = "DequantizeLinear" in via
        found = constant(name, scopes)
        if found is not None:
            key, tensor = found
            if (key.name, key.path, dequantized) in seen:
                continue
            seen.add((key.name, key.path, dequantized))
            if (tensor.data_type in FLOATS or dequantized) and len(tensor.dims) >= 2:
                yield key, tensor, via
            continue
        made = maker(name, scopes)
        if made is None or made[0].op_type not in MOVES:
            continue
        node, scopes = made
        at = (node.output[0], scopes[0].path, dequantized)
        if at in seen and node.op_type == "Concat":
            continue
        seen.add(at)
        passed = node.input if node.op_type == "Concat" else node.input[:1]
        further = (*via, node.op_type)
        waiting.extend((source, scopes, further) for source in reversed(passed))
