"""Where a file comes from: written once, read anywhere, true in every form."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import ModelProto, numpy_helper

from jobs import quick_job
from onnxpress import __version__, beginning, press
from onnxpress.cli import main
from onnxpress.inspection import inspect_model
from onnxpress.job import Job
from onnxpress.picking import PickJob, pick
from onnxpress.provenance import FORMS, PREFIX, Provenance, weights_digest
from onnxpress.steps.magnitude import Magnitude
from onnxpress.verify import VerifyJob, verify
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.densify import densify
from onnxpress_exporters.write import Form, patch, write
from small_models import branching, perceptron, thinned

MADE = Provenance(
    version="0.1.0",
    recipe="a" * 64,
    original="b" * 64,
    weights="c" * 64,
    distance=(0.0064, 0.0071),
    distance_absolute=(1e-9, inf),
    samples=(60, 20, 100),
    seed=7,
)


def entries(model: ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def test_what_is_stamped_is_read_back() -> None:
    model = perceptron()
    replace(MADE, seed=1).stamp(model)
    MADE.stamp(model)
    assert list(entries(model)) == ["colour", *(PREFIX + name for name in FORMS)]
    assert len(model.metadata_props) == 1 + len(FORMS)
    assert entries(model)["onnxpress.distance"] == "0.0064, at most 0.0071"
    assert entries(model)["onnxpress.distance_absolute"] == "1e-09, at most inf"
    assert entries(model)["onnxpress.samples"] == "60 to fit, 20 to choose, 100 to judge"
    assert Provenance.read(model) == MADE
    assert json.loads(json.dumps(MADE.json(), allow_nan=False))["distance_absolute"] == [1e-9, None]


def test_it_is_one_line() -> None:
    assert str(MADE) == (
        "pressed by onnxpress 0.1.0 from weights bbbbbbbb: 0.64 % of the variance, at most 0.71 %, "
        "on 100 samples; seed 7, recipe aaaaaaaa"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("version", "\x1b[31m"),
        ("recipe", "sha256:" + "A" * 64),
        ("distance", "1.2.3, at most 4"),
        ("distance", "little"),
        ("seed", "9" * 5000),
        ("samples", "1, 2, 3"),
    ],
)
def test_what_does_not_read_is_none_of_ours(name: str, text: str) -> None:
    model = perceptron()
    MADE.stamp(model)
    (entry,) = (e for e in model.metadata_props if e.key == PREFIX + name)
    entry.value = text
    assert Provenance.read(model) is None


def test_the_digest_is_of_values_not_of_their_form() -> None:
    model = perceptron()
    digest = weights_digest(model)
    for place in (0, 2):
        tensor = model.graph.initializer[place]
        tensor.CopyFrom(
            numpy_helper.from_array(thinned(*tensor.dims, density=0.05, seed=place), tensor.name)
        )
    thin = weights_digest(model)
    assert thin != digest
    changed = {
        WeightKey((), t.name): numpy_helper.to_array(t)
        for t in model.graph.initializer
        if len(t.dims) == 2
    }
    for form in ("dense", "sparse", "packed"):
        made = patch(model, changed, form)
        assert weights_digest(densify(made.model)) == thin
    model.graph.initializer[0].name = "another"
    assert weights_digest(model) != thin


@pytest.mark.parametrize("as_node", [False, True])
def test_weights_in_bodies_count(as_node: bool) -> None:
    weight = thinned(16, 4)
    assert weights_digest(branching(weight, as_node)) == weights_digest(branching(weight, False))
    assert weights_digest(branching(weight, as_node)) != weights_digest(
        branching(np.negative(weight), as_node)
    )


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A quick job."""
    monkeypatch.setattr(beginning, "MOST_DRAWN", 256)
    return quick_job(tmp_path, Magnitude(sparsity=0.9), seed=3)


@pytest.mark.parametrize("form", ["auto", "packed"])
def test_a_run_says_where_its_file_comes_from(job: Job, form: Form) -> None:
    report = press.compress(replace(job, form=form))
    found = Provenance.read(read_model(job.target))
    assert found is not None
    assert found.version == __version__
    assert found.original == weights_digest(read_model(job.model))
    assert found.weights == weights_digest(read_model(job.target))
    assert found.distance == pytest.approx(report.decision.relative, rel=1e-5)
    assert found.distance_absolute == pytest.approx(report.decision.absolute, rel=1e-5)
    assert found.samples == (report.samples.fit, report.samples.choose, report.samples.judge)
    assert found.seed == 3
    again = job.model.with_name("again.onnx")
    press.compress(replace(job, form=form, out=again))
    assert again.read_bytes() == job.target.read_bytes()
    plain = job.model.with_name("plain.onnx")
    result = CliRunner().invoke(main, ["densify", str(job.target), str(plain)])
    assert result.exit_code == 0, result.output
    dense = read_model(plain)
    assert Provenance.read(dense) == found
    assert not found.changed(dense)
    assert entries(dense)["colour"] == "green"


def test_pick_says_it_too(job: Job) -> None:
    trace = job.model.with_name("t.trace")
    press.compress(replace(job, trace=trace))
    first = Provenance.read(read_model(job.target))
    pick(PickJob(trace, sparsity=0.9, domain=job.domain))
    assert Provenance.read(read_model(job.target)) == first


def test_inspect_and_verify_see_that_weights_changed(job: Job, tmp_path: Path) -> None:
    press.compress(job)
    shown = inspect_model(job.target)
    assert shown.text().splitlines()[2] == f"  {shown.provenance}"
    assert shown.json()["provenance"]["changed"] is False
    assert inspect_model(job.model).json()["provenance"] is None
    asked = VerifyJob(job.model, job.target, "500%", domain=job.domain)
    assert verify(asked).notes == ()

    model = read_model(job.target)
    tensor = next(t for t in model.graph.initializer if t.name == "b1")
    tensor.CopyFrom(numpy_helper.from_array(np.ones(32, np.float32), "b1"))
    other = tmp_path / "other.onnx"
    write(model, other)
    assert "; its weights have changed since\n" in inspect_model(other).text()
    assert verify(replace(asked, pressed=other)).notes == (
        f"the weights of {other} are not those onnxpress wrote it with",
    )
    assert verify(replace(asked, original=other)).notes == (
        f"{job.target} was pressed from other weights than {other} has",
    )
