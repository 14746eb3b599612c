"""Small problems for the tests of steps: a model, its problem and the state it begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array
from onnx.shape_inference import infer_shapes
from torch import Tensor

from onnxpress.problem import Problem, Tolerance
from onnxpress.state import State
from onnxpress_adapters.extras import extras
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.weights import Dense, WeightKey
from small_models import model, perceptron, value

EFFORT = 0.004
"""Enough for a few dozen steps of a repair."""

TOKENS = 10


@dataclass(frozen=True, eq=False)
class Case:
    """A problem and where it begins."""

    model: ModelProto
    problem: Problem
    state: State

    def only(self, *names: str) -> State:
        """Give the state with some weights free."""
        return replace(self.state, free=frozenset(key(name) for name in names))


def key(name: str) -> WeightKey:
    """Name a constant of the main graph."""
    return WeightKey((), name)


def case_of(
    made: ModelProto,
    inputs: Sequence[Tensor] | None = None,
    *,
    tolerance: Tolerance | None = None,
    judged: Sequence[int] | None = None,
    seed: int = 0,
    effort: float = EFFORT,
) -> Case:
    """Lay out a problem as ``compress`` does.

    Args:
        made: the model.
        inputs: the fit set; drawn unless given, and then the choose set is the same.
        tolerance: the promise.
        judged: places of the outputs that count, all unless given.
        seed: of the problem; the inputs do not depend on it.
        effort: of the steps.
    """
    network, reference = import_network(made)
    fit = list(inputs) if inputs is not None else _drawn(made, 192, 1)
    choose = list(inputs) if inputs is not None else _drawn(made, 96, 2)
    network = network.proven(reference, fit)
    problem = Problem(
        network=network,
        reference=reference,
        fit=fit,
        choose=choose,
        judged=tuple(range(len(network.outputs)) if judged is None else judged),
        tolerance=tolerance,
        device=torch.device("cpu"),
        seed=seed,
        effort=effort,
    )
    weights = {w.key: Dense(reference[w.key], reference[w.key] != 0) for w in prunable(made)}
    adapting = {place: reference[place] for place in extras(made)}
    return Case(made, problem, State(weights, adapting, frozenset(weights)))


def _drawn(made: ModelProto, samples: int, seed: int) -> list[Tensor]:
    """Draw normal numbers, or tokens, for every input; the open dimension is a batch of 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for spec in made.graph.input:
        kind = spec.type.tensor_type
        shape = [samples, *(dim.dim_value or 1 for dim in kind.shape.dim)]
        if kind.elem_type == TensorProto.INT64:
            drawn.append(torch.randint(0, TOKENS, shape, generator=generator))
        else:
            drawn.append(torch.randn(shape, generator=generator))
    return drawn


def graph_model(
    nodes: Sequence[NodeProto],
    constants: dict[str, np.ndarray],
    shape: Sequence[int | str] = ("N", 8),
    outputs: Sequence[str] = ("y",),
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    """Make a model with one input ``x`` and float outputs, whose shapes follow from the nodes."""
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [value("x", *shape, kind=kind)], results, tensors)
    return infer_shapes(model(graph), strict_mode=True)


def normal(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Draw float32 constants, scaled so that activations keep their size."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:] or (4,)))).astype(np.float32)
        for name, shape in shapes.items()
    }


def linear_model(weight: np.ndarray) -> ModelProto:
    """``y = x @ weight`` with ``weight`` ``[inputs, outputs]``, called ``w``."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    return graph_model(nodes, {"w": weight.astype(np.float32)}, ("N", weight.shape[0]))


def convolutional_model() -> ModelProto:
    """Two convolutions, the first with a BatchNormalization, and a Gemm."""
    constants = normal(
        3, c1=(4, 2, 3, 3), c2=(6, 4, 3, 3), c2b=(6,), w=(3, 6), b=(3,), shift=(4,), mean=(4,)
    )
    constants["scale"] = np.array([1.0, 0.5, 2.0, 1.5], np.float32)
    constants["var"] = np.array([1.0, 2.0, 0.5, 1.0], np.float32)
    norm = ["h1", "scale", "shift", "mean", "var"]
    nodes = [
        helper.make_node("Conv", ["x", "c1"], ["h1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", norm, ["h2"], name="norm"),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MaxPool", ["h3"], ["h4"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["h4", "c2", "c2b"], ["h5"], name="conv2"),
        helper.make_node("Relu", ["h5"], ["h6"]),
        helper.make_node("GlobalAveragePool", ["h6"], ["h7"]),
        helper.make_node("Flatten", ["h7"], ["h8"]),
        helper.make_node("Gemm", ["h8", "w", "b"], ["y"], name="head", transB=1),
    ]
    return graph_model(nodes, constants, ("N", 2, 8, 8))


def two_headed_model() -> ModelProto:
    """One hidden layer, and two outputs ``a`` and ``b`` of which the second is ten times larger."""
    constants = normal(4, w=(8, 12), bias=(12,), wa=(12, 3), wb=(12, 2))
    constants["wb"] *= 10
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h1"], name="trunk"),
        helper.make_node("Add", ["h1", "bias"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "wa"], ["a"], name="head_a"),
        helper.make_node("MatMul", ["h3", "wb"], ["b"], name="head_b"),
    ]
    return graph_model(nodes, constants, ("N", 8), ("a", "b"))


def shared_model() -> ModelProto:
    """Tokens through a Gather table, then one weight used twice, then the mean over the tokens."""
    constants = normal(5, table=(TOKENS, 6), w=(6, 6), bias=(6,), v=(6, 4))
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["h0"], name="look_up"),
        helper.make_node("MatMul", ["h0", "w"], ["h1"], name="once"),
        helper.make_node("Add", ["h1", "bias"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "w"], ["h4"], name="twice"),
        helper.make_node("ReduceMean", ["h4"], ["h5"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["h5", "v"], ["y"], name="head"),
    ]
    return graph_model(nodes, constants, ("N", 5), kind=TensorProto.INT64)


MODELS: dict[str, Callable[[], ModelProto]] = {
    "mlp": perceptron,
    "cnn": convolutional_model,
    "two outputs": two_headed_model,
    "shared weight": shared_model,
}
"""By name: what the laws of steps are tried on."""
