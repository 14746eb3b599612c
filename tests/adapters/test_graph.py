"""Which constants are weights, what is missing, and when a value is let go."""

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from hand_built import build, graph, key, normal, op
from onnxpress_adapters import ops
from onnxpress_adapters.compile import compile_model
from onnxpress_adapters.errors import UnsupportedOperatorError
from onnxpress_adapters.graph import Program
from small_models import branching, constant, perceptron, value
from small_models import model as small_model

INT64 = TensorProto.INT64


def compiled(made: ModelProto) -> Program:
    return compile_model(made, ops.load())


def weights(made: ModelProto) -> set[str]:
    return {str(name) for name in compiled(made).constants}


def test_initializers_and_constant_nodes_are_weights() -> None:
    nodes = [constant("w", normal(4, 3)), op("MatMul", "x w", "h"), op("Add", "h b", "y")]
    made = build(nodes, [value("x", 1, 4)], [value("y", 1, 3)], {"b": normal(3)})
    program = compiled(made)
    assert set(program.constants) == {key("w"), key("b")}
    assert [step.node.operator for step in program.main.instructions] == ["MatMul", "Add"]
    assert [step.place for step in program.main.instructions] == [1, 2]


def test_numbers_in_attributes_are_weights() -> None:
    nodes = [op("Constant", "", "b", value_floats=[1.0, 2.0]), op("Add", "x b", "y")]
    assert weights(build(nodes, [value("x", 1, 2)], [value("y", 1, 2)])) == {"b"}


def test_initializers_that_are_graph_inputs_are_weights() -> None:
    program = compiled(perceptron(opset=8, ir=3))
    assert program.main.inputs == ("x",)
    assert {str(name) for name in program.constants} == {"w1", "b1", "w2", "b2"}


def test_weights_in_bodies_carry_their_path() -> None:
    wanted = {key("choose[0].then_branch", "w"), key("choose[0].else_branch", "w")}
    for as_node in (False, True):
        assert set(compiled(branching(normal(16, 4), as_node)).constants) == wanted


def test_bfloat16_is_a_weight_and_whole_numbers_are_not() -> None:
    arrays = {"w": normal(2, 2).astype(ml_dtypes.bfloat16), "i": np.array([0, 1])}
    nodes = [op("Cast", "w", "wide", to=1), op("MatMul", "x wide", "h"), op("Gather", "h i", "y")]
    assert weights(build(nodes, [value("x", 2, 2)], [value("y", 2, 2)], arrays)) == {"w"}


def test_scales_of_a_resize_stay_on_the_host() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    nodes = [op("Resize", "h _ scales", "y"), op("Relu", "x", "h")]
    made = build(
        nodes[::-1], [value("x", 1, 1, 2, 2)], [value("y", 1, 1, 4, 4)], {"scales": scales}
    )
    assert weights(made) == set()
    assert set(compiled(made).main.host) == {"scales"}


def test_arithmetic_on_the_way_to_a_host_input_stays_on_the_host() -> None:
    nodes = [
        op("Shape", "x", "s"),
        op("Cast", "s", "f", to=1),
        op("Mul", "f half", "g"),
        op("Cast", "g", "t", to=7),
        op("Resize", "x _ _ t", "r"),
        op("Mul", "r factor", "y"),
    ]
    arrays = {"half": np.array([1, 1, 2, 2], np.float32), "factor": np.array(3, np.float32)}
    made = build(nodes, [value("x", 1, 1, 2, 2)], [value("y", 1, 1, 4, 4)], arrays)
    assert weights(made) == {"factor"}


def test_a_constant_that_serves_both_lanes_is_a_weight() -> None:
    arrays = {"scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [op("Mul", "x scales", "h"), op("Resize", "h _ scales", "y")]
    made = build(nodes, [value("x", 1, 1, 2, 4)], [value("y", 1, 1, 4, 8)], arrays)
    assert weights(made) == {"scales"}


def test_a_constant_returned_as_it_is_is_a_weight() -> None:
    nodes = [op("Identity", "priors", "p"), op("Relu", "x", "y")]
    outputs = [value("y", 1, 2), value("p", 2, 2)]
    assert weights(build(nodes, [value("x", 1, 2)], outputs, {"priors": normal(2, 2)})) == {
        "priors"
    }


def test_a_constant_outside_that_a_body_reads_is_a_weight_of_the_outer_graph() -> None:
    taken = graph([op("Mul", "x factor", "a")], [], [value("a", 1, 2)])
    other = graph([op("Gather", "x places", "b", axis=1)], [], [value("b", 1, 2)])
    node = op("If", "c", "y", "choose", then_branch=taken, else_branch=other)
    inputs = [value("x", 1, 2), value("c", kind=TensorProto.BOOL)]
    arrays = {"factor": normal(2), "places": np.array([1, 0])}
    program = compiled(build([node], inputs, [value("y", 1, 2)], arrays))
    assert set(program.constants) == {key("factor")}
    (step,) = program.main.instructions
    assert set(step.bodies["else_branch"].host) == {"places"}
    assert [body.path for body in program.main.walk()] == [
        (),
        ("choose[0].else_branch",),  # onnx sorts the attributes of a node it makes
        ("choose[0].then_branch",),
    ]


def strange(operator: str, reads: str, makes: str, name: str) -> NodeProto:
    return helper.make_node(operator, [reads], [makes], name, domain="elsewhere")


def test_everything_missing_is_listed_at_once_with_its_nodes() -> None:
    inner = graph([strange("Whirl", "x", "d", "deep")], [], [value("d")])
    other = graph([op("ReduceSum", "x", "s", keepdims=0)], [], [value("s")])
    nodes = [
        strange("Twist", "x", "n", "first"),
        strange("Twist", "x", "m", ""),
        op("If", "c", "y", then_branch=inner, else_branch=other),
    ]
    inputs = [value("x", 2, 2), value("c", kind=TensorProto.BOOL)]
    outputs = [value("y"), value("n", 2, "k", kind=INT64), value("m", 2, "k", kind=INT64)]
    made = small_model(graph(nodes, inputs, outputs))
    made.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(UnsupportedOperatorError) as caught:
        compiled(made)
    assert str(caught.value) == (
        "no converter for 2 operator(s) of this model (with their nodes):\n"
        "  elsewhere::Twist (opset 1): 'first', 'm'\n"
        "  elsewhere::Whirl (opset 1): 'deep'"
    )


def test_values_are_let_go_after_their_last_reader() -> None:
    taken = graph([op("Neg", "b", "t")], [], [value("t", 1, 2)])
    # The name stands for a value outside: the body only passes it on.
    other = graph([op("Identity", "a", "e")], [], [value("e", 1, 2)])
    nodes = [
        op("Relu", "x", "a"),
        op("Abs", "x", "b"),
        op("Exp", "x", "unread"),
        op("If", "c", "i", then_branch=taken, else_branch=other),
        op("Add", "i x", "y"),
        op("Neg", "y", "z"),
    ]
    inputs = [value("x", 1, 2), value("c", kind=TensorProto.BOOL)]
    outputs = [value("y", 1, 2), value("z", 1, 2)]
    steps = compiled(build(nodes, inputs, outputs)).main.instructions
    released = [(), (), ("unread",), ("a", "b", "c"), ("i", "x"), ()]
    assert [step.release for step in steps] == released


def test_a_first_input_that_varies_is_told_from_one_that_does_not() -> None:
    nodes = [
        op("Reshape", "b row", "r"),
        op("Shape", "x", "s"),
        op("Reshape", "x s", "h"),
        op("Add", "h r", "y"),
    ]
    arrays = {"b": normal(2), "row": np.array([1, -1])}
    program = compiled(build(nodes, [value("x", 1, 2)], [value("y", 1, 2)], arrays))
    assert [step.varies for step in program.main.instructions] == [False, True, True, True]


def test_a_layout_for_one_processor_is_named_with_the_way_out() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="cut", domain="com.microsoft.nchwc")
    made = small_model(graph([node], [value("x", 1, 8, 4, 4)], [value("y", 1, 8, 4, 4)]))
    made.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    with pytest.raises(UnsupportedOperatorError, match="at the optimisation level extended"):
        compiled(made)
