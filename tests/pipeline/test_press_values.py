"""``--values`` end to end: what is judged and written lies on the grid, and a trace knows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from onnxpress import beginning, plans
from onnxpress.cli import main
from onnxpress.job import Job
from onnxpress.picking import PickJob, pick
from onnxpress.press import compress
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.store import Values
from onnxpress.trace import load_trace
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.densify import densify
from onnxpress_exporters.values import rounded
from small_models import perceptron

DOMAIN = ("x=normal:0,1",)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that takes little time."""
    monkeypatch.setattr(beginning, "MOST_DRAWN", 512)
    monkeypatch.setattr(plans, "ALONE", 0.3)
    monkeypatch.setattr(plans, "MOST_ALONE", 0.3)
    monkeypatch.setattr(plans, "POLISHING_ALONE", 0.1)
    model = tmp_path / "m.onnx"
    model.write_bytes(perceptron().SerializeToString())
    return Job(model, sparsity=0.5, domain=DOMAIN, effort="quick", device="cpu")


def weights(path: Path) -> dict[WeightKey, np.ndarray]:
    graph = densify(read_model(path)).graph
    return {WeightKey((), t.name): numpy_helper.to_array(t) for t in graph.initializer}


@pytest.mark.parametrize("values", ["fp16", "int8", "int5", "palette"])
def test_the_file_holds_rounded_values(job: Job, tmp_path: Path, values: Values) -> None:
    trace, out = tmp_path / "t.trace", tmp_path / "p.onnx"
    report = compress(replace(job, values=values, trace=trace))
    assert report.steps.startswith("Chain(steps=(Greedy(sparsity=0.5")
    assert f"Store(values='{values}'" in report.steps
    assert any(line.startswith(f"Store(values='{values}'") for line in report.log)
    assert f"the values of 2 weights are rounded to {values}" in report.notes
    assert report.sparsity >= 0.5
    storage = load_trace(trace).storage(0)
    assert {str(key): str(each) for key, each in storage.items()} == {"w1": values, "w2": values}
    held = weights(job.target)
    for key, each in storage.items():
        assert rounded(held[key], each).tobytes() == held[key].tobytes()
    picked = pick(PickJob(trace, out, sparsity=0.5, domain=DOMAIN))
    assert picked.out == out
    assert out.read_bytes() == job.target.read_bytes()


def test_it_is_what_the_flag_says(job: Job) -> None:
    words = ["compress", str(job.model), "--values", "int7", "--domain", DOMAIN[0]]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "'int7' is not one of 'fp32', 'fp16', 'int8', 'int6', 'int5', 'int4'," in result.stderr
    assert get_args(Values) == ("fp32", "fp16", "int8", "int6", "int5", "int4", "palette")


def test_what_cannot_work_is_refused(job: Job) -> None:
    with pytest.raises(MisuseError, match="values are not stored as 'int7'; there are fp32, fp16"):
        compress(replace(job, values="int7"))  # type: ignore[arg-type]  # a mistake
    with pytest.raises(MisuseError, match="write it into the steps, such as `store: "):
        compress(replace(job, values="int8", recipe=Magnitude(sparsity=0.5)))
