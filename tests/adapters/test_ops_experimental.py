"""Operators ONNX tried and dropped, beside onnxruntime."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from beside_runtime import Row, check, prepared, row
from calculus import check_gradient, check_meta, check_vmap, floats
from onnxpress_adapters.network import import_network
from onnxpress_adapters.ops import load
from onnxpress_adapters.read import read_model

rng = np.random.default_rng(0)
IMAGE = rng.standard_normal((2, 3, 5, 6)).astype(np.float32)


def rows() -> Iterator[Row]:
    yield row("Crop", 9, IMAGE, border=[1, 0, 2, 1])
    yield row("Crop", 7, IMAGE, border=[1, 2, 0, 0], scale=[2, 3])
    yield row("ImageScaler", 9, IMAGE, bias=[0.1, 0.2, -0.3], scale=2.0)
    yield row("ImageScaler", 1, IMAGE, bias=[0.1, 0.2, -0.3])
    yield row("ParametricSoftplus", 9, IMAGE * 40, alpha=0.5, beta=2.0)
    yield row("Scale", 9, IMAGE, scale=3.0)
    yield row("Affine", 9, IMAGE, alpha=2.0, beta=1.0)
    yield row("ScaledTanh", 9, IMAGE, alpha=2.0, beta=0.5)
    places = np.array([1, -3]), np.array([3, 100])
    yield row("DynamicSlice", 9, IMAGE, *places, np.array([1, 3]))
    yield row("DynamicSlice", 9, IMAGE[0, 0], *places)


ROWS = list(rows())


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)
    bound = prepared(chosen)
    check_vmap(bound)
    check_meta(bound)
    assert check_gradient(bound, floats(bound))


@pytest.mark.parametrize("operator", sorted({r.operator for r in ROWS} - {"Affine", "ScaledTanh"}))
def test_opset_10_dropped_them(operator: str) -> None:
    assert load().find("", operator, 10) is None


def test_file_with_one_is_read_and_run(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 2, 2]) for n in "xy")
    nodes = [
        helper.make_node("ImageScaler", ["x"], ["h"], name="first", bias=[1.0], scale=0.5),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=3)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    network, weights = import_network(read_model(path))
    (found,) = network(weights, torch.tensor([[[[1.0, -4.0], [2.0, -2.0]]]]))
    assert found.tolist() == [[[[1.5, 0.0], [2.0, 0.0]]]]
