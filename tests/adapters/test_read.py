"""Reading models: files, tensors, data files and sparse constants that are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from files_to_read import FLOAT, USUAL, add, model, refusal, saved, value, weight
from onnxpress_adapters.errors import AdapterError, BrokenModelError
from onnxpress_adapters.external import data_files
from onnxpress_adapters.read import Limits, read_model


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
