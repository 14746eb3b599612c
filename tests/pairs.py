"""Models whose large tensors lie in a data file, and what lies in their folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, helper
from onnx.numpy_helper import from_array

from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.write import Form, patch
from small_models import constant, model, thinned, value

W, V = WeightKey((), "w"), WeightKey((), "v")


def wide(seed: int = 0) -> ModelProto:
    """Give 200 -> 300 -> 200; one weight is an initializer, the other a Constant node."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(200, 300)).astype(np.float32)
    second = rng.normal(size=(300, 200)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        constant("v", second),
        helper.make_node("MatMul", ["h", "v"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["y"]),
    ]
    small = from_array(np.ones(200, np.float32), "b")
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, 200)], [value("y", 1, 200)], [from_array(first, "w"), small]
    )
    return model(graph)


def pressed(form: Form = "sparse", density: float = 0.4, seed: int = 0) -> ModelProto:
    # Dense enough for values of over 64 KiB.
    changed = {
        W: thinned(200, 300, density=density, seed=seed),
        V: thinned(300, 200, density=density, seed=seed + 1),
    }
    return patch(wide(), changed, form).model


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def data_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".data")
