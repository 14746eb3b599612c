"""Operators that hold graphs, and functions: the same as onnxruntime, with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array
from torch import Tensor

from hand_built import asked, build, draw, graph, key, normal, op, same_as_runtime
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.extras import extras
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import count_zeros, prunable
from onnxpress_exporters.write import patch
from small_models import constant, model, value

BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64


def looped(trips: int | None = 3) -> ModelProto:
    """``h = tanh(h w) + x`` some times over, all steps stacked; ends when h is small as well."""
    body = graph(
        [
            op("MatMul", "h w", "p"),
            op("Tanh", "p", "t"),
            op("Add", "t x", "h_out"),
            op("ReduceSum", "h_out", "s", keepdims=0),
            op("Abs", "s", "size"),
            op("Greater", "size tiny", "go_on"),
            op("Identity", "h_out", "scan"),
        ],
        [value("i", kind=INT64), value("go", kind=BOOL), value("h", 2, 3)],
        [value("go_on", kind=BOOL), value("h_out", 2, 3), value("scan", 2, 3)],
        {"w": normal(3, 3), "tiny": np.array(1e-6, np.float32)},
    )
    reads = "_ go_first x" if trips is None else "trips go_first x"
    arrays: dict[str, Any] = {"go_first": np.array(True)}
    if trips is not None:
        arrays["trips"] = np.array(trips)
    outputs = [value("last", 2, 3), value("all", "n", 2, 3)]
    return build(
        [op("Loop", reads, "last all", "turn", body=body)], [value("x", 2, 3)], outputs, arrays
    )


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_a_loop_turns_as_onnxruntime_does(trips: int) -> None:
    same_as_runtime(looped(trips), normal(2, 3, seed=1))


def test_a_loop_may_end_by_its_condition_alone() -> None:
    body = graph(
        [op("Add", "h one", "h_out"), op("Less", "h_out limit", "go_on")],
        [value("i", kind=INT64), value("go", kind=BOOL), value("h")],
        [value("go_on", kind=BOOL), value("h_out")],
    )
    arrays = {
        "one": np.array(1, np.float32),
        "limit": np.array(3.5, np.float32),
        "t": np.array(True),
    }
    made = build([op("Loop", "_ t x", "y", body=body)], [value("x")], [value("y")], arrays)
    same_as_runtime(made, np.array(0.25, np.float32))


def test_a_weight_in_a_loop_is_watched_call_by_call_and_learns_from_all_of_them() -> None:
    network, weights = import_network(looped(3))
    (layer,) = network.layers
    assert str(layer.key) == "turn[0].body/w"
    x, w = draw(2, 3, seed=1), weights[layer.key]
    trace = network.run(weights, [x], watch=layer.sites)
    (calls,) = trace.watched
    states = [x]
    for _ in range(2):
        states.append(torch.tanh(states[-1] @ w) + x)
    assert torch.equal(calls[0], torch.stack(states))
    assert layer.columns_of(calls[0]).shape == (1, 6, 3)

    def last(weight: Tensor) -> Tensor:
        return network({**weights, layer.key: weight.float()}, x)[0]

    leaf = w.clone().requires_grad_()
    (found,) = torch.autograd.grad(last(leaf).sum(), [leaf])
    plain = w.clone().requires_grad_()
    h = x
    for _ in range(3):
        h = torch.tanh(h @ plain) + x
    (wanted,) = torch.autograd.grad(h.sum(), [plain])
    torch.testing.assert_close(found, wanted)


def test_samples_of_a_loop_run_together() -> None:
    network, weights = import_network(looped(3))
    x = draw(5, 2, 3)
    fast = network.proven(weights, [x])
    assert fast.batching.mode == "loop"  # the condition is read from the values
    for ours, theirs in zip(fast.batched(weights, [x]), network.batched(weights, [x]), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize("backwards", [0, 1])
def test_a_scan_walks_as_onnxruntime_does(opset: int, backwards: int) -> None:
    body = graph(
        [
            op("MatMul", "h w", "p"),
            op("Add", "p x_t", "h_out"),
            op("Relu", "h_out", "y_t"),
        ],
        [value("h", 1, 3), value("x_t", 1, 3)],
        [value("h_out", 1, 3), value("y_t", 1, 3)],
        {"w": normal(3, 3) / 2},
    )
    node = op(
        "Scan",
        "h0 x",
        "last all",
        "walk",
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_input_directions=[backwards],
        scan_output_axes=[1],
        scan_output_directions=[1 - backwards],
    )
    inputs = [value("x", 1, 4, 3)]
    outputs = [value("last", 1, 3), value("all", 1, 4, 3)]
    made = build([node], inputs, outputs, {"h0": normal(1, 3)}, opset)
    same_as_runtime(made, normal(1, 4, 3, seed=2))
    network, weights = import_network(made)
    assert [str(layer.key) for layer in network.layers] == ["walk[0].body/w"]
    x = draw(6, 1, 4, 3)
    fast = network.proven(weights, [x])
    assert fast.batching.mode == "rebatched"
    for ours, theirs in zip(fast.batched(weights, [x]), network.batched(weights, [x]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_sequence_is_mapped() -> None:
    body = graph([op("MatMul", "e w", "o")], [value("e", 2, 3)], [value("o", 2, 2)])
    nodes = [
        op("SplitToSequence", "x", "parts", axis=0, keepdims=0),
        op("SequenceMap", "parts", "made", "each", body=body),
        op("ConcatFromSequence", "made", "y", axis=0, new_axis=1),
    ]
    made = build(nodes, [value("x", 4, 2, 3)], [value("y", 4, 2, 2)], {"w": normal(3, 2)})
    same_as_runtime(made, normal(4, 2, 3, seed=3))
    (layer,) = import_network(made)[0].layers
    assert layer.key == key("w")


def test_a_branch_is_differentiable_in_the_branch_taken() -> None:
    taken = graph([op("Mul", "x w", "a")], [], [value("a", 2)])
    other = graph([op("Sub", "x w", "b")], [], [value("b", 2)])
    node = op("If", "c", "y", then_branch=taken, else_branch=other)
    inputs = [value("x", 2), value("c", kind=BOOL)]
    network, weights = import_network(build([node], inputs, [value("y", 2)], {"w": normal(2)}))
    x, w = draw(2, seed=1), weights[key("w")].requires_grad_()
    for flag, wanted in ((True, x), (False, -torch.ones(2))):
        (found,) = torch.autograd.grad(network(weights, x, np.array(flag))[0].sum(), [w])
        torch.testing.assert_close(found, wanted)


def referring(operator: str, reads: str, makes: str, **names: str) -> NodeProto:
    """Make a node some attributes of which are those of the function it stands in."""
    node = op(operator, reads, makes)
    for name, outer in names.items():
        attribute = node.attribute.add(name=name, ref_attr_name=outer)
        attribute.type = 1  # a float
    return node


def layer_function() -> FunctionProto:
    """``leaky(x w + b)``, with ``w`` in the function, ``b`` given, and a slope that may be."""
    return helper.make_function(
        "own.layers",
        "Dense",
        ["x", "b"],
        ["y"],
        [
            constant("w", normal(3, 3)),
            op("MatMul", "x w", "p"),
            op("Add", "p b", "s"),
            referring("LeakyRelu", "s", "y", alpha="slope"),
        ],
        [helper.make_opsetid("", 13)],
        attributes=["slope"],
    )


def with_function() -> ModelProto:
    nodes = [
        helper.make_node("Dense", ["x", "b1"], ["h"], name="first", domain="own.layers"),
        helper.make_node("Dense", ["h", "b2"], ["y"], domain="own.layers", slope=0.5),
    ]
    made = model(
        graph(
            nodes,
            [value("x", 2, 3)],
            [value("y", 2, 3)],
            {"b1": normal(3), "b2": normal(3, seed=5)},
        )
    )
    made.functions.append(layer_function())
    made.opset_import.append(helper.make_opsetid("own.layers", 1))
    return made


def test_a_function_runs_at_its_own_opset_with_the_attributes_of_the_call() -> None:
    network, weights = import_network(with_function())
    x, w = draw(2, 3), torch.from_numpy(normal(3, 3))
    b1, b2 = torch.from_numpy(normal(3)), torch.from_numpy(normal(3, seed=5))
    h = torch.nn.functional.leaky_relu(x @ w + b1, 0.01)
    wanted = torch.nn.functional.leaky_relu(h @ w + b2, 0.5)
    torch.testing.assert_close(network(weights, x)[0], wanted)


def test_a_weight_of_a_function_is_one_weight_however_often_it_is_called() -> None:
    made = with_function()
    inside = key("function own.layers::Dense", "w")
    (weight,) = prunable(made)
    assert weight.key == inside
    assert [use.path for use in weight.uses] == [("first[0]",), ("Dense[1]",)]
    network, weights = import_network(made)
    (layer,) = network.layers
    assert layer.sites == ((("first[0]",), 1, 1), (("Dense[1]",), 1, 1))
    assert extras(made) == (key("b1"), key("b2"))
    x, w = draw(2, 3), weights[inside].requires_grad_()
    (found,) = torch.autograd.grad(network(weights, x)[0].sum(), [w])
    b1, b2 = weights[key("b1")], weights[key("b2")]
    h = torch.nn.functional.leaky_relu(x @ w + b1, 0.01)
    y = torch.nn.functional.leaky_relu(h @ w + b2, 0.5)
    (wanted,) = torch.autograd.grad(y.sum(), [w])
    torch.testing.assert_close(found, wanted)


def test_a_weight_of_a_function_is_patched_where_it_stands() -> None:
    made = with_function()
    before = made.SerializeToString()
    inside = key("function own.layers::Dense", "w")
    new = np.where(np.eye(3) > 0, 2.0, 0.0).astype(np.float32)
    patched = patch(made, {inside: new})
    assert made.SerializeToString() == before
    (function,) = patched.model.functions
    np.testing.assert_array_equal(to_array(function.node[0].attribute[0].t), new)
    assert patched.reasons[inside] == "it stands in a function"
    assert count_zeros(patched.model) == (6, 9)
    network, weights = import_network(patched.model)
    assert torch.equal(weights[inside], torch.from_numpy(new))
    x = normal(2, 3)
    np.testing.assert_allclose(
        network(weights, torch.from_numpy(x))[0].numpy(), asked(patched.model, x)[0], rtol=1e-5
    )


def test_a_weight_given_to_a_function_is_found_inside_it() -> None:
    function = helper.make_function(
        "own", "Twice", ["x", "w"], ["y"],
        [op("MatMul", "x w", "h"), op("MatMul", "h w", "y")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    node = helper.make_node("Twice", ["x", "v"], ["y"], domain="own")
    made = model(graph([node], [value("x", 2, 3)], [value("y", 2, 3)], {"v": normal(3, 3)}))
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("own", 1))
    (weight,) = prunable(made)
    assert weight.key == key("v")
    network, weights = import_network(made)
    x = draw(2, 3)
    (layer,) = network.layers
    trace = network.run(weights, [x], watch=layer.sites)
    assert torch.equal(trace.watched[0][0], x)
    assert torch.equal(trace.watched[1][0], x @ weights[key("v")])


def test_names_of_the_caller_mean_nothing_in_a_function() -> None:
    function = helper.make_function(
        "own", "Scaled", ["a"], ["y"],
        [constant("w", normal(3, seed=9)), op("Mul", "a w", "y")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [op("MatMul", "x w", "h"), helper.make_node("Scaled", ["h"], ["y"], domain="own")]
    made = model(graph(nodes, [value("x", 2, 3)], [value("y", 2, 3)], {"w": normal(3, 3)}))
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("own", 1))
    network, weights = import_network(made)
    x = draw(2, 3)
    wanted = (x @ weights[key("w")]) * torch.from_numpy(normal(3, seed=9))
    torch.testing.assert_close(network(weights, x)[0], wanted)


def test_operators_onnx_defines_by_others_are_run_that_way() -> None:
    """FlexAttention with a graph that changes its scores has no converter."""
    halve = [constant("half", np.array(0.5, np.float32)), op("Mul", "s half", "t")]
    shape = (1, 2, 3, 4)
    score = graph(halve, [value("s", 1, 2, 3, 3)], [value("t", 1, 2, 3, 3)])
    node = helper.make_node(
        "FlexAttention", ["q", "k", "v"], ["y"], domain="ai.onnx.preview", score_mod=score
    )
    inputs = [value(name, *shape) for name in "qkv"]
    made = helper.make_model(
        helper.make_graph([node], "g", inputs, [value("y", *shape)]),
        opset_imports=[helper.make_opsetid("ai.onnx.preview", 1), helper.make_opsetid("", 26)],
    )
    network, weights = import_network(made)
    q, k, v = (draw(*shape, seed=s) for s in range(3))
    weighed = torch.softmax(q @ k.transpose(2, 3) / 2 * 0.5, -1) @ v
    torch.testing.assert_close(network(weights, q, k, v)[0], weighed)


def test_a_loop_of_shape_arithmetic_stays_on_the_host() -> None:
    body = graph(
        [op("Add", "n n", "n_out")],
        [value("i", kind=INT64), value("go", kind=BOOL), value("n", 1, kind=INT64)],
        [value("go", kind=BOOL), value("n_out", 1, kind=INT64)],
    )
    nodes = [
        op("Shape", "x", "s", start=0, end=1),
        op("Loop", "two _ s", "n", body=body),
        op("Concat", "n rest", "shape", axis=0),
        op("Expand", "row shape", "wide"),
        op("Add", "wide first", "y"),
        op("Slice", "x zero one", "first"),
    ]
    nodes = [nodes[0], nodes[1], nodes[2], nodes[5], nodes[3], nodes[4]]
    arrays = {
        "two": np.array(2),
        "rest": np.array([3]),
        "row": normal(1, 3),
        "zero": np.array([0]),
        "one": np.array([1]),
    }
    made = build(nodes, [value("x", 2, 3)], [value("y", 8, 3)], arrays)
    same_as_runtime(made, normal(2, 3))


def test_a_sequence_that_is_too_short_says_so() -> None:
    nodes = [op("SequenceConstruct", "x x", "s"), op("SequenceAt", "s five", "y", "pick")]
    made = build(nodes, [value("x", 2)], [value("y", 2)], {"five": np.array(5)})
    network, weights = import_network(made)
    with pytest.raises(AdapterError, match="SequenceAt 'pick' asks for place 5 of a sequence of 2"):
        network(weights, draw(2))


def test_initializers_of_bodies_are_those_of_the_file() -> None:
    made = looped()
    (weight,) = prunable(made)
    assert weight.tensor.SerializeToString() == from_array(normal(3, 3), "w").SerializeToString()
