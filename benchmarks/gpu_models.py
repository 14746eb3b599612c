"""Three models with random weights for benchmarks/gpu.py: an MLP, a ResNet, a transformer block."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array


@dataclass(eq=False)
class Draft:
    """A graph in the making: every method adds a layer and gives the name of its result."""

    seed: int
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node."""
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, *shape: int, fan_in: int) -> str:
        """Draw a weight whose products keep the size of what goes in."""
        rng = np.random.default_rng([self.seed, len(self.tensors)])
        values = rng.normal(size=shape) * (2 / fan_in) ** 0.5
        return self.keep(values.astype(np.float32))

    def keep(self, values: np.ndarray) -> str:
        """Add a constant."""
        self.tensors.append(from_array(values, f"w{len(self.tensors)}"))
        return self.tensors[-1].name

    def linear(self, value: str, columns: int, rows: int) -> str:
        """Add a product with a weight ``[columns, rows]``, and a bias."""
        product = self.add("MatMul", value, self.constant(columns, rows, fan_in=columns))
        return self.add("Add", product, self.constant(rows, fan_in=100))

    def conv(self, value: str, channels: tuple[int, int], kernel: int, stride: int = 1) -> str:
        """Add a convolution that keeps the size, but for its stride."""
        before, after = channels
        fan_in = before * kernel**2
        weight = self.constant(after, before, kernel, kernel, fan_in=fan_in)
        bias = self.constant(after, fan_in=100)
        strides, pads = [stride] * 2, [kernel // 2] * 4
        return self.add("Conv", value, weight, bias, strides=strides, pads=pads)

    def normed(self, value: str, width: int) -> str:
        """Add a layer normalisation."""
        scale = self.keep(np.ones(width, np.float32))
        return self.add("LayerNormalization", value, scale, axis=-1)

    def model(self, name: str, shape: tuple[int, ...], output: str) -> ModelProto:
        """Finish: one input ``x`` ``[batch, *shape]``, one output."""
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
        made = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", None])
        graph = helper.make_graph(self.nodes, name, [given], [made], self.tensors)
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def mlp(widths: tuple[int, ...] = (784, 512, 512, 10)) -> ModelProto:
    """Fully connected layers with ReLU between them."""
    draft, value = Draft(1), "x"
    for place, (before, after) in enumerate(pairwise(widths)):
        value = draft.linear(value if place == 0 else draft.add("Relu", value), before, after)
    return draft.model("mlp", widths[:1], value)


def resnet(widths: tuple[int, ...] = (64, 128, 208)) -> ModelProto:
    """A residual block per width on 32 x 32 pixels, each but the first at half the resolution."""
    draft = Draft(2)
    value = draft.add("Relu", draft.conv("x", (3, widths[0]), 3))
    before = widths[0]
    for place, width in enumerate(widths):
        stride = 1 if place == 0 else 2
        inner = draft.add("Relu", draft.conv(value, (before, width), 3, stride))
        inner = draft.conv(inner, (width, width), 3)
        beside = value if stride == 1 else draft.conv(value, (before, width), 1, stride)
        value = draft.add("Relu", draft.add("Add", inner, beside))
        before = width
    value = draft.add("Flatten", draft.add("GlobalAveragePool", value))
    return draft.model("resnet", (3, 32, 32), draft.linear(value, before, 10))


def transformer(width: int = 128, tokens: int = 32, heads: int = 4) -> ModelProto:
    """One block, attention and a hidden layer, on ``[tokens, 64]``, and the mean of its tokens."""
    draft = Draft(3)
    start = draft.linear("x", 64, width)
    seen = draft.normed(start, width)
    split = draft.keep(np.array([0, tokens, heads, width // heads], np.int64))
    parts = [draft.add("Reshape", draft.linear(seen, width, width), split) for _ in ("q", "k", "v")]
    query = draft.add("Transpose", parts[0], perm=[0, 2, 1, 3])
    asked = draft.add("Transpose", parts[1], perm=[0, 2, 3, 1])
    told = draft.add("Transpose", parts[2], perm=[0, 2, 1, 3])
    scale = draft.keep(np.array((width / heads) ** -0.5, np.float32))
    weighed = draft.add("Softmax", draft.add("Mul", draft.add("MatMul", query, asked), scale))
    mixed = draft.add("Transpose", draft.add("MatMul", weighed, told), perm=[0, 2, 1, 3])
    joined = draft.add("Reshape", mixed, draft.keep(np.array([0, tokens, width], np.int64)))
    value = draft.add("Add", start, draft.linear(joined, width, width))
    inner = draft.add("Relu", draft.linear(draft.normed(value, width), width, 4 * width))
    value = draft.add("Add", value, draft.linear(inner, 4 * width, width))
    pooled = draft.add("ReduceMean", draft.normed(value, width), axes=[1], keepdims=0)
    return draft.model("transformer", (tokens, 64), draft.linear(pooled, width, 10))
