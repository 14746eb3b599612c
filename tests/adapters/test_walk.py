from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from onnxpress_adapters.walk import constants, graphs

TEXT = numpy_helper.from_array(np.array(["text"], dtype=object), "s")


def body(name: str, *nodes: NodeProto, weight: str = "w") -> GraphProto:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    last = helper.make_node("Identity", [weight], ["o"])
    initializer = numpy_helper.from_array(np.ones(1, np.float32), weight)
    return helper.make_graph([*nodes, last], name, [], [out], [initializer])


def branch(name: str, **bodies: Any) -> NodeProto:
    return helper.make_node("If", ["c"], [f"{name}_out"], name=name, **bodies)


def model(*nodes: NodeProto) -> ModelProto:
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    return helper.make_model(helper.make_graph(list(nodes), "main", [c], []))


def test_the_main_graph_comes_first_and_bodies_depth_first() -> None:
    deep = branch("deep", then_branch=body("t"), else_branch=body("e"))
    first = branch("first", then_branch=body("t", deep), else_branch=body("e"))
    nameless = branch("", then_branch=body("t"), else_branch=body("e"))
    paths = [path for path, _ in graphs(model(first, nameless))]
    assert paths == [
        (),
        ("first[0].else_branch",),
        ("first[0].then_branch",),
        ("first[0].then_branch", "deep[0].else_branch"),
        ("first[0].then_branch", "deep[0].then_branch"),
        ("If[1].else_branch",),
        ("If[1].then_branch",),
    ]


def test_graphs_in_a_list_are_numbered() -> None:
    node = helper.make_node("Switch", [], ["o"], name="s", domain="mine", branches=[body("a")] * 2)
    paths = [path for path, _ in graphs(model(node))]
    assert paths == [(), ("s[0].branches[0]",), ("s[0].branches[1]",)]


def test_the_graphs_are_the_ones_in_the_model() -> None:
    whole = model(branch("b", then_branch=body("t"), else_branch=body("e")))
    for _, graph in graphs(whole):
        graph.doc_string = "seen"
    assert whole.graph.doc_string == "seen"
    assert [a.g.doc_string for a in whole.graph.node[0].attribute] == ["seen", "seen"]


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        (
            "value",
            numpy_helper.from_array(np.arange(3, dtype=np.float16)),
            np.arange(3, dtype=np.float16),
        ),
        ("value_float", 0.5, np.array(0.5, np.float32)),
        ("value_floats", [0.5, 1.5], np.array([0.5, 1.5], np.float32)),
        ("value_int", 7, np.array(7, np.int64)),
        ("value_ints", [7, 8], np.array([7, 8], np.int64)),
    ],
)
def test_every_form_of_a_constant_node(form: str, value: Any, expected: np.ndarray) -> None:
    graph = model(helper.make_node("Constant", [], ["k"], **{form: value})).graph
    ((name, tensor),) = constants(graph)
    array = numpy_helper.to_array(tensor)
    assert name == "k"
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def test_empty_lists_keep_their_type() -> None:
    node = helper.make_node("Constant", [], ["k"])
    node.attribute.append(AttributeProto(name="value_floats", type=AttributeProto.FLOATS))
    ((_, tensor),) = constants(model(node).graph)
    assert numpy_helper.to_array(tensor).shape == (0,)


def test_strings_and_foreign_constants_are_passed_over() -> None:
    graph = model(
        helper.make_node("Constant", [], ["a"], value_string="text"),
        helper.make_node("Constant", [], ["b"], value_strings=["text"]),
        helper.make_node("Constant", [], ["c2"], value=TEXT),
        helper.make_node("Constant", [], ["d"], domain="mine", value_int=1),
    ).graph
    graph.initializer.append(TEXT)
    assert list(constants(graph)) == []


def test_initializers_come_before_constant_nodes() -> None:
    graph = body("t", helper.make_node("Constant", [], ["k"], value_int=1), weight="z")
    assert [name for name, _ in constants(graph)] == ["z", "k"]
