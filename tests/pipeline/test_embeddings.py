"""Tables that are looked up count, and are pressed, only on request."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, numpy_helper

from hand_built import build, normal, op
from onnxpress.cli import main
from onnxpress.inspection import inspect_model
from onnxpress.job import Job
from onnxpress.press import compress
from onnxpress_exporters.densify import densify
from small_models import value


def reader() -> ModelProto:
    """Sums what a table says of six tokens, twenty of which exist, and multiplies."""
    nodes = [
        op("Gather", "table tokens", "rows"),
        op("ReduceSum", "rows axes", "sum", keepdims=0),
        op("MatMul", "sum w", "y"),
    ]
    arrays = {"table": normal(20, 8), "w": normal(8, 4, seed=1), "axes": np.array([1])}
    inputs = [value("tokens", "n", 6, kind=TensorProto.INT64)]
    return build(nodes, inputs, [value("y", "n", 4)], arrays)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    path, data = tmp_path / "m.onnx", tmp_path / "x.npz"
    onnx.save(reader(), str(path))
    # Tokens 15 to 19 never come: their rows are free to go.
    np.savez(data, tokens=np.random.default_rng(0).integers(0, 15, (600, 6)))
    return Job(path, tmp_path / "out.onnx", data=data, effort="quick", form="dense")


def zeros(path: Path) -> dict[str, np.ndarray]:
    made = densify(onnx.load(str(path)))
    return {t.name: numpy_helper.to_array(t) == 0 for t in made.graph.initializer}


def with_(job: Job, **changes: Any) -> Job:
    return replace(job, **changes)


def test_a_table_is_left_alone_unless_it_is_asked_for(job: Job) -> None:
    report = compress(with_(job, sparsity=0.5))
    gone = zeros(job.target)
    assert not gone["table"].any()
    assert gone["w"].sum() == 16
    assert report.sparsity == 0.5


def test_rows_nobody_looks_up_are_the_first_to_go(job: Job) -> None:
    report = compress(with_(job, tolerance="1%", embeddings=True))
    gone = zeros(job.target)
    assert gone["table"][15:].all()
    assert report.sparsity == (gone["table"].sum() + gone["w"].sum()) / (160 + 32)


def test_every_command_counts_tables_on_request(job: Job) -> None:
    assert [row.name for row in inspect_model(job.model).weights] == ["w"]
    rows = inspect_model(job.model, tables=True).weights
    assert [(row.name, row.operator, row.how) for row in rows] == [
        ("table", "Gather", "layer-wise and by gradient"),
        ("w", "MatMul", "layer-wise and by gradient"),
    ]
    compress(with_(job, sparsity=0.5))
    call = [
        "verify",
        str(job.model),
        str(job.target),
        "--tolerance",
        "1e9",
        "--data",
        str(job.data),
    ]
    for flag, entries in (([], 32), (["--embeddings"], 192)):
        result = CliRunner().invoke(main, [*call, *flag, "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["sparsity"] == 16 / entries
