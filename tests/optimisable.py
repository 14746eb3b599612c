"""Small networks of plain ONNX operators, in the patterns onnxruntime's optimizers look for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from one_node import Array
from onnxpress_adapters.checker import check

WORDS, TOKENS, WIDTH, HEADS, INNER = 20, 5, 16, 2, 32


class Builder:
    """Collects nodes and constants; a value is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, value: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def weight(self, *shape: int) -> str:
        return self.constant((self.rng.standard_normal(shape) * 0.3).astype(np.float32))

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, list(inputs), [f"{name}_out"], name=name, **attributes)
        )
        return f"{name}_out"

    def model(
        self, inputs: list[ValueInfoProto], shape: list[int | str], opset: int, *domains: str
    ) -> ModelProto:
        """Close the graph; the last node makes its output."""
        result = helper.make_tensor_value_info(self.nodes[-1].output[0], TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "plain", inputs, [result], self.constants)
        opsets = [helper.make_opsetid("", opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in domains]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=10 if opset > 20 else 8)
        check(made)
        return made

    def linear(self, x: str, features: int, results: int) -> str:
        return self.op(
            "Add", self.weight(results), self.op("MatMul", x, self.weight(features, results))
        )

    def layer_norm(self, x: str) -> str:
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        square = self.op("Pow", centred, self.number(2))
        variance = self.op("ReduceMean", square, axes=[-1])
        deviation = self.op("Sqrt", self.op("Add", variance, self.number(1e-5)))
        normal = self.op("Div", centred, deviation)
        return self.op("Add", self.op("Mul", normal, self.weight(WIDTH)), self.weight(WIDTH))

    def rms_norm(self, x: str) -> str:
        square = self.op("ReduceMean", self.op("Pow", x, self.number(2)), axes=[-1])
        root = self.op("Sqrt", self.op("Add", square, self.number(1e-6)))
        normal = self.op("Mul", x, self.op("Div", self.number(1), root))
        return self.op("Mul", self.weight(WIDTH), normal)

    def gelu(self, x: str) -> str:
        error = self.op("Erf", self.op("Div", x, self.number(2**0.5)))
        product = self.op("Mul", x, self.op("Add", error, self.number(1)))
        return self.op("Mul", product, self.number(0.5))

    def gelu_by_tanh(self, x: str) -> str:
        cube = self.op("Mul", self.number(0.044715), self.op("Pow", x, self.number(3)))
        inner = self.op("Mul", self.number(0.7978845608), self.op("Add", x, cube))
        grown = self.op("Add", self.op("Tanh", inner), self.number(1))
        return self.op("Mul", self.op("Mul", self.number(0.5), x), grown)

    def gelu_by_sigmoid(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", self.op("Mul", x, self.number(1.702))))

    def attention(self, x: str, mask: str) -> str:
        size = WIDTH // HEADS

        def heads(order: list[int]) -> str:
            shape = self.ints(0, 0, HEADS, size)
            parts = self.op("Reshape", self.linear(x, WIDTH, WIDTH), shape)
            return self.op("Transpose", parts, perm=order)

        query, key, value = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
        scores = self.op("Div", self.op("MatMul", query, key), self.number(size**0.5))
        shares = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        joined = self.op("Transpose", self.op("MatMul", shares, value), perm=[0, 2, 1, 3])
        flat = self.op("Reshape", joined, self.ints(0, 0, WIDTH))
        return self.linear(flat, WIDTH, WIDTH)


def bert() -> ModelProto:
    """Embeddings, one layer of attention, and one of two products, as BERT has them."""
    b = Builder()
    words = b.op("Gather", b.weight(WORDS, WIDTH), "words")
    total = b.op("Add", words, b.op("Gather", b.weight(2, WIDTH), "sentences"))
    length = b.op("Gather", b.op("Shape", "words"), b.constant(np.array(1)))
    every = b.constant(np.arange(TOKENS + 3)[None])
    used = b.op("Slice", every, b.ints(0), b.op("Unsqueeze", length, b.ints(0)), b.ints(1))
    total = b.op("Add", total, b.op("Gather", b.weight(TOKENS + 3, WIDTH), used))
    x = b.layer_norm(total)
    mask = b.op("Unsqueeze", b.op("Unsqueeze", "mask", b.ints(1)), b.ints(2))
    hidden = b.op("Sub", b.number(1), b.op("Cast", mask, to=TensorProto.FLOAT))
    added = b.op("Mul", hidden, b.number(-10000))
    x = b.layer_norm(b.op("Add", b.attention(x, added), x))
    y = b.linear(b.gelu(b.linear(x, WIDTH, INNER)), INNER, WIDTH)
    b.op("Identity", b.layer_norm(b.op("Add", y, x)))
    shape: list[int | str] = ["batch", "tokens"]
    names = ("words", "sentences", "mask")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in names]
    return b.model(inputs, [*shape, WIDTH], 13)


def bert_feeds(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    words, sentences = (rng.integers(0, most, (2, TOKENS)) for most in (WORDS, 2))
    return {"words": words, "sentences": sentences, "mask": mask}


def feed_forward(norm: str, activation: str) -> ModelProto:
    """Two products around an activation, and a norm before and behind them."""
    b = Builder()
    normal: Callable[[str], str] = getattr(b, norm)
    inner = b.op("MatMul", normal("x"), b.weight(WIDTH, INNER))
    outer = b.op("MatMul", getattr(b, activation)(inner), b.weight(INNER, WIDTH))
    total = b.op("Add", "x", outer)
    b.op("Identity", b.op("Add", normal(total), total))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, TOKENS, WIDTH])
    return b.model([x], [2, TOKENS, WIDTH], 17)


def image_net() -> ModelProto:
    """Convolutions with every operator beside them that onnxruntime quantises."""
    b = Builder()

    def conv(x: str, channels: int, results: int, size: int = 3, group: int = 1) -> str:
        weight = b.weight(results, channels // group, size, size)
        ways = {"kernel_shape": [size, size], "pads": [size // 2] * 4, "group": group}
        return b.op("Conv", x, weight, b.weight(results), **ways)

    x = b.op("Relu", conv("x", 3, 8))
    y = b.op("Clip", conv(x, 8, 8, group=8), b.number(0), b.number(6))
    y = b.op("Add", conv(y, 8, 8, 1), x)
    y = b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("Concat", y, b.op("LeakyRelu", conv(y, 8, 4), alpha=0.1), axis=1)
    y = b.op("Mul", y, b.op("Sigmoid", conv(y, 12, 12, 1)))
    # Three entries to a window: a mean of whole steps is no tie then, which rounds either way.
    y = b.op("AveragePool", y, kernel_shape=[3, 1])
    y = b.op("Resize", y, "", "", b.ints(1, 12, 4, 8), mode="nearest")
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    b.op("Softmax", b.op("Gemm", y, b.weight(12, 5), b.weight(5)), axis=-1)
    x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    return b.model([x_info], [1, 5], 13)


def image_feeds(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}


def four_bit_products() -> ModelProto:
    """Products with weights of 4 bits in blocks, as quantisers of language models write them."""
    b = Builder()

    def weight(kind: Any, rows: int, columns: int, block: int, zeros: bool) -> str:
        low = -8 if kind is ml_dtypes.int4 else 0

        def codes(*shape: int) -> str:
            return b.constant(b.rng.integers(low, low + 16, shape).astype(kind))

        scales = b.rng.uniform(0.01, 0.1, (rows // block, columns)).astype(np.float32)
        given = [codes(rows, columns), b.constant(scales)]
        given += [codes(rows // block, columns)] if zeros else []
        return b.op("DequantizeLinear", *given, axis=0, block_size=block)

    x = b.op("Relu", b.op("MatMul", "x", weight(ml_dtypes.int4, 64, 32, 16, False)))
    x = b.op("Relu", b.op("MatMul", x, weight(ml_dtypes.uint4, 32, 48, 32, True)))
    b.op("MatMul", x, weight(ml_dtypes.int4, 48, 8, 16, True))
    x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])
    return b.model([x_info], ["batch", 8], 21)


DECODER = {"words": 24, "width": 32, "heads": 2, "few": 1, "size": 16, "inner": 64, "longest": 12}
"""Sizes of the language model below."""


def decoder() -> ModelProto:
    """One layer of a language model as the builder of onnxruntime-genai writes it, in 4 bits."""
    b, d = Builder(), DECODER
    microsoft: dict[str, Any] = {"domain": "com.microsoft"}

    def bytes_(*shape: int) -> str:
        return b.constant(b.rng.integers(0, 256, shape).astype(np.uint8))

    def scales(*shape: int) -> str:
        return b.constant(b.rng.uniform(0.01, 0.05, shape).astype(np.float32))

    def product(x: str, columns: int, rows: int) -> str:
        blocks = columns // 16
        given = bytes_(rows, blocks, 8), scales(rows, blocks), bytes_(rows, (blocks + 1) // 2)
        sizes = {"K": columns, "N": rows, "bits": 4, "block_size": 16}
        return b.op("MatMulNBits", x, *given, **sizes, **microsoft)

    def several(operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        results = [f"{operator}_{len(b.nodes)}_out{place}" for place in range(count)]
        name = f"{operator}_{len(b.nodes)}"
        ways = {**attributes, **microsoft}
        b.nodes.append(helper.make_node(operator, list(inputs), results, name=name, **ways))
        return results

    table = bytes_(d["words"], d["width"] // 2), "words", scales(d["words"], d["width"] // 16)
    x = b.op("GatherBlockQuantized", *table, bits=4, block_size=16, **microsoft)
    normal = b.op("SimplifiedLayerNormalization", x, b.weight(d["width"]), axis=-1, epsilon=1e-6)
    heads = (d["heads"] + 2 * d["few"]) * d["size"]
    packed = product(normal, d["width"], heads)
    last = b.op("Sub", b.op("ReduceSum", "mask", b.ints(1)), b.ints(1))
    lengths = b.op("Cast", b.op("Squeeze", last, b.ints(1)), to=TensorProto.INT32)
    total = b.op("Gather", b.op("Shape", "mask"), b.constant(np.array(1)))
    longest = b.op("Cast", total, to=TensorProto.INT32)
    angles = b.weight(d["longest"], d["size"] // 2), b.weight(d["longest"], d["size"] // 2)
    attention, key, value = several(
        "GroupQueryAttention",
        3,
        *(packed, "", "", "past_key", "past_value", lengths, longest, *angles),
        num_heads=d["heads"],
        kv_num_heads=d["few"],
        do_rotary=1,
    )
    answer = product(attention, d["heads"] * d["size"], d["width"])
    norm, count = "SkipSimplifiedLayerNormalization", 4
    more = several(norm, count, answer, x, b.weight(d["width"]), epsilon=1e-6)
    gate, up = (product(more[0], d["width"], d["inner"]) for _ in range(2))
    opened = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
    down = product(opened, d["inner"], d["width"])
    done = several(norm, count, down, more[3], b.weight(d["width"]), epsilon=1e-6)
    product(done[0], d["width"], d["words"])

    cache: list[int | str] = ["batch", d["few"], "past", d["size"]]
    inputs = [
        helper.make_tensor_value_info("words", TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "all"]),
        helper.make_tensor_value_info("past_key", TensorProto.FLOAT, cache),
        helper.make_tensor_value_info("past_value", TensorProto.FLOAT, cache),
    ]
    made = b.model(inputs, ["batch", "tokens", d["words"]], 17, "com.microsoft")
    for name in (key, value):
        shape: list[int | str] = ["batch", d["few"], "all", d["size"]]
        made.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return made
