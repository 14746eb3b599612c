"""Gathered weights: the same answers, fewer multiplications, and back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.numpy_helper import from_array

from onnxpress_adapters.gathered_tensors import MARK, make_whole
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.densify import densify
from onnxpress_exporters.gathered import best_height, gathered
from onnxpress_exporters.gathered_nodes import gather_weights
from onnxpress_exporters.values import Half, Storage, rounded
from onnxpress_exporters.write import patch
from small_models import constant, model, thinned, value

W = WeightKey((), "w")


def grouped(rows: int, columns: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw a matrix whose rows share ``width`` columns in groups of ``height``."""
    rng = np.random.default_rng(seed)
    matrix = np.zeros((rows, columns), np.float32)
    for start in range(0, rows, height):
        own = rng.permutation(columns)[:width]
        part = matrix[start : start + height]
        part[:, own] = rng.normal(size=(len(part), width))
    return matrix


# ---------------------------------------------------------------- the matrix


@pytest.mark.parametrize(("rows", "height"), [(12, 4), (13, 4), (3, 8), (5, 1)])
def test_a_matrix_comes_back(rows: int, height: int) -> None:
    matrix = grouped(rows, 10, height, 3)
    found = gathered(matrix, height)
    assert found.shape == (rows, 10)
    assert found.entries == -(-rows // height) * height * 3
    assert (found.order is None) == (rows % height == 0)
    assert found.matrix().tobytes() == matrix.tobytes()


def test_rows_that_are_alike_are_found_wherever_they_stand() -> None:
    matrix = grouped(16, 20, 4, 5)
    shuffled = matrix[np.random.default_rng(1).permutation(16)]
    found = gathered(shuffled, 4)
    assert found.entries == gathered(matrix, 4).entries == 16 * 5
    assert found.order is not None
    assert found.matrix().tobytes() == shuffled.tobytes()


def test_groups_that_read_fewer_columns_are_filled_up_with_zeros() -> None:
    matrix = np.array([[1, 2, 3, 0], [0] * 4, [0, 4, 0, 0], [0] * 4], np.float32)
    found = gathered(matrix, 1)
    assert found.columns.tolist() == [[0, 1, 2], [0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert found.values[2].tolist() == [[4, 0, 0]]
    assert found.matrix().tobytes() == matrix.tobytes()
    empty = gathered(np.zeros((2, 3), np.float32), 2)
    assert empty.entries == 2
    assert not empty.matrix().any()


# ---------------------------------------------------------------- the graph


def product(rank: int = 2, dynamic: bool = False) -> tuple[ModelProto, np.ndarray]:
    """``x @ w + b`` with the weight as an initializer."""
    matrix = grouped(12, 10, 4, 3)
    lead: list[int | str] = ["a", "b", "c"] if dynamic else [5, 2, 3]
    shape = lead[3 - (rank - 1) :]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [value("x", *shape, 10)],
        [value("y", *shape, 12)],
        [from_array(matrix.T.copy(), "w"), from_array(np.arange(12, dtype=np.float32), "b")],
    )
    return model(made), matrix


def gemm(turned: bool, bias: bool) -> tuple[ModelProto, np.ndarray]:
    matrix = grouped(13, 10, 4, 3)
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node("Gemm", inputs, ["y"], name="first", transB=int(turned))
    weights = [from_array(matrix if turned else matrix.T.copy(), "w")]
    weights += [from_array(np.arange(13, dtype=np.float32), "b")] if bias else []
    graph = helper.make_graph([node], "g", [value("x", "N", 10)], [value("y", "N", 13)], weights)
    return model(graph), matrix


def pointwise(bias: bool, axes: int = 2) -> tuple[ModelProto, np.ndarray]:
    matrix = grouped(12, 10, 4, 3)
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node("Conv", inputs, ["y"], name="first", kernel_shape=[1] * axes)
    sides = ["H", "W", "D"][:axes]
    weights = [from_array(matrix.reshape(12, 10, *[1] * axes), "w")]
    weights += [from_array(np.arange(12, dtype=np.float32), "b")] if bias else []
    graph = helper.make_graph(
        [node], "g", [value("x", "N", 10, *sides)], [value("y", "N", 12, *sides)], weights
    )
    return model(graph), matrix


def in_a_constant() -> tuple[ModelProto, np.ndarray]:
    made, matrix = product()
    array = numpy_helper.to_array(made.graph.initializer[0])
    del made.graph.initializer[0]
    made.graph.node.insert(0, constant("w", array))
    return made, matrix


def used_twice() -> tuple[ModelProto, np.ndarray]:
    made, matrix = product()
    made.graph.node.insert(1, helper.make_node("Neg", ["x"], ["z"]))
    made.graph.node.insert(2, helper.make_node("MatMul", ["z", "w"], ["k"]))
    made.graph.node.append(helper.make_node("Sub", ["y", "k"], ["d"]))
    made.graph.output[0].name = "d"
    return made, matrix


CASES: dict[str, Callable[[], tuple[ModelProto, np.ndarray]]] = {
    "two axes": product,
    "three axes": lambda: product(3),
    "four open axes": lambda: product(4, dynamic=True),
    "gemm": lambda: gemm(turned=False, bias=False),
    "gemm, bias": lambda: gemm(turned=False, bias=True),
    "gemm, transposed": lambda: gemm(turned=True, bias=True),
    "conv": lambda: pointwise(bias=False),
    "conv, bias": lambda: pointwise(bias=True),
    "conv of three axes": lambda: pointwise(bias=True, axes=3),
    "a constant node": in_a_constant,
    "two uses": used_twice,
}


def feed(made: ModelProto) -> dict[str, np.ndarray]:
    (x,) = made.graph.input
    sizes = [dim.dim_value or 2 + place for place, dim in enumerate(x.type.tensor_type.shape.dim)]
    return {"x": np.random.default_rng(0).normal(size=sizes).astype(np.float32)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("height", [4, 5])
def test_the_answers_stay_and_the_file_goes_back(
    case: Callable[[], tuple[ModelProto, np.ndarray]], height: int
) -> None:
    original, matrix = case()
    before = original.SerializeToString()
    placed = gather_weights(original, {W: height})
    assert original.SerializeToString() == before
    assert not placed.reasons
    assert placed.weights[W].matrix().tobytes() == matrix.tobytes()
    onnx.checker.check_model(placed.model, full_check=True)
    assert "w" not in [t.name for t in placed.model.graph.initializer]
    wanted, found = (Runner(made).run(feed(original)) for made in (original, placed.model))
    assert [one.shape for one in found] == [one.shape for one in wanted]
    assert np.allclose(found[0], wanted[0], rtol=0, atol=1e-5)
    again = gather_weights(original, {W: height}).model
    assert again.SerializeToString() == placed.model.SerializeToString()
    back = densify(placed.model)
    assert sorted_initializers(back) == sorted_initializers(original)
    assert without_initializers(back) == without_initializers(original)


def sorted_initializers(made: ModelProto) -> list[bytes]:
    return sorted(tensor.SerializeToString() for tensor in made.graph.initializer)


def without_initializers(made: ModelProto) -> ModelProto:
    bare = ModelProto()
    bare.CopyFrom(made)
    del bare.graph.initializer[:]
    return bare


def test_several_weights_and_half_precision() -> None:
    first, second = (grouped(8, 8, 4, 2, seed).astype(np.float16) for seed in (0, 1))
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", "N", 8, kind=half)],
        [value("y", "N", 8, kind=half)],
        [from_array(first, "u"), from_array(second, "v")],
    )
    original = model(graph)
    heights = {WeightKey((), name): 4 for name in "uv"}
    placed = gather_weights(original, heights)
    assert set(placed.weights) == set(heights)
    x = {"x": np.eye(8, dtype=np.float16)}
    wanted, found = (Runner(made).run(x)[0] for made in (original, placed.model))
    assert np.allclose(found, wanted, rtol=0, atol=5e-3)
    assert sorted_initializers(densify(placed.model)) == sorted_initializers(original)


def changed(change: Callable[[NodeProto], None]) -> ModelProto:
    made, _ = product()
    change(made.graph.node[0])
    return made


def conv_with(**attributes: object) -> ModelProto:
    made, _ = pointwise(bias=False)
    for name, given in attributes.items():
        made.graph.node[0].attribute.append(helper.make_attribute(name, given))
    return made


def with_output() -> ModelProto:
    made, _ = product()
    made.graph.output.append(value("w", 10, 12))
    return made


def used_otherwise() -> ModelProto:
    made, _ = used_twice()
    made.graph.node[2].CopyFrom(helper.make_node("Gemm", ["z", "w"], ["k"], transA=1))
    return made


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (changed(lambda node: node.input.reverse()), "does not use it as a plain matrix"),
        (conv_with(strides=[2, 2]), "does not use it as a plain matrix"),
        (conv_with(pads=[1, 1, 1, 1]), "does not use it as a plain matrix"),
        (with_output(), "it is an input or an output of the model"),
        (used_otherwise(), "does not use it as a plain matrix"),
        (changed(lambda node: node.input.__setitem__(1, "b")), "no node uses it"),
    ],
)
def test_what_is_not_gathered_says_why(made: ModelProto, reason: str) -> None:
    placed = gather_weights(made, {W: 4})
    assert not placed.weights
    assert reason in placed.reasons[W]
    assert placed.model == made
    other = WeightKey(("If[0].then_branch",), "w")
    assert gather_weights(made, {other: 4}).reasons == {other: "it stands in a body or a function"}
    gone = WeightKey((), "gone")
    assert gather_weights(made, {gone: 4}).reasons == {gone: "it is no dense constant"}


def renamed(made: ModelProto) -> None:
    for tensor in made.graph.initializer:
        tensor.name = tensor.name.replace("columns", "indices")


def another_reader(made: ModelProto) -> None:
    part = json.loads(made.metadata_props[-1].value)["weights"][0]["part"]
    made.graph.node.append(helper.make_node("Identity", [f"{part}0.m"], ["p"]))


def torn(made: ModelProto) -> None:
    made.metadata_props[-1].value = made.metadata_props[-1].value[:-9]


def elsewhere(made: ModelProto) -> None:
    tensor = next(t for t in made.graph.initializer if t.name.endswith("columns"))
    array = numpy_helper.to_array(tensor) + np.int32(1000)
    tensor.CopyFrom(from_array(array, tensor.name))


@pytest.mark.parametrize("change", [renamed, another_reader, torn, elsewhere])
def test_what_another_tool_changed_stays_as_it_is(change: Callable[[ModelProto], None]) -> None:
    made = gather_weights(product()[0], {W: 4}).model
    assert made.metadata_props[-1].key == MARK
    change(made)
    before = made.SerializeToString()
    assert not make_whole(made)
    assert made.SerializeToString() == before


# ---------------------------------------------------------------- the form


def test_the_height_is_the_cheapest() -> None:
    assert best_height(grouped(256, 128, 64, 12)) == 64
    # Higher groups would read more columns, and lower ones gather them more often.
    assert best_height(grouped(256, 128, 32, 4)) == 32
    # What of four rows has to be gathered is worth it still for eight.
    assert best_height(grouped(64, 128, 4, 2)) == 8
    assert best_height(np.ones((64, 64))) == 0
    assert best_height(np.zeros((0, 4))) == 0


def test_as_a_form_where_it_pays() -> None:
    wide, loose = grouped(64, 48, 32, 5), thinned(64, 64, density=0.1)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["k"]),
        helper.make_node("MatMul", ["k", "u"], ["y"]),
    ]
    zeros = [from_array(np.ones(s, np.float32), n) for n, s in (("w", (48, 64)), ("v", (64, 64)))]
    zeros.append(from_array(np.ones((64, 64), np.float32), "u"))
    graph = helper.make_graph(nodes, "g", [value("x", "N", 48)], [value("y", "N", 64)], zeros)
    v, u = WeightKey((), "v"), WeightKey((), "u")
    half = rounded(loose.T.copy(), Half())
    changed = {W: wide.T.copy(), v: loose, u: half}
    storage: dict[WeightKey, Storage] = {u: Half()}
    patched = patch(model(graph), changed, "gathered", storage)
    assert patched.forms[W] == "gathered: 2 x 5"
    assert patched.forms[v] == "sparse"
    assert patched.forms[u].startswith("packed: ")
    assert patched.reasons[v] == patched.reasons[u] == "its rows share too few columns"
    dense = patch(model(graph), changed, "dense").model
    x = {"x": np.eye(48, dtype=np.float32)}
    found, wanted = (Runner(made).run(x)[0] for made in (patched.model, dense))
    assert np.allclose(found, wanted, rtol=0, atol=1e-4)
    assert sorted_initializers(densify(patched.model)) == sorted_initializers(dense)
