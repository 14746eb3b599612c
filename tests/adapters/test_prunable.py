"""The one definition of a prunable weight, on graphs small enough to count by hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto

from hand_built import Array, build, graph, key, normal, op
from onnxpress_adapters.moves import MOVES
from onnxpress_adapters.prunable import SLOTS, count_zeros, prunable
from small_models import branching, constant, model, perceptron, value
from zoo_beside import load_zoo


def names(made: ModelProto) -> list[str]:
    return [str(weight.key) for weight in prunable(made)]


def reaching(nodes: list[NodeProto], arrays: dict[str, Array], opset: int = 17) -> list[str]:
    """Give the names found where ``x [4, 4]`` is multiplied by ``v`` in the end."""
    product = op("MatMul", "x v", "y", "product")
    inputs, outputs = [value("x", 4, 4)], [value("y", "a", "b")]
    return names(build([*nodes, product], inputs, outputs, arrays, opset, 9))


def test_weights_count_and_biases_do_not() -> None:
    first, second = prunable(perceptron())
    assert (str(first.key), first.elements, first.is_float) == ("w1", 16 * 32, True)
    assert (str(second.key), second.elements) == ("w2", 32 * 4)
    (use,) = second.uses
    assert (use.path, use.place, use.slot, use.via) == ((), 3, 1, ())
    assert use.node.name == "second"


def test_zeros_are_counted_over_weights_alone() -> None:
    made = perceptron()
    arrays = {
        "w1": np.where(np.arange(512).reshape(16, 32) % 4, 1, 0),
        "b1": np.zeros(32),
        "w2": np.ones((32, 4)) * -0.0,
    }
    for tensor in made.graph.initializer:
        if tensor.name in arrays:
            tensor.ClearField("raw_data")
            tensor.raw_data = arrays[tensor.name].astype(np.float32).tobytes()
    assert count_zeros(made) == (128 + 128, 512 + 128)


MOVED = {
    "Identity": [op("Identity", "w", "v")],
    "Transpose": [op("Transpose", "w", "v")],
    "Cast": [op("Cast", "w", "v", to=TensorProto.FLOAT)],
    "Reshape": [op("Reshape", "w shape", "v")],
    "Squeeze": [op("Unsqueeze", "w axes", "u"), op("Squeeze", "u axes", "v")],
    "Slice": [op("Slice", "w axes shape", "v")],
    "Split": [op("Split", "w", "u v", axis=1)],
    "Concat": [op("Concat", "other w", "v", axis=0)],
    "a chain": [op("Identity", "w", "a"), op("Cast", "a", "b", to=1), op("Transpose", "b", "v")],
}


@pytest.mark.parametrize("move", MOVED)
def test_what_only_moves_a_weight_is_seen_through(move: str) -> None:
    arrays = {
        "w": normal(4, 4),
        "other": normal(1, 4),
        "shape": np.array([4, 4]),
        "axes": np.array([0]),
    }
    wanted = ["other", "w"] if move == "Concat" else ["w"]
    assert reaching(MOVED[move], arrays) == wanted
    assert {node.op_type for node in MOVED[move]} <= MOVES


@pytest.mark.parametrize(
    "node",
    [
        op("Relu", "w", "v"),
        op("Mul", "w w", "v"),
        op("Gather", "w i", "v"),
        op("Expand", "w shape", "v"),
    ],
    ids=lambda node: node.op_type,
)
def test_what_computes_ends_the_search(node: NodeProto) -> None:
    arrays = {"w": normal(4, 4), "i": np.arange(4), "shape": np.array([4, 4])}
    assert reaching([node], arrays) == []


def test_whole_numbers_count_when_they_are_scaled() -> None:
    arrays: dict[str, Array] = {
        "w": np.ones((4, 4), np.int8),
        "s": np.array(0.5, np.float32),
        "z": np.array(0, np.int8),
    }
    assert reaching([op("DequantizeLinear", "w s z", "v")], arrays) == ["w"]
    assert reaching([op("Cast", "w", "v", to=1)], arrays) == []
    nodes = [op("Transpose", "w", "t"), op("DequantizeLinear", "t s z", "v")]
    made = build([*nodes, op("MatMul", "x v", "y")], [value("x", 4, 4)], [value("y", 4, 4)], arrays)
    (weight,) = prunable(made)
    assert not weight.is_float
    assert weight.uses[0].via == ("DequantizeLinear", "Transpose")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_every_real_type_counts(kind: str) -> None:
    array = normal(4, 4).astype(getattr(ml_dtypes, kind, None) or kind)
    (name,) = reaching([op("Cast", "w", "v", to=1)], {"w": array})
    assert name == "w"


def test_vectors_do_not_count() -> None:
    made = build([op("MatMul", "x w", "y")], [value("x", 4, 4)], [value("y", 4)], {"w": normal(4)})
    assert names(made) == []


def test_only_weight_slots_count() -> None:
    nodes = [
        op("Gather", "table i", "e"),
        op("Add", "x shift", "h"),
        op("Add", "h e", "g"),
        op("Gemm", "g w c", "y"),
    ]
    arrays = {
        "table": normal(9, 4),
        "i": np.arange(4),
        "shift": normal(4, 4),
        "w": normal(4, 2),
        "c": normal(4, 2),
    }
    assert names(build(nodes, [value("x", 4, 4)], [value("y", 4, 2)], arrays)) == ["w"]


def test_convolutions_and_recurrent_cells_count_without_biases() -> None:
    nodes = [
        op("Conv", "x k b", "h"),
        op("ConvTranspose", "h t b", "g"),
        op("Reshape", "g flat", "s"),
        op("LSTM", "s wx wh bias", "y", hidden_size=2),
    ]
    arrays = {
        "k": normal(2, 2, 3),
        "t": normal(2, 2, 3),
        "b": normal(2),
        "flat": np.array([4, 1, 2]),
        "wx": normal(1, 8, 2),
        "wh": normal(1, 8, 2),
        "bias": normal(1, 16),
    }
    made = build(nodes, [value("x", 1, 2, 4)], [value("y", 4, 1, 1, 2)], arrays)
    assert names(made) == ["k", "t", "wx", "wh"]
    assert SLOTS["GRU"] == SLOTS["RNN"] == SLOTS["LSTM"] == (1, 2)


def test_a_weight_with_several_uses_is_one_weight() -> None:
    nodes = [op("MatMul", "x w", "h"), op("Transpose", "w", "t"), op("MatMul", "h t", "y")]
    made = build(nodes, [value("x", 4, 4)], [value("y", 4, 4)], {"w": normal(4, 4)})
    (weight,) = prunable(made)
    assert [(use.place, use.via) for use in weight.uses] == [(0, ()), (2, ("Transpose",))]


def test_bodies_count_and_see_the_weights_around_them() -> None:
    for as_node in (False, True):
        assert names(branching(normal(16, 4), as_node)) == [
            "choose[0].else_branch/w",
            "choose[0].then_branch/w",
        ]
    deep = graph([op("MatMul", "h u", "p")], [], [value("p", 4, 4)])
    shallow = graph([op("MatMul", "h w", "q")], [], [value("q", 4, 4)])
    nodes = [
        op("Transpose", "w", "u"),
        op("Relu", "x", "h"),
        op("If", "c", "y", then_branch=deep, else_branch=shallow),
    ]
    inputs = [value("x", 4, 4), value("c", kind=TensorProto.BOOL)]
    (weight,) = prunable(build(nodes, inputs, [value("y", 4, 4)], {"w": normal(4, 4)}))
    assert weight.key == key("w")
    assert [(use.path, use.via) for use in weight.uses] == [
        (("If[2].else_branch",), ()),
        (("If[2].then_branch",), ("Transpose",)),
    ]


def test_constant_nodes_and_initializers_that_are_inputs_count() -> None:
    assert reaching([constant("v", normal(4, 4))], {}) == ["v"]
    assert names(perceptron(opset=8, ir=3)) == ["w1", "w2"]


def test_a_weight_that_meets_itself_in_a_concat_is_found_once_and_soon() -> None:
    # Every level doubles the ways back to w: 2 to the power of 60 of them.
    nodes = [op("Concat", f"h{i} h{i}", f"h{i + 1}", axis=0) for i in range(60)]
    nodes += [op("MatMul", "x h60", "y")]
    made = model(graph(nodes, [value("x", 4, 4)], [value("y", "a", "b")], {"h0": normal(4, 4)}))
    (weight,) = prunable(made)
    assert len(weight.uses) == 1
    assert weight.uses[0].via == ("Concat",) * 60


def test_a_long_chain_is_followed_to_its_end() -> None:
    nodes = [op("Identity", f"h{i}", f"h{i + 1}") for i in range(3000)]
    nodes += [op("MatMul", "x h3000", "y")]
    made = model(graph(nodes, [value("x", 4, 4)], [value("y", 4, 4)], {"h0": normal(4, 4)}))
    assert names(made) == ["h0"]


@pytest.mark.zoo
def test_the_zoo_counts_the_same() -> None:
    yardstick = load_zoo("prunable")
    for made in (perceptron(), branching(normal(16, 4), as_node=True)):
        theirs = [found[0].size for found in yardstick.weights(made).values()]
        assert [weight.elements for weight in prunable(made)] == theirs
