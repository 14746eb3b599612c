from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper
from onnx.numpy_helper import from_array

from onnxpress.sizes import FileSize, file_bytes
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.write import Form, patch, write
from small_models import model, thinned, value


def pressed(form: Form) -> ModelProto:
    """Give 200 -> 300, 40 % of it kept, so that the values alone are over 64 KiB."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", 1, 200)],
        [value("y", 1, 300)],
        [from_array(np.ones((200, 300), np.float32), "w")],
    )
    changed = {WeightKey((), "w"): thinned(200, 300, density=0.4)}
    return patch(model(graph), changed, form).model


@pytest.mark.parametrize("form", ["dense", "sparse", "packed"])
@pytest.mark.parametrize("most_bytes", [0, 10**6])
def test_sizes_are_those_of_what_is_written(form: Form, most_bytes: int, tmp_path: Path) -> None:
    made = pressed(form)
    path = tmp_path / "m.onnx"
    foretold = FileSize.of_written(made, path, most_bytes)
    assert foretold.size_bytes == write(made, path, most_bytes) == file_bytes(path)
    assert len(list(tmp_path.iterdir())) == (1 if most_bytes else 2)
    assert FileSize.of(path) == foretold


def test_bytes_and_files_measure_the_same(tmp_path: Path) -> None:
    made = pressed("sparse")
    write(made, tmp_path / "m.onnx")
    assert FileSize.of(made.SerializeToString()) == FileSize.of(tmp_path / "m.onnx")
