"""Products with nothing between them: merged exactly, or left alone for a reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.merge import NODES_WORTH, merge

RNG = np.random.default_rng


def made(
    nodes: Sequence[NodeProto],
    constants: dict[str, np.ndarray],
    *,
    outputs: Sequence[str] = ("y",),
    inputs: Sequence[str] = (),
) -> ModelProto:
    """Build a model of x ``[batch, 6]``; the constants named in inputs may be set by callers."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", kind, ["batch", 6]),
            *(helper.make_tensor_value_info(n, kind, constants[n].shape) for n in inputs),
        ],
        [helper.make_tensor_value_info(name, kind, [None, None]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return RNG(seed).normal(size=(rows, columns)).astype(np.float32)


def vector(size: int, seed: int = 0) -> np.ndarray:
    return RNG(seed).normal(size=size).astype(np.float32)


def answers(model: ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"x": RNG(9).normal(size=(5, 6)).astype(np.float32)}))


def check_same(model: ModelProto, *, count: int, left: Sequence[str], sparse: bool = False) -> None:
    """Merge, and see that it is as many, leaves these operators and answers as before."""
    before = model.SerializeToString()
    found = merge(model, {}, sparse=sparse)
    assert found.count == count
    assert [node.op_type for node in found.model.graph.node] == list(left)
    assert model.SerializeToString() == before
    onnx.checker.check_model(found.model, full_check=True)
    for old, new in zip(answers(model), answers(found.model), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5 * float(np.abs(old).max()))
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.model.graph.initializer}
    assert {key.name for key in found.changed} <= set(held)
    assert all(np.array_equal(held[key.name], array) for key, array in found.changed.items())


def dense(place: int, x: str, y: str) -> list[NodeProto]:
    """MatMul and Add, with the constants w and b of that number."""
    return [
        helper.make_node("MatMul", [x, f"w{place}"], [f"m{place}"]),
        helper.make_node("Add", [f"m{place}", f"b{place}"], [y]),
    ]


def gemm(place: int, x: str, y: str, **set_: Any) -> NodeProto:
    return helper.make_node("Gemm", [x, f"w{place}", f"b{place}"], [y], **set_)


FOUR = {"w0": matrix(6, 9), "b0": vector(9), "w1": matrix(9, 4, 1), "b1": vector(4, 1)}


def test_two_of_matmul_and_add_become_one() -> None:
    model = made([*dense(0, "x", "h"), *dense(1, "h", "y")], FOUR)
    check_same(model, count=1, left=["MatMul", "Add"])
    assert {tensor.name for tensor in merge(model, {}).model.graph.initializer} == {"w1", "b1"}


def test_a_chain_becomes_one() -> None:
    constants = {**FOUR, "w2": matrix(4, 8, 2), "b2": vector(8, 2)}
    nodes = [*dense(0, "x", "h"), *dense(1, "h", "i"), *dense(2, "i", "y")]
    check_same(made(nodes, constants), count=2, left=["MatMul", "Add"])


def test_a_bias_may_be_the_first_of_the_two_added() -> None:
    nodes = [*dense(0, "x", "h"), *dense(1, "h", "y")]
    for node in (nodes[1], nodes[3]):
        node.input[:] = reversed(node.input)
    check_same(made(nodes, FOUR), count=1, left=["MatMul", "Add"])


def test_another_product_of_the_same_input_is_no_hindrance() -> None:
    constants = {**FOUR, "w2": matrix(6, 4, 2), "b2": vector(4, 2)}
    nodes = [*dense(0, "x", "h"), *dense(1, "h", "y"), *dense(2, "x", "z")]
    left = ["MatMul", "Add"] * 2
    check_same(made(nodes, constants, outputs=("y", "z")), count=1, left=left)
    check_same(made(nodes[4:] + nodes[:4], constants, outputs=("y", "z")), count=1, left=left)


def test_an_activation_keeps_products_apart() -> None:
    nodes = [*dense(0, "x", "h"), helper.make_node("Relu", ["h"], ["r"]), *dense(1, "r", "y")]
    check_same(made(nodes, FOUR), count=0, left=["MatMul", "Add", "Relu", "MatMul", "Add"])


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_gemm_either_way_up(first: bool, second: bool) -> None:
    constants = {**FOUR}
    if first:
        constants["w0"] = np.ascontiguousarray(constants["w0"].T)
    if second:
        constants["w1"] = np.ascontiguousarray(constants["w1"].T)
    nodes = [gemm(0, "x", "h", transB=int(first)), gemm(1, "h", "y", transB=int(second))]
    check_same(made(nodes, constants), count=1, left=["Gemm"])
    mixed = [*dense(0, "x", "h"), nodes[1]] if not first else [nodes[0], *dense(1, "h", "y")]
    if first == second:
        constants["w1"] = FOUR["w1"] if first else constants["w1"]
        left = ["MatMul", "Add"] if first else ["Gemm"]
        check_same(made(mixed, constants), count=1, left=left)


def test_products_without_a_bias() -> None:
    bare = {"w0": FOUR["w0"], "w1": FOUR["w1"]}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["y"]),
    ]
    check_same(made(nodes, bare), count=1, left=["MatMul"])
    behind = {**bare, "b1": FOUR["b1"]}
    check_same(made([nodes[0], *dense(1, "h", "y")], behind), count=1, left=["MatMul", "Add"])
    # There is nowhere to put the bias of the first one.
    before = {**bare, "b0": FOUR["b0"]}
    check_same(
        made([*dense(0, "x", "h"), nodes[1]], before), count=0, left=["MatMul", "Add", "MatMul"]
    )


@pytest.mark.parametrize("set_", [{"alpha": 0.5}, {"beta": 2.0}])
def test_a_scaled_gemm_stays(set_: dict[str, float]) -> None:
    nodes = [gemm(0, "x", "h", **set_), gemm(1, "h", "y")]
    check_same(made(nodes, FOUR), count=0, left=["Gemm", "Gemm"])


def test_what_another_node_reads_stays() -> None:
    nodes = [*dense(0, "x", "h"), *dense(1, "h", "i"), helper.make_node("Neg", ["h"], ["z"])]
    nodes.append(helper.make_node("Identity", ["i"], ["y"]))
    left = ["MatMul", "Add", "MatMul", "Add", "Neg", "Identity"]
    check_same(made(nodes, FOUR, outputs=("y", "z")), count=0, left=left)
    nodes = [*dense(0, "x", "h"), *dense(1, "h", "y")]
    check_same(made(nodes, FOUR, outputs=("y", "h")), count=0, left=left[:4])
    check_same(made(nodes, FOUR, outputs=("y", "m1")), count=0, left=left[:4])


def test_constants_that_others_read_too_are_left_to_them() -> None:
    constants = {"w0": matrix(6, 6), "b0": vector(6)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["m"]),
        helper.make_node("Add", ["m", "b0"], ["h"]),
        helper.make_node("MatMul", ["h", "w0"], ["n"]),
        helper.make_node("Add", ["n", "b0"], ["y"]),
        helper.make_node("Add", ["x", "b0"], ["z"]),
    ]
    model = made(nodes, constants, outputs=("y", "z"))
    check_same(model, count=1, left=["MatMul", "Add", "Add"])
    names = {tensor.name for tensor in merge(model, {}).model.graph.initializer}
    assert names == {"w0_merged", "b0_merged", "b0"}


def test_what_a_caller_may_set_stays() -> None:
    nodes = [*dense(0, "x", "h"), *dense(1, "h", "y")]
    for name in FOUR:
        model = made(nodes, FOUR, inputs=(name,))
        found = merge(model, {})
        assert (found.count, found.model) == (0, model)
        frozen = merge(model, {}, freeze=True)
        onnx.checker.check_model(frozen.model, full_check=True)
        assert frozen.count == 1
        assert [value.name for value in frozen.model.graph.input] == ["x"]


def test_a_file_that_lists_every_constant_goes_on_to_do_so() -> None:
    nodes = [*dense(0, "x", "h"), *dense(1, "h", "y")]
    model = made(nodes, FOUR, inputs=tuple(FOUR))
    model.ir_version = 3
    model.opset_import[0].version = 8
    found = merge(model, {})
    onnx.checker.check_model(found.model, full_check=True)
    listed = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in found.model.graph.input[1:]
    }
    assert listed == {"w1": [6, 4], "b1": [4]}
    np.testing.assert_allclose(answers(found.model)[0], answers(model)[0], rtol=1e-4, atol=1e-5)


def test_only_what_saves_time_is_merged() -> None:
    narrow = int(NODES_WORTH**0.5)
    constants = {"w0": matrix(6, 2), "w1": matrix(2, 6 * narrow)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["y"]),
    ]
    check_same(made(nodes, constants), count=1, left=["MatMul"])
    constants["w1"] = matrix(2, 6 * NODES_WORTH)
    check_same(made(nodes, constants), count=0, left=["MatMul", "MatMul"])


def test_only_nonzeros_count_where_only_they_are_multiplied_with() -> None:
    wide = 4 * NODES_WORTH
    constants = {"w0": matrix(6, 60), "w1": np.zeros((60, wide), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["y"]),
    ]
    check_same(made(nodes, constants), count=1, left=["MatMul"])
    check_same(made(nodes, constants), count=0, left=["MatMul", "MatMul"], sparse=True)


def test_new_values_count() -> None:
    model = made([*dense(0, "x", "h"), *dense(1, "h", "y")], FOUR)
    new = {WeightKey((), "w0"): 2 * FOUR["w0"], WeightKey((), "b1"): FOUR["b1"] + 1}
    found = merge(model, new)
    assert set(found.changed) == {WeightKey((), "w1"), WeightKey((), "b1")}
    wanted = 2 * FOUR["w0"] @ FOUR["w1"]
    np.testing.assert_allclose(found.changed[WeightKey((), "w1")], wanted, rtol=1e-4, atol=1e-5)


def test_halves_and_bodies_are_left_alone() -> None:
    constants = {name: array.astype(np.float16) for name, array in FOUR.items()}
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        [*dense(0, "x", "h"), *dense(1, "h", "y")],
        "g",
        [helper.make_tensor_value_info("x", half, [2, 6])],
        [helper.make_tensor_value_info("y", half, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    assert merge(helper.make_model(graph), {}).count == 0
