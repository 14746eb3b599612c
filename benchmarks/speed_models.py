"""Two networks written twice, as an ONNX graph and as an eager torch module, for speed.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array
from torch import Tensor, nn
from torch.nn import functional

TURNED = " turned"
"""Ends the names of weights that stand transposed in the graph."""


@dataclass(frozen=True, eq=False)
class Pair:
    """The same network twice, and an input ``[batch, ...]`` for it."""

    module: nn.Module
    model: ModelProto
    x: Tensor


class Residual(nn.Module):
    """Two convolutions with norms beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Make a block; the shortcut has a convolution where the shape changes."""
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.beside: nn.Module | None = None
        if stride != 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.beside = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        inner = self.norm2(self.conv2(inner))
        return functional.relu(inner + (x if self.beside is None else self.beside(x)))


class ResNet(nn.Module):
    """ResNet-18 without its classifier's softmax."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(64)
        widths = (64, 64, 128, 128, 256, 256, 512, 512)
        before = 64
        self.blocks = nn.ModuleList()
        for width in widths:
            self.blocks.append(Residual(before, width, 1 if width == before else 2))
            before = width
        self.head = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images ``[batch, 3, height, width]``."""
        x = functional.max_pool2d(functional.relu(self.norm(self.stem(x))), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One encoder block of BERT: attention and a hidden layer, each followed by a norm."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the layers."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on ``[batch, tokens, width]``."""
        batch, tokens, width = x.shape
        size = width // self.heads

        def split(y: Tensor) -> Tensor:
            return y.reshape(batch, tokens, self.heads, size).permute(0, 2, 1, 3)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(2, 3) / size**0.5
        mixed = (scores.softmax(-1) @ value).permute(0, 2, 1, 3).reshape(batch, tokens, width)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.outer(functional.gelu(self.inner(x))))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """Six blocks of BERT-base's width over embedded tokens, and the mean of the tokens."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.blocks = nn.ModuleList(Block(768, 12) for _ in range(6))
        self.head = nn.Linear(768, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Classify ``[batch, tokens, 768]``."""
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@dataclass(eq=False)
class Draft:
    """A graph in the making, with weights taken from a module."""

    state: Mapping[str, Tensor]
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, TensorProto] = field(default_factory=dict)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and give the name of its result."""
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str) -> str:
        """Add a tensor of the module as an initializer."""
        self.tensors.setdefault(name, from_array(self.state[name].numpy(), name))
        return name

    def keep(self, name: str, values: Any, dtype: type[np.generic]) -> str:
        """Add a constant."""
        self.tensors.setdefault(name, from_array(np.array(values, dtype), name))
        return name

    def conv(self, x: str, name: str, kernel: int, stride: int) -> str:
        """Add a convolution that keeps the size, but for its stride."""
        pads, strides = [kernel // 2] * 4, [stride] * 2
        return self.add("Conv", x, self.weight(f"{name}.weight"), pads=pads, strides=strides)

    def norm(self, x: str, name: str) -> str:
        """Add a batch normalisation."""
        parts = ("weight", "bias", "running_mean", "running_var")
        return self.add("BatchNormalization", x, *(self.weight(f"{name}.{p}") for p in parts))

    def layer_norm(self, x: str, name: str) -> str:
        """Add a layer normalisation."""
        return self.add(
            "LayerNormalization", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        )

    def linear(self, x: str, name: str) -> str:
        """Add a product and a bias, the weight turned as exporters write it."""
        turned = f"{name}.weight{TURNED}"
        value = self.state[f"{name}.weight"].t().contiguous().numpy()
        self.tensors.setdefault(turned, from_array(value, turned))
        return self.add("Add", self.add("MatMul", x, turned), self.weight(f"{name}.bias"))

    def model(self, x: Tensor, output: str) -> ModelProto:
        """Finish: one input of the shape of ``x`` with a free batch, one output."""
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x.shape[1:]])
        made = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", None])
        graph = helper.make_graph(self.nodes, "g", [given], [made], list(self.tensors.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def resnet(batch: int = 4) -> Pair:
    """ResNet-18 on images of 224 x 224 pixels."""
    torch.manual_seed(0)
    module = ResNet().eval()
    draft = Draft(module.state_dict())
    value = draft.add("Relu", draft.norm(draft.conv("x", "stem", 7, 2), "norm"))
    value = draft.add("MaxPool", value, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for place, block in enumerate(module.blocks):
        name = f"blocks.{place}"
        stride = 1 if getattr(block, "beside", None) is None else 2
        inner = draft.conv(value, f"{name}.conv1", 3, stride)
        inner = draft.add("Relu", draft.norm(inner, f"{name}.norm1"))
        inner = draft.norm(draft.conv(inner, f"{name}.conv2", 3, 1), f"{name}.norm2")
        beside = value
        if stride == 2:
            beside = draft.conv(value, f"{name}.beside.0", 1, 2)
            beside = draft.norm(beside, f"{name}.beside.1")
        value = draft.add("Relu", draft.add("Add", inner, beside))
    value = draft.add("Flatten", draft.add("GlobalAveragePool", value))
    x = torch.randn(batch, 3, 224, 224)
    return Pair(module, draft.model(x, draft.linear(value, "head")), x)


def bert(batch: int = 4, tokens: int = 128) -> Pair:
    """Six encoder blocks on embedded tokens."""
    torch.manual_seed(0)
    module = Bert().eval()
    draft = Draft(module.state_dict())
    split = draft.keep("split", [0, 0, 12, 64], np.int64)
    joined = draft.keep("joined", [0, 0, 768], np.int64)
    root = draft.keep("root", 8.0, np.float32)
    value = "x"
    for place in range(6):
        name = f"blocks.{place}"
        parts = [
            draft.add("Reshape", draft.linear(value, f"{name}.{part}"), split)
            for part in ("query", "key", "value")
        ]
        query = draft.add("Transpose", parts[0], perm=[0, 2, 1, 3])
        key = draft.add("Transpose", parts[1], perm=[0, 2, 3, 1])
        held = draft.add("Transpose", parts[2], perm=[0, 2, 1, 3])
        scores = draft.add("Softmax", draft.add("Div", draft.add("MatMul", query, key), root))
        mixed = draft.add("Transpose", draft.add("MatMul", scores, held), perm=[0, 2, 1, 3])
        mixed = draft.linear(draft.add("Reshape", mixed, joined), f"{name}.out")
        value = draft.layer_norm(draft.add("Add", value, mixed), f"{name}.norm1")
        inner = draft.add("Gelu", draft.linear(value, f"{name}.inner"))
        inner = draft.linear(inner, f"{name}.outer")
        value = draft.layer_norm(draft.add("Add", value, inner), f"{name}.norm2")
    axes = draft.keep("axes", [1], np.int64)
    pooled = draft.add("ReduceMean", value, axes, keepdims=0)
    x = torch.randn(batch, tokens, 768)
    return Pair(module, draft.model(x, draft.linear(pooled, "head")), x)


MODELS: Mapping[str, Callable[[], Pair]] = {"ResNet-18": resnet, "BERT, six blocks": bert}
