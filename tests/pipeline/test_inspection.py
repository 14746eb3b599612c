"""Inspection: what can be pressed, what cannot and why."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array

from onnxpress.inspection import Inspection, Rest, inspect_model
from onnxpress.report import aligned
from onnxpress.weight_bytes import table
from onnxpress_adapters.errors import BrokenModelError
from small_models import branching, constant, model, perceptron, thinned, value
from zoo_beside import ZOO, load_zoo


def looked_at(made: ModelProto, folder: Path) -> Inspection:
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return inspect_model(path)


def graph(nodes: list[NodeProto], **arrays: np.ndarray) -> GraphProto:
    """A graph from x ``[N,16]`` to y with these initializers."""
    initializers = [from_array(array, name) for name, array in arrays.items()]
    return helper.make_graph(nodes, "g", [value("x", "N", 16)], [value("y", "N", 8)], initializers)


def test_the_whole_text(tmp_path: Path) -> None:
    found = looked_at(perceptron(), tmp_path)
    path = tmp_path / "m.onnx"
    assert found.text() == "\n".join(
        [
            f"{path}: {path.stat().st_size:,} bytes, ai.onnx 17",
            "",
            "  takes  x float32[N,16]",
            "  gives  y float32[N,4]",
            "",
            "Prunable weights: 2, with 640 entries, 0 % zero",
            "  weight  operator  shape  zeros  reached through  pressed",
            "  w1      MatMul    16x32  0 %    -                layer-wise and by gradient",
            "  w2      MatMul    32x4   0 %    -                layer-wise and by gradient",
            "",
            *aligned(table([("as it is", found.weight_bytes)])),
            "",
            "Left alone:",
            "  2 x bias, 36 entries",
            "",
            "Whether samples run together or one by one is found out with the data.",
            "To press it, with inputs of your own (--data FILE) or drawn from a region:",
            f"  onnxpress compress {path} --tolerance 1% --domain x=uniform:0,1",
        ]
    )


def test_why_a_weight_is_pressed_in_one_way_only(tmp_path: Path) -> None:
    ones = np.ones((16, 8), np.float32)
    half = ones.copy()
    half[:8] = 0
    nodes = [
        helper.make_node("Transpose", ["turned"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("DequantizeLinear", ["bytes", "scale", "zero"], ["q"]),
        helper.make_node("MatMul", ["x", "q"], ["b"]),
        helper.make_node("MatMul", ["x", "half"], ["c"]),
        helper.make_node("MatMul", ["x", "shared"], ["d"]),
        helper.make_node("Gemm", ["x", "shared"], ["e"], alpha=2.0),
        helper.make_node("Sum", ["a", "b", "c", "d", "e"], ["y"]),
    ]
    made = graph(
        nodes,
        turned=ones.T.copy(),
        bytes=np.ones((16, 8), np.int8),
        scale=np.array(0.5, np.float32),
        zero=np.array(0, np.int8),
        half=half,
        shared=ones,
    )
    rows = {row.name: row for row in looked_at(model(made), tmp_path).weights}
    assert {name: row.how for name, row in rows.items()} == {
        "turned": "layer-wise and by gradient",
        "bytes": "layer-wise and by gradient",
        "half": "layer-wise and by gradient",
        "shared": "by gradient only: several nodes use it in different ways",
    }
    assert rows["half"].zeros == 64
    assert rows["turned"].via == ("Transpose",)
    assert rows["bytes"].via == ("DequantizeLinear",)


def test_recurrent_weights_have_a_matrix_view(tmp_path: Path) -> None:
    made = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=2)],
        "g",
        [value("x", 5, 1, 3)],
        [value("y", 5, 1, 1, 2)],
        [
            from_array(np.ones((1, 8, 3), np.float32), "w"),
            from_array(np.ones((1, 8, 2), np.float32), "r"),
            from_array(np.ones((1, 16), np.float32), "b"),
        ],
    )
    found = looked_at(model(made), tmp_path)
    assert [row.how for row in found.weights] == ["layer-wise and by gradient"] * 2
    assert found.rest == (Rest("bias", 1, 16),)


def test_everything_left_alone_is_sorted(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axes"], ["sum"], keepdims=1),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "gain", "shift"], ["b"]),
        helper.make_node("Mul", ["b", "factor"], ["c"]),
        helper.make_node("Max", ["c", "floor"], ["d"]),
        helper.make_node("Add", ["d", "sum"], ["e"]),
        helper.make_node("Add", ["e", "offset"], ["y"]),
    ]
    eight = np.ones(8, np.float32)
    made = graph(
        nodes,
        table=np.ones((50, 8), np.float32),
        ids=np.arange(4),
        axes=np.array([0]),
        w=np.ones((16, 8), np.float32),
        gain=eight,
        shift=eight,
        floor=np.array(0, np.float32),
        idle=np.ones(3, np.float32),
    )
    made.node.insert(0, constant("offset", eight))
    made.node.insert(0, constant("factor", eight[:2].repeat(4)))
    assert looked_at(model(made), tmp_path).rest == (
        Rest("table that is looked up", 1, 400),
        Rest("norm", 2, 16),
        Rest("bias", 1, 8),
        Rest("scale", 1, 8),
        Rest("whole numbers (shapes, indices, quantised zero points)", 2, 5),
        Rest("unused", 1, 3),
        Rest("operand of Max", 1, 1),
    )


def test_weights_in_bodies_are_found(tmp_path: Path) -> None:
    found = looked_at(branching(thinned(16, 4), as_node=True), tmp_path)
    assert {row.name for row in found.weights} == {
        "choose[0].then_branch/w",
        "choose[0].else_branch/w",
    }


def test_missing_operators_are_listed_and_no_error(tmp_path: Path) -> None:
    made = perceptron()
    made.graph.node[2].op_type = "Blur"
    made.graph.node[2].domain = "some.where"
    made.opset_import.append(helper.make_opsetid("some.where", 1))
    made.graph.node[2].name = "softly"
    found = looked_at(made, tmp_path)
    assert not found.pressable
    assert [row.name for row in found.weights] == ["w1", "w2"]
    assert "some.where::Blur (opset 1): 'softly'" in found.missing
    assert found.text().endswith(f"It cannot be pressed yet:\n{found.missing}")
    assert found.json()["pressable"] is False


def test_a_model_without_weights_says_so(tmp_path: Path) -> None:
    made = graph([helper.make_node("Relu", ["x"], ["y"])])
    found = looked_at(model(made), tmp_path)
    assert not found.pressable
    assert "No constant reaches the weight slot of an operator that can be pruned." in found.text()
    assert found.text().endswith("There is nothing to press in it.")


def test_the_json_is_plain(tmp_path: Path) -> None:
    read = json.loads(json.dumps(looked_at(perceptron(), tmp_path).json(), allow_nan=False))
    assert read["inputs"] == [{"name": "x", "shape": ["N", 16], "type": "float32"}]
    assert read["opsets"] == {"ai.onnx": 17}
    assert read["weights"][0]["shape"] == [16, 32]
    assert read["rest"] == [{"reason": "bias", "constants": 2, "elements": 36}]
    assert shlex.split(read["compress"])[:3] == ["onnxpress", "compress", str(tmp_path / "m.onnx")]


def test_a_model_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BrokenModelError, match="there is no such file"):
        inspect_model(tmp_path / "no.onnx")


def test_outputs_that_are_no_tensors_are_shown(tmp_path: Path) -> None:
    made = graph([helper.make_node("SequenceConstruct", ["x"], ["y"])])
    del made.output[:]
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    made.output.append(sequence)
    assert "gives  y sequence" in looked_at(model(made), tmp_path).text()


@pytest.mark.zoo
def test_every_zoo_model_can_be_looked_at() -> None:
    load_zoo()
    paths = sorted(ZOO.rglob("*.onnx"))
    assert len(paths) == 38
    for path in paths:
        found = inspect_model(path)
        assert found.pressable == (not found.missing and any(r.trained for r in found.weights))
        assert json.dumps(found.json(), allow_nan=False)
        assert found.text()
