"""Units leave whole, the ones that count least first, and the file has them no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper

from laws import StepLaws
from models import (
    MODELS,
    Case,
    case_of,
    convolutional_model,
    graph_model,
    key,
    linear_model,
    normal,
)
from onnxpress import beginning, unit_scores
from onnxpress.job import Job
from onnxpress.objective import objective_of
from onnxpress.picking import PickJob, pick
from onnxpress.press import compress
from onnxpress.problem import Tolerance
from onnxpress.search import Search
from onnxpress.shrinking import slimmed, subject_of, wants_groups, with_groups
from onnxpress.state import State
from onnxpress.step import Best, Chain, Only, Step
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress.steps.store import Store
from onnxpress.steps.units import Units, alive_units, removable
from onnxpress.unit_scores import recoverable, runs_of, unit_rises
from onnxpress_adapters.errors import SparsityError, StepError
from onnxpress_adapters.read import read_model
from onnxpress_exporters.compare import Runner
from small_models import perceptron

QUICK = Repair(work=0.1)


def grouped(made: ModelProto, seed: int = 0) -> Case:
    """Give a case that knows which units leave together."""
    case = case_of(made, seed=seed)
    return replace(case, problem=with_groups(case.problem, made))


class TestUnits(StepLaws):
    sparsity = 0.3
    coarse = 70  # a unit of the convolutional model

    @pytest.mark.parametrize("name", ["mlp", "cnn"])
    def test_only_free_weights_change(self, name: str) -> None:
        case = self.make_case(name)
        chosen = next(iter(case.state.weights))
        with pytest.raises(StepError, match="no units of this model can leave"):
            Only(str(chosen), self.make_step())(case.state, case.problem)

    def make_step(self) -> Step:
        return Units(sparsity=0.3, between=QUICK)

    def make_case(self, name: str, seed: int = 0) -> Case:
        return grouped(MODELS[name](), seed)


def hidden(seed: int = 0, units: int = 8) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """One hidden layer with a bias: 6 -> units -> 3."""
    constants = normal(seed, w=(6, units), bias=(units,), v=(units, 3))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h1"], name="first"),
        helper.make_node("Add", ["h1", "bias"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "v"], ["y"], name="last"),
    ]
    return graph_model(nodes, constants, ("N", 6)), constants


def with_constants(made: ModelProto, constants: dict[str, np.ndarray]) -> ModelProto:
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
    return made


def left(state: State) -> list[int]:
    """Say which hidden units are left; each is there with all that makes and reads it."""
    made, read = (state.weights[key(name)].support for name in ("w", "v"))
    assert torch.equal(made.any(0), read.any(1))
    return made.any(0).nonzero().flatten().tolist()


def test_what_is_read_faintly_leaves_first() -> None:
    made, constants = hidden()
    constants["v"][[1, 4, 5]] *= 1e-3
    case = grouped(with_constants(made, constants))
    after = Units(sparsity=0.3, between=QUICK)(case.state, case.problem)
    assert left(after) == [0, 2, 3, 6, 7]
    assert after.sparsity >= 0.3
    assert "units left: 5 of 8 'w'" in after.log


def test_the_rise_of_a_unit_is_what_d_gains_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network that is linear in the gates the prediction is exact but for the draws."""
    monkeypatch.setattr(unit_scores, "DRAWS", 4000)
    case = grouped(hidden()[0])
    objective, problem = objective_of(case.problem), case.problem
    (group,) = removable(case.state, problem)
    (found,) = unit_rises(objective, case.state, [group], torch.Generator().manual_seed(0))
    for unit in range(8):
        reader = case.state.weights[key("v")].values.clone()
        reader[unit] = 0
        d = float(objective.measure_fit({key("v"): reader}).per_output.sum())
        assert float(found[unit]) == pytest.approx(d, rel=0.1)


def test_a_unit_another_one_can_stand_for_is_recoverable() -> None:
    made, constants = hidden()
    constants["w"][:, 3] = 2 * constants["w"][:, 6]
    constants["bias"][3] = 2 * constants["bias"][6]
    case = grouped(with_constants(made, constants))
    objective = objective_of(case.problem)
    (group,) = removable(case.state, case.problem)
    (share,) = recoverable(objective, case.state, [group])
    others = [unit for unit in range(8) if unit not in (3, 6)]
    assert float(share[[3, 6]].max()) < 0.5 * float(share[others].min())
    after = Units(sparsity=0.01, between=QUICK)(case.state, case.problem)
    assert 3 not in left(after) or 6 not in left(after)


def test_work_counts_the_places_an_entry_is_used_at() -> None:
    case = grouped(convolutional_model())
    counts = runs_of(objective_of(case.problem), case.state)
    # 8 x 8 pixels, padded; 4 x 4 after pooling, not padded; one vector.
    assert {str(k): count for k, count in counts.items()} == {"c1": 64, "c2": 4, "w": 1}


def test_so_many_leave_at_a_time() -> None:
    case = grouped(hidden(units=32)[0])
    after = Units(sparsity=0.4, multiple=8, between=QUICK)(case.state, case.problem)
    assert len(left(after)) == 16
    uneven = grouped(hidden(units=29)[0])
    after = Units(sparsity=0.1, multiple=8, between=QUICK)(uneven.state, uneven.problem)
    assert len(left(after)) == 24


def test_a_search_goes_the_same_way_as_a_single_run() -> None:
    made = hidden(units=32)[0]
    searched, alone = grouped(made), grouped(made)
    step = Units(between=QUICK)
    for sparsity in (0.2, 0.6, 0.35, 0.5):
        found = step.at(sparsity)(searched.state, searched.problem)
    wanted = step.at(0.5)(alone.state, alone.problem)
    assert found.log == wanted.log
    for name, values in wanted.tensors.items():
        assert torch.equal(found.tensors[name], values)


def test_what_cannot_work_is_refused() -> None:
    case = grouped(hidden()[0])
    with pytest.raises(StepError, match="has no sparsity"):
        Units()(case.state, case.problem)
    with pytest.raises(StepError, match="one at a time or more, not 0"):
        Units(sparsity=0.5, multiple=0)(case.state, case.problem)
    with pytest.raises(StepError, match="does not know which units leave together"):
        Units(sparsity=0.5)(case.state, case_of(hidden()[0]).problem)
    with pytest.raises(SparsityError, match="with one unit left in every group only 8"):
        Units(sparsity=0.99, between=QUICK)(case.state, case.problem)
    alone = grouped(linear_model(np.ones((4, 3))))
    with pytest.raises(StepError, match="no units of this model can leave"):
        Units(sparsity=0.5)(alone.state, alone.problem)
    held = replace(case.state, free=case.state.free - {key("v")})
    with pytest.raises(StepError, match="what makes or reads them may not change"):
        Units(sparsity=0.5)(held, case.problem)


def test_who_wants_groups() -> None:
    assert wants_groups(Chain((Magnitude(), Only("*", Units()))))
    assert wants_groups(Best((Magnitude(), Units())))
    assert wants_groups(Chain((Search(Chain((Magnitude(), Units()))),)))
    assert not wants_groups(Chain((Magnitude(), Repair())))


# ---------------------------------------------------------------- in the file


@pytest.mark.parametrize("make", [hidden, lambda: (convolutional_model(), {})])
def test_the_file_answers_as_the_network_does(make: object) -> None:
    made = make()[0]  # type: ignore[operator]  # both take nothing
    case = grouped(made)
    state = Units(sparsity=0.4, between=QUICK)(case.state, case.problem)
    changed = {name: values.numpy() for name, values in state.tensors.items()}
    subject = subject_of(made, case.problem)
    assert subject is not None
    groups, supports = subject.groups, {k: form.support for k, form in state.weights.items()}
    slim = slimmed(subject, supports, changed, {})
    dead = sum(int((~alive_units(group, supports)).sum()) for group in groups.groups)
    assert slim.notes == (
        f"{groups.units - dead} of {groups.units} units are left; the others are no longer in the "
        "file",
    )
    onnx.checker.check_model(slim.model, full_check=True)
    x = case.problem.choose[0]
    wanted = case.problem.network.batched({**case.problem.reference, **state.tensors}, [x])[0]
    runner = Runner(slim.model)
    found = np.stack([runner.run({"x": one})[0] for one in x.numpy()])
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=0, atol=1e-5)
    for name, array in slim.changed.items():
        assert array.size <= changed[name].size


def test_nothing_leaves_where_all_is_read() -> None:
    made = hidden()[0]
    case = grouped(made)
    changed = {key("w"): case.state.weights[key("w")].values.numpy()}
    subject = subject_of(made, case.problem)
    assert subject is not None
    supports = {k: form.support for k, form in case.state.weights.items()}
    slim = slimmed(subject, supports, changed, {})
    assert slim.model is made
    assert slim.notes == ()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(beginning, "MOST_DRAWN", 256)
    original = tmp_path / "m.onnx"
    original.write_bytes(perceptron().SerializeToString())
    return Job(original, domain=("x=normal:0,1",), device="cpu", effort="quick")


def test_end_to_end(job: Job) -> None:
    recipe = Chain((Units(sparsity=0.45, multiple=4, between=QUICK), Repair(work=0.2)))
    report = compress(replace(job, recipe=recipe))
    assert report.exit_code == 0
    small = read_model(job.target)
    shapes = {t.name: list(t.dims) for t in small.graph.initializer}
    assert shapes == {"w1": [16, 16], "b1": [16], "w2": [16, 4], "b2": [4]}
    assert report.sparsity == 0.5
    rows = {row.name: (row.elements, row.zeros_after, row.form) for row in report.layers}
    assert rows == {"w1": (512, 256, "dense as 16x16"), "w2": (128, 64, "dense as 16x4")}
    assert any(note.startswith("16 of 32 units are left") for note in report.notes)


def test_scales_of_channels_leave_with_them(job: Job) -> None:
    recipe = Chain((Units(sparsity=0.45, multiple=4, between=QUICK), Store("int8")))
    report = compress(replace(job, recipe=recipe, form="packed"))
    assert report.exit_code == 0
    for tensor in read_model(job.target).graph.initializer:
        if tensor.name.startswith("w"):
            array = numpy_helper.to_array(tensor)
            grid = np.abs(array).max(axis=0, keepdims=True) / 127
            assert array.size in (256, 64)
            assert len(np.unique(array)) <= 255 * grid.size


def test_a_trace_gives_the_same_file(job: Job, tmp_path: Path) -> None:
    trace, out = tmp_path / "t.trace", tmp_path / "p.onnx"
    recipe = Chain((Units(sparsity=0.45, multiple=4, between=QUICK), Repair(work=0.2)))
    compress(replace(job, recipe=recipe, trace=trace))
    picked = pick(PickJob(trace, out, sparsity=0.5, domain=job.domain))
    assert any(note.startswith("16 of 32 units are left") for note in picked.notes)
    assert out.read_bytes() == job.target.read_bytes()


def test_channels_leave_by_blocks_of_their_own() -> None:
    case = grouped(convolutional_model())
    step = Units(sparsity=0.3, multiple=1, channels=2, between=QUICK)
    apart = Units(sparsity=0.3, multiple=1, channels=1, between=QUICK)
    for one, even in ((step, True), (apart, False)):
        groups = removable(case.state, case.problem)
        after = one(case.state, case.problem)
        supports = {key: form.support for key, form in after.weights.items()}
        left = [int(alive_units(group, supports).sum()) for group in groups]
        whole = [
            left[place] % 2 == 0
            for place, group in enumerate(groups)
            if any(case.state.weights[m.key].values.ndim > 2 for m in group.members if m.weight)
        ]
        assert whole
        assert all(whole) or not even
    with pytest.raises(StepError, match="one at a time or more, not 0"):
        Units(sparsity=0.3, channels=0)(case.state, case.problem)


def test_what_is_far_within_the_tolerance_is_not_repaired_between_blocks() -> None:
    made, _ = hidden(units=16)
    case = grouped(made)
    loose = replace(case.problem, tolerance=Tolerance(1e6))
    tight = replace(case.problem, tolerance=Tolerance(1e-9))
    step = Units(sparsity=0.5, between=replace(QUICK, enough=0.02))
    told = "there is nothing to mend"
    for tolerance, repaired in ((loose, False), (tight, True)):
        repairs = [line for line in step(case.state, tolerance).log if "Repair(" in line]
        assert repairs
        assert any(told not in line for line in repairs) == repaired


def test_what_is_far_beyond_the_tolerance_goes_no_further() -> None:
    made, _ = hidden(units=16)
    case = grouped(made)
    tight = replace(case.problem, tolerance=Tolerance(1e-9))
    step = Units(sparsity=0.9, between=QUICK, beyond=4.0)
    with pytest.raises(SparsityError, match="already, far beyond the tolerance"):
        step(case.state, tight)
    assert step.at(0.1)(case.state, tight).sparsity >= 0.1
    assert step(case.state, replace(case.problem, tolerance=None)).sparsity >= 0.9
