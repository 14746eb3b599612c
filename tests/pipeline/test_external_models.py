"""The commands on models whose weights lie in a data file, and on what they make of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import ModelProto, helper
from onnx.numpy_helper import from_array

from onnxpress import press
from onnxpress.cli import main
from onnxpress.job import Job
from onnxpress.picking import PickJob, pick
from onnxpress.provenance import Provenance, weights_digest
from onnxpress.report import Report
from onnxpress.sizes import file_bytes
from onnxpress.steps.magnitude import Magnitude
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.external import data_files
from onnxpress_adapters.read import read_model
from onnxpress_exporters.write import Form, write
from small_models import model, value


def wide() -> ModelProto:
    """Give 300 -> 120, whose weight has enough bytes to leave a model, thinned too."""
    weight = np.random.default_rng(0).normal(size=(300, 120)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", "N", 300)],
        [value("y", "N", 120)],
        [from_array(weight, "w")],
    )
    return model(graph)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    write(wide(), path, most_bytes=0)
    assert len(data_files(path)) == 1
    return path


@pytest.fixture
def job(original: Path) -> Job:
    recipe = Magnitude(sparsity=0.2)
    return Job(original, domain=("x=normal:0,1",), recipe=recipe, device="cpu", form="dense")


def call(*words: object) -> str:
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.stdout


def assert_sound(report: Report, target: Path) -> None:
    found = read_model(target)
    assert report.out == target
    assert report.json()["size_bytes"]["pressed"] == file_bytes(target)
    provenance = Provenance.read(found)
    assert provenance is not None
    assert provenance.weights == weights_digest(found)


@pytest.mark.parametrize("form", ["dense", "sparse", "packed"])
def test_a_pressed_pair(form: Form, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file_bytes(job.model)
    for module in ("press", "weighing"):
        monkeypatch.setattr(f"onnxpress.{module}.room", lambda _: 1000)
    report = press.compress(replace(job, form=form))
    assert_sound(report, job.target)
    assert len(data_files(job.target)) == 1
    assert report.json()["size_bytes"]["original"] == before == file_bytes(job.model)
    words = ["verify", job.model, job.target, "--domain", "x=normal:0,1", "--json"]
    read = json.loads(call(*words, "--tolerance", "50%"))
    assert read["verdict"] == "within"
    assert read["size_bytes"] == report.json()["size_bytes"]


def test_what_fits_into_one_file_is_one(job: Job) -> None:
    report = press.compress(job)
    assert_sound(report, job.target)
    assert data_files(job.target) == frozenset()


def test_a_required_size_counts_the_data(job: Job) -> None:
    # The original's own file is far below 1 kB; only its data make -10 % a thing to ask for.
    assert job.model.stat().st_size < 1000
    report = press.compress(replace(job, form="packed", require=("size=-10%",)))
    assert (report.verdict, report.unmet, report.out) == ("within", "", job.target)
    job.target.unlink()
    report = press.compress(replace(job, require=("size=-10%",)))
    assert report.exit_code == 3
    assert not job.target.exists()


def test_another_candidate_of_a_pair(job: Job, tmp_path: Path) -> None:
    trace = tmp_path / "t.safetensors"
    press.compress(replace(job, trace=trace))
    found = pick(PickJob(trace, domain=job.domain, sparsity=0.2, out=tmp_path / "p.onnx"))
    assert_sound(found, tmp_path / "p.onnx")


def test_inspect_and_densify(original: Path, tmp_path: Path) -> None:
    read = json.loads(call("inspect", original, "--json"))
    assert read["size_bytes"] == file_bytes(original)
    plain = tmp_path / "plain.onnx"
    assert call("densify", original, plain) == f"{plain}: {plain.stat().st_size:,} bytes\n"
    assert plain.read_bytes() == wide().SerializeToString()


def test_the_data_of_the_original_are_no_place_to_write_to(original: Path, job: Job) -> None:
    (name,) = data_files(original)
    data = original.parent / name
    before = data.read_bytes()
    with pytest.raises(MisuseError, match=r"\.data holds the data of .*m\.onnx; give it another"):
        press.compress(replace(job, out=data))
    result = CliRunner().invoke(main, ["densify", str(original), str(data)])
    assert result.exit_code == 2
    assert data.read_bytes() == before
