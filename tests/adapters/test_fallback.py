"""What torch cannot do runs in onnx's reference implementation, and no weight hides behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from hand_built import build, draw, graph, key, normal, op
from onnxpress_adapters.errors import AdapterError, UnsupportedOperatorError
from onnxpress_adapters.network import import_network
from small_models import model, scaled, value

STRING = TensorProto.STRING
LEARNING = "ai.onnx.ml"


def test_a_node_without_a_converter_runs_and_is_recorded() -> None:
    network, weights = import_network(scaled())
    assert network.program.fallbacks == ("Scaler 'scale'",)
    x = draw(2, 3)
    wanted = 2 * (x @ weights[key("w1")]) @ weights[key("w2")]
    torch.testing.assert_close(network(weights, x)[0], wanted)


def test_weights_before_it_are_blocked_and_those_behind_are_not() -> None:
    network, weights = import_network(scaled())
    assert network.program.blocked == {key("w1"): "Scaler"}
    leaf = weights[key("w2")].requires_grad_()
    x = draw(2, 3)
    (found,) = torch.autograd.grad(network(weights, x)[0].sum(), [leaf])
    torch.testing.assert_close(found, (2 * x @ weights[key("w1")]).sum(0)[:, None].expand(3, 3))


def test_whole_numbers_that_come_out_block_nothing() -> None:
    encoder = helper.make_node(
        "LabelEncoder",
        ["h"],
        ["i"],
        domain=LEARNING,
        keys_int64s=[0, 1, 2],
        values_int64s=[2, 1, 0],
    )
    nodes = [op("MatMul", "x w", "p"), op("ArgMax", "p", "h", axis=1, keepdims=0), encoder]
    made = model(
        graph(
            nodes,
            [value("x", 2, 3)],
            [value("p", 2, 3), value("i", 2, kind=7)],
            {"w": normal(3, 3)},
        )
    )
    made.opset_import.append(helper.make_opsetid(LEARNING, 2))
    network, weights = import_network(made)
    assert network.program.fallbacks
    assert network.program.blocked == {}
    x = draw(2, 3)
    scores, labels = network(weights, x)
    assert torch.equal(labels, 2 - scores.argmax(1))


def test_samples_go_one_by_one_where_it_cannot_be_vectorised() -> None:
    network, weights = import_network(scaled())
    x = draw(4, 1, 3)
    fast = network.proven(weights, [x])
    torch.testing.assert_close(fast.batched(weights, [x])[0], network.batched(weights, [x])[0])


def test_without_the_reference_it_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"ai.onnx.ml::Scaler \(opset 1\): 'scale'"):
        import_network(scaled(), reference=False)


def test_text_stays_on_the_host_beside_tensors() -> None:
    nodes = [
        op("StringConcat", "a b", "c"),
        op("Equal", "c wanted", "same"),
        op("Cast", "same", "f", to=1),
        op("MatMul", "f w", "y"),
    ]
    arrays: dict[str, Any] = {"w": normal(2, 2)}
    inputs = [value("a", 1, 2, kind=STRING), value("b", 1, 2, kind=STRING)]
    made = graph(nodes, inputs, [value("y", 1, 2), value("c", 1, 2, kind=STRING)], arrays)
    made.initializer.append(from_array(np.array(["ab", "xy"], object), "wanted"))
    network, weights = import_network(model(made, opset=20, ir=9))
    a, b = np.array([["a", "x"]], object), np.array([["b", "z"]], object)
    y, c = network(weights, a, b)
    assert c.tolist() == [["ab", "xz"]]
    torch.testing.assert_close(y, weights[key("w")][:1])
    assert network.program.blocked == {}
    # The same shapes with other text must not meet the plan of the first.
    b[0, 1] = "y"
    y, c = network(weights, a, b)
    assert c.tolist() == [["ab", "xy"]]
    torch.testing.assert_close(y, weights[key("w")].sum(0, keepdim=True))


def test_what_the_reference_refuses_is_an_error_with_the_node() -> None:
    nodes = [op("ImageDecoder", "x", "y", "photo")]
    made = build(nodes, [value("x", "n", kind=2)], [value("y", "a", "b", 3, kind=2)], {}, 20, 9)
    network, weights = import_network(made)
    with pytest.raises(AdapterError, match="ImageDecoder 'photo' cannot run on these inputs: "):
        network(weights, torch.zeros(4, dtype=torch.uint8))
