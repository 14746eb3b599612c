"""What is required of a file beside its tolerance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import ModelProto

from jobs import quick_job
from onnxpress import beginning, picking, press
from onnxpress.cli import main
from onnxpress.job import Job, check_job
from onnxpress.picking import PickJob
from onnxpress.require import Requirement, parse_requirements, timed
from onnxpress.steps.magnitude import Magnitude
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.read import read_model
from onnxpress_exporters.latency import Race


@pytest.mark.parametrize(
    ("texts", "required"),
    [
        ([], Requirement()),
        (["size=-50%"], Requirement(0.5)),
        ([" size = -12.5 % "], Requirement(0.125)),
        (["size=\u221275%"], Requirement(0.75)),
        (["latency=-10%"], Requirement(latency=0.1)),
        (["latency=-10%", "size=-50%"], Requirement(0.5, 0.1)),
        (["latency=-10%,size=-50%"], Requirement(0.5, 0.1)),
    ],
)
def test_requirements_read(texts: list[str], required: Requirement) -> None:
    assert parse_requirements(texts) == required


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["size"], "--require 'size' does not read; write size=-50%"),
        (["latency=10%"], "as a percentage with a minus, such as latency=-50%"),
        (["latency=-100%"], "--require latency=-100%: it has to lie between 0 and -100 %"),
        (["latency=-10%,size=-50%,latency=-10%"], "asks for a latency twice"),
        ([""], "--require '' does not read"),
        (["size=-50%,"], "--require '' does not read"),
        (["speed=-50%"], "--require 'speed=-50%' does not read"),
        (["size=50%"], "as a percentage with a minus, such as size=-50%"),
        (["size=-.5"], "as a percentage with a minus"),
        (["size=-50%%"], "as a percentage with a minus"),
        (["size=-100%"], "it has to lie between 0 and -100 %"),
        (["size=-0%"], "it has to lie between 0 and -100 %"),
        (["size=-50%,size=-60%"], "asks for a size twice"),
        (["size=-50%", "size=-50%"], "asks for a size twice"),
    ],
)
def test_what_does_not_read(texts: list[str], message: str) -> None:
    with pytest.raises(MisuseError) as raised:
        check_job(Job(Path("m.onnx"), require=tuple(texts)))
    assert message in str(raised.value)


def test_what_was_reached_is_told_to_the_byte() -> None:
    required = Requirement(0.5)
    assert required.unmet(1001, 500) == required.unmet(1000, 500) == ""
    assert required.unmet(1000, 501) == (
        "the file would be 50.1 % of the original (501 of 1,000 bytes); -50 % was asked"
    )


def test_the_whole_interval_of_a_latency_has_to_be_below() -> None:
    required = Requirement(0.5, 0.1)
    sure = Race((1.0,) * 21, (0.8,) * 21)
    assert required.unmet(1000, 500, sure) == ""
    unsure = Race((1.0,) * 21, (0.8,) * 11 + (1.0,) * 10)
    assert unsure.ratio == 0.8
    assert required.unmet(1000, 501, unsure) == (
        "the file would be 50.1 % of the original (501 of 1,000 bytes); -50 % was asked; a run "
        "would take 80 % of the original's time, at most 100 %; -10 % was asked"
    )


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that leaves one weight of twenty."""
    monkeypatch.setattr(beginning, "MOST_DRAWN", 256)
    return quick_job(tmp_path, Magnitude(sparsity=0.95))


def test_a_file_that_is_not_small_enough_is_not_written(job: Job) -> None:
    written = press.compress(replace(job, require=("size=-20%",)))
    assert (written.exit_code, written.unmet) == (0, "")
    size_bytes = job.target.stat().st_size
    job.target.write_text("an older file")
    report = press.compress(replace(job, require=("size=-90%",)))
    assert (report.verdict, report.exit_code, report.out) == ("within", 3, None)
    assert report.closest is None
    assert f"({size_bytes:,} of {job.model.stat().st_size:,} bytes); -90 % was" in report.unmet
    assert job.target.read_text() == "an older file"


@pytest.mark.parametrize(("seconds", "code"), [(0.85, 0), (0.95, 3)])
def test_a_file_that_is_not_fast_enough_is_not_written(
    job: Job, monkeypatch: pytest.MonkeyPatch, seconds: float, code: int
) -> None:
    raced = []

    def timed(original: ModelProto, pressed: ModelProto, arrays: object) -> Race:
        raced.append((original, pressed))
        return Race((1.0,) * 21, (seconds,) * 21)

    monkeypatch.setattr(press, "timed", timed)
    trace = job.target.with_suffix(".trace")
    report = press.compress(replace(job, require=("latency=-10%",), trace=trace))
    assert (report.verdict, report.exit_code, job.target.exists()) == ("within", code, code == 0)
    assert report.json()["latency_ratio"] == {"median": seconds, "interval": [seconds, seconds]}
    ((original, pressed),) = raced
    assert pressed != original
    assert f"{100 * seconds:g} % of the original's" in report.text()

    monkeypatch.setattr(picking, "timed", timed)
    out = job.target.with_suffix(".picked.onnx")
    words = PickJob(trace, out, sparsity=0.95, domain=("x=normal:0,1",), require=("latency=-10%",))
    picked = picking.pick(words)
    assert (picked.exit_code, out.exists()) == (code, code == 0)
    assert bool(picked.unmet) == (code == 3)


def test_two_models_run_in_turns(job: Job) -> None:
    model = read_model(job.model)
    times = timed(model, model, {"x": np.zeros((2, 1, 16), np.float32)})
    assert len(times.first) == len(times.second) >= 11
    assert min(*times.first, *times.second) > 0


def test_on_the_command_line(job: Job) -> None:
    words = ["compress", str(job.model), "--sparsity", "95%", "--domain", "x=normal:0,1"]
    words += ["--effort", "quick", "--quiet", "--json"]
    result = CliRunner().invoke(main, [*words, "--require", "size=-90%"])
    assert result.exit_code == 3, result.output
    assert "-90 % was asked" in json.loads(result.stdout)["unmet"]
    assert not job.target.exists()
