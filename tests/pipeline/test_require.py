"""What is required of a file beside its tolerance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs import quick_job
from onnxpress import press
from onnxpress.cli import main
from onnxpress.job import Job, check_job
from onnxpress.require import Requirement, parse_requirements
from onnxpress.steps.magnitude import Magnitude
from onnxpress_adapters.errors import MisuseError


@pytest.mark.parametrize(
    ("texts", "shrink"),
    [
        (["size=-50%"], 0.5),
        ([" size = -12.5 % "], 0.125),
        (["size=\u221275%"], 0.75),
    ],
)
def test_sizes_read(texts: list[str], shrink: float) -> None:
    assert parse_requirements(texts) == Requirement(shrink)


def test_nothing_is_required() -> None:
    assert parse_requirements(()) is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["size"], "--require 'size' does not read; write size=-50%"),
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
        (["latency=-10%"], "requiring a latency is not there yet"),
        (["size=-50%,latency=-10%"], "requiring a latency is not there yet"),
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


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that leaves one weight of twenty."""
    monkeypatch.setattr(press, "MOST_DRAWN", 256)
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


def test_on_the_command_line(job: Job) -> None:
    words = ["compress", str(job.model), "--sparsity", "95%", "--domain", "x=normal:0,1"]
    words += ["--effort", "quick", "--quiet", "--json"]
    result = CliRunner().invoke(main, [*words, "--require", "size=-90%"])
    assert result.exit_code == 3, result.output
    assert "-90 % was asked" in json.loads(result.stdout)["unmet"]
    assert not job.target.exists()
    result = CliRunner().invoke(main, [*words, "--require", "latency=-10%"])
    assert result.exit_code == 2
    assert "not there yet" in result.stderr
