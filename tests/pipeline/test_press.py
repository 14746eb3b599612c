"""``compress`` from Python, end to end on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models import convolutional_model, graph_model, shared_model, two_headed_model
from onnxpress import beginning
from onnxpress.job import Job, parse_time
from onnxpress.press import compress
from onnxpress.problem import silent
from onnxpress.step import Chain, Only, Step
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress_adapters.errors import AdapterError, ExportError, MisuseError, StepError
from onnxpress_adapters.prunable import count_zeros
from onnxpress_adapters.read import read_model
from onnxpress_adapters.specs import specs
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.write import Form
from small_models import constant, half_precision, model, perceptron, thinned, value

FAST = Chain((Magnitude(), Repair(method="lbfgs", work=0.1)))
HALF = Magnitude(sparsity=0.5)


def saved(made: ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that is within a wide tolerance, quickly."""
    monkeypatch.setattr(beginning, "MOST_DRAWN", 512)
    return Job(
        saved(perceptron(), tmp_path),
        tolerance="20%",
        domain=("x=normal:0,1",),
        recipe=FAST,
        effort="quick",
        device="cpu",
    )


def on(job: Job, made: ModelProto, **changes: object) -> Job:
    """Give the job for another model."""
    return replace(job, model=saved(made, job.model.parent), **changes)  # type: ignore[arg-type]


def constants(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in read_model(path).graph.initializer}


def refusal(job: Job) -> str:
    """Check that a job is misuse, writes nothing, and give the message."""
    before = sorted(job.model.parent.iterdir())
    with pytest.raises(MisuseError) as raised:
        compress(job)
    assert sorted(job.model.parent.iterdir()) == before
    assert "\n" not in str(raised.value) or "--domain" in str(raised.value)
    return str(raised.value)


def test_within_the_tolerance(job: Job) -> None:
    told: list[str] = []
    report = compress(job, lambda stage, done, note: told.append(stage))
    out = job.model.with_name("m.pressed.onnx")
    assert (report.verdict, report.exit_code, report.out) == ("within", 0, out)
    assert report.closest is None
    assert 1 <= report.judged <= 3
    assert report.decision.relative[0] <= report.decision.relative[1] <= 0.2
    zeros, elements = count_zeros(read_model(out))
    assert report.sparsity == zeros / elements > 0.3
    assert report.original_sparsity == 0.0
    assert report.sizes.pressed.size_bytes == out.stat().st_size
    assert report.sizes.original.size_bytes == job.model.stat().st_size
    assert sum(row.zeros_after for row in report.layers) == zeros
    assert (report.samples.fit, report.samples.choose, report.samples.judge) == (512, 2048, 2048)
    assert (report.seed, report.device, report.batching) == (0, "cpu", "batch")
    assert report.steps.startswith("Chain(steps=(Magnitude(sparsity=0.")
    assert any(line.startswith("sparsity 0.") for line in report.log)
    assert [*dict.fromkeys(told)] == ["reading", "pressing", "judging", "writing"]
    # onnxruntime reads it, and it answers as the report says.
    drawn = np.random.default_rng(5).normal(size=(4096, 16)).astype(np.float32)
    old, new = (
        onnxruntime.InferenceSession(str(path)).run(None, {"x": drawn})[0]
        for path in (job.model, out)
    )
    spread = np.square(old - old.mean(0)).sum(1).mean()
    distance = np.square(old - new).sum(1).mean() / spread
    assert distance == pytest.approx(report.decision.relative[0], rel=0.2)


def test_the_curve_has_every_candidate(job: Job) -> None:
    report = compress(job)
    assert len(report.curve) > 1
    sparsities = [point.sparsity for point in report.curve]
    assert sparsities == sorted(sparsities)
    assert [line for line in report.log if line.startswith("sparsity 0.")]
    (chosen,) = (point for point in report.curve if point.chosen)
    assert chosen.sparsity == report.sparsity
    assert chosen.distance <= chosen.upper <= 0.9 * 0.2
    assert report.fitted == chosen.fitted > 0
    # Both are d of the same network, on inputs of one kind.
    assert chosen.fitted == pytest.approx(report.decision.relative[0], rel=0.5)


@pytest.mark.parametrize("tolerance", [None, "500%"])
def test_one_candidate_is_a_curve_of_one(job: Job, tolerance: str | None) -> None:
    report = compress(replace(job, recipe=HALF, tolerance=tolerance))
    (point,) = report.curve
    assert (point.sparsity, point.chosen) == (0.5, True)
    assert 0 < point.fitted < point.upper


def test_outside_the_tolerance(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    job = replace(job, tolerance="0.001%", sparsity=0.9, out=out)
    report = compress(job)
    assert (report.exit_code, report.out, report.pressed) == (3, None, out)
    assert report.verdict in ("exceeded", "undecided")
    assert report.closest is not None
    assert report.closest.sparsity == pytest.approx(0.9, abs=0.01)
    assert report.closest.distance == report.decision.relative[0] > 1e-5
    assert "was the closest that could be reached" in report.text()
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    out.write_bytes(b"older")
    compress(job)
    assert out.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "out.onnx"]


def test_the_closest_is_named_in_the_terms_of_the_tolerance(job: Job) -> None:
    report = compress(replace(job, tolerance="1e-9", sparsity=0.9))
    assert report.closest is not None
    assert report.closest.distance == report.decision.absolute[0]


@pytest.mark.parametrize(
    ("made", "domain"),
    [
        (convolutional_model, "x=uniform:-1,1"),
        (two_headed_model, "x=normal:0,1"),
        (shared_model, "x=tokens:0,9"),
    ],
)
def test_other_networks(job: Job, made: Callable[[], ModelProto], domain: str) -> None:
    report = compress(on(job, made(), tolerance="40%", domain=(domain,)))
    assert report.out is not None
    assert report.decision.relative[1] <= 0.4
    assert report.sparsity > 0.1


def test_greedy_with_everything_it_has(job: Job) -> None:
    step = Chain((Greedy(layerwise=0.4, block=0.4, between=Repair(work=0.02)), Repair(work=0.05)))
    report = compress(replace(job, recipe=step))
    assert report.verdict == "within"
    assert report.sparsity > 0.5


def test_the_same_seed_gives_the_same_bytes(job: Job, tmp_path: Path) -> None:
    step = Chain((Greedy(between=Repair(work=0.02)), Repair(method="adam", work=0.05)))
    job = on(job, convolutional_model(), recipe=step, domain=("x=normal:0,1",))
    written: list[bytes] = []
    for seed in (1, 1, 2):
        out = tmp_path / f"{len(written)}.onnx"
        assert compress(replace(job, seed=seed, out=out)).out == out
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


@pytest.mark.parametrize("choice", [{"include": ("w2",)}, {"exclude": ("*1",)}])
def test_only_what_may_change_is_pruned(job: Job, choice: dict[str, tuple[str, ...]]) -> None:
    report = compress(replace(job, recipe=HALF, tolerance=None, **choice))  # type: ignore[arg-type]
    assert report.out is not None
    before, after = constants(job.model), constants(report.out)
    assert after["w1"].tobytes() == before["w1"].tobytes()
    assert (after["w2"] == 0).sum() == 64
    assert report.sparsity == 64 / 640


def test_patterns_that_leave_nothing(job: Job) -> None:
    message = refusal(replace(job, include=("w11",)))
    assert message == "no prunable weight matches 'w11'; did you mean 'w1'?"
    message = refusal(replace(job, exclude=("nothing*",)))
    assert message == "no prunable weight matches 'nothing*', such as 'w1'"
    message = refusal(replace(job, exclude=("w?",)))
    assert message == "--include and --exclude together leave no weight to press"


def test_a_sparsity_alone_is_made(job: Job) -> None:
    report = compress(replace(job, tolerance=None, sparsity=0.75))
    assert (report.verdict, report.decision.reason) == ("within", "no tolerance was asked for")
    assert report.sparsity == 0.75
    assert report.decision.relative[0] > 0


def test_a_sparsity_of_some_weights(job: Job) -> None:
    report = compress(replace(job, tolerance=None, sparsity=0.5, include=("w1",)))
    assert report.sparsity == 0.5
    message = refusal(replace(job, tolerance=None, sparsity=0.5, include=("w2",)))
    assert message == (
        "a sparsity of 50% cannot be reached: the weights that may change are only enough for 20%"
    )


def test_with_a_tolerance_a_sparsity_is_a_floor(job: Job) -> None:
    report = compress(replace(job, sparsity=0.3))
    assert report.verdict == "within"
    assert report.sparsity >= 0.3


def test_steps_with_their_own_sparsity_run_as_written(job: Job) -> None:
    steps: Step = Chain((Only("w1", Magnitude(sparsity=0.75)), Repair(work=0.1)))
    report = compress(replace(job, recipe=steps))
    assert report.sparsity == 384 / 640
    assert report.steps == str(steps)
    assert report.judged == 1
    message = refusal(replace(job, recipe=steps, sparsity=0.5))
    assert message.startswith("every step of the recipe has its own sparsity; leave out --sparsity")


def test_nothing_says_how_far(job: Job) -> None:
    message = refusal(replace(job, tolerance=None))
    assert message.startswith("nothing says how far to go: give a tolerance such as --tolerance 1%")


def test_forms(job: Job, tmp_path: Path) -> None:
    steps = Magnitude(sparsity=0.8)
    job = replace(job, recipe=steps, tolerance=None)
    counts, answers = {}, {}
    forms: tuple[Form, ...] = ("auto", "dense", "sparse")
    drawn = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    for form in forms:
        out = tmp_path / f"{form}.onnx"
        report = compress(replace(job, form=form, out=out))
        graph = onnx.load_model(str(out)).graph
        counts[form] = len(graph.sparse_initializer)
        answers[form] = Runner(out).run({"x": drawn})[0]
        assert report.sparsity == 513 / 640
    assert (counts["dense"], counts["sparse"]) == (0, 2)
    for form in ("auto", "sparse"):
        np.testing.assert_array_equal(answers[form], answers["dense"])
    assert (tmp_path / "auto.onnx").stat().st_size <= min(
        (tmp_path / f"{form}.onnx").stat().st_size for form in ("dense", "sparse")
    )


def test_zeros_of_the_original_are_stored_sparsely_too(job: Job) -> None:
    made = perceptron()
    thin = thinned(16, 32, density=0.03)
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(thin, "w1"))
    job = on(job, made, recipe=Magnitude(sparsity=0.5), tolerance=None)
    report = compress(job)
    assert report.original_sparsity == (thin == 0).sum() / 640
    assert {row.name: row.form for row in report.layers}["w1"] == "sparse"
    assert report.sizes.pressed.size_bytes < report.sizes.original.size_bytes
    assert report.out is not None
    assert Runner(report.out).run({"x": np.eye(16, dtype=np.float32)})[0].shape == (16, 4)


def test_half_precision_stays_half_precision(job: Job) -> None:
    report = compress(on(job, half_precision()))
    assert report.verdict == "within"
    assert report.out is not None
    assert {array.dtype for array in constants(report.out).values()} == {np.dtype(np.float16)}
    zeros, elements = count_zeros(read_model(report.out))
    assert report.sparsity == zeros / elements > 0.2
    drawn = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float16)
    assert Runner(report.out).run({"x": drawn})[0].dtype == np.float16


def test_a_model_without_prunable_weights(job: Job) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    message = refusal(on(job, graph_model(nodes, {})))
    assert message.startswith(f"{job.model} has no prunable weights (constants that MatMul, ")


def integer_model(zero_point: int) -> ModelProto:
    nodes = [
        constant("scale", np.array(0.1, np.float32)),
        constant("zero", np.array(zero_point, np.int8)),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = np.random.default_rng(0).integers(-9, 9, (8, 4)).astype(np.int8)
    return graph_model(nodes, {"q": weights})


def test_a_model_of_integer_weights(job: Job) -> None:
    message = refusal(on(job, integer_model(3)))
    assert message == (
        f"none of the 1 prunable weights of {job.model} can be changed (of the first, its zero "
        "point is not 0, so a stored 0 is not a zero); press the floating-point model it was made "
        "from"
    )


def test_integer_weights_around_zero_are_pressed_on_their_grid(job: Job) -> None:
    job = on(job, integer_model(0), tolerance=None, sparsity=0.5, form="dense")
    report = compress(job)
    assert report.sparsity >= 0.5
    (pressed,) = onnx.load(job.target).graph.initializer
    values = numpy_helper.to_array(pressed)
    assert values.dtype == np.int8
    assert (values == 0).mean() == report.sparsity


def test_integer_weights_around_another_zero_count_as_they_are(job: Job) -> None:
    made = integer_model(3)
    made.graph.node[-1].output[0] = "h"
    made.graph.node.append(helper.make_node("MatMul", ["h", "v"], ["y"]))
    values = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(values, "v"))
    zeros = int((numpy_helper.to_array(made.graph.initializer[0]) == 0).sum())
    job = on(job, made, recipe=Magnitude(), tolerance=None, sparsity=0.375)
    report = compress(job)
    assert report.original_sparsity == zeros / 64
    assert report.sparsity == 0.375


def test_a_model_that_answers_nan(job: Job) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Sqrt", ["h"], ["y"])]
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    job = on(job, graph_model(nodes, {"w": weight}))
    with pytest.raises(StepError, match="output 'y' of the original model is not finite on some"):
        compress(job)
    report = compress(replace(job, recipe=HALF, tolerance=None))
    assert (report.verdict, report.exit_code, report.out) == ("nonfinite", 3, None)
    assert report.notes[0].startswith("its distance was not measured: output 'y' of the original")
    assert (report.json()["curve"][0]["distance"], report.fitted) == (None, None)
    assert not job.target.exists()
    assert "NaN or infinity" in report.text()
    assert report.json()["distance"]["relative"] is None


def test_what_onnxruntime_refuses_is_refused_before_any_work(job: Job) -> None:
    # It has no convolution of float64, which the checker and the importer take.
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Conv", ["wide", "w"], ["h"]),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    job = on(job, graph_model(nodes, {"w": np.ones((2, 3, 3, 3))}, shape=(1, 3, 8, 8)))
    stages: list[str] = []
    with pytest.raises(ExportError, match=r"onnxruntime refuses the model: .*Conv"):
        compress(job, lambda stage, share, text: stages.append(stage))
    assert "pressing" not in stages
    assert not job.target.exists()


def test_a_model_without_real_outputs(job: Job) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ArgMax", ["h"], ["y"], axis=1),
    ]
    weight = np.ones((8, 4), np.float32)
    outputs = [value("y", "N", 1, kind=TensorProto.INT64)]
    graph = helper.make_graph(
        nodes, "g", [value("x", "N", 8)], outputs, [numpy_helper.from_array(weight, "w")]
    )
    with pytest.raises(AdapterError, match="has no floating-point output to hold a distance on"):
        compress(on(job, model(graph)))


def test_outputs_and_changed_answers(job: Job) -> None:
    job = on(job, two_headed_model(), recipe=HALF, tolerance="500%")
    both = compress(job)
    assert [row.name for row in both.decision.per_output] == ["a", "b"]
    one = compress(replace(job, output=("b",)))
    assert [row.name for row in one.decision.per_output] == ["b"]
    own = compress(replace(job, output=("a", "b=0.01%")))
    assert (own.verdict, own.exit_code) == ("exceeded", 3)
    flips = compress(replace(job, flips="0.1%", out=job.model.with_name("flips.onnx")))
    assert flips.exit_code == 3
    assert "of the answers change" in flips.decision.reason


def test_an_output_nobody_judges_may_be_pruned_away(job: Job) -> None:
    job = on(job, two_headed_model(), include=("wb",), output=("a",), tolerance="1%")
    report = compress(replace(job, recipe=Chain((Greedy(between=Repair(work=0.05)), Repair()))))
    assert report.verdict == "within"
    assert report.decision.relative[1] == 0.0
    assert {row.name: row.zeros_after for row in report.layers} == {"w": 0, "wa": 0, "wb": 24}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32))
    return path


def test_data_is_shared_out(job: Job, data: Path, tmp_path: Path) -> None:
    report = compress(replace(job, domain=(), data=data, tolerance="100%"))
    assert report.verdict == "within"
    assert (report.samples.fit, report.samples.choose, report.samples.judge) == (300, 100, 100)
    judge = tmp_path / "judge.npz"
    np.savez(judge, x=np.random.default_rng(1).normal(size=(50, 16)).astype(np.float32))
    report = compress(replace(job, domain=(), data=data, judge=judge, tolerance="100%"))
    assert (report.samples.fit, report.samples.choose, report.samples.judge) == (375, 125, 50)


def test_inputs_that_do_not_fit_together(job: Job, data: Path) -> None:
    assert refusal(replace(job, data=data)) == "give --data or --domain, not both"
    assert refusal(replace(job, judge=data)).startswith("--judge goes with --data; from a domain")
    assert "--domain" in refusal(replace(job, domain=()))


def test_a_set_too_large_for_the_effort_is_cut_and_said_so(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "PASS_UNITS", 1e-9)
    report = compress(replace(job, recipe=HALF, tolerance=None))
    assert (report.samples.fit, report.samples.choose, report.samples.judge) == (64, 64, 2048)
    assert report.notes == (
        "448 of 512 samples to fit were left out to keep the work within the effort; "
        "--effort best uses more",
    )


def test_when_the_time_is_up_one_candidate_was_tried(job: Job) -> None:
    report = compress(replace(job, tolerance="300%", time="0s"))
    assert (report.verdict, report.judged) == ("within", 1)
    assert report.sparsity == 385 / 640


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"effort": "huge"}, "there is no effort 'huge'; there are quick, default, best"),
        ({"sparsity": 1.0}, "a sparsity lies between 0 and 1, not at 1"),
        ({"device": "tpu"}, "there is no device 'tpu'; there are auto, cpu and cuda"),
        ({"time": "soon"}, "'soon' is no time; write it like 90s, 10m or 1h"),
        ({"seed": -1}, "the seed is -1; give one from 0 on"),
    ],
)
def test_words_that_do_not_read(job: Job, changes: dict[str, object], message: str) -> None:
    assert refusal(replace(job, **changes)) == message  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("90s", 90.0), (" 1.5 m ", 90.0), ("2h", 7200.0)]
)
def test_times_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


def test_where_it_may_not_write(job: Job, tmp_path: Path) -> None:
    message = refusal(replace(job, out=job.model))
    assert message == f"{job.model} would be written over the original; name another file"
    message = refusal(replace(job, out=tmp_path / "no" / "out.onnx"))
    assert message == f"there is no folder {tmp_path / 'no'} to write to; make it first"


def test_labels_need_data_and_a_use(job: Job, tmp_path: Path) -> None:
    labels, data = tmp_path / "l.npy", tmp_path / "d.npz"
    assert refusal(replace(job, labels=labels)) == (
        "--labels says what is right for each sample of --data; give both"
    )
    np.save(labels, np.zeros(99, int))
    np.savez(data, x=np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32))
    given = replace(job, domain=(), data=data, labels=labels)
    assert refusal(given) == f"{labels} has 99 labels and the data 100 samples; give one for each"
    np.save(labels, np.zeros(100, int))
    assert refusal(given).startswith("no step has any use for --labels: leave it out, or give a")


def test_labels_are_cut_with_their_samples(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "FORWARD_MACS", 0.0)
    labels, data = tmp_path / "l.npy", tmp_path / "d.npz"
    numbers = np.arange(200)
    np.save(labels, numbers)
    np.savez(data, x=np.broadcast_to(numbers[:, None], (200, 16)).astype(np.float32))
    given = replace(job, domain=(), data=data, labels=labels)
    model = read_model(given.model)
    samples = beginning.samples_of(given, specs(model)[0])
    problem = beginning.problem_of(given, model, samples, None, silent)
    assert problem.labels is not None
    for inputs, beside in zip((problem.fit, problem.choose), problem.labels, strict=True):
        assert inputs[0][:, 0, 0].tolist() == beside.tolist()
    assert [len(part) for part in problem.labels] == [64, 40]
