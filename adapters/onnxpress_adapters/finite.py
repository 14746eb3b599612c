"""Whether the weights of a model are numbers at all.

NaN and infinite weights pass every other stage of every tool, and then nothing can be measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from onnxpress_adapters.errors import BrokenModelError
from onnxpress_adapters.specs import kind
from onnxpress_adapters.walk import constants, graphs

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

PASS_ON = frozenset({"Identity", "Transpose", "Cast", "Reshape", "DequantizeLinear"})
WEIGHTED = frozenset(
    {
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"),
        *("BatchNormalization", "InstanceNormalization"),
        *("LayerNormalization", "GroupNormalization"),
    }
)
CHUNK = 1 << 22


def check_finite(model: ModelProto) -> None:
    """Refuse a model with a weight that is NaN or infinite.

    A NaN is refused in any float constant of two or more entries. An infinity, or a lone NaN, has
    honest uses (the mask of an attention, the open end of a Clip): it is refused only where it
    reaches an operator with weights, directly or through Identity, Transpose, Cast, Reshape or
    DequantizeLinear.

    Args:
        model: with names checked, its sparse constants dense.

    Raises:
        BrokenModelError: names the tensor.
    """
    for _, graph in graphs(model):
        for name, tensor in constants(graph):
            trouble = _trouble(tensor)
            if trouble and ((trouble == "NaN" and tensor.dims) or _is_weight(model, name)):
                raise BrokenModelError(
                    f"weight '{name}' holds {trouble}; nothing can be measured on such a model"
                )


def _trouble(tensor: TensorProto) -> str | None:
    array = numpy_helper.to_array(tensor)
    if kind(array.dtype) != "float":
        return None
    trouble = None
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        if not np.isfinite(part).all():
            if np.isnan(part).any():
                return "NaN"
            trouble = "an infinite value"
    return trouble


def _is_weight(model: ModelProto, name: str) -> bool:
    names = {name}
    for _, graph in graphs(model):
        for node in graph.node:
            if names.intersection(node.input):
                if node.op_type in WEIGHTED:
                    return True
                if node.op_type in PASS_ON:
                    names.update(node.output)
    return False
