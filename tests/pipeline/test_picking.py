"""Picking another point of a curve: the same bytes as the run, the same promise, other inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from models import convolutional_model, graph_model, shared_model, two_headed_model
from onnxpress import beginning
from onnxpress.job import Job
from onnxpress.picking import PickJob, pick
from onnxpress.press import compress
from onnxpress.problem import FEW_RESERVE, RESERVE, Tolerance
from onnxpress.search import Search, bound_of
from onnxpress.sources import Said
from onnxpress.step import Chain
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress.trace import ENTRY, load_trace
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.prunable import count_zeros
from onnxpress_adapters.read import read_model
from small_models import constant, half_precision, perceptron

DRAWN = ("x=normal:0,1",)


def quantised() -> ModelProto:
    nodes = [
        constant("scale", np.array(0.1, np.float32)),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = np.random.default_rng(0).integers(-9, 9, (8, 4)).astype(np.int8)
    return graph_model(nodes, {"q": weights})


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginning, "MOST_DRAWN", 512)


@pytest.fixture
def run(tmp_path: Path) -> Job:
    """A quick run that keeps a trace; not started."""
    model = tmp_path / "m.onnx"
    model.write_bytes(perceptron().SerializeToString())
    return Job(
        model,
        out=tmp_path / "out.onnx",
        tolerance="20%",
        domain=DRAWN,
        recipe=Chain((Magnitude(), Repair(method="lbfgs", work=0.1))),
        effort="quick",
        device="cpu",
        trace=tmp_path / "t.trace",
    )


def picked(run: Job, **changes: Any) -> PickJob:
    """Give the call that picks from the trace of a run, with its tolerance and inputs."""
    assert run.trace is not None
    job = PickJob(
        run.trace,
        run.model.with_name("picked.onnx"),
        tolerance=run.tolerance,
        data=run.data,
        domain=run.domain,
        judge=run.judge,
    )
    return replace(job, **changes)


def edited(path: Path | None, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a trace says, to see what becomes of a search that was mistaken."""
    assert path is not None
    with safe_open(path, framework="np") as file:
        read = json.loads(file.metadata()[ENTRY])
    change(read)
    save_file(load_file(path), path, {ENTRY: json.dumps(read)})


def refusal(job: PickJob) -> str:
    before = sorted(job.trace.parent.iterdir())
    with pytest.raises(MisuseError) as raised:
        pick(job)
    assert sorted(job.trace.parent.iterdir()) == before
    return str(raised.value)


@pytest.mark.parametrize(
    ("made", "changes"),
    [
        (perceptron, {}),
        (half_precision, {}),
        (quantised, {"recipe": Magnitude()}),
        (convolutional_model, {"tolerance": "40%"}),
        (shared_model, {"tolerance": "60%", "domain": ("x=tokens:0,9",), "embeddings": True}),
        (two_headed_model, {"output": ("a", "b=40%"), "flips": "60%", "form": "dense"}),
        (perceptron, {"tolerance": "1e-1"}),
        (perceptron, {"include": ("w1",), "form": "sparse"}),
    ],
)
def test_the_same_tolerance_gives_the_same_bytes(
    run: Job, made: Callable[[], ModelProto], changes: dict[str, Any]
) -> None:
    run = replace(run, **changes)
    run.model.write_bytes(made().SerializeToString())
    first = compress(run)
    again = pick(picked(run, form=run.form))
    assert (first.out, again.out) == (run.out, run.model.with_name("picked.onnx"))
    assert again.out is not None
    assert again.out.read_bytes() == run.target.read_bytes()
    told, retold = first.json(), again.json()
    for name in ("verdict", "distance", "tolerance", "sparsity", "size_bytes", "samples", "steps"):
        assert told[name] == retold[name], name
    for name in ("original_sparsity", "layers", "curve", "seed", "log", "providers"):
        assert told[name] == retold[name], name


def test_a_larger_tolerance_gives_a_sparser_file(run: Job) -> None:
    first = compress(run)
    told: list[str] = []
    report = pick(picked(run, tolerance="40%"), lambda stage, done, note: told.append(stage))
    assert report.verdict == "within"
    assert report.sparsity > first.sparsity
    assert 0.2 < report.decision.relative[1] <= 0.4
    assert report.out is not None
    zeros, elements = count_zeros(read_model(report.out))
    assert report.sparsity == zeros / elements
    (chosen,) = (point for point in report.curve if point.chosen)
    fitting = [point for point in report.curve if point.upper <= 0.4 * Search.margin]
    assert chosen is max(fitting, key=lambda point: point.sparsity)
    assert report.fitted == chosen.fitted
    assert told == ["reading", "judging", "writing"]
    least = 130 * report.curve[0].upper
    smaller = pick(picked(run, tolerance=f"{least}%"))
    assert smaller.verdict == "within"
    assert smaller.sparsity < first.sparsity


def test_with_data_the_reserve_of_the_run_holds(run: Job, tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32))
    run = replace(run, data=data, domain=(), tolerance="50%")
    compress(run)
    report = pick(picked(run, tolerance="80%"))
    fitting = [
        point.sparsity
        for point in report.curve
        if bound_of(point.distance, point.upper, RESERVE) <= 0.8 * RESERVE
    ]
    assert report.verdict == "within"
    assert [point.sparsity for point in report.curve if point.chosen] == [max(fitting)]
    assert report.samples.judge == 100


def mistaken(read: dict[str, Any]) -> None:
    """Let the search have believed that nothing costs anything."""
    for candidate in read["candidates"]:
        candidate["distance"] = candidate["upper"] = 0.0


def test_where_the_best_is_outside_the_next_less_sparse_one_is_tried(run: Job) -> None:
    compress(run)
    curve = pick(picked(run, tolerance="100%")).curve
    assert len(curve) > 3
    edited(run.trace, mistaken)
    # The sparsest one is outside, as the judge sees it.
    report = pick(picked(run, tolerance=f"{90 * curve[-1].distance}%"))
    assert report.verdict == "within"
    assert report.judged in (2, 3)
    assert [point.chosen for point in report.curve][-report.judged] is True


def test_at_most_three_are_judged_and_nothing_is_written(run: Job) -> None:
    compress(run)
    edited(run.trace, mistaken)
    before = sorted(run.model.parent.iterdir())
    report = pick(picked(run, tolerance="0.0001%"))
    assert (report.exit_code, report.judged, report.out) == (3, 3, None)
    assert sorted(run.model.parent.iterdir()) == before
    assert report.closest is not None
    # The nearest of the three, and in the terms of the tolerance.
    assert [point.chosen for point in report.curve][-3] is True
    assert report.closest.sparsity == report.curve[-3].sparsity
    assert report.closest.distance == report.decision.relative[0]
    assert "was the closest that could be reached" in report.text()


def test_where_no_candidate_fits_the_nearest_is_judged(run: Job) -> None:
    compress(run)
    report = pick(picked(run, tolerance="0.0001%"))
    assert (report.exit_code, report.judged) == (3, 1)
    nearest = min(report.curve, key=lambda point: point.upper)
    assert nearest.chosen
    edited(run.trace, lambda read: [c.update(upper=None) for c in read["candidates"]])
    assert pick(picked(run, tolerance="0.0001%")).judged == 1


def test_the_nearest_to_a_sparsity(run: Job) -> None:
    compress(run)
    curve = pick(picked(run)).curve
    for point in curve:
        aim = point.sparsity + 1e-4
        report = pick(picked(run, tolerance=None, sparsity=aim))
        assert (report.verdict, report.exit_code) == ("within", 0)
        assert report.sparsity == point.sparsity
        assert report.tolerance is None
    out = run.model.with_name("other.onnx")
    report = pick(picked(run, out=out, tolerance="0.001%", sparsity=0.99))
    assert (report.exit_code, report.judged, out.exists()) == (3, 1, False)
    assert report.sparsity == curve[-1].sparsity


def test_the_proportions_of_tolerances_stay(run: Job) -> None:
    run.model.write_bytes(two_headed_model().SerializeToString())
    run = replace(run, output=("a", "b=40%"))
    assert compress(run).verdict == "within"
    report = pick(picked(run, tolerance="10%"))
    assert report.tolerance == Tolerance(0.1, False, (("a", None), ("b", 0.2)), None)
    assert report.notes == (
        "outputs with a tolerance of their own keep its share of the general one: b 20 %",
    )
    assert pick(picked(run)).notes == ()


def test_a_run_without_a_tolerance_is_measured_in_shares(run: Job) -> None:
    run = replace(run, tolerance=None, sparsity=0.6)
    compress(run)
    assert pick(picked(run, tolerance="300%")).verdict == "within"
    assert refusal(picked(run, tolerance="3")) == (
        f"the distances in {run.trace} are shares of the variance; give a tolerance such as 2%"
    )


def test_another_kind_of_tolerance(run: Job) -> None:
    run = replace(run, tolerance="0.1")
    compress(run)
    assert refusal(picked(run, tolerance="2%")) == (
        f"the distances in {run.trace} are mean squared errors; give a tolerance such as 1e-3"
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(120, 16)).astype(np.float32))
    return path


@pytest.mark.parametrize("sequence", [False, True])
def test_the_judge_sees_what_the_run_never_saw(run: Job, data: Path, sequence: bool) -> None:
    run = replace(run, domain=(), data=data, sequence=sequence, tolerance="300%", seed=5)
    compress(run)
    assert run.trace is not None
    trace = load_trace(run.trace)
    assert (len(trace.seen), trace.origin.sequence) == (96, sequence)
    assert pick(picked(run)).samples.judge == 24
    # Shared out otherwise, some of the judge's share were seen.
    edited(run.trace, lambda read: read["origin"].update(sequence=not sequence))
    message = refusal(picked(run))
    assert message.startswith(f"the run behind {run.trace} has seen ")
    assert message.endswith(
        " of the 24 samples to judge on; give it the data it had, or others with --judge"
    )


def test_the_judge_of_a_pick_sees_the_same_source(run: Job, tmp_path: Path) -> None:
    data, sources = tmp_path / "d.npz", tmp_path / "s.npy"
    rng = np.random.default_rng(0)
    np.savez(data, x=(rng.normal(size=(120, 16)) + np.tile([0, 3, 7], 40)[:, None]).astype("f4"))
    np.save(sources, np.repeat(np.arange(4), 30))
    cases: list[tuple[Said, int]] = [("auto", 45), (sources, 37), ("none", 24)]
    for said, judge in cases:
        ran = replace(run, domain=(), data=data, sources=said, tolerance="900%")
        report = compress(ran)
        assert ran.trace is not None
        origin = load_trace(ran.trace).origin
        share = RESERVE if said == "none" else FEW_RESERVE
        assert (origin.sources, origin.share) == (str(said), share)
        assert [report.samples.judge, pick(picked(ran)).samples.judge] == [judge, judge]
        assert any("sources" in note for note in report.notes) == (said != "none")


def test_sources_nobody_asked_for_are_told(run: Job, tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    rng = np.random.default_rng(0)
    np.savez(data, x=(rng.normal(size=(120, 16)) + np.tile([0, 3, 7], 40)[:, None]).astype("f4"))
    run = replace(run, domain=(), data=data, tolerance="900%", trace=None)
    told = (
        "the samples seem to come from 3 sources (every 3 samples they come round), and the judge "
        "sees the same ones; --sources auto lets it see others"
    )
    report = compress(run)
    assert (told in report.notes, report.samples.judge) == (True, 24)
    for quiet in (replace(run, sources="none"), replace(run, sequence=True)):
        assert told not in compress(quiet).notes


def test_other_samples_to_judge_on(run: Job, data: Path, tmp_path: Path) -> None:
    judge = tmp_path / "judge.npz"
    np.savez(judge, x=np.random.default_rng(1).normal(size=(50, 16)).astype(np.float32))
    run = replace(run, domain=(), data=data, judge=judge, tolerance="300%")
    compress(run)
    assert pick(picked(run)).samples.judge == 50
    assert pick(picked(run, data=None)).samples.judge == 50
    # That run had all of the data to itself.
    assert "has seen 24 of the 24 samples to judge on" in refusal(picked(run, judge=None))
    assert "has seen 120 of the 120 samples" in refusal(picked(run, judge=data))
    assert pick(picked(run, data=None, judge=None, domain=DRAWN)).samples.judge == 2048


def test_inputs_that_do_not_fit_together(run: Job, data: Path) -> None:
    compress(run)
    assert refusal(picked(run, data=data)) == "give --data or --domain, not both"
    assert refusal(picked(run, judge=data)) == "give --data or --domain, not both"
    message = refusal(picked(run, domain=()))
    assert f"onnxpress pick {run.trace} --tolerance 1% --domain x=uniform:0,1" in message


def test_the_model_has_moved(run: Job) -> None:
    compress(run)
    moved = run.model.rename(run.model.with_name("moved.onnx"))
    assert refusal(picked(run)) == (
        f"{run.trace} is of {run.model}, which is no longer there; say where it is with --model"
    )
    report = pick(picked(run, model=moved, out=None))
    assert report.out == moved.with_name("moved.pressed.onnx")


def test_another_model(run: Job) -> None:
    compress(run)
    other = perceptron()
    weight = numpy_helper.to_array(other.graph.initializer[0]) * 2
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    run.model.write_bytes(other.SerializeToString())
    assert refusal(picked(run)) == (
        f"{run.trace} is of a model with other weights than {run.model} has; say with --model "
        "which one it is of, or compress again"
    )


def test_calls_that_say_too_little_or_too_much(run: Job, tmp_path: Path) -> None:
    compress(run)
    message = refusal(picked(run, tolerance=None))
    assert message.startswith(
        "nothing says which candidate to take: give a tolerance such as --tol"
    )
    assert refusal(picked(run, sparsity=1.0)) == "a sparsity lies between 0 and 1, not at 1"
    for out in (run.model, run.trace):
        assert refusal(picked(run, out=out)) == (
            f"{out} is the original or the trace; name another file"
        )
    assert refusal(picked(run, out=tmp_path / "no" / "o.onnx")) == (
        f"there is no folder {tmp_path / 'no'} to write to; make it first"
    )
