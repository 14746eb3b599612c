"""Traces: what is kept comes back to the bit, and a file that is none is refused politely."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from models import Case, case_of, key, two_headed_model
from onnxpress import __version__, beginning
from onnxpress.job import Job
from onnxpress.press import compress
from onnxpress.problem import RESERVE, SURE
from onnxpress.search import Point, tried
from onnxpress.step import Chain
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress.trace import ENTRY, FORMAT, Origin, Trace, digest_of, load_trace, save_trace
from onnxpress_adapters.errors import ExportError, MisuseError
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import Dense, WeightKey
from onnxpress_exporters.values import Half, Palette, Scaled, Storage
from small_models import perceptron

CHAIN = Chain((Magnitude(), Repair(method="lbfgs", work=1.0)))
SEEN = [bytes(range(16)), bytes(16)]


def origin(case: Case) -> Origin:
    return Origin(
        model="m.onnx",
        digest=digest_of(case.model),
        steps=str(CHAIN),
        seed=7,
        effort="quick",
        tolerance="1%",
        output=("a", "b=2%"),
        flips=None,
        embeddings=False,
        share=0.6,
        sequence=False,
        sources="auto",
        samples=(60, 20),
        free=(WeightKey(("If[0].then_branch",), "v/w"), key("w")),
    )


@pytest.fixture(scope="module")
def case() -> Case:
    return case_of(two_headed_model())


@pytest.fixture(scope="module")
def points(case: Case) -> list[Point]:
    """Three candidates: pruned and repaired, only pruned, and as they were but for a bias."""
    made = []
    for sparsity, step in ((0.9, CHAIN), (0.5, Magnitude())):
        made.append(tried(step, sparsity, case.state, case.problem))
    moved = case.state.with_extras({key("bias"): torch.full((12,), -0.0)})
    return [*made, Point(0.0, moved, Chain(()), float("nan"), float("inf"))]


@pytest.fixture
def path(case: Case, points: list[Point], tmp_path: Path) -> Path:
    path = tmp_path / "t.trace"
    size = save_trace(path, origin(case), points, case.problem.reference, SEEN)
    assert size == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    return path


def originals(case: Case) -> dict[WeightKey, np.ndarray]:
    return {key: form.values.numpy() for key, form in case.state.weights.items()}


def test_what_identifies_the_run_comes_back(case: Case, path: Path) -> None:
    trace = load_trace(path)
    assert trace.origin == origin(case)
    assert trace.seen == set(SEEN)
    assert trace.path == path


def test_the_figures_come_back_sorted(points: list[Point], path: Path) -> None:
    stored = load_trace(path).candidates
    assert [one.asked for one in stored] == [0.0, 0.5, 0.9]
    for one, point in zip(stored[1:], reversed(points[:2]), strict=True):
        assert (one.sparsity, one.fitted, one.distance, one.upper, one.log) == (
            point.state.sparsity,
            point.fitted,
            point.distance,
            point.upper,
            point.state.log,
        )
        assert one.bound == point.upper
    assert [one.steps for one in stored] == [
        str(Chain(())),
        str(Magnitude(sparsity=0.5)),
        str(Chain((Magnitude(sparsity=0.9), CHAIN.steps[1]))),
    ]
    assert (stored[0].fitted, stored[0].distance, stored[0].upper) == (None, None, None)
    assert stored[0].bound == float("inf")


def test_the_weights_come_back_to_the_bit(case: Case, points: list[Point], path: Path) -> None:
    trace = load_trace(path)
    for place, point in enumerate(reversed(points)):
        found = trace.weights(place, originals(case))
        wanted = {
            name: tensor
            for name, tensor in point.state.tensors.items()
            if not tensor.equal(case.problem.reference[name])
        }
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].tobytes() == tensor.numpy().tobytes(), (place, name)
            assert found[name].dtype == tensor.numpy().dtype
            assert found[name].shape == tuple(tensor.shape)


def test_how_values_are_stored_comes_back(case: Case, tmp_path: Path) -> None:
    scales = np.array(0.25, np.float16)
    codebook = np.array([-1.0, 0.5, 2.0], np.float32)
    names: dict[WeightKey, Storage] = {
        key("wa"): Scaled(scales),
        key("w"): Palette(codebook),
        key("wb"): Half(),
    }
    point = Point(0.0, case.state.stored_as(names), Chain(()), 0.1, 0.2)
    path = tmp_path / "t.trace"
    save_trace(path, origin(case), [point], case.problem.reference)
    trace = load_trace(path)
    found = trace.storage(0)
    assert {name: str(each) for name, each in found.items()} == {
        key("wa"): "int8",
        key("w"): "palette",
        key("wb"): "fp16",
    }
    one, other = found[key("wa")], found[key("w")]
    assert isinstance(one, Scaled)
    assert isinstance(other, Palette)
    assert one.scales.tobytes() == scales.tobytes()
    assert (one.scales.dtype, one.scales.shape) == (scales.dtype, ())
    assert other.codebook.tobytes() == codebook.tobytes()
    # The values have not changed, and are said to be those of the original.
    weights = trace.weights(0, originals(case))
    assert weights.keys() == names.keys()
    for name, array in weights.items():
        assert array.tobytes() == case.state.weights[name].values.numpy().tobytes()


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("int8", np.ones((5, 1), np.float16)),
        ("int8", np.ones(1, np.int8)),
        ("palette", np.ones(0, np.float32)),
        ("palette", np.ones(257, np.float32)),
        ("zip", np.ones(1, np.float32)),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    case: Case, tmp_path: Path, name: str, table: np.ndarray
) -> None:
    state = case.state.stored_as({key("w"): Scaled(np.ones((), np.float32))})
    path = tmp_path / "t.trace"
    point = Point(0.0, state, Chain(()), 0.1, 0.2)
    save_trace(path, origin(case), [point], case.problem.reference)
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()[ENTRY])
    (change,) = header["candidates"][0]["changed"]
    change["storage"] = name
    tensors = {**load_file(path), "0.0.table": table}
    save_file(tensors, path, {ENTRY: json.dumps(header)})
    with pytest.raises(MisuseError, match="it is no sound trace"):
        load_trace(path).storage(0)
    del tensors["0.0.table"]
    save_file(tensors, path, {ENTRY: json.dumps(header)})
    with pytest.raises(MisuseError, match="it is no sound trace"):
        load_trace(path).storage(0)


def test_only_what_differs_is_stored(path: Path) -> None:
    tensors = load_file(path)
    # Of the one that is only pruned no value, of the moved bias no mask.
    assert {name.split(".")[2] for name in tensors if name.startswith("1.")} == {"kept"}
    assert {name for name in tensors if name.startswith("0.")} == {"0.0.values"}
    pruned = [array for name, array in tensors.items() if name.startswith("2.")]
    assert sum(array.nbytes for array in pruned) < 4 * (96 + 36 + 24) / 2
    assert any(name.endswith(".values") for name in tensors if name.startswith("2."))


def test_every_number_of_zeros_packs(case: Case, tmp_path: Path) -> None:
    for many in range(10):
        values = torch.arange(1.0, 13.0).reshape(12)
        values[torch.arange(many)] = 0.0
        weight = case.state.weights[key("w")].values.clone()
        weight.view(-1)[:many] = 0.0
        state = case.state.with_extras({key("bias"): values}).with_weights(
            {key("w"): Dense(weight, weight != 0)}
        )
        path = tmp_path / f"{many}.trace"
        save_trace(path, origin(case), [Point(0.1, state, CHAIN, 1.0, 1.0)], case.problem.reference)
        found = load_trace(path).weights(0, originals(case))
        assert found[key("bias")].tolist() == values.tolist()
        assert found.get(key("w"), weight.numpy()).tolist() == weight.tolist()
        assert load_trace(path).seen == frozenset()


def test_the_digest_is_of_the_weights_with_their_names() -> None:
    plain, renamed, other = perceptron(), perceptron(), perceptron()
    renamed.graph.initializer[0].name = "w3"
    other.graph.initializer[3].raw_data = bytes(len(other.graph.initializer[3].raw_data))
    assert digest_of(plain) == digest_of(perceptron())
    assert len({digest_of(made) for made in (plain, renamed, other)}) == 3
    plain.graph.node[0].name = "called otherwise"
    assert digest_of(plain) == digest_of(perceptron())


def test_a_file_that_cannot_be_written(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"there is no folder .*no; make it first"):
        save_trace(tmp_path / "no" / "t", origin(case), [], case.problem.reference)


def test_it_has_the_usual_rights(path: Path) -> None:
    (path.parent / "usual").touch()
    assert path.stat().st_mode == (path.parent / "usual").stat().st_mode


def refusal(path: Path) -> str:
    with pytest.raises(MisuseError) as raised:
        load_trace(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "no.trace"
    assert refusal(path) == f"cannot read {path}: there is no such file; check the path"


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.2, 0.5, 0.99])
def test_a_torn_file(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message = refusal(path)
    assert message.startswith(f"cannot read {path}: it is no sound trace (Error while deserial")
    assert message.endswith("; copy it again, or compress again")


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"cannot read {tmp_path}: it is no sound trace (")


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"w": np.zeros(3)}, path)
    assert refusal(path) == (f"{path} is no trace; `onnxpress compress … --trace FILE` writes one")


def rewritten(path: Path, change: Any) -> None:
    """Change the JSON of a trace, as text or as what it says."""
    with safe_open(path, framework="np") as file:
        text = file.metadata()[ENTRY]
    tensors = load_file(path)
    if isinstance(change, str):
        text = change
    else:
        read = json.loads(text)
        change(read)
        text = json.dumps(read)
    save_file(tensors, path, {ENTRY: text})


def test_another_version(path: Path) -> None:
    rewritten(path, lambda read: read.update(format=FORMAT + 1, version="9.0", origin=None))
    assert refusal(path) == (
        f"{path} was written by onnxpress 9.0 in format {FORMAT + 1}, and this is onnxpress "
        f"{__version__}, which reads format {FORMAT}; use that version or compress again"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "its JSON does not read"),
        ("[1]", "its JSON does not read"),
        ("{}", "its JSON does not read"),
        ("[" * 100_000, "its JSON does not read"),
        (lambda read: read["origin"].pop("seed"), "its JSON is wrong at origin.seed"),
        (lambda read: read["origin"].update(seed="7"), "its JSON is wrong at origin.seed"),
        (
            lambda read: read["candidates"][1].update(sparsity=None),
            "its JSON is wrong at candidates.1.sparsity",
        ),
    ],
)
def test_a_header_that_was_changed(path: Path, change: Any, message: str) -> None:
    rewritten(path, change)
    assert f"it is no sound trace ({message}); copy it again" in refusal(path)


def test_a_trace_of_nothing(path: Path) -> None:
    rewritten(path, lambda read: read.update(candidates=[]))
    assert refusal(path) == f"{path} holds no candidate; compress again"


def test_labels_of_another_length(path: Path) -> None:
    with safe_open(path, framework="np") as file:
        text = file.metadata()[ENTRY]
    save_file({"seen": np.zeros((2, 3), np.uint8)}, path, {ENTRY: text})
    assert "its labels have a wrong length" in refusal(path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("2.0.kept", np.zeros(3, np.uint8), "the support of 'w' has another size"),
        ("2.0.kept", None, "the values of 'w' have another shape"),
        ("2.0.values", np.zeros(3, np.float32), "the values of 'w' do not fit its support"),
        ("0.0.values", None, "it lacks the values of 'bias'"),
        ("0.0.values", np.zeros((3, 4), np.float32), "the values of 'bias' have another shape"),
    ],
)
def test_weights_that_do_not_fit(
    case: Case, path: Path, name: str, array: np.ndarray | None, message: str
) -> None:
    with safe_open(path, framework="np") as file:
        text = file.metadata()[ENTRY]
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors if array is None else {**tensors, name: array}, path, {ENTRY: text})
    with pytest.raises(MisuseError) as raised:
        load_trace(path).weights(int(name[0]), originals(case))
    assert f"it is no sound trace ({message}); copy it again" in str(raised.value)


def test_a_pruned_weight_needs_its_original(path: Path) -> None:
    trace = load_trace(path)
    for known in ({}, {key("w"): np.ones((3, 3), np.float32)}):
        with pytest.raises(MisuseError, match=r"the original has no weight 'w' of that shape"):
            trace.weights(1, known)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A quick job that keeps a trace."""
    monkeypatch.setattr(beginning, "MOST_DRAWN", 512)
    model = tmp_path / "m.onnx"
    model.write_bytes(perceptron().SerializeToString())
    return Job(
        model,
        tolerance="20%",
        domain=("x=normal:0,1",),
        recipe=Chain((Magnitude(), Repair(method="lbfgs", work=0.1))),
        effort="quick",
        device="cpu",
        trace=tmp_path / "t.trace",
        seed=3,
    )


def kept(job: Job) -> Trace:
    assert job.trace is not None
    return load_trace(job.trace)


def test_compress_keeps_every_candidate(job: Job) -> None:
    report = compress(job)
    trace = kept(job)
    assert report.verdict == "within"
    assert [one.sparsity for one in trace.candidates] == [one.sparsity for one in report.curve]
    assert [one.upper for one in trace.candidates] == [one.upper for one in report.curve]
    # The curve goes on beyond the tolerance, for a later pick.
    assert max(one.bound for one in trace.candidates) > 2 * 0.9 * 0.2
    run = trace.origin
    assert (run.model, run.seed, run.tolerance, run.effort) == (str(job.model), 3, "20%", "quick")
    assert (run.share, run.sequence, run.embeddings, run.output) == (SURE, False, False, ())
    assert run.digest == digest_of(read_model(job.model))
    assert run.samples == (report.samples.fit, report.samples.choose)
    assert run.free == (key("w1"), key("w2"))
    assert trace.seen == frozenset()
    assert job.trace is not None
    size = job.trace.stat().st_size
    many = len(trace.candidates)
    note = f"{job.trace} keeps {many} candidates for `onnxpress pick` ({size:,} bytes)"
    assert report.notes[-1] == note


def test_the_trace_does_not_change_what_is_written(job: Job) -> None:
    assert compress(job).out == job.target
    with_trace = job.target.read_bytes()
    assert compress(replace(job, trace=None)).out == job.target
    assert job.target.read_bytes() == with_trace


def test_a_run_outside_the_tolerance_is_kept_too(job: Job) -> None:
    report = compress(replace(job, tolerance="0.001%", sparsity=0.9))
    assert report.verdict != "within"
    assert not job.target.exists()
    assert kept(job).candidates[0].sparsity == pytest.approx(0.9, abs=0.01)


def test_a_sparsity_alone_is_a_trace_of_one(job: Job) -> None:
    report = compress(replace(job, tolerance=None, sparsity=0.75))
    (only,) = kept(job).candidates
    assert (only.sparsity, kept(job).origin.tolerance) == (0.75, None)
    assert "keeps 1 candidate for" in report.notes[-1]


def test_samples_of_data_are_remembered(job: Job, tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32))
    compress(replace(job, domain=(), data=data, tolerance="100%"))
    trace = kept(job)
    assert len(trace.seen) == 80
    assert trace.origin.share == RESERVE


class Interrupting(Magnitude):
    """Prunes, until it is asked a third time."""

    asked = 0

    def __call__(self, state: Any, problem: Any, /) -> Any:
        type(self).asked += 1
        if type(self).asked == 3:
            raise KeyboardInterrupt
        return super().__call__(state, problem)


@pytest.mark.parametrize("tolerance", ["90%", "200%"])
def test_an_interrupted_search_keeps_its_best_and_the_trace(
    job: Job, tolerance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupting, "asked", 0)
    job = replace(job, recipe=Interrupting(), tolerance=tolerance)
    report = compress(job)
    assert Interrupting.asked == 3
    assert (report.verdict, report.out) == ("within", job.target)
    assert report.notes[0] == "interrupted: this is the best that was found until then"
    assert "interrupted: this is the best" in report.text()
    assert len(kept(job).candidates) == len(report.curve) == 2
    assert [point.chosen for point in report.curve].count(True) == 1


def test_an_interrupt_while_the_curve_goes_on_keeps_what_is_there(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = compress(replace(job, trace=None, recipe=Magnitude()))
    many = len(plain.curve)
    monkeypatch.setattr(Interrupting, "asked", 2 - many)  # the first one beyond the tolerance
    report = compress(replace(job, recipe=Interrupting()))
    assert report.out == job.target
    assert len(kept(job).candidates) == many
    assert report.sparsity == plain.sparsity


def test_where_a_trace_cannot_be(job: Job, tmp_path: Path) -> None:
    for trace, message in (
        (tmp_path / "no" / "t", f"there is no folder {tmp_path / 'no'} to write to; make it first"),
        (tmp_path, f"cannot write {tmp_path}: it is a folder; name a file in it"),
        (job.model, f"{job.model} is the name of a model; give the trace another"),
        (job.target, f"{job.target} is the name of a model; give the trace another"),
    ):
        with pytest.raises(MisuseError) as raised:
            compress(replace(job, trace=trace))
        assert str(raised.value) == message
