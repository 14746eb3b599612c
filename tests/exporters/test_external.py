"""Models with their large tensors in a data file: layout, bytes, and failures at every step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx.numpy_helper import to_array

from onnxpress_adapters.errors import ExportError
from onnxpress_adapters.external import data_files
from onnxpress_adapters.light import message_bytes
from onnxpress_adapters.read import read_model
from onnxpress_adapters.tensors import every_tensor
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters import files
from onnxpress_exporters.compare import Runner, compare, runnable
from onnxpress_exporters.densify import densify
from onnxpress_exporters.external_data import (
    ALIGNMENT,
    KEPT_OUTSIDE_BYTES,
    SMALLEST_BYTES,
    Layout,
    is_data_name,
    room,
)
from onnxpress_exporters.values import Plain, Scaled, Storage, rounded
from onnxpress_exporters.write import Form, patch, write
from pairs import V, W, content, data_in, pressed, wide
from small_models import perceptron, thinned

FEED = {"x": np.random.default_rng(9).normal(size=(1, 200)).astype(np.float32)}
FORMS: tuple[Form, ...] = ("dense", "sparse", "packed")


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_is_read_back_checked_and_run(form: Form, tmp_path: Path) -> None:
    made = pressed(form)
    before = made.SerializeToString()
    path = tmp_path / "m.onnx"
    size = write(made, path, most_bytes=1000)
    assert made.SerializeToString() == before
    (data,) = data_in(tmp_path)
    assert is_data_name(data, "m.onnx")
    assert data_files(path) == {data}
    assert size == sum(map(len, content(tmp_path).values()))
    onnx.checker.check_model(str(path), full_check=form != "sparse")
    assert read_model(path) == densify(made)
    answers = [Runner(one, threads=1).run(FEED)[0] for one in (path, made, densify(made))]
    assert answers[0].tobytes() == answers[1].tobytes() == answers[2].tobytes()


def test_only_large_tensors_leave_aligned_in_the_order_of_the_model(tmp_path: Path) -> None:
    made = pressed("sparse")
    layout = Layout.of(made, 1000)
    named = [tensor.name for tensor in layout.outside]
    values = {"w": made.graph.sparse_initializer[0], "v": made.graph.node[1].attribute[0]}
    assert named == ["w", ""]
    assert all(tensor.dims[0] * 4 >= SMALLEST_BYTES for tensor in layout.outside)
    assert layout.outside[0] is values["w"].values
    assert layout.outside[1] is values["v"].sparse_tensor.values
    assert layout.starts[0] == 0
    assert all(start % ALIGNMENT == 0 for start in layout.starts)
    write(made, tmp_path / "m.onnx", most_bytes=1000)
    (data,) = (path for path in tmp_path.iterdir() if path.suffix == ".data")
    raw = data.read_bytes()
    end = 0
    for tensor, start in zip(layout.outside, layout.starts, strict=True):
        assert raw[end:start] == bytes(start - end)
        end = start + len(tensor.raw_data)
        assert raw[start:end] == tensor.raw_data
    assert len(raw) == end


def test_sparse_indices_stay_where_the_checker_reads_them(tmp_path: Path) -> None:
    write(pressed("sparse"), tmp_path / "m.onnx", most_bytes=1000)
    found = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    (sparse,) = found.graph.sparse_initializer
    assert sparse.values.data_location == TensorProto.EXTERNAL
    assert sparse.indices.data_location == TensorProto.DEFAULT
    assert len(sparse.indices.raw_data) >= SMALLEST_BYTES


def test_indices_leave_a_model_that_would_be_too_large_with_them(tmp_path: Path) -> None:
    made = pressed("sparse")
    limit = 100_000  # a file could hold the values of one tensor and nothing more
    layout = Layout.of(made, limit, limit)
    assert [tensor.data_type for tensor in layout.outside] == 2 * [
        TensorProto.FLOAT,
        TensorProto.INT64,
    ]
    path = tmp_path / "m.onnx"
    assert files.write_files(layout, path) > 2 * limit
    assert path.stat().st_size < 2000
    assert read_model(path) == densify(made)
    answers = [Runner(one, threads=1).run(FEED)[0] for one in (path, made)]
    assert answers[0].tobytes() == answers[1].tobytes()
    with pytest.raises(ExportError, match=r"takes \d+ bytes, and one ONNX file can hold 1000$"):
        Layout.of(made, 1000, 1000)


def test_fields_of_a_newer_onnx_stay(tmp_path: Path) -> None:
    unknown = b"\xf8\x07\x01"  # field 127
    made = ModelProto.FromString(pressed("dense").SerializeToString() + unknown)
    path = tmp_path / "m.onnx"
    write(made, path, most_bytes=1000)
    assert path.stat().st_size < 3000
    assert unknown in path.read_bytes()
    assert read_model(path) == made


def test_one_file_wherever_it_fits_into_one(tmp_path: Path) -> None:
    made = pressed("sparse")
    size = made.ByteSize()
    assert Layout.of(made, size).outside == ()
    assert Layout.of(made, size).model is made
    assert len(Layout.of(made, size - 1).outside) == 2
    assert write(made, tmp_path / "m.onnx") == size
    assert content(tmp_path) == {"m.onnx": made.SerializeToString()}


def test_nothing_large_enough_to_leave(tmp_path: Path) -> None:
    made = perceptron()
    assert write(made, tmp_path / "m.onnx", most_bytes=10) == made.ByteSize()
    assert content(tmp_path) == {"m.onnx": made.SerializeToString()}


def test_typed_fields_leave_as_raw_data(tmp_path: Path) -> None:
    array = np.arange(60_000, dtype=np.float16).reshape(300, 200)
    made = wide()
    made.graph.initializer.add(name="unused").CopyFrom(
        helper.make_tensor("unused", TensorProto.FLOAT16, array.shape, array.reshape(-1))
    )
    assert made.graph.initializer[-1].int32_data
    write(made, tmp_path / "m.onnx", most_bytes=1000)
    read = read_model(tmp_path / "m.onnx")
    assert to_array(read.graph.initializer[-1]).tobytes() == array.tobytes()


def test_where_the_original_kept_its_data_outside_a_large_result_does(tmp_path: Path) -> None:
    write(wide(), tmp_path / "one.onnx")
    write(wide(), tmp_path / "two.onnx", most_bytes=0)
    assert room(tmp_path / "one.onnx") == 2**31 - 1
    assert room(tmp_path / "two.onnx") == KEPT_OUTSIDE_BYTES


def test_bytes_are_counted_without_making_them() -> None:
    for made in (perceptron(), wide(), *map(pressed, FORMS)):
        assert message_bytes(made) == made.ByteSize()
        for node in made.graph.node:
            assert message_bytes(node) == node.ByteSize()


# ---------------------------------------------------------------- running


def test_what_runs_from_a_temporary_pair_answers_the_same(tmp_path: Path) -> None:
    made = pressed("packed")
    with runnable(made, 1000) as source:
        assert isinstance(source, str)
        folder = Path(source).parent
        assert len(data_in(folder)) == 1
        found = compare(made, Path(source), {"x": FEED["x"][None]})
    assert found.distance.absolute == 0.0
    assert not folder.exists()
    with runnable(made) as source:
        assert source == made.SerializeToString()


# ---------------------------------------------------------------- on disk


def test_saving_twice_leaves_the_same_bytes_and_names(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for form in FORMS:
        write(pressed(form), path, most_bytes=1000)
        first = content(tmp_path)
        write(pressed(form), path, most_bytes=1000)
        assert content(tmp_path) == first
        assert len(first) == 2


def test_a_pair_pressed_again_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    storage: dict[WeightKey, Storage] = {W: Scaled(np.array(0.01, np.float32)), V: Plain()}
    changed = {key: thinned(200, 300, density=0.7) for key in (W,)}
    changed[W] = rounded(changed[W], storage[W])
    changed[V] = thinned(300, 200, density=0.9)
    write(patch(wide(), changed, "packed", storage).model, path, most_bytes=1000)
    first = content(tmp_path)
    write(patch(read_model(path), changed, "packed", storage).model, path, most_bytes=1000)
    assert content(tmp_path) == first


def test_the_older_data_file_goes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write(pressed(seed=1), path, most_bytes=1000)
    write(pressed(seed=2), tmp_path / "other.onnx", most_bytes=1000)
    strangers = {
        "m.onnx.data": b"somebody's",
        f"m.onnx.{'a' * 16}.data": b"ours by its name, but no model's",
        "notes.txt": b"kept",
    }
    for name, text in strangers.items():
        (tmp_path / name).write_bytes(text)
    before = content(tmp_path)
    (old,) = data_files(path)
    write(pressed(seed=3), path, most_bytes=1000)
    after = content(tmp_path)
    (new,) = data_files(path)
    assert new != old
    assert after.keys() == (before.keys() - {old}) | {new}
    assert all(after[name] == before[name] for name in after.keys() - {new, "m.onnx"})
    # One file in its place: the pair's data go as well.
    write(pressed(seed=3), path)
    assert content(tmp_path).keys() == before.keys() - {old}


def test_data_that_an_older_model_names_in_a_strange_way_stay(tmp_path: Path) -> None:
    """A hostile model in the place of the target makes us remove nothing that is not ours."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "m.onnx"
    (tmp_path / "secret").write_bytes(b"kept")
    (tmp_path / "in" / "secret").write_bytes(b"kept")
    hostile = wide()
    for location, tensor in zip(("../secret", "secret"), hostile.graph.initializer, strict=True):
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    path.write_bytes(hostile.SerializeToString())
    write(pressed(), path, most_bytes=1000)
    assert (tmp_path / "secret").read_bytes() == b"kept"
    assert (tmp_path / "in" / "secret").read_bytes() == b"kept"


@pytest.mark.parametrize("torn", [b"torn", b""])
def test_a_torn_data_file_under_the_name_is_replaced(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write(pressed(), path, most_bytes=1000)
    good = content(tmp_path)
    (data,) = data_in(tmp_path)
    (tmp_path / data).write_bytes(torn)
    write(pressed(), path, most_bytes=1000)
    assert content(tmp_path) == good


def test_links_are_neither_written_through_nor_read_through(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "secret"
    folder.mkdir()
    outside.write_bytes(b"kept")
    path = folder / "m.onnx"
    write(pressed(), path, most_bytes=1000)
    (data,) = data_in(folder)
    good = content(folder)
    (folder / data).unlink()
    (folder / data).symlink_to(outside)
    write(pressed(), path, most_bytes=1000)
    assert content(folder) == good
    assert not (folder / data).is_symlink()
    assert outside.read_bytes() == b"kept"

    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    with pytest.raises(ExportError, match=r"link\.onnx: it is a symbolic link, and beside it"):
        write(pressed(seed=5), link, most_bytes=1000)
    assert content(folder) == good


def test_every_tensor_of_a_written_pair_is_named_with_its_place(tmp_path: Path) -> None:
    write(pressed("dense"), tmp_path / "m.onnx", most_bytes=1000)
    (data,) = data_in(tmp_path)
    found = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    rows = [
        {entry.key: entry.value for entry in tensor.external_data}
        for _, tensor in every_tensor(found)
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    size = str(200 * 300 * 4)
    start = str(-(-200 * 300 * 4 // ALIGNMENT) * ALIGNMENT)
    assert rows == [
        {"location": data, "offset": "0", "length": size},
        {"location": data, "offset": start, "length": size},
    ]
