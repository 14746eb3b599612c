"""Which constants adapt beside the weights: biases and norms, when nothing else reads them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, TensorProto

from hand_built import Array, build, graph, key, normal, op
from onnxpress_adapters.extras import extras
from onnxpress_adapters.weights import WeightKey
from small_models import perceptron, value


def found(nodes: list[NodeProto], arrays: dict[str, Array], *shape: int) -> list[str]:
    outputs = [value("y", *(f"d{place}" for place in range(len(shape))))]
    return [str(k) for k in extras(build(nodes, [value("x", *shape)], outputs, arrays))]


def test_biases_added_after_a_product_adapt() -> None:
    assert extras(perceptron()) == (key("b1"), key("b2"))
    assert extras(perceptron(opset=8, ir=3)) == (key("b1"), key("b2"))


@pytest.mark.parametrize(
    ("shape", "adapts"),
    [((4,), True), ((1, 4), True), ((3, 1), True), ((1,), False), ((3, 4), False), ((), False)],
)
def test_a_summand_is_a_bias_when_it_varies_along_one_dimension(
    shape: tuple[int, ...], adapts: bool
) -> None:
    for reads in ("x b", "b x"):
        assert found([op("Add", reads, "y")], {"b": normal(*shape)}, 3, 4) == ["b"] * adapts


def test_biases_of_layers_and_scales_and_shifts_of_norms_adapt() -> None:
    nodes = [
        op("Conv", "x k cb", "h"),
        op("BatchNormalization", "h scale shift mean variance", "n"),
        op("InstanceNormalization", "n s2 t2", "i"),
        op("Flatten", "i", "f"),
        op("LayerNormalization", "f s3 t3", "l"),
        op("Gemm", "l w gb", "y"),
    ]
    arrays = {
        "k": normal(2, 1, 1),
        "cb": normal(2),
        "scale": normal(2),
        "shift": normal(2),
        "mean": normal(2),
        "variance": np.ones(2, np.float32),
        "s2": normal(2),
        "t2": normal(2),
        "s3": normal(6),
        "t3": normal(6),
        "w": normal(6, 2),
        "gb": normal(2),
    }
    made = build(nodes, [value("x", 1, 1, 3)], [value("y", 1, 2)], arrays)
    wanted = ["cb", "scale", "shift", "s2", "t2", "s3", "t3", "gb"]
    assert [str(name) for name in extras(made)] == wanted


def test_biases_of_a_cell_adapt_and_its_weights_do_not() -> None:
    arrays = {"w": normal(1, 4, 3), "r": normal(1, 4, 4), "b": normal(1, 8)}
    node = op("RNN", "x w r b", "y", hidden_size=4)
    made = build([node], [value("x", 2, 1, 3)], [value("y", 2, 1, 1, 4)], arrays)
    assert extras(made) == (key("b"),)


def test_what_another_operator_reads_as_well_is_left_alone() -> None:
    nodes = [op("Add", "x b", "h"), op("Mul", "h b", "y")]
    assert found(nodes, {"b": normal(4)}, 3, 4) == []
    assert found([op("Relu", "x", "h"), op("Add", "h b", "y")], {"b": normal(4)}, 3, 4) == ["b"]


def test_a_prunable_weight_is_no_bias() -> None:
    nodes = [op("MatMul", "x w", "h"), op("Add", "h w", "y")]
    assert found(nodes, {"w": normal(1, 4)}, 3, 1) == []


def test_whole_numbers_never_adapt() -> None:
    nodes = [
        op("Cast", "x", "i", to=TensorProto.INT64),
        op("Add", "i b", "s"),
        op("Cast", "s", "y", to=1),
    ]
    assert found(nodes, {"b": np.arange(4)}, 3, 4) == []


def test_a_read_in_a_body_counts_for_the_graph_around_it() -> None:
    def model_of(operator: str) -> tuple[WeightKey, ...]:
        taken = graph([op(operator, "x b", "a")], [], [value("a", 3, 4)])
        other = graph([op("Add", "x own", "o")], [], [value("o", 3, 4)], {"own": normal(4)})
        nodes = [
            op("Add", "x b", "h"),
            op("If", "c", "i", "choose", then_branch=taken, else_branch=other),
            op("Sub", "h i", "y"),
        ]
        inputs = [value("x", 3, 4), value("c", kind=TensorProto.BOOL)]
        return extras(build(nodes, inputs, [value("y", 3, 4)], {"b": normal(4)}))

    own = key("choose[1].else_branch", "own")
    assert model_of("Add") == (key("b"), own)
    assert model_of("Mul") == (own,)
