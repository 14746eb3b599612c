from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.numpy_helper import from_array

from onnxpress_adapters.errors import ExportError
from onnxpress_adapters.read import read_model
from onnxpress_adapters.walk import constants, graphs
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.densify import densify
from onnxpress_exporters.values import Half, Plain, Storage, rounded
from onnxpress_exporters.write import Form, patch, write
from small_models import branching, constant, model, perceptron, thinned, value

W1, W2 = WeightKey((), "w1"), WeightKey((), "w2")
FORMS: tuple[Form, ...] = ("auto", "dense", "sparse")


def arrays(made: ModelProto) -> dict[WeightKey, np.ndarray]:
    return {
        WeightKey(path, name): numpy_helper.to_array(tensor)
        for path, graph in graphs(made)
        for name, tensor in constants(graph)
    }


def runs(made: ModelProto) -> list[np.ndarray]:
    """Check a model and run it: what it answers, and that onnxruntime takes it."""
    onnx.checker.check_model(made, full_check=False)
    runner = Runner(made, threads=1)
    rng = np.random.default_rng(1)
    feed: dict[str, np.ndarray] = {"x": rng.normal(size=(1, 16)).astype(np.float32)}
    if "c" in runner.inputs:
        feed["c"] = np.array(True)
    return runner.run(feed)


def assert_same_answers(patched: ModelProto, plain: ModelProto) -> None:
    for one, other in zip(runs(patched), runs(plain), strict=True):
        assert one.tobytes() == other.tobytes()


# ---------------------------------------------------------------- patch


@pytest.mark.parametrize("form", FORMS)
def test_only_what_changed_is_rewritten(form: Form) -> None:
    original = perceptron()
    before = original.SerializeToString()
    new = thinned(16, 32)
    patched = patch(original, {W1: new}, form)
    assert original.SerializeToString() == before
    expected = ModelProto()
    expected.CopyFrom(original)
    if form == "dense":
        expected.graph.initializer[0].raw_data = new.tobytes()
    else:
        del expected.graph.initializer[0]
        expected.graph.sparse_initializer.extend(patched.model.graph.sparse_initializer)
        assert [s.values.name for s in expected.graph.sparse_initializer] == ["w1"]
    assert patched.model.SerializeToString() == expected.SerializeToString()
    assert patched.forms == {W1: "dense" if form == "dense" else "sparse"}
    assert patched.reasons == {}


def test_nothing_changed_is_byte_equal() -> None:
    original = perceptron()
    same = patch(original, {}).model
    assert same.SerializeToString() == original.SerializeToString()
    same = patch(original, arrays(original)).model
    assert same.SerializeToString() == original.SerializeToString()


@pytest.mark.parametrize("ir", [3, 4, 8])
@pytest.mark.parametrize("form", FORMS)
def test_every_ir_version_runs_and_keeps_its_number(ir: int, form: Form) -> None:
    original = perceptron(opset=8, ir=ir)
    changed = {W1: thinned(16, 32), W2: thinned(32, 4, seed=1)}
    patched = patch(original, changed, form).model
    assert patched.ir_version == ir
    assert patched.graph.input == original.graph.input
    assert_same_answers(patched, patch(original, changed, "dense").model)
    assert list(Runner(patched).inputs) == ["x"]


@pytest.mark.parametrize("density", [0.0, 0.05, 0.2, 0.3, 0.34, 0.5, 1.0])
@pytest.mark.parametrize("as_node", [False, True])
def test_auto_is_never_larger_than_dense_or_sparse(density: float, as_node: bool) -> None:
    for shape in [(2, 2), (16, 4), (40, 30)]:
        new = thinned(*shape, density=density)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [value("x", 1, shape[0])],
            [value("y", 1, shape[1])],
        )
        if as_node:
            graph.node.insert(0, constant("w", np.ones(shape, np.float32)))
        else:
            graph.initializer.append(from_array(np.ones(shape, np.float32), "w"))
        key = WeightKey((), "w")
        sizes = {form: patch(model(graph), {key: new}, form).model.ByteSize() for form in FORMS}
        assert sizes["auto"] == min(sizes.values())


def test_auto_packs_values_of_fewer_bits() -> None:
    original = perceptron()
    changed = {W1: thinned(16, 32, density=0.9), W2: thinned(32, 4)}
    storage: dict[WeightKey, Storage] = {W1: Half(), W2: Plain()}
    changed[W1] = rounded(changed[W1], storage[W1])
    patched = patch(original, changed, "auto", storage)
    assert patched.forms[W1].startswith("packed: ")
    assert patched.forms[W2] == "sparse"
    dense = patch(original, changed, "dense", storage)
    assert dense.forms[W1] == "dense"
    assert patched.model.ByteSize() < dense.model.ByteSize() - 600
    assert_same_answers(patched.model, dense.model)
    # Where the opset has no decoder, they are as any others.
    old = patch(perceptron(opset=7), changed, "auto", storage)
    assert old.forms[W1] == "dense"
    assert "opset" in old.reasons[W1]


@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_weights_in_the_branches_of_an_if(form: Form, as_node: bool) -> None:
    original = branching(np.ones((16, 4)), as_node)
    keys = [WeightKey((f"choose[0].{branch}",), "w") for branch in ("else_branch", "then_branch")]
    changed = {key: thinned(16, 4, seed=seed) for seed, key in enumerate(keys)}
    patched = patch(original, changed, form)
    assert set(patched.forms.values()) == {"dense" if form == "dense" else "sparse"}
    dense = densify(patched.model)
    onnx.checker.check_model(dense, full_check=True)
    found = arrays(dense)
    assert {key: found[key].tobytes() for key in keys} == {
        key: array.tobytes() for key, array in changed.items()
    }
    assert_same_answers(patched.model, dense)


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_a_constant_node_stays_in_place_from_opset_11(opset: int) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        constant("w", np.ones((16, 4), np.float32)),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", 1, 16)], [value("y", 1, 4)])
    original = model(graph, opset)
    new, key = thinned(16, 4), WeightKey((), "w")
    patched = patch(original, {key: new})
    assert patched.forms == {key: "sparse"}
    operators = [node.op_type for node in patched.model.graph.node]
    if opset < 11:
        assert operators == ["Relu", "MatMul"]
        assert [s.values.name for s in patched.model.graph.sparse_initializer] == ["w"]
    else:
        assert operators == ["Relu", "Constant", "MatMul"]
        assert patched.model.graph.node[1].name == "w_node"
        assert patched.model.graph.node[1].attribute[0].name == "sparse_value"
    dense = densify(patched.model)
    onnx.checker.check_model(dense, full_check=True)
    assert arrays(dense)[key].tobytes() == new.tobytes()
    assert_same_answers(patched.model, patch(original, {key: new}, "dense").model)


@pytest.mark.parametrize(
    ("form", "old", "new"),
    [
        ("value_float", 1.5, np.array(2.5, np.float32)),
        ("value_floats", [1.5, 2.5], np.array([0.0, 0.1], np.float32)),
        ("value_int", 1, np.array(2)),
        ("value_ints", [1, 2], np.array([3, 4])),
    ],
)
def test_numbers_in_constant_nodes_keep_their_form(form: str, old: float, new: np.ndarray) -> None:
    node = helper.make_node("Constant", [], ["k"], None, None, None, None, **{form: old})
    nodes = [
        node,
        helper.make_node("Cast", ["k"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    made = model(helper.make_graph(nodes, "g", [value("x", 1, 2)], [value("y", 1, 2)]))
    key = WeightKey((), "k")
    patched = patch(made, {key: new})
    onnx.checker.check_model(patched.model)
    assert patched.forms == {key: "dense"}
    assert patched.model.graph.node[0].attribute[0].name == form
    assert arrays(patched.model)[key].tobytes() == new.tobytes()


def test_a_long_list_of_numbers_may_become_sparse() -> None:
    node = helper.make_node("Constant", [], ["k"], value_floats=[1.0] * 64)
    nodes = [node, helper.make_node("Add", ["x", "k"], ["y"])]
    made = model(helper.make_graph(nodes, "g", [value("x", 64)], [value("y", 64)]))
    key = WeightKey((), "k")
    new = thinned(64)
    patched = patch(made, {key: new})
    assert patched.forms == {key: "sparse"}
    onnx.checker.check_model(patched.model)
    assert arrays(densify(patched.model))[key].tobytes() == new.tobytes()


def test_a_constant_that_is_an_output_stays_dense() -> None:
    made = perceptron()
    made.graph.output.append(value("w1", 16, 32))
    patched = patch(made, {W1: thinned(16, 32), W2: thinned(32, 4)}, "sparse")
    assert patched.forms == {W1: "dense", W2: "sparse"}
    assert patched.reasons == {W1: "it is an output of its graph"}
    assert runs(patched.model)[1].tobytes() == thinned(16, 32).tobytes()


def test_scalars_and_dense_weights_stay_dense_and_say_why() -> None:
    made = perceptron()
    made.graph.initializer.append(from_array(np.array(2.0, np.float32), "s"))
    key = WeightKey((), "s")
    changed = {key: np.array(0.0, np.float32), W1: thinned(16, 32, density=0.9)}
    patched = patch(made, changed)
    assert patched.reasons == {
        key: "the ONNX checker refuses a sparse scalar",
        W1: "dense is smaller",
    }
    assert patch(made, changed, "sparse").forms == {key: "dense", W1: "sparse"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_the_element_type_of_the_constant_holds(dtype: type, form: Form) -> None:
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "c"], ["y"]),
    ]
    init = from_array(np.ones((16, 8)).astype(dtype), "w")
    made = model(helper.make_graph(nodes, "g", [value("x", 1, 16)], [value("y", 1, 8)], [init]))
    new, key = thinned(16, 8), WeightKey((), "w")
    patched = patch(made, {key: new}, form)
    runs(patched.model)
    found = arrays(densify(patched.model))[key]
    assert found.dtype == np.dtype(dtype)
    assert found.tobytes() == new.astype(dtype).tobytes()


def test_notes_on_a_tensor_survive() -> None:
    made = perceptron()
    made.graph.initializer[0].doc_string = "trained on Sunday"
    made.graph.initializer[0].metadata_props.add(key="day", value="Sunday")
    for form in FORMS:
        dense = densify(patch(made, {W1: thinned(16, 32)}, form).model)
        (tensor,) = (t for t in dense.graph.initializer if t.name == "w1")
        assert tensor.doc_string == "trained on Sunday"
        assert tensor.metadata_props[0].value == "Sunday"


def test_typed_data_are_replaced_too() -> None:
    made = perceptron()
    array = np.ones((16, 32), np.float32)
    made.graph.initializer[0].CopyFrom(helper.make_tensor("w1", 1, (16, 32), array.ravel()))
    assert patch(made, {W1: array}).model == made
    dense = patch(made, {W1: array * 2}, "dense").model
    assert not dense.graph.initializer[0].float_data
    assert arrays(dense)[W1].tobytes() == (array * 2).tobytes()


def test_what_cannot_be_patched_is_named() -> None:
    made = perceptron()
    with pytest.raises(ExportError, match="no dense constant called nobody"):
        patch(made, {WeightKey((), "nobody"): np.zeros(1)})
    with pytest.raises(ExportError, match="no dense constant called If"):
        patch(made, {WeightKey(("If[0].then_branch",), "w1"): np.zeros((16, 32))})
    with pytest.raises(ExportError, match=r"shape \[2\] do not fit constant 'w1' of shape \[16"):
        patch(made, {W1: np.zeros(2)})
    made.graph.initializer[0].CopyFrom(from_array(np.ones((16, 32), np.float16), "w1"))
    with pytest.raises(ExportError, match="'w1' is too large for its type, float16"):
        patch(made, {W1: np.full((16, 32), 1e9)})
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ExportError, match="initializer 'w1' keeps its data in another file"):
        patch(made, {})


# ---------------------------------------------------------------- write


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    patched = patch(perceptron(), {W1: thinned(16, 32)}).model
    assert write(patched, path) == path.stat().st_size == patched.ByteSize()
    assert ModelProto.FromString(path.read_bytes()) == patched
    assert read_model(path) == densify(patched)
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_file_is_replaced_and_links_are_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write(perceptron(), link)
    assert link.is_symlink()
    assert real.read_bytes() == perceptron().SerializeToString()


def test_a_new_file_has_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write(perceptron(), tmp_path / "model.onnx")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("fails", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_older_file_and_nothing_else(
    fails: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises((ExportError, KeyboardInterrupt)) as caught:
        write(perceptron(), path)
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_cannot_take_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "missing" / "model.onnx"
    with pytest.raises(ExportError, match=r"there is no folder .*missing; make it first"):
        write(perceptron(), path)
    with pytest.raises(ExportError, match="it is a folder; name a file in it"):
        write(perceptron(), tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Rights do not bind the superuser, as whom tests may run.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ExportError, match=r"cannot write .*model.onnx: Permission denied"):
        write(perceptron(), tmp_path / "model.onnx")


def test_an_unsound_model_is_not_written(tmp_path: Path) -> None:
    made = perceptron()
    made.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match="the patched model is unsound: No Op registered"):
        write(made, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_norm_onnxruntime_fused_below_its_opset_is_written(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "scale"], ["y"]),
    ]
    arrays = {"w": thinned(4, 3), "scale": np.ones(3, np.float32)}
    initializers = [from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [value("x", 2, 4)], [value("y", 2, 3)], initializers)
    made = model(graph, opset=13)
    changed = patch(made, {WeightKey((), "w"): np.eye(4, 3, dtype=np.float32)}).model
    before = changed.SerializeToString()
    write(changed, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == before
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    (found,) = Runner(tmp_path / "m.onnx").run({"x": x})
    centred = x[:, :3] - x[:, :3].mean(1, keepdims=True)
    wanted = centred / np.sqrt(np.square(centred).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
