"""``onnxpress bench`` end to end: what it runs, what it says, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

from onnxpress import bench as benches
from onnxpress.bench import BenchJob, BenchReport, bench
from onnxpress.cli import main
from onnxpress_adapters.errors import MisuseError
from onnxpress_exporters.latency import Race
from onnxpress_exporters.loading import Loading
from small_models import model, perceptron, value


@pytest.fixture
def job(tmp_path: Path) -> BenchJob:
    """Two files of the same model, run as few turns as there may be."""
    files = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for file in files:
        file.write_bytes(perceptron().SerializeToString())
    return BenchJob(*files, time="0s", load=False)


def report(job: BenchJob, ratio: float) -> BenchReport:
    race = Race((0.001,) * 11, (0.001 * ratio,) * 11)
    loads = Loading(0.02, 1_000_000), Loading(0.03, 2_500_000)
    return BenchReport(job, race, loads, (1000, 400), "of x.npz")


def test_the_report_for_people(job: BenchJob) -> None:
    lines = report(job, 0.5).text().splitlines()
    assert lines[3].split() == ["first", "second", "ratio"]
    assert lines[4].split()[:5] == ["latency", "1", "ms", "500", "us"]
    assert lines[4].endswith("0.500 (0.500 to 0.500)")
    assert lines[6].split() == ["load", "20", "ms", "30", "ms", "1.50"]
    assert lines[7].split() == ["load,", "peak", "memory", "1,000,000", "2,500,000", "2.50"]
    assert lines[8].split() == ["file,", "bytes", "1,000", "400", "0.400"]
    assert lines[10] == "the second model is faster: 2.00 times as fast"
    assert lines[11] == "11 turns, batch 1, 1 thread, cpu, inputs of x.npz"
    assert "the second model is slower: it takes 2.00 times as long" in report(job, 2.0).text()
    assert "no difference: the interval around the ratio holds 1" in report(job, 1.0).text()


def test_on_the_command_line(job: BenchJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "LOADS", 1)
    words = ["bench", str(job.first), str(job.second), "--time", "0s"]
    result = CliRunner().invoke(main, [*words, "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["inputs"] == "drawn from a standard normal distribution"
    low, high = found["latency_ratio"]["interval"]
    assert 0 < low <= found["latency_ratio"]["median"] <= high
    assert set(found["load"]) == set(found["size_bytes"]) == {"first", "second"}
    assert found["load"]["first"]["seconds"] > 0
    assert found["size_bytes"]["first"] == job.first.stat().st_size
    result = CliRunner().invoke(main, [*words, "--no-load", "--domain", "x=uniform:0,1"])
    assert result.exit_code == 0, result.output
    assert "inputs drawn from the domain" in result.stdout
    assert "load" not in result.stdout


@pytest.mark.parametrize(("samples", "batch", "shapes"), [(40, 1, 16 * [1]), (5, 2, 3 * [2])])
def test_what_the_models_are_run_on(
    job: BenchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int, batch: int,
    shapes: list[int],
) -> None:  # fmt: skip
    x = np.arange(samples * 16, dtype=np.float32).reshape(samples, 16)
    np.savez(tmp_path / "x.npz", x=x)
    given: list[dict[str, np.ndarray]] = []

    def race(first: object, second: object, feeds: list[dict[str, np.ndarray]], *_: object) -> Race:
        given.extend(feeds)
        return Race((1.0,) * 2, (1.0,) * 2)

    monkeypatch.setattr(benches, "race", race)
    found = bench(replace(job, data=tmp_path / "x.npz", batch=batch))
    assert found.inputs == f"of {tmp_path / 'x.npz'}"
    assert [len(feed["x"]) for feed in given] == shapes
    wanted = np.take(x, np.arange(sum(shapes)) % samples, axis=0)
    assert np.array_equal(np.concatenate([feed["x"] for feed in given]), wanted)


def test_what_is_refused(job: BenchJob, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="there is no provider 'npu'; there are cpu, cuda"):
        bench(replace(job, provider="npu"))
    with pytest.raises(MisuseError, match="a batch holds at least 1 sample"):
        bench(replace(job, batch=0))
    with pytest.raises(MisuseError, match="give --data or --domain, not both"):
        bench(replace(job, data=tmp_path / "x.npz", domain=("x=normal:0,1",)))
    fixed = perceptron(batch=1).SerializeToString()
    job.second.write_bytes(fixed)
    with pytest.raises(MisuseError, match="a batch of 8 needs models whose inputs all leave"):
        bench(replace(job, batch=8))
    other = helper.make_graph(
        [helper.make_node("Relu", ["z"], ["y"])], "g", [value("z", 1)], [value("y", 1)]
    )
    job.second.write_bytes(model(other).SerializeToString())
    with pytest.raises(MisuseError, match=r"b.onnx has no input 'x'.*a.onnx has no input 'z'"):
        bench(job)


def test_whole_numbers_are_not_drawn_unasked(job: BenchJob) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=1)],
        "g",
        [value("x", 1, 4, kind=7)],
        [value("y", 1, 4)],
    )
    for file in (job.first, job.second):
        file.write_bytes(model(graph).SerializeToString())
    result = CliRunner().invoke(main, ["bench", str(job.first), str(job.second)])
    assert result.exit_code == 2
    assert f"onnxpress bench {job.first} {job.second} --domain x=tokens:" in result.stderr
