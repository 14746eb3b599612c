"""The recipe smallest: which storage is chosen, and what the file holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from fake_steps import Fake, Law, plain_case, power
from onnxpress import beginning, plans, press, smallest
from onnxpress.candidates import Candidate, Judge
from onnxpress.cli import main
from onnxpress.job import Job
from onnxpress.plans import Plan
from onnxpress.press import compress
from onnxpress.problem import Problem
from onnxpress.recipe import json_schema, load_recipe
from onnxpress.search import Point
from onnxpress.smallest import (
    BITS,
    at_least,
    bits_per_weight,
    breaking_even,
    choose,
    storages_for,
)
from onnxpress.state import State
from onnxpress.step import Chain
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.store import Values
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_exporters.packable import SETTABLE
from small_models import perceptron, value


def never(sparsity: float) -> float:
    return 0.5


@pytest.fixture
def laws(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> dict[Values, Fake]:
    """A step for each way to store values, whose d follows a law; never within unless set.

    Networks count as large here, but for one test.
    """
    if request.node.name != "test_with_few_weights_whole_bytes_come_first":
        monkeypatch.setattr(smallest, "FEW", 0)
    steps: dict[Values, Fake] = {values: Fake(never) for values in BITS}

    def plan(_: Problem, *, searched: bool, values: Values) -> Plan:
        assert searched
        return Plan.of(steps[values])

    monkeypatch.setattr(smallest, "default_plan", plan)
    return steps


def chosen(
    laws: dict[Values, Fake], known: dict[Values, Law], sizes: Sequence[int] = range(20, 0, -1)
) -> tuple[str, str]:
    """Give the storage that is chosen, and what is told; each weighing gives the next size."""
    left = iter(sizes)

    def weigh(_: State) -> int:
        return next(left)

    for values, law in known.items():
        laws[values] = Fake(law)
    case = plain_case()
    choice = choose(tuple(BITS), case.state, case.problem, weigh)
    (values,) = [name for name, step in laws.items() if choice.plan.final is step]
    assert choice.points
    return values, choice.told


def test_the_narrowest_that_loses_little_is_chosen(laws: dict[Values, Fake]) -> None:
    known = {"int6": power(0.80, 3.5), "int5": power(0.79, 3.5), "int4": power(0.5, 3.5)}
    values, told = chosen(laws, known)  # type: ignore[arg-type]  # keys
    assert values == "int5"
    assert told.startswith("values as int5; tried int6 (within at sparsity 0.")
    assert "int4 (beyond at sparsity" in told
    # One look says that four bits do not pay: at the sparsity where they would take fewer bytes.
    (tried,) = laws["int4"].tried
    fewer = bits_per_weight(tried, "int4") / bits_per_weight(0.79, "int5")
    assert 0.9 < fewer < 1.0
    assert not laws["int8"].tried


def test_what_does_not_make_a_smaller_file_is_not_chosen(laws: dict[Values, Fake]) -> None:
    known: dict[Values, Law] = {"int6": power(0.8, 3.5), "int5": power(0.79, 3.5)}
    values, told = chosen(laws, known, (900, 901))
    assert values == "int6"
    assert "int5 (within at sparsity 0.7" in told
    assert "901 bytes)" in told
    assert not laws["int4"].tried


def test_with_few_weights_whole_bytes_come_first(laws: dict[Values, Fake]) -> None:
    assert chosen(laws, {"int8": power(0.8, 3.5)}, (1,))[0] == "int8"
    assert len(laws["int6"].tried) == 1


def test_more_bits_where_fewer_are_beyond(laws: dict[Values, Fake]) -> None:
    values, told = chosen(laws, {"fp16": power(0.5, 3.5)})
    assert values == "fp16"
    assert told.startswith("values as fp16; tried int6 (beyond at sparsity 0.")
    assert len(laws["int6"].tried) == len(laws["int8"].tried) == smallest.GIVING_UP
    assert not laws["int5"].tried


def test_where_nothing_is_within_the_values_stay(laws: dict[Values, Fake]) -> None:
    assert chosen(laws, {})[0] == "fp32"


def test_an_interrupted_challenge_leaves_what_there_is(laws: dict[Values, Fake]) -> None:
    def stop(sparsity: float) -> float:
        raise KeyboardInterrupt

    laws["int6"], laws["int5"] = Fake(power(0.8, 3.5)), Fake(stop)
    case = plain_case()
    choice = choose(tuple(BITS), case.state, case.problem, lambda _: 1)
    assert choice.plan.final is laws["int6"]
    assert all(point.notes for point in choice.points)


@pytest.mark.parametrize("values", BITS)
def test_bits_and_sparsity_are_each_others_inverse(values: Values) -> None:
    for sparsity in (0.3, 0.6, 0.95):
        found = breaking_even(bits_per_weight(sparsity, values), values)
        assert found == pytest.approx(sparsity, abs=1e-6)
    assert breaking_even(40.0, values) == 0.0


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that takes little time."""
    monkeypatch.setattr(beginning, "MOST_DRAWN", 512)
    monkeypatch.setattr(plans, "ROUGH", 0.1)
    monkeypatch.setattr(plans, "FINAL", 0.1)
    monkeypatch.setattr(plans, "FINAL_SPARING", 0.1)
    monkeypatch.setattr(plans, "POLISHING", 0.1)
    model = tmp_path / "m.onnx"
    model.write_bytes(perceptron(hidden=256).SerializeToString())
    domain = ("x=normal:0,1",)
    return Job(model, tolerance="20%", domain=domain, effort="quick", device="cpu")


def test_the_file_is_smaller_and_holds_what_was_judged(job: Job, tmp_path: Path) -> None:
    default = compress(replace(job, out=tmp_path / "default.onnx"))
    report = compress(replace(job, recipe="smallest"))
    assert report.decision.verdict == "within"
    sizes = [found.sizes.size_bytes[1] for found in (default, report)]
    assert sizes[1] < 0.7 * sizes[0]
    assert sizes[1] == job.target.stat().st_size
    assert any(note.startswith("values as int") for note in report.notes)
    written = [row.form for row in report.layers]
    assert all(form.startswith("packed: ") for form in written)
    (bits,) = {int(name[-1]) for name in BITS if f"Store(values='{name}'" in report.steps}
    for weight in prunable(read_model(job.target)):
        held = np.abs(numpy_helper.to_array(weight.tensor))
        # Whole multiples of a scale for the weight, or for each row, or for each column.
        levels = [max(len(np.unique(line)) for line in each) for each in (held, held.T)]
        assert min(levels) <= 2 ** (bits - 1)


def test_what_callers_may_set_stays_and_freeze_says_what_that_costs(job: Job) -> None:
    made = perceptron(hidden=256)
    shapes = {t.name: tuple(t.dims) for t in made.graph.initializer}
    made.graph.input.extend(value(name, *shape) for name, shape in shapes.items())
    job.model.write_bytes(made.SerializeToString())
    job = replace(job, recipe="smallest")
    report = compress(job)
    (note,) = [note for note in report.notes if "--freeze" in note]
    assert "constants are inputs of the model as well, so that a caller may set them" in note
    assert {row.form for row in report.layers} <= {"sparse", "dense"}
    assert "Store" not in report.steps
    assert storages_for(made, [w.key for w in prunable(made)], freeze=False) == ("fp32",)
    frozen = compress(replace(job, freeze=True))
    assert not [note for note in frozen.notes if "--freeze" in note]
    assert all(row.form.startswith("packed: ") for row in frozen.layers)
    assert frozen.sizes.size_bytes[1] < report.sizes.size_bytes[1]
    assert SETTABLE not in frozen.text()


@pytest.mark.parametrize("sparsity", [None, 0.3])
def test_where_the_judge_refuses_all_halves_are_written(
    job: Job, sparsity: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(plan: Plan, state: State, problem: Problem, look: Judge, **_: object) -> list[Point]:
        look(Candidate(Magnitude(sparsity=1.0)(state, problem), Chain(())))
        return []

    monkeypatch.setattr(press, "hunt", empty)
    report = compress(replace(job, recipe="smallest", sparsity=sparsity))
    assert report.exit_code == (0 if sparsity is None else 3)
    if sparsity is None:
        assert report.steps == "Chain(steps=(Store(values='fp16', entries=16, feedback=True),))"
        told = "the values are written as fp16, unpruned"
        assert any(note.endswith(told) for note in report.notes)
        before, after = report.sizes.size_bytes
        assert after < before


def test_without_a_way_to_pack_there_are_no_halves(laws: dict[Values, Fake]) -> None:
    case = plain_case()
    assert at_least(("fp32",), case.state, case.problem) is None


def test_mistakes_are_named(job: Job, tmp_path: Path) -> None:
    job = replace(job, recipe="smallest")
    with pytest.raises(MisuseError, match="goes as far as a tolerance lets it; give one, such as"):
        compress(replace(job, tolerance=None, sparsity=0.5))
    with pytest.raises(MisuseError, match="chooses how values are stored; leave out --values"):
        compress(replace(job, values="int8"))
    with pytest.raises(MisuseError, match="packs weights; leave out --form sparse"):
        compress(replace(job, form="sparse"))
    with pytest.raises(MisuseError, match="there is no built-in recipe 'tiny'; there are small"):
        compress(replace(job, recipe="tiny"))  # type: ignore[arg-type]  # a mistake
    words = ["compress", str(job.model), "--tolerance", "1%", "--recipe", "smalest"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "smalest: the recipe cannot be read: No such file" in result.stderr
    assert "without a file there are smallest, fastest, faithful" in result.stderr
    assert "smallest" in CliRunner().invoke(main, ["compress", "--help"]).output


def test_a_recipe_file_may_name_it(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("recipe: smallest\nmodel: m.onnx\ntolerance: 1%\n")
    read = load_recipe(file)
    assert read.steps == "smallest"
    assert dict(read.settings) == {"model": tmp_path / "m.onnx", "tolerance": "1%"}
    for text in ("recipe: tiny\n", "recipe: smallest\nsteps: [greedy]\n"):
        file.write_text(text)
        with pytest.raises(MisuseError, match=r"r.yaml: recipe: the name of a built-in one"):
            load_recipe(file)
    assert json_schema()["properties"]["recipe"] == {"enum": ["smallest", "fastest", "faithful"]}
