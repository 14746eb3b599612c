"""The recipe fastest: which way is taken, and what is kept where none is faster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from fake_steps import Fake, plain_case, power
from models import case_of, linear_model
from onnxpress import beginning, fastest, plans, press
from onnxpress.fastest import Way, choose_way, ways_for
from onnxpress.job import Job
from onnxpress.plans import Plan
from onnxpress.press import compress
from onnxpress.shrinking import with_groups
from onnxpress.state import State
from onnxpress.step import Chain
from onnxpress.steps.gather import Gather
from onnxpress_adapters.errors import MisuseError, SparsityError
from onnxpress_adapters.read import read_model
from onnxpress_exporters.gathered_times import GatheredTimes
from onnxpress_exporters.latency import Race
from onnxpress_exporters.write import Form
from small_models import perceptron, value


def way(name: str, knee: float, form: Form = "auto") -> Way:
    return Way(name, Plan(Fake(power(knee, 3.5)), Fake(power(knee, 3.5))), form)


@pytest.mark.parametrize(
    ("times", "chosen"),
    [({"auto": 0.5, "gathered": 0.7}, "a"), ({"auto": 0.5, "gathered": 0.4}, "b"), ({}, None)],
)
def test_the_fastest_way_is_taken(times: dict[str, float], chosen: str | None) -> None:
    case = plain_case()
    timed: list[str] = []

    def clock(state: State, form: Form) -> float:
        timed.append(form)
        return times.get(form, 1.01)

    ways = [way("a", 0.5), way("b", 0.7, "gathered")]
    found = choose_way(ways, case.state, case.problem, clock)
    assert timed == ["auto", "gathered"]
    assert (found.way and found.way.name) == chosen
    assert bool(found.points) == (chosen is not None)
    ratio = times.get("auto", 1.01)
    assert "a (sparsity 0.4" in found.told or "a (sparsity 0.5" in found.told
    assert f"{ratio:.2f} of the time), b (sparsity" in found.told


def test_ways_that_lead_nowhere_are_told() -> None:
    case = plain_case()

    def never(sparsity: float) -> float:
        raise SparsityError("not one unit can leave")

    ways = [
        Way("a", Plan(Fake(never), Fake(never)), "auto"),
        Way("b", Plan(Fake(lambda sparsity: 0.5), Fake(lambda sparsity: 0.5)), "auto"),
    ]
    found = choose_way(ways, case.state, case.problem, lambda state, form: 0.1)
    assert found.way is None
    assert found.told.startswith("tried a (not one unit can leave), b (beyond the tolerance at")
    assert choose_way([], case.state, case.problem, lambda state, form: 0.1).told == (
        "no units can leave, and wide matrices are not what takes the time"
    )


def test_what_ways_a_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    made = perceptron()
    case = case_of(made)
    assert ways_for(case.state, case.problem) == ()
    (units,) = ways_for(case.state, with_groups(case.problem, made))
    assert (units.name, units.form) == ("units", "auto")
    wide = linear_model(np.ones((256, 300)))
    case = case_of(wide)
    monkeypatch.setattr(fastest, "gathered_times", lambda *_: GatheredTimes(1.0, ()))
    (rows,) = ways_for(case.state, with_groups(case.problem, wide))
    assert (rows.name, rows.form) == ("rows in groups", "gathered")
    gather = Gather(times=(("w", GatheredTimes(1.0, ())),))
    assert isinstance(rows.plan.final, Chain)
    assert rows.plan.final.steps[0] == gather


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(beginning, "MOST_DRAWN", 512)
    monkeypatch.setattr(plans, "FINAL", 0.3)
    monkeypatch.setattr(plans, "FINAL_SPARING", 0.3)
    monkeypatch.setattr(fastest, "FINAL", 0.3)
    monkeypatch.setattr(fastest, "POLISHING", 0.1)
    monkeypatch.setattr(fastest, "ROUGH", 0.1)
    original = tmp_path / "m.onnx"
    original.write_bytes(perceptron().SerializeToString())
    return Job(
        original,
        tolerance="60%",
        domain=("x=normal:0,1",),
        recipe="fastest",
        device="cpu",
        effort="quick",
    )


def race(ratio: float) -> object:
    def timed(original: ModelProto, pressed: ModelProto, *_: object) -> Race:
        return Race((1.0,) * 21, (ratio,) * 21)

    return timed


def units_of(path: Path) -> int:
    tensors = {t.name: numpy_helper.to_array(t) for t in read_model(path).graph.initializer}
    return int(tensors["w1"].shape[1])


def test_a_faster_file_is_written(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(press, "timed", race(0.5))
    report = compress(job)
    assert report.exit_code == 0
    assert units_of(job.target) in (8, 16, 24)
    assert report.json()["latency_ratio"]["median"] == 0.5
    assert any(note.startswith("tried units (sparsity 0.") for note in report.notes)


def test_sources_that_are_found_are_kept_apart(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(press, "timed", race(0.5))
    x = np.random.default_rng(0).normal(size=(120, 16)) + np.tile([0, 3, 7], 40)[:, None]
    np.savez(tmp_path / "d.npz", x=x.astype(np.float32))
    report = compress(replace(job, data=tmp_path / "d.npz", domain=()))
    assert report.samples.judge == 45
    told = "(every 3 samples they come round): 1 only to choose with, 1 only to judge on"
    assert any(told in note for note in report.notes)


def test_products_with_nothing_between_them_become_one(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = perceptron()
    made.graph.node[3].input[0] = "h2"  # past the Relu
    del made.graph.node[2]
    job.model.write_bytes(made.SerializeToString())
    monkeypatch.setattr(press, "timed", race(0.5))
    report = compress(replace(job, tolerance="0.0001%"))
    assert report.exit_code == 0
    assert [node.op_type for node in read_model(job.target).graph.node] == ["MatMul", "Add"]
    assert report.decision.relative[1] < 1e-9
    told = "1 product has become one with the next, as there is nothing between the two"
    assert told in report.notes
    # Where that is no faster all stays as it was.
    monkeypatch.setattr(press, "timed", race(1.1))
    assert told not in compress(replace(job, tolerance="0.0001%")).notes
    assert read_model(job.target).graph.node == made.graph.node


@pytest.mark.parametrize("tolerance", ["60%", "0.0001%"])
def test_where_nothing_is_faster_the_original_is_kept(
    job: Job, tolerance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(press, "timed", race(1.1))
    report = compress(replace(job, tolerance=tolerance))
    assert report.exit_code == 0
    assert (report.sparsity, report.decision.relative[0]) == (0.0, 0.0)
    assert press.KEPT in report.notes
    kept = {t.name: numpy_helper.to_array(t) for t in read_model(job.target).graph.initializer}
    for tensor in perceptron().graph.initializer:
        assert kept[tensor.name].tobytes() == numpy_helper.to_array(tensor).tobytes()


@pytest.mark.parametrize("freeze", [None, False])
def test_no_constant_stays_an_input_unless_that_is_wanted(
    job: Job, freeze: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = perceptron()
    shapes = {t.name: tuple(t.dims) for t in made.graph.initializer}
    made.graph.input.extend(value(name, *shape) for name, shape in shapes.items())
    job.model.write_bytes(made.SerializeToString())
    monkeypatch.setattr(press, "timed", race(1.1))
    report = compress(replace(job, freeze=freeze))
    inputs = {value.name for value in read_model(job.target).graph.input}
    assert inputs == ({"x"} if freeze is None else {"x", *shapes})
    told = [note for note in report.notes if f"{len(shapes)} constants of the original" in note]
    assert bool(told) == (freeze is None)


def test_a_sparsity_no_way_leads_to_keeps_the_original(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(press, "timed", race(0.5))
    monkeypatch.setattr(press, "ways_for", lambda state, problem: ())
    report = compress(replace(job, sparsity=0.5))
    assert (report.exit_code, report.sparsity) == (0, 0.0)
    assert "no units can leave, and wide matrices are not what takes the time" in report.notes


def test_what_the_recipe_chooses_itself_is_refused(job: Job) -> None:
    with pytest.raises(MisuseError, match="the recipe fastest goes as far as a tolerance lets it"):
        compress(replace(job, tolerance=None, sparsity=0.5))
    with pytest.raises(MisuseError, match="leave out --values and --pattern and --form"):
        compress(replace(job, values="int8", pattern="rows:8", form="packed"))
