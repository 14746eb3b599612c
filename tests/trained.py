"""Small networks trained on the spot: random ones have no structure that pruning could find."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from onnx import ModelProto, helper
from onnx.numpy_helper import from_array, to_array
from torch import Tensor

from checkout import ROOT
from models import Case, case_of, graph_model, normal
from onnxpress_adapters.network import import_network
from onnxpress_adapters.read import read_model

EXAMPLES = ROOT / "examples"


def digits(count: int) -> Tensor:
    """Give images of digits, ``[count, 1, 1, 8, 8]``: one image per feed."""
    return torch.from_numpy(np.load(EXAMPLES / "digits_train.npz")["image"])[:count, None]


def trained(made: ModelProto, inputs: Tensor, wanted: Tensor, steps: int) -> ModelProto:
    """Fit the float constants of a model to wanted outputs, by Adam on the whole set.

    Args:
        made: a model with one input and one output.
        inputs: ``[samples, *feed shape]``.
        wanted: ``[samples, *output shape for one feed]``.
        steps: of Adam.
    """
    network, weights = import_network(made)
    network = network.proven(weights, [inputs[:3]])
    names = {item.name for item in made.graph.initializer}
    leaves = {k: v.clone().requires_grad_() for k, v in weights.items() if k.name in names}
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    for _ in range(steps):
        adam.zero_grad()
        found = network.batched({**weights, **leaves}, [inputs])[0]
        (found - wanted).square().mean().backward()
        adam.step()
    for item in made.graph.initializer:
        value = next(leaf for k, leaf in leaves.items() if k.name == item.name)
        item.CopyFrom(from_array(value.detach().numpy().reshape(to_array(item).shape), item.name))
    return made


def teach(made: ModelProto, inputs: Tensor) -> Case:
    """Fit a model to what the digit classifier of the examples answers; effort 1."""
    teacher, weights = import_network(read_model(EXAMPLES / "digits_fc.onnx"))
    with torch.no_grad():
        wanted = teacher.proven(weights, [inputs[:3]]).batched(weights, [inputs])[0]
    return case_of(trained(made, inputs, wanted, 200), [inputs], effort=1.0)


@cache
def perceptron_case() -> Case:
    """64 -> 20 -> 16 -> 10 with biases, 1,760 weights, fitted to the digit classifier."""
    constants = normal(7, w1=(20, 64), b1=(20,), w2=(16, 20), b2=(16,), w3=(10, 16), b3=(10,))
    nodes = [
        helper.make_node("Flatten", ["x"], ["h0"]),
        helper.make_node("Gemm", ["h0", "w1", "b1"], ["h1"], name="first", transB=1),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Gemm", ["h2", "w2", "b2"], ["h3"], name="second", transB=1),
        helper.make_node("Relu", ["h3"], ["h4"]),
        helper.make_node("Gemm", ["h4", "w3", "b3"], ["y"], name="third", transB=1),
    ]
    return teach(graph_model(nodes, constants, ("N", 1, 8, 8)), digits(192))


@cache
def image_case() -> Case:
    """Two convolutions, a pooling and a Gemm, 900 weights, fitted to the digit classifier."""
    constants = normal(8, c1=(6, 1, 3, 3), d1=(6,), c2=(9, 6, 3, 3), d2=(9,), w=(10, 36), b=(10,))
    nodes = [
        helper.make_node("Conv", ["x", "c1", "d1"], ["h1"], name="conv1"),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Conv", ["h2", "c2", "d2"], ["h3"], name="conv2"),
        helper.make_node("Relu", ["h3"], ["h4"]),
        helper.make_node("MaxPool", ["h4"], ["h5"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["h5"], ["h6"]),
        helper.make_node("Gemm", ["h6", "w", "b"], ["y"], name="head", transB=1),
    ]
    return teach(graph_model(nodes, constants, ("N", 1, 8, 8)), digits(192))
