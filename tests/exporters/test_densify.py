from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.densify import densify
from onnxpress_exporters.sparse import to_sparse
from onnxpress_exporters.write import patch
from small_models import constant, model, perceptron, thinned, value


@pytest.mark.parametrize("ir", [3, 8])
def test_a_pressed_file_comes_back_plain(ir: int) -> None:
    original = perceptron(opset=8, ir=ir)
    new = {WeightKey((), "w1"): thinned(16, 32), WeightKey((), "w2"): thinned(32, 4)}
    pressed = patch(original, new).model
    before = pressed.SerializeToString()
    dense = densify(pressed)
    assert pressed.SerializeToString() == before
    assert not dense.graph.sparse_initializer
    onnx.checker.check_model(dense, full_check=True)
    assert [tensor.name for tensor in dense.graph.initializer] == ["b1", "b2", "w1", "w2"]
    by_name = {tensor.name: tensor for tensor in dense.graph.initializer}
    plain = patch(original, new, "dense").model
    assert [by_name[tensor.name] for tensor in plain.graph.initializer] == list(
        plain.graph.initializer
    )
    assert dense.graph.node == plain.graph.node
    assert dense.graph.input == plain.graph.input


def test_below_ir_4_an_initializer_becomes_an_input_too() -> None:
    nodes = [constant("w", np.ones((16, 4), np.float32))]
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
    graph = helper.make_graph(nodes, "g", [value("x", 1, 16)], [value("y", 1, 4)])
    pressed = patch(model(graph, opset=8, ir=3), {WeightKey((), "w"): thinned(16, 4)}).model
    onnx.checker.check_model(pressed)
    dense = densify(pressed)
    onnx.checker.check_model(dense, full_check=True)
    assert [i.name for i in dense.graph.input] == ["x", "w"]


def test_sparse_constants_of_functions_become_dense() -> None:
    weight = thinned(16, 4)
    nodes = [
        helper.make_node("Constant", [], ["w"], sparse_value=to_sparse("w", weight)),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "F", ["a"], ["b"], nodes, opsets)
    call = helper.make_node("F", ["x"], ["y"], domain="mine")
    made = model(helper.make_graph([call], "g", [value("x", 1, 16)], [value("y", 1, 4)]))
    made.opset_import.add(domain="mine", version=1)
    made.functions.append(function)
    dense = densify(made)
    onnx.checker.check_model(dense, full_check=True)
    (attribute,) = dense.functions[0].node[0].attribute
    assert (attribute.name, attribute.type) == ("value", 4)
    assert numpy_helper.to_array(attribute.t).tobytes() == weight.tobytes()


def test_a_plain_model_stays_as_it_is() -> None:
    made = perceptron()
    made.graph.initializer.append(TensorProto(name="empty", data_type=1, dims=[0]))
    assert densify(made) == made
