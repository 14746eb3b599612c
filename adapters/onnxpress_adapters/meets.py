"""What the weight in a slot of a node meets: the tensor its columns are made of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.recurrent import RECURRENT, states_met

PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
"""Operators whose two first inputs meet each other."""

LOOKUPS = frozenset({"Gather"})
"""Operators that pick rows of a table (input 0) by whole numbers (input 1)."""


def met(
    node: NodeView, slot: int, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
) -> Tensor | None:
    """Give what a weight is multiplied with.

    Args:
        node: the node the weight is used in.
        slot: the place of the weight among its inputs.
        inputs: all tensors the node was given.
        outputs: all it computed, those nobody asked for included.

    Returns:
        For matrix products the other side, with the dimensions it has in the product: a vector as
        the row or column it stands for, and as many leading ones as the weight has. For a
        convolution or an attention its input; for the recurrent weights of an LSTM, GRU or RNN the
        states that stood before each step, ``[directions, time, batch, hidden]`` or
        ``[directions, gates, time, batch, hidden]``; for a table the places that were looked up.
        None where the node was not given it.
    """
    if node.operator in PRODUCTS:
        value, weight = inputs[1 - slot], inputs[slot]
        if value is None or weight is None:
            return None
        return _dimensions(value, 1 - slot, weight.ndim)
    if node.operator in LOOKUPS:
        return inputs[1]
    if node.operator in RECURRENT and slot == 2:
        return states_met(node, inputs, outputs)
    return inputs[0]


def _dimensions(value: Tensor, place: int, wanted: int) -> Tensor:
    if value.ndim == 1:
        value = value.unsqueeze(place)
    missing = wanted - value.ndim
    return value[(None,) * missing] if missing > 0 else value
