"""Small graphs built in code, for every test that writes or compares files."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.numpy_helper import from_array, to_array

FLOAT = TensorProto.FLOAT


def thinned(*shape: int, density: float = 0.1, seed: int = 0) -> np.ndarray:
    """Give a random float32 array whose entries are zero but for about ``density`` of them."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < density, rng.normal(size=shape), 0.0).astype(np.float32)


def value(name: str, *shape: int | str, kind: int = FLOAT) -> ValueInfoProto:
    """Describe an input or output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(graph: GraphProto, opset: int = 17, ir: int = 8) -> ModelProto:
    """Wrap a graph with metadata that must survive."""
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    made.producer_name, made.doc_string = "a test", "kept"
    made.metadata_props.add(key="colour", value="green")
    return made


def constant(name: str, array: np.ndarray) -> NodeProto:
    """Make a Constant node with a tensor."""
    return helper.make_node("Constant", [], [name], name=f"{name}_node", value=from_array(array))


def perceptron(
    opset: int = 17, ir: int = 8, batch: int | str = "N", hidden: int = 32
) -> ModelProto:
    """Two layers, 16 -> 32 -> 4, with biases; the weights are initializers."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.normal(size=(16, hidden)) / 4,
        "b1": rng.normal(size=hidden),
        "w2": rng.normal(size=(hidden, 4)) / 6,
        "b2": rng.normal(size=4),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
        helper.make_node("Add", ["h1", "b1"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "w2"], ["h4"], name="second"),
        helper.make_node("Add", ["h4", "b2"], ["y"]),
    ]
    inputs = [value("x", batch, 16)]
    if ir < 4:
        inputs += [value(name, *array.shape) for name, array in arrays.items()]
    initializers = [from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    return model(
        helper.make_graph(nodes, "g", inputs, [value("y", batch, 4)], initializers), opset, ir
    )


def half_precision() -> ModelProto:
    """The perceptron with every constant, input and output in float16."""
    made = perceptron()
    for tensor in made.graph.initializer:
        array = to_array(tensor).astype(np.float16)
        tensor.CopyFrom(from_array(array, tensor.name))
    for spec in (*made.graph.input, *made.graph.output):
        spec.type.tensor_type.elem_type = TensorProto.FLOAT16
    return made


def branching(weight: np.ndarray, as_node: bool) -> ModelProto:
    """An If whose branches hold a weight ``[16, 4]`` each, as initializer or Constant node."""
    branches = {}
    for branch, factor in [("then_branch", 1.0), ("else_branch", 2.0)]:
        array = (factor * weight).astype(np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["o"])]
        graph = helper.make_graph(nodes, branch, [], [value("o", 1, 4)])
        if as_node:
            graph.node.insert(0, constant("w", array))
        else:
            graph.initializer.append(from_array(array, "w"))
        branches[branch] = graph
    node = helper.make_node("If", ["c"], ["y"], name="choose", **branches)
    inputs = [value("x", 1, 16), value("c", kind=TensorProto.BOOL)]
    return model(helper.make_graph([node], "g", inputs, [value("y", 1, 4)]))


def scaled(before: bool = True, after: bool = True) -> ModelProto:
    """A weight, a Scaler (which torch does not run), another weight; either may be missing."""
    rng = np.random.default_rng(0)
    domain = "ai.onnx.ml"
    scaler = helper.make_node(
        "Scaler", ["h"], ["s"], name="scale", domain=domain, offset=[0.0] * 3, scale=[2.0] * 3
    )
    first = helper.make_node(*(("MatMul", ["x", "w1"]) if before else ("Identity", ["x"])), ["h"])
    last = helper.make_node(*(("MatMul", ["s", "w2"]) if after else ("Identity", ["s"])), ["y"])
    arrays = {"w1": rng.normal(size=(3, 3)), "w2": rng.normal(size=(3, 3))}
    used = [name for name, wanted in (("w1", before), ("w2", after)) if wanted]
    tensors = [from_array(arrays[name].astype(np.float32), name) for name in used]
    inputs, outputs = [value("x", "n", 3)], [value("y", "n", 3)]
    made = model(helper.make_graph([first, scaler, last], "g", inputs, outputs, tensors))
    made.opset_import.append(helper.make_opsetid(domain, 1))
    return made
