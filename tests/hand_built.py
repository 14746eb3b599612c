"""Graphs of a few nodes, written down in one expression and imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper
from onnx.numpy_helper import from_array
from torch import Tensor

from onnxpress_adapters.network import Network, import_network
from onnxpress_adapters.weights import WeightKey
from small_models import model

Array = np.ndarray[Any, Any]

NONE: Mapping[str, Array] = {}


def op(operator: str, reads: str, makes: str, name: str = "", **attributes: Any) -> NodeProto:
    """Make a node; names are parted by spaces, and ``_`` is an input left out."""
    inputs = ["" if part == "_" else part for part in reads.split()]
    return helper.make_node(operator, inputs, makes.split(), name=name or None, **attributes)


def graph(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Mapping[str, Array] = NONE,
) -> GraphProto:
    """Make a graph whose constants are initializers."""
    initializers = [from_array(np.asarray(array), name) for name, array in constants.items()]
    return helper.make_graph(list(nodes), "g", list(inputs), list(outputs), initializers)


def build(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Mapping[str, Array] = NONE,
    opset: int = 17,
    ir: int = 8,
) -> ModelProto:
    """Make a checked model."""
    made = model(graph(nodes, inputs, outputs, constants), opset, ir)
    onnx.checker.check_model(made)
    return made


def key(*parts: str) -> WeightKey:
    """Name a constant: the path of its graph, then its name."""
    return WeightKey(tuple(parts[:-1]), parts[-1])


def normal(*shape: int, seed: int = 0) -> Array:
    """Draw float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw a float32 tensor."""
    return torch.from_numpy(normal(*shape, seed=seed))


def asked(made: ModelProto, *inputs: Array) -> list[Array]:
    """Give onnxruntime's outputs."""
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def same_as_runtime(
    made: ModelProto, *inputs: Array, network: Network | None = None, atol: float = 1e-5
) -> None:
    """Hold the network to onnxruntime's outputs; a scalar integer goes in as an array."""
    fresh, weights = import_network(made)
    given = [v if v.dtype.kind in "iub" and v.size == 1 else torch.from_numpy(v) for v in inputs]
    found = (network or fresh)(weights, *given)
    wanted = asked(made, *inputs)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-5, atol=atol)
