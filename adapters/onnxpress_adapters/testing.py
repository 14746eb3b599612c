"""The import as plain functions of numpy arrays, for test suites of ONNX importers.

``importer(model)`` compiles a model and gives a function from a list of inputs to the list of
outputs, in the order of the graph. Sequences are lists, an empty optional is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from onnx import ModelProto, TypeProto, helper
from torch import Tensor

from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.network import import_network
from onnxpress_adapters.ops.dtypes import to_tensor
from onnxpress_adapters.sparse_tensors import make_dense

Compiled = Callable[[Sequence[Any]], list[Any]]


def importer(model: ModelProto) -> Compiled:
    """Compile a model; what has no converter runs in onnx's reference implementation.

    Raises:
        AdapterError: nothing runs some of its operators.
    """
    return _imported(model, reference=True)


def importer_without_reference(model: ModelProto) -> Compiled:
    """Compile a model that has a converter for every operator.

    Raises:
        AdapterError: it has not.
    """
    return _imported(model, reference=False)


def _imported(model: ModelProto, *, reference: bool) -> Compiled:
    dense = ModelProto()
    dense.CopyFrom(model)
    make_dense(dense)
    network, weights = import_network(dense, reference=reference)
    types = {value.name: value.type for value in (*model.graph.input, *model.graph.output)}
    places = _places(model, [spec.name for spec in network.inputs])

    def run(inputs: Sequence[Any]) -> list[Any]:
        if len(inputs) not in (len(network.inputs), len(model.graph.input)):
            raise MisuseError(f"the model takes {len(network.inputs)} inputs, not {len(inputs)}")
        chosen = inputs if len(inputs) == len(network.inputs) else [inputs[p] for p in places]
        given = [_to_value(value) for value in chosen]
        with torch.no_grad():
            outputs = network(weights, *given)
        return [
            _to_array(value, types[spec.name])
            for value, spec in zip(outputs, network.outputs, strict=True)
        ]

    return run


def _places(model: ModelProto, names: Sequence[str]) -> list[int]:
    """Give where the true inputs stand among those of a model that lists its weights as well."""
    where: Mapping[str, int] = {value.name: p for p, value in enumerate(model.graph.input)}
    return [where[name] for name in names]


def _to_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_to_value(entry) for entry in value]
    if value is None:
        return None
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "OUST" else to_tensor(array)


def _to_array(value: Any, kind: TypeProto) -> Any:
    """Give a value as numpy, in the type the model declares where that is another one."""
    held = kind.WhichOneof("value")
    if held == "sequence_type":
        return [_to_array(entry, kind.sequence_type.elem_type) for entry in value]
    if held == "optional_type":
        return None if value is None else _to_array(value, kind.optional_type.elem_type)
    if not isinstance(value, Tensor):
        return value
    element_type = kind.tensor_type.elem_type
    value = value.cpu()
    if value.dtype == torch.bfloat16:
        array: Any = value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    elif value.is_floating_point() and value.dtype.itemsize == 1:
        name = str(value.dtype).removeprefix("torch.")
        array = value.view(torch.uint8).numpy().view(np.dtype(getattr(ml_dtypes, name)))
    else:
        array = value.numpy()
    wanted = helper.tensor_dtype_to_np_dtype(element_type) if element_type else array.dtype
    return array if array.dtype == wanted else array.astype(wanted)
