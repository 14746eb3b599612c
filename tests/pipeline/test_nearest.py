"""The greedy to the letter: choice by choice what a loop over all neighbours does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, helper
from torch import Tensor

from jobs import quick_job
from laws import StepLaws
from models import MODELS, Case, case_of, graph_model, key, linear_model, normal, two_headed_model
from onnxpress import nearest as module
from onnxpress.cli import main
from onnxpress.exact import exact_rises, precise_of
from onnxpress.nearest import Rounds, closest
from onnxpress.objective import Objective, objective_of
from onnxpress.plans import faithful_plan
from onnxpress.press import compress
from onnxpress.problem import Problem, Tolerance
from onnxpress.recipe import load_recipe
from onnxpress.search import Search
from onnxpress.state import State
from onnxpress.step import Chain, Only, Step, checked
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress.support import cut
from onnxpress_adapters.errors import MisuseError, StepError
from onnxpress_adapters.weights import WeightKey

SHORT = Repair("lbfgs", work=1.0)


def relu_net() -> ModelProto:
    """4 -> 5 -> 4 -> 3, 52 weights with biases."""
    constants = normal(21, a=(4, 5), b=(5,), c=(5, 4), d=(4,), e=(4, 3), f=(3,))
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Gemm", ["h2", "c", "d"], ["h3"]),
        helper.make_node("Relu", ["h3"], ["h4"]),
        helper.make_node("Gemm", ["h4", "e", "f"], ["y"]),
    ]
    return graph_model(nodes, constants, ("N", 4))


def tanh_net() -> ModelProto:
    """4 -> 5 -> 2 and a sigmoid at the end, 30 weights."""
    constants = normal(22, a=(4, 5), c=(5, 2))
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h1"]),
        helper.make_node("Tanh", ["h1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "c"], ["h3"]),
        helper.make_node("Sigmoid", ["h3"], ["y"]),
    ]
    return graph_model(nodes, constants, ("N", 4))


def image_net() -> ModelProto:
    """A convolution and a product behind a pooling, 42 weights."""
    constants = normal(23, c=(3, 1, 3, 3), w=(3, 5))
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["h1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("GlobalAveragePool", ["h2"], ["h3"]),
        helper.make_node("Flatten", ["h3"], ["h4"]),
        helper.make_node("MatMul", ["h4", "w"], ["y"]),
    ]
    return graph_model(nodes, constants, ("N", 1, 4, 4))


NETS = {"relu": relu_net, "tanh": tanh_net, "images": image_net}


class TestGreedyExact(StepLaws):
    sparsity = 0.05

    def make_step(self) -> Step:
        return Greedy(sparsity=0.05, score="exact", per_round=7, between=Repair("lbfgs", work=0.2))


class TestGreedyExactFromPruned(StepLaws):
    sparsity = 0.83

    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.8)(state, problem)

    def make_step(self) -> Step:
        return Greedy(sparsity=0.83, score="exact", per_round=3, between=Repair("lbfgs", work=0.2))


def small(name: str) -> Case:
    """Give a net with few samples, so that every neighbour can be run."""
    case = case_of(NETS[name]())
    return replace(case, problem=replace(case.problem, fit=[v[:48] for v in case.problem.fit]))


def by_brute_force(case: Case, state: State) -> State:
    """Take the nearest neighbour: run each of them, in float64, and compare the distances."""
    precise = precise_of(objective_of(case.problem))
    assert precise is not None
    tensors = {name: value.double() for name, value in state.tensors.items()}
    best = None
    for name in sorted(state.free):
        for place in state.weights[name].support.nonzero().tolist():
            neighbour = tensors[name].clone()
            neighbour[tuple(place)] = 0.0
            found = precise.measure_fit({**tensors, name: neighbour})
            distance = float(found.per_output.sum())
            if best is None or distance < best[0] * (1 - 1e-10):
                best = distance, name, tuple(place)
    assert best is not None
    _, name, place = best
    support = state.weights[name].support.clone()
    support[place] = False
    return state.with_weights({name: cut(state.weights[name].values, support)})


@pytest.mark.parametrize("name", NETS)
def test_every_choice_is_that_of_brute_force(name: str) -> None:
    case = small(name)
    state = case.state
    entries = sum(form.support.numel() for form in state.weights.values())
    assert entries <= 60
    for gone in range(1, entries):
        state = SHORT(by_brute_force(case, state), case.problem)
        ours = Greedy((gone - 0.5) / entries, score="exact", between=SHORT)(
            case.state, case.problem
        )
        assert ours.kept == entries - gone
        for key_, form in state.weights.items():
            assert torch.equal(ours.weights[key_].support, form.support), gone
            assert torch.equal(ours.weights[key_].values, form.values), gone


def test_a_choice_by_hand() -> None:
    # d rises by w² E[x²]: the inputs are 1, 2 and 3 times as loud.
    inputs = torch.randn(4000, 1, 3, generator=torch.Generator().manual_seed(0))
    inputs *= torch.tensor([1.0, 2.0, 3.0])
    case = case_of(linear_model(np.array([[2.0, -5.0], [1.5, 0.9], [0.5, 4.0]])), [inputs])
    # 4, 25; 9, 3.24; 2.25, 144
    wanted = [(2, 0), (1, 1), (0, 0), (1, 0), (0, 1)]
    state = case.state
    for gone, place in enumerate(wanted, start=1):
        step = Greedy(gone / 6, score="exact", between=Repair("lbfgs", work=0.01))
        after = step(case.state, case.problem)
        fresh = state.weights[key("w")].support & ~after.weights[key("w")].support
        assert fresh.nonzero().tolist() == [list(place)]
        assert after.log[-1].startswith(f"without w{list(place)}: d +")
        state = after


def test_the_way_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = small("tanh")
    seen = []

    def counted(
        objective: Objective, tensors: Mapping[WeightKey, Tensor], keys: Sequence[WeightKey]
    ) -> dict[WeightKey, Tensor]:
        seen.append(1)
        return exact_rises(objective, tensors, keys)

    monkeypatch.setattr(module, "exact_rises", counted)
    step = Greedy(score="exact", between=SHORT)
    direct = replace(case.problem, memo={})
    once = step.at(0.6)(case.state, direct)
    assert len(seen) == 18
    for sparsity in (0.4, 0.6, 0.5, 0.3):
        found = step.at(sparsity)(case.state, case.problem)
    assert len(seen) == 18 + 18
    again = step.at(0.6)(replace(case.state, log=("before",)), case.problem)
    assert again.log[0] == "before"
    assert [line for line in again.log if line.startswith("without")] == [
        line for line in once.log if line.startswith("without")
    ]
    for name, form in once.weights.items():
        assert torch.equal(again.weights[name].values, form.values)
    assert found.kept == 21
    other = Magnitude(0.2)(case.state, case.problem)
    assert step.at(0.6)(other, case.problem).kept == 12
    assert len(seen) == 36 + 12


def test_few_networks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 4)
    case = small("tanh")
    step = Greedy(score="exact", between=SHORT)
    step.at(0.6)(case.state, case.problem)
    paths = case.problem.memo["nearest", Rounds(SHORT, 1, step.hours), case.state.free]
    assert isinstance(paths, list)
    (path,) = paths
    assert 2 <= len(path.states) <= 4
    assert min(path.states) == 12
    direct = replace(case.problem, memo={})
    for sparsity in (0.5, 0.3):
        one, other = (step.at(sparsity)(case.state, p) for p in (case.problem, direct))
        for name, form in one.weights.items():
            assert torch.equal(other.weights[name].values, form.values)


def test_a_round_looks_at_so_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    case = small("tanh")
    step = Greedy(0.2, score="exact", between=Repair("lbfgs", work=0.01))
    scales = objective_of(case.problem).scales
    monkeypatch.setattr(module, "MOST_SAMPLES", 20)
    after = step(case.state, case.problem)
    assert after.log[0].startswith("every one of 30 neighbours is measured on 20 samples")
    fewer = case.problem.memo["fewer"]
    assert isinstance(fewer, dict)
    objective = fewer["objective"]
    assert len(objective.problem.fit[0]) == len(objective.targets[0]) == 20
    assert objective.scales is scales
    again = step(case.state, case.problem)
    for name, form in after.weights.items():
        assert again.weights[name] is form


def test_more_at_once_only_where_asked() -> None:
    case = small("tanh")
    one = Greedy(0.5, score="exact", per_round=6, between=SHORT)(case.state, case.problem)
    assert one.kept == 15
    rounds = [line for line in one.log if line.startswith("without")]
    assert [line.split(":")[0] for line in rounds] == [
        "without 6 entries",
        "without 6 entries",
        "without 3 entries",
    ]


def test_what_nothing_needs_goes_first_and_what_is_infinite_last() -> None:
    w = key("w")
    rises = {w: torch.tensor([[torch.nan, 0.5], [-1.0, torch.inf]])}
    support = {w: torch.tensor([[True, True], [True, True]])}
    marks = [closest(rises, support, count)[w].int().tolist() for count in range(5)]
    assert marks == [
        [[0, 0], [0, 0]],
        [[0, 0], [1, 0]],
        [[0, 1], [1, 0]],
        [[1, 1], [1, 0]],
        [[1, 1], [1, 1]],
    ]
    held = {w: torch.tensor([[True, False], [False, True]])}
    assert closest(rises, held, 3)[w].int().tolist() == [[1, 0], [0, 1]]
    case = case_of(two_headed_model(), judged=[0])
    step = Greedy(0.5, score="exact", per_round=2, between=SHORT)
    after = step(case.only("wb"), case.problem)  # no judged output sees it
    assert after.weights[key("wb")].nonzeros == 12
    assert objective_of(case.problem).measure_fit(after.tensors).value == 0.0


def test_a_search_finds_how_far_it_may_go() -> None:
    case = case_of(NETS["relu"](), tolerance=Tolerance(0.02))
    after = Search(Greedy(score="exact", between=SHORT))(case.state, case.problem)
    assert objective_of(case.problem).measure_choose(after.tensors).value < 0.02
    assert after.sparsity > 0.05


def test_only_the_named_weights_are_neighbours() -> None:
    case = small("relu")
    step = Only("c", Greedy(0.5, score="exact", between=SHORT))
    after = checked(Chain((step,)), case.state, case.problem)
    assert after.weights[key("c")].nonzeros == 10
    assert after.weights[key("a")] is case.state.weights[key("a")]


def test_what_would_take_too_long_is_said_and_not_begun() -> None:
    case = case_of(MODELS["mlp"](), effort=1.0)
    step = Greedy(0.9, score="exact", hours=0.01)
    with pytest.raises(StepError) as raised:
        step(case.state, case.problem)
    told = str(raised.value)
    assert told.startswith(
        "every one of 640 neighbours is measured on 192 samples, in 576 rounds with repairs: about "
        "0.64 h, and 0.01 h are allowed; "
    )
    assert "ways" not in case.problem.memo  # nothing was run to say so
    for way in ("score: predicted", "per_round", "--include", "fewer samples", "more hours"):
        assert way in told
    quick = Greedy(0.1, score="exact", per_round=64, between=Repair("lbfgs", work=0.01), hours=0.01)
    after = quick(case.state, case.problem)
    assert after.log[0].startswith("every one of 640 neighbours is measured on 192 samples, about ")
    slow = Greedy(0.1, score="exact", per_round=64, between=Repair("lbfgs", work=0.0), hours=1e-9)
    with pytest.raises(StepError, match=r" s of one core, in 1 round with a repair: about .* all"):
        slow(case.state, replace(case.problem, memo={}))


def test_it_refuses_what_it_cannot_do() -> None:
    with pytest.raises(MisuseError, match=r"single entries, which do not keep to '2:4'; leave out"):
        Greedy(score="exact", pattern="2:4")
    with pytest.raises(MisuseError, match="a round takes one entry or more, not 0"):
        Greedy(score="exact", per_round=0)


def test_the_recipe_is_this_step_and_nothing_else(tmp_path: Path) -> None:
    plan = faithful_plan()
    assert plan.final is plan.rough
    assert isinstance(plan.final, Chain)
    (step,) = plan.final.steps
    assert isinstance(step, Greedy)
    assert (step.sparsity, step.score, step.per_round) == (None, "exact", 1)
    file = tmp_path / "r.yaml"
    file.write_text("recipe: faithful\n")
    assert load_recipe(file).steps == "faithful"
    assert "faithful" in CliRunner().invoke(main, ["compress", "--help"]).output


@pytest.mark.parametrize("promise", ["--tolerance=2%", "--sparsity=40%"])
def test_the_recipe_on_the_command_line(tmp_path: Path, promise: str) -> None:
    original, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    original.write_bytes(tanh_net().SerializeToString())
    words = ["compress", str(original), str(out), promise, "--recipe", "faithful", "--json"]
    inputs = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=inputs)
    words += ["--data", str(tmp_path / "x.npz"), "--effort", "quick", "--device", "cpu"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["sparsity"] >= (0.4 if "sparsity" in promise else 0.1)
    rounds = [line for line in report["log"] if line.startswith("without ")]
    assert len(rounds) == round(30 * report["sparsity"])
    assert out.exists()


def test_the_recipe_keeps_to_no_pattern(tmp_path: Path) -> None:
    job = replace(quick_job(tmp_path, Greedy(0.5)), recipe="faithful", pattern="2:4")
    with pytest.raises(MisuseError, match="single weights, which keep to no pattern; leave out"):
        compress(job)
    with pytest.raises(MisuseError, match="nothing says how far to go: give a tolerance"):
        compress(replace(job, pattern="none"))
