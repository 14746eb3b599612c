from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnxpress_adapters.errors import AdapterError, BrokenModelError
from onnxpress_adapters.external import data_files
from onnxpress_adapters.read import Limits, read_model

FLOAT = TensorProto.FLOAT
USUAL = Limits()


def value(name: str, *shape: int, kind: int = FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(*nodes: NodeProto, init: list[TensorProto] | None = None, y: str = "y") -> ModelProto:
    graph = helper.make_graph(list(nodes), "g", [value("x", 2)], [value(y, 2)], init or [])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def weight(values: object = (1.0, 2.0), name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def add(tensor: TensorProto) -> ModelProto:
    return model(helper.make_node("Add", ["x", tensor.name], ["y"], name="plus"), init=[tensor])


def saved(made: ModelProto | bytes, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def refusal(made: ModelProto | bytes, folder: Path, limits: Limits = USUAL) -> str:
    path = saved(made, folder)
    with pytest.raises(BrokenModelError) as caught:
        read_model(path, limits)
    message = str(caught.value)
    start = f"cannot read {path}: "
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)


def test_a_sound_model_comes_back_as_it_is(tmp_path: Path) -> None:
    made = add(weight())
    made.graph.doc_string = "kept"
    made.metadata_props.add(key="k", value="v")
    assert read_model(saved(made, tmp_path)) == made


# ---------------------------------------------------------------- the file itself


def test_a_missing_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    for path, message in [
        (tmp_path / "none.onnx", "there is no such file; check the path"),
        (tmp_path / "none" / "none.onnx", "there is no such file; check the path"),
        (tmp_path, "it is a folder; name the .onnx file in it"),
        (pipe, "it is not a plain file"),
    ]:
        with pytest.raises(BrokenModelError) as caught:
            read_model(path)
        assert str(caught.value) == f"cannot read {path}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty (0 bytes); copy or export it again"),
        (b"PK\x03\x04 a zip file, perhaps a torch checkpoint", "it is not an ONNX model"),
        (b"a text", "it is not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a git-lfs pointer, not the model"),
        (b"\x08\x08", "it holds no graph; it may be cut short"),
    ],
)
def test_what_is_no_model_at_all(content: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(content, tmp_path).startswith(message)


def test_a_torn_file_is_refused_wherever_it_breaks_off(tmp_path: Path) -> None:
    whole = add(weight()).SerializeToString()
    messages = {refusal(whole[:cut], tmp_path) for cut in range(1, len(whole) - 6)}
    assert messages <= {
        "it is not an ONNX model",
        "it holds no graph; it may be cut short, so copy it again",
        "it begins like an ONNX model and then breaks off or is damaged; copy it again",
    }


def test_a_file_over_the_limit_is_not_called_broken(tmp_path: Path) -> None:
    path = saved(add(weight()), tmp_path)
    with pytest.raises(AdapterError, match=r"more than the 20 allowed$") as caught:
        read_model(path, Limits(file_bytes=20))
    assert type(caught.value) is AdapterError


def test_names_that_are_not_text(tmp_path: Path) -> None:
    made = model(helper.make_node("Relu", ["x"], ["zzzz"]), y="zzzz").SerializeToString()
    assert "is not UTF-8 text" in refusal(made.replace(b"zzzz", b"z\xff\xfez"), tmp_path)


# ---------------------------------------------------------------- tensors


def test_a_few_bytes_cannot_ask_for_four_gigabytes(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[1 << 20, 1 << 8], raw_data=b"\0" * 4)
    assert refusal(add(tensor), tmp_path) == (
        "initializer 'w' of shape [1048576, 256] needs 1073741824 bytes of data and has 4"
    )


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            TensorProto(data_type=FLOAT, dims=[2], float_data=[1]),
            "needs 2 values of data and has 1",
        ),
        (TensorProto(data_type=FLOAT, dims=[2]), "needs 2 values of data and has 0"),
        (TensorProto(data_type=FLOAT, dims=[2], int64_data=[1, 2]), "instead of float_data"),
        (
            TensorProto(data_type=FLOAT, dims=[1], raw_data=b"\0\0\0\0", float_data=[1]),
            "holds its data twice: in float_data and in raw_data",
        ),
        (TensorProto(data_type=FLOAT, dims=[-1]), "has a negative dimension in its shape [-1]"),
        (TensorProto(data_type=FLOAT, dims=[0, 1 << 62]), "has an impossible shape"),
        (TensorProto(data_type=FLOAT, dims=[1] * 70), "has an impossible shape"),
        (TensorProto(data_type=99, dims=[1]), "has the unknown element type 99"),
        (TensorProto(dims=[1]), "has the unknown element type 0"),
        (TensorProto(data_type=FLOAT, segment=TensorProto.Segment()), "is cut into segments"),
        (TensorProto(data_type=TensorProto.INT4, dims=[3], raw_data=b"\0"), "needs 2 bytes"),
    ],
)
def test_data_that_do_not_fit_the_shape(tensor: TensorProto, message: str, tmp_path: Path) -> None:
    tensor.name = "w"
    assert f"initializer 'w' {message}" in refusal(add(tensor), tmp_path) or message in refusal(
        add(tensor), tmp_path
    )


def test_tensors_in_attributes_and_bodies_are_checked_too(tmp_path: Path) -> None:
    bad = TensorProto(data_type=FLOAT, dims=[5], raw_data=b"")
    inner = helper.make_node("Constant", [], ["k"], value=bad)
    body = helper.make_graph([inner], "b", [], [value("k", 5)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    condition = numpy_helper.from_array(np.array(True), "c")
    assert refusal(model(node, init=[condition]), tmp_path) == (
        "attribute 'value' of Constant 'k' of shape [5] needs 20 bytes of data and has 0"
    )


def test_constants_over_the_limit_are_counted_before_they_are_made(tmp_path: Path) -> None:
    made = model(helper.make_node("Add", ["x", "w"], ["y"]))
    made.graph.sparse_initializer.append(sparse([1 << 40], [], []))
    with pytest.raises(AdapterError, match="'w' takes 4398046511104 bytes, more than the 214"):
        read_model(saved(made, tmp_path))


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    for bad, kind in [([1.0, np.nan], "NaN"), ([np.inf, 1.0], "an infinite value")]:
        matrix = numpy_helper.from_array(np.array([bad, bad], np.float32), "w")
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        assert refusal(model(node, init=[matrix]), tmp_path).startswith(f"weight 'w' holds {kind};")


def test_an_infinity_is_refused_through_a_transpose_and_in_half_precision(tmp_path: Path) -> None:
    half = numpy_helper.from_array(np.full((2, 2), np.inf, np.float16), "w")
    made = model(
        helper.make_node("Cast", ["w"], ["c"], to=FLOAT),
        helper.make_node("Transpose", ["c"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
        init=[half],
    )
    assert refusal(made, tmp_path).startswith("weight 'w' holds an infinite value")


def test_an_attention_mask_and_an_open_clip_may_be_infinite(tmp_path: Path) -> None:
    made = add(weight([0.0, -np.inf]))
    assert read_model(saved(made, tmp_path)) == made


# ---------------------------------------------------------------- external data


def outside(location: str, offset: str = "0", length: str | None = "8") -> ModelProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value=offset)
    if length is not None:
        tensor.external_data.add(key="length", value=length)
    return add(tensor)


@pytest.mark.parametrize("length", ["8", None])
def test_external_data_come_inline(length: str | None, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"????" + np.array([1, 2], np.float32).tobytes())
    assert read_model(saved(outside("w.bin", "4", length), tmp_path)) == add(weight())


def test_data_files_are_named_and_not_opened(tmp_path: Path) -> None:
    assert data_files(saved(outside("../not there"), tmp_path)) == {"../not there"}
    assert data_files(saved(add(weight()), tmp_path)) == frozenset()
    # A node may be called so without naming a file, wherever the word lies in the bytes.
    called = add(weight())
    called.graph.node[0].name = "location"
    for start in range(0, 9):
        called.doc_string = "x" * ((1 << 20) - called.ByteSize() + start)
        assert data_files(saved(called, tmp_path)) == frozenset()
    for text in (b"location", b"\x08\x08location"):
        with pytest.raises(BrokenModelError, match="it is not an ONNX model"):
            data_files(saved(text, tmp_path))
    with pytest.raises(BrokenModelError, match="it is not an ONNX model"):
        data_files(tmp_path / "missing.onnx")


def test_constants_of_a_model_and_each_of_them_have_a_limit(tmp_path: Path) -> None:
    made = saved(add(weight()), tmp_path)
    assert read_model(made, Limits(constant_bytes=8, tensor_bytes=8)) == add(weight())
    with pytest.raises(AdapterError, match=r"constants take 8 bytes, more than the 7 allowed \(a"):
        read_model(made, Limits(constant_bytes=7))
    with pytest.raises(AdapterError, match=r"'w' takes 8 bytes, more than the 7 a single"):
        read_model(made, Limits(tensor_bytes=7))
    assert USUAL.constant_bytes >= 2**31 - 1 > USUAL.tensor_bytes > 2_000_000_000


def test_external_data_in_a_folder_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(np.array([1, 2], np.float32).tobytes())
    assert read_model(saved(outside("data/w.bin"), tmp_path)) == add(weight())


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "data/../../secret", "..", ""])
def test_a_data_file_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"12345678")
    folder = tmp_path / "model"
    folder.mkdir()
    message = refusal(outside(location), folder)
    assert message.startswith(f"initializer 'w' keeps its data in '{location}', ")
    assert "outside the model's folder" in message or "names no file" in message


def _hard_link(path: Path, secret: Path) -> None:
    os.link(secret, path)


def _symlink(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def _pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, secret: Path) -> None:
    path.mkdir()


def _loop(path: Path, secret: Path) -> None:
    path.symlink_to(path)


def _nothing(path: Path, secret: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_hard_link, "a hard link; put a copy of the file there"),
        (_symlink, "a symbolic link; put the file itself there"),
        (_pipe, "not a plain file; put a copy of the file there"),
        (_folder, "not a plain file; put a copy of the file there"),
        (_loop, "which cannot be opened: "),
        (_nothing, "which is missing; put it beside the model"),
    ],
)
def test_a_data_file_must_be_a_plain_file_of_its_own(
    make: Callable[[Path, Path], None], message: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345678")
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder / "w.bin", secret)
    start = f"initializer 'w' keeps its data in 'w.bin', {message}"
    assert refusal(outside("w.bin"), folder).startswith(start)


def test_a_folder_that_is_a_symlink_does_not_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(b"12345678")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "data").symlink_to(tmp_path / "elsewhere")
    assert "a symbolic link" in refusal(outside("data/w.bin"), folder)


@pytest.mark.parametrize(
    ("offset", "length", "message"),
    [
        ("4", "8", "names bytes 4 to 12 of 'w.bin', which has only 8"),
        ("0", "4", "needs 8 bytes of data and names 4 in 'w.bin'"),
        ("-4", "8", "has the external data offset '-4', not a number"),
        ("0", "8e0", "has the external data length '8e0', not a number"),
        ("9" * 30, "8", "not a number"),
    ],
)
def test_the_part_of_a_data_file_must_fit(
    offset: str, length: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(b"12345678")
    assert message in refusal(outside("w.bin", offset, length), tmp_path)


# ---------------------------------------------------------------- sparse constants


def sparse(dims: list[int], values: list[float], indices: object) -> SparseTensorProto:
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.array(values, np.float32), "w"),
        numpy_helper.from_array(np.array(indices, np.int64)),
        dims,
    )


@pytest.mark.parametrize("indices", [[1, 3], [[0, 1], [1, 1]]])
def test_sparse_initializers_come_dense(indices: list[object], tmp_path: Path) -> None:
    made = model(helper.make_node("MatMul", ["x", "w"], ["y"]))
    made.graph.sparse_initializer.append(sparse([2, 2], [5.0, 7.0], indices))
    made.graph.sparse_initializer[0].values.doc_string = "kept"
    read = read_model(saved(made, tmp_path))
    assert not read.graph.sparse_initializer
    (tensor,) = read.graph.initializer
    assert (tensor.name, tensor.doc_string) == ("w", "kept")
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), [[0, 5], [0, 7]])


def test_a_sparse_constant_node_comes_dense(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"], sparse_value=sparse([2], [5.0], [1]))
    made = model(constant, helper.make_node("Add", ["x", "w"], ["y"]))
    (attribute,) = read_model(saved(made, tmp_path)).graph.node[0].attribute
    assert attribute.name == "value"
    np.testing.assert_array_equal(numpy_helper.to_array(attribute.t), [0, 5])


@pytest.mark.parametrize(
    ("values", "indices", "message"),
    [
        ([1.0], [4], "has an index outside its shape [2, 2]"),
        ([1.0], [-1], "has an index outside its shape [2, 2]"),
        ([1.0], [[0, 2]], "has an index outside its shape [2, 2]"),
        ([1.0, 2.0], [1, 1], "names the same place twice"),
        ([1.0], [1, 2], "has values of shape [1] for 2 indices"),
        ([1.0], [[0, 0, 0]], "has indices for 3 dimensions"),
    ],
)
def test_a_sparse_constant_that_contradicts_itself(
    values: list[float], indices: object, message: str, tmp_path: Path
) -> None:
    made = model(helper.make_node("MatMul", ["x", "w"], ["y"]))
    made.graph.sparse_initializer.append(sparse([2, 2], values, indices))
    assert message in refusal(made, tmp_path)


# ---------------------------------------------------------------- graphs

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
