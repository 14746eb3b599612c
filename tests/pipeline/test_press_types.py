"""Models that hold other floats than float32 are pressed, and keep the types they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.numpy_helper import from_array

from hand_built import op
from onnxpress.job import Job
from onnxpress.press import compress
from onnxpress_exporters.densify import densify
from small_models import model, value

HALF, DOUBLE, BRAIN = TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16
TYPES: dict[int, Any] = {HALF: np.float16, DOUBLE: np.float64, BRAIN: ml_dtypes.bfloat16}


def perceptron_of(kind: int) -> ModelProto:
    """Two layers in one type; bfloat16, which onnxruntime does not multiply, is cast first."""
    rng = np.random.default_rng(0)
    arrays = {"w1": rng.normal(size=(16, 32)) / 4, "b": rng.normal(size=32) / 4}
    arrays["w2"] = rng.normal(size=(32, 4)) / 6
    border = TensorProto.FLOAT if kind == BRAIN else kind
    nodes, used = [], {name: name for name in arrays}
    if kind == BRAIN:
        used = {name: f"{name}_wide" for name in arrays}
        nodes = [op("Cast", name, wide, to=TensorProto.FLOAT) for name, wide in used.items()]
    nodes += [
        op("MatMul", f"x {used['w1']}", "h"),
        op("Add", f"h {used['b']}", "a"),
        op("Relu", "a", "r"),
        op("MatMul", f"r {used['w2']}", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", "n", 16, kind=border)],
        [value("y", "n", 4, kind=border)],
        [from_array(array.astype(TYPES[kind]), name) for name, array in arrays.items()],
    )
    return model(graph)


@pytest.mark.parametrize("kind", TYPES, ids=["float16", "float64", "bfloat16"])
def test_a_model_keeps_its_type_and_its_promise(tmp_path: Path, kind: int) -> None:
    made = perceptron_of(kind)
    path, data = tmp_path / "m.onnx", tmp_path / "x.npz"
    onnx.save(made, str(path))
    # Inputs on a plane, so that there is something to leave out.
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(600, 3)) @ rng.normal(size=(3, 16))
    border = np.float32 if kind == BRAIN else TYPES[kind]
    np.savez(data, x=inputs.astype(border))
    job = Job(path, tmp_path / "out.onnx", tolerance="2%", data=data, effort="quick")
    report = compress(job)
    assert report.out == job.target
    assert report.sparsity > 0.2
    written = densify(onnx.load(str(job.target)))
    for tensor in written.graph.initializer:
        assert tensor.data_type == kind
    zeros = sum(
        int((numpy_helper.to_array(tensor).astype(np.float64) == 0).sum())
        for tensor in written.graph.initializer
        if tensor.name != "b"
    )
    assert zeros == round(report.sparsity * (16 * 32 + 32 * 4))
    answers = []
    for file in (path, job.target):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {"x": inputs.astype(border)})
        answers.append(answer.astype(np.float64))
    spread = np.square(answers[0] - answers[0].mean(0)).sum()
    assert np.square(answers[0] - answers[1]).sum() / spread < 0.02
