"""What torch cannot do runs in onnx's own reference implementation, on the host.

No gradient passes through it. The compiler records every such node, and a weight whose gradient
would have to pass through one is never optimised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import to_tensor
from onnxpress_adapters.registry import Entry
from onnxpress_adapters.trace import Value
from onnxpress_adapters.walk import bodies

REFUSALS = (
    *(RuntimeError, ValueError, LookupError, TypeError, ArithmeticError),
    *(AttributeError, AssertionError, ImportError, OSError),
)
"""What the reference implementation raises where a node does not suit it."""


def reference_entry(proto: NodeProto, opsets: Mapping[str, int]) -> Entry | None:
    """Bind a node to onnx's reference implementation.

    Args:
        proto: a node without bodies.
        opsets: domain to version.

    Returns:
        A raw entry, or None where the reference implementation has no such operator either.
    """
    if any(True for _ in bodies(proto, 0)):
        return None
    try:
        evaluator = ReferenceEvaluator(_model(proto, opsets))
    except REFUSALS:
        # Whatever it says, it means that the reference cannot run this operator.
        return None
    names = list(dict.fromkeys(name for name in proto.input if name))

    def convert(node: NodeView, *values: Value | None) -> tuple[Value | None, ...]:
        given = {
            name: _to_reference(value, node.type_of(place))
            for place, (name, value) in enumerate(zip(node.inputs, values, strict=True))
            if name
        }
        try:
            results = evaluator.run(None, {name: given[name] for name in names})
        except REFUSALS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AdapterError(f"{node} cannot run on these inputs: {reason}") from error
        device = next((v.device for v in values if isinstance(v, Tensor)), None)
        made = iter(_from_reference(result, device) for result in results)
        return tuple(next(made) if name else None for name in node.outputs)

    return Entry(convert, 1, 1, (), raw=True)


def _model(proto: NodeProto, opsets: Mapping[str, int]) -> ModelProto:
    names = dict.fromkeys(name for name in proto.input if name)
    graph = helper.make_graph(
        [proto],
        "node",
        [helper.make_empty_tensor_value_info(name) for name in names],
        [helper.make_empty_tensor_value_info(name) for name in proto.output if name],
    )
    versions = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=versions)


def _to_reference(value: Value | None, element_type: int) -> Any:
    """Give a value as numpy, in the type the model says it has."""
    if isinstance(value, list):
        return [_to_reference(entry, element_type) for entry in value]
    if isinstance(value, Tensor):
        value = _to_numpy(value)
    if isinstance(value, np.ndarray) and element_type not in (0, TensorProto.STRING):
        wanted = helper.tensor_dtype_to_np_dtype(element_type)
        if value.dtype != wanted:
            return value.astype(wanted)
    return value


def _to_numpy(value: Tensor) -> np.ndarray[Any, Any]:
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if value.is_floating_point() and value.dtype.itemsize == 1:
        name = str(value.dtype).removeprefix("torch.")
        return value.view(torch.uint8).numpy().view(np.dtype(getattr(ml_dtypes, name)))
    return value.numpy()


def _from_reference(value: Any, device: torch.device | None) -> Any:
    """Put a result into the lane its inputs stood in; text stays on the host."""
    if isinstance(value, list):
        return [_from_reference(entry, device) for entry in value]
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if device is None or not isinstance(value, np.ndarray) or value.dtype.kind in "OUST":
        return value
    tensor = to_tensor(value)
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.to(device)
