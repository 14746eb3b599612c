"""Reading models: graphs, functions and loops that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, helper, numpy_helper

from files_to_read import model, refusal, saved, value, weight
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.read import Limits, read_model

RELU = helper.make_node("Relu", ["x"], ["y"], name="r")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (model(), "its graph has no nodes, so it computes nothing"),
        (model(RELU, y="z"), "output 'z' of graph 'g' is made by no node"),
        (
            model(helper.make_node("Relu", ["q"], ["y"], name="r")),
            "Relu 'r' reads 'q', which no input, constant or earlier node makes",
        ),
        (
            model(helper.make_node("Relu", ["q"], ["y"]), helper.make_node("Relu", ["x"], ["q"])),
            "Relu 'y' reads 'q', which Relu 'q' makes only later; sort the nodes topologically",
        ),
        (
            model(helper.make_node("Relu", ["q"], ["y"]), helper.make_node("Relu", ["y"], ["q"])),
            "Relu 'y' reads 'q', which Relu 'q' makes from the reader's own output: a cycle",
        ),
        (model(RELU, RELU), "the name 'y' is defined twice, here as an output of Relu 'r'"),
        (
            model(RELU, init=[weight(), weight()]),
            "the name 'w' is defined twice, here as an initializer",
        ),
        (
            model(helper.make_node("Rilu", ["x"], ["y"], name="r")),
            "the ONNX checker says: No Op registered for Rilu with domain_version of 17 "
            "(at Rilu 'r')",
        ),
    ],
)
def test_graphs_that_do_not_hang_together(made: ModelProto, message: str, tmp_path: Path) -> None:
    assert refusal(made, tmp_path) == message


def test_no_outputs(tmp_path: Path) -> None:
    made = model(RELU)
    made.graph.ClearField("output")
    assert refusal(made, tmp_path) == "its graph has no outputs, so there is nothing to preserve"


def test_bodies_nested_too_deep(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "b", [], [value("b", 2)])
    for level in range(4):
        node = helper.make_node("If", ["c"], [f"o{level}"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "b", [], [value(f"o{level}", 2)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    made = model(node, init=[numpy_helper.from_array(np.array(True), "c")])
    message = refusal(made, tmp_path, Limits(levels=3))
    assert message == "its graphs are nested more than 3 levels deep"
    assert read_model(saved(made, tmp_path)) == made


def with_functions(*calls: tuple[str, list[str]]) -> ModelProto:
    made = model(helper.make_node(calls[0][0], ["x"], ["y"], domain="mine"))
    made.opset_import.add(domain="mine", version=1)
    for name, inside in calls:
        nodes = [
            helper.make_node(
                call, [f"v{place}"], [f"v{place + 1}"], domain="mine" if call[0] == "F" else ""
            )
            for place, call in enumerate(inside)
        ]
        made.functions.append(
            helper.make_function(
                "mine", name, ["v0"], [f"v{len(inside)}"], nodes, made.opset_import
            )
        )
    return made


def test_functions_that_multiply_are_refused_before_anybody_expands_them(tmp_path: Path) -> None:
    bomb = [(f"F{level}", [f"F{level + 1}"] * 10) for level in range(20)]
    made = with_functions(*bomb, ("F20", ["Relu"]))
    with pytest.raises(AdapterError, match="more than 1000000 nodes, all functions expanded"):
        read_model(saved(made, tmp_path))


def test_functions_that_call_each_other_in_a_circle(tmp_path: Path) -> None:
    made = with_functions(("F1", ["F2"]), ("F2", ["F1"]))
    assert refusal(made, tmp_path).startswith("its functions call each other in a circle: 'F")


def test_functions_that_call_too_deep_and_functions_that_are_fine(tmp_path: Path) -> None:
    made = with_functions(*[(f"F{n}", [f"F{n + 1}"]) for n in range(5)], ("F5", ["Relu"]))
    assert (
        refusal(made, tmp_path, Limits(levels=4))
        == "its functions call each other more than 4 deep"
    )
    assert read_model(saved(made, tmp_path)) == made


def loop_body(condition: str) -> GraphProto:
    nodes = [
        helper.make_node("Identity", ["on"], ["same"]),
        helper.make_node("Not", ["on"], ["flipped"]),
        helper.make_node("Identity", ["a"], ["b"]),
    ]
    inputs = [value("i", kind=7), value("on", kind=9), value("a", 2)]
    return helper.make_graph(nodes, "b", inputs, [value(condition, kind=9), value("b", 2)])


def loop(count: str, condition: str) -> ModelProto:
    node = helper.make_node("Loop", [count, "", "x"], ["y"], name="l", body=loop_body(condition))
    return model(node, init=[numpy_helper.from_array(np.array(1 << 62), "n")])


def test_a_loop_that_never_ends(tmp_path: Path) -> None:
    for count in ("n", ""):
        message = "Loop 'l' runs its body more than 1000000 times"
        assert refusal(loop(count, "same"), tmp_path) == message


def test_a_loop_that_ends_by_its_own_condition_is_fine(tmp_path: Path) -> None:
    made = loop("n", "flipped")
    assert read_model(saved(made, tmp_path)) == made


def test_a_constant_shape_beyond_all_memory(tmp_path: Path) -> None:
    made = model(
        helper.make_node("ConstantOfShape", ["s"], ["w"], name="big"),
        helper.make_node("Add", ["x", "w"], ["y"]),
        init=[numpy_helper.from_array(np.array([1 << 30, 2]), "s")],
    )
    message = "ConstantOfShape 'big' asks for an array of shape [1073741824, 2]"
    assert refusal(made, tmp_path) == message
