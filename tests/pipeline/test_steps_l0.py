"""L0: its laws, what it finds, what drives it, and what it is told by."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper

from laws import StepLaws
from models import MODELS, Case, case_of, convolutional_model, key, linear_model
from onnxpress.cli import main
from onnxpress.objective import objective_of
from onnxpress.problem import Problem, Tolerance
from onnxpress.search import Search
from onnxpress.shrinking import wants_groups, with_groups
from onnxpress.state import State
from onnxpress.step import Chain, Only, Step, checked
from onnxpress.steps.l0 import L0
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress_adapters.errors import MisuseError, SparsityError, StepError
from small_models import perceptron
from trained import perceptron_case

NOTHING = Repair(work=0)


class TestL0(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return L0(sparsity=0.6)


class TestL0FromPruned(StepLaws):
    sparsity = 0.7

    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.4)(state, problem)

    def make_step(self) -> Step:
        return L0(sparsity=0.7, start="even", l2=1e-4, settle=NOTHING)


class TestL0OfUnits(StepLaws):
    sparsity = 0.3
    coarse = 70  # a unit of the convolutional model

    def make_step(self) -> Step:
        return L0(sparsity=0.3, gates="unit")

    def make_case(self, name: str, seed: int = 0) -> Case:
        case = case_of(MODELS[name](), seed=seed)
        return replace(case, problem=with_groups(case.problem, case.model))

    @pytest.mark.parametrize("name", ["mlp", "cnn"])
    def test_only_free_weights_change(self, name: str) -> None:
        case = self.make_case(name)
        chosen = next(iter(case.state.weights))
        with pytest.raises(StepError, match="no units of this model can leave"):
            Only(str(chosen), self.make_step())(case.state, case.problem)


def distance(case: Case, state: State) -> float:
    return objective_of(case.problem).measure_choose(state.tensors).value


def told(state: State, what: str) -> float:
    """Give the number behind some words in what L0 says of itself."""
    (line,) = (line for line in state.log if line.startswith("L0 by"))
    (found,) = re.findall(rf"{what} ([\d.e+-]*\d)", line)
    return float(found)


def settled(case: Case, step: L0) -> State:
    return checked(step, replace(case.state, log=()), case.problem)


# What it finds


def test_it_is_better_than_magnitude_with_as_much_work() -> None:
    case = perceptron_case()
    found = settled(case, L0(0.8, work=1.5, settle=Repair(method="adam", work=0.5)))
    plain = Chain((Magnitude(0.8, scope="global"), Repair(method="adam", work=2.0)))
    other = checked(plain, case.state, case.problem)
    assert found.zeros >= other.zeros - 3
    assert distance(case, found) < 0.85 * distance(case, other)


def test_the_penalty_weight_finds_the_sparsity() -> None:
    found = settled(perceptron_case(), L0(0.7, work=1.5, settle=NOTHING))
    assert told(found, "expected") == pytest.approx(0.3, rel=0.1)
    assert told(found, "density") == pytest.approx(0.3, abs=1e-3)
    assert found.kept == 528  # of 1,760


def test_inputs_nobody_feels_close_first() -> None:
    generator = torch.Generator().manual_seed(0)
    silent = torch.tensor([1.0, 1.0, 1e-2, 1e-2])
    inputs = torch.randn(128, 1, 4, generator=generator) * silent
    case = case_of(linear_model(np.full((4, 3), 0.5)), [inputs], effort=0.2)
    after = settled(case, L0(0.5, start="even", work=1.0, settle=Repair(work=0.2)))
    assert after.weights[key("w")].support.tolist() == [[True] * 3] * 2 + [[False] * 3] * 2
    assert distance(case, after) < 1e-3


def test_units_close_whole() -> None:
    case = case_of(convolutional_model(), effort=0.05)
    case = replace(case, problem=with_groups(case.problem, case.model))
    found = settled(case, L0(0.4, gates="unit"))
    made = found.weights[key("c1")].support.flatten(1)
    read = found.weights[key("c2")].support.transpose(0, 1).flatten(1)
    assert torch.equal(made.any(1), made.all(1))
    assert torch.equal(made.any(1), read.any(1))
    assert 0 < int(made.any(1).sum()) < 4 or not made.all()
    assert re.search(r"units left: \d of 4 'c1', \d of 6 'c2'", found.log[0])


def test_the_loss_of_a_task() -> None:
    """Labels of another linear map on the first two of four inputs: the others' gates close."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(192, 1, 4, generator=generator)
    other = torch.randn(2, 3, generator=generator)
    case = case_of(linear_model(np.ones((4, 3))), [inputs], effort=0.2)
    labels = (inputs[:, 0, :2] @ other).argmax(1)
    problem = replace(case.problem, labels=(labels, labels), memo={})
    settle = Repair(method="adam", work=0.2, rate=0.1)
    step = L0(0.5, objective="cross-entropy", start="even", rate=0.1, work=1.0, settle=settle)
    after = step(case.state, problem)
    # Of three classes one may go without: it is what the other two are not.
    assert int(after.weights[key("w")].support[:2].sum()) >= 4
    answers = inputs[:, 0] @ after.weights[key("w")].values
    assert (answers.argmax(1) == labels).double().mean() > 0.9
    assert "L0 by the cross-entropy of 'y', taken for logits: 6 of 12 gates stay" in after.log[0]
    assert after.log[1].startswith("L0: cross-entropy 1.1 -> ")
    assert "Repair(method='adam'" in after.log[2]
    assert "objective='cross-entropy'" in after.log[2]


# What drives it


def test_a_higher_penalty_closes_more_gates() -> None:
    case = perceptron_case()
    kept = []
    for penalty in (0.01, 0.5, 5.0):
        found = settled(case, L0(penalty=penalty, work=0.5, settle=NOTHING))
        assert told(found, "penalty weight") == penalty
        assert told(found, "expected") == pytest.approx(told(found, "density"), rel=0.15)
        kept.append(found.kept)
    assert kept[0] > 1.2 * kept[1] > 1.5 * kept[2]


def test_the_penalty_follows_a_loss_to_stay_within() -> None:
    case = perceptron_case()
    wide, close = (
        settled(case, L0(within=within, work=1.5, settle=NOTHING)) for within in (0.05, 0.01)
    )
    assert 0.02 < told(wide, "under sampled gates") <= 0.05
    assert told(close, "under sampled gates") <= 0.01
    assert wide.kept < 0.8 * close.kept


def test_a_loss_it_cannot_stay_within_is_said() -> None:
    found = settled(perceptron_case(), L0(within=1e-7, work=0.2, settle=NOTHING))
    assert found.log[-1].startswith(
        "L0: the loss under sampled gates never came within 1e-07; allow"
    )
    assert found.kept > 800  # of 1,760


def test_l2_makes_weights_smaller() -> None:
    case = perceptron_case()
    sizes = [
        sum(float(form.values.square().sum()) for form in found.weights.values())
        for found in (settled(case, L0(0.5, work=1.0, l2=l2, settle=NOTHING)) for l2 in (0.0, 1.0))
    ]
    assert sizes[1] < 0.5 * sizes[0]


def test_a_search_finds_its_sparsity() -> None:
    case = perceptron_case()
    problem = replace(case.problem, tolerance=Tolerance(0.05))
    step = L0(work=0.4, settle=Repair(method="adam", work=0.2))
    found = Search(step, rounds=3)(case.state, problem)
    assert found.sparsity > 0.5
    assert objective_of(problem).measure_choose(found.tensors).value < 0.05


def test_progress_is_told() -> None:
    notes: list[tuple[str, float, str]] = []
    case = perceptron_case()
    problem = replace(case.problem, progress=lambda *told: notes.append(told))
    L0(0.5, work=0.2, settle=NOTHING)(case.state, problem)
    assert {stage for stage, _, _ in notes} == {"L0"}
    assert [done for _, done, _ in notes] == sorted(done for _, done, _ in notes)
    assert re.fullmatch(r"[89][\d.]+% of the L0 norm is left, penalty weight [\d.]+", notes[0][2])


# What it is told by


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 0.5, "penalty": 1.0}, "told by sparsity and by penalty how far to go; keep"),
        ({"penalty": 1.0, "within": 0.1}, "told by penalty and by within how far to go; keep one"),
        ({"penalty": 0.0}, "the penalty of L0 is a number above 0, not 0"),
        ({"within": -1.0}, "the within of L0 is a number above 0, not -1"),
        ({"l2": -1.0}, "the l2 of L0 is 0 or more, not -1"),
    ],
)
def test_fields_that_make_no_sense(fields: dict[str, float], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        L0(**fields)  # type: ignore[arg-type]  # a parameter


def test_it_needs_an_end() -> None:
    case = case_of(perceptron())
    with pytest.raises(StepError, match="has no sparsity: give it one, a penalty or a loss to"):
        L0()(case.state, case.problem)


def test_without_anything_to_close_it_does_nothing() -> None:
    case = case_of(perceptron())
    half = Magnitude(0.5)(case.state, case.problem)
    after = L0(0.4)(half, case.problem)
    assert after.weights == half.weights
    assert after.log[-1] == "L0: 320 entries are left, and no more have to leave"


def test_units_know_how_far_they_can_go() -> None:
    case = case_of(perceptron())
    case = replace(case, problem=with_groups(case.problem, case.model))
    with pytest.raises(SparsityError, match="with one unit left in every group only 97% of the"):
        L0(0.99, gates="unit")(case.state, case.problem)
    assert wants_groups(Chain((L0(0.5, gates="unit"),)))
    assert not wants_groups(L0(0.5))


# From the command line


def pressed(folder: Path, recipe: str, *words: str) -> dict[str, Any]:
    """Press the perceptron by a recipe, with data and labels, and give the report."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 16)).astype(np.float32)
    (folder / "m.onnx").write_bytes(perceptron().SerializeToString())
    np.savez(folder / "d.npz", x=inputs)
    np.savetxt(folder / "l.csv", inputs[:, :4].argmax(1), fmt="%d", header="class", comments="")
    (folder / "r.yaml").write_text(recipe)
    given = [folder / "m.onnx", folder / "out.onnx", "--data", folder / "d.npz"]
    call = [
        "compress",
        *given,
        "--recipe",
        folder / "r.yaml",
        "--effort",
        "quick",
        "--json",
        *words,
    ]
    result = CliRunner().invoke(main, [str(word) for word in [*call, "--device", "cpu", "-q"]])
    assert result.exit_code in (0, 3), result.output
    report: dict[str, object] = json.loads(result.stdout)
    return report


def test_magnitude_then_l0_then_iht_then_repair(tmp_path: Path) -> None:
    recipe = """
steps:
  - magnitude: {sparsity: 0.3}
  - l0: {sparsity: 0.5, work: 0.3, settle: {work: 0.1}}
  - iht: {sparsity: 0.6, rounds: 5}
  - repair: {work: 0.2}
"""
    report = pressed(tmp_path, recipe)
    log = "\n".join(report["log"])
    places = [log.index("L0 by the distance"), log.index("Iht"), log.rindex("Repair(")]
    assert places == sorted(places)
    assert "320 of 447 gates stay" in log  # what magnitude pruned has no gate
    made = onnx.load(tmp_path / "out.onnx")
    weights = [numpy_helper.to_array(t) for t in made.graph.initializer if t.name in ("w1", "w2")]
    assert sum(int((weight == 0).sum()) for weight in weights) == 384
    assert report["sparsity"] == pytest.approx(0.6)


def test_labels_from_the_command_line(tmp_path: Path) -> None:
    recipe = """
steps:
  - magnitude: {sparsity: 0.2}
  - l0: {penalty: 0.2, objective: cross-entropy, work: 1, settle: {work: 0.1}}
  - iht: {sparsity: 0.6, rounds: 5, objective: cross-entropy}
  - repair: {work: 0.2, objective: cross-entropy}
"""
    report = pressed(tmp_path, recipe, "--labels", str(tmp_path / "l.csv"), "--seed", "1")
    log = "\n".join(report["log"])
    assert "L0 by the cross-entropy of 'y', taken for logits" in log
    assert "penalty weight 0.2" in log
    assert report["sparsity"] >= 0.6


def test_a_task_without_labels(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(perceptron().SerializeToString())
    (tmp_path / "r.yaml").write_text("steps: [l0: {sparsity: 0.5, objective: cross-entropy}]")
    call = ["compress", tmp_path / "m.onnx", "--recipe", tmp_path / "r.yaml", "-q"]
    words = [str(word) for word in [*call, "--domain", "x=normal:0,1"]]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "Error: cross-entropy needs to know what is right: give --labels"
    )


def test_units_leave_the_file(tmp_path: Path) -> None:
    recipe = "steps: [l0: {gates: unit, work: 0.5, settle: {work: 0.1}}]"
    report = pressed(tmp_path, recipe, "--sparsity", "50%")
    made = onnx.load(tmp_path / "out.onnx")
    shapes = {t.name: list(t.dims) for t in made.graph.initializer}
    assert shapes["w1"][1] == shapes["w2"][0] == 16
    assert any("units are left" in note for note in report["notes"])
