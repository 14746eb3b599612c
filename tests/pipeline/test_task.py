"""What steps minimise: the distance, or a loss of labels; each against its formula by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor

from models import Case, case_of, graph_model, key, normal, two_headed_model
from onnxpress.drawing import Drawing
from onnxpress.objective import objective_of
from onnxpress.problem import Problem
from onnxpress.search import Search
from onnxpress.step import Best, Chain, Only
from onnxpress.steps.magnitude import Magnitude
from onnxpress.task import LEAST_PROBABILITY, GoalName, check_labels, goal_of, tasks_of
from onnxpress_adapters.errors import MisuseError
from small_models import perceptron

SAMPLES = 40


def ending(*last: str, outputs: int = 3) -> ModelProto:
    """Give a MatMul and what comes after it."""
    operators = ["MatMul", *last]
    names = ["x", *(f"h{place}" for place in range(len(last))), "y"]
    nodes = [
        helper.make_node(
            operator, [names[place], *(["w"] if place == 0 else [])], [names[place + 1]]
        )
        for place, operator in enumerate(operators)
    ]
    return graph_model(nodes, normal(1, w=(8, outputs)))


def labelled(made: ModelProto, labels: Tensor) -> Case:
    """Give a case whose fit set has labels, and whose choose set has their second half."""
    inputs = torch.randn(SAMPLES, 1, 8, generator=torch.Generator().manual_seed(0))
    case = case_of(made, [inputs])
    half = SAMPLES // 2
    problem = replace(case.problem, choose=[inputs[half:]], labels=(labels, labels[half:]), memo={})
    return replace(case, problem=problem)


def classes(count: int) -> Tensor:
    return torch.randint(0, count, (SAMPLES,), generator=torch.Generator().manual_seed(1))


def scores(problem: Problem) -> Tensor:
    """Give what the MatMul answers, in float64."""
    return problem.fit[0].reshape(SAMPLES, 8).double() @ problem.reference[key("w")].double()


def check_gradient(case: Case, name: GoalName) -> None:
    """Hold the gradient to differences of the loss, on all samples and on some."""
    goal, tensors = goal_of(case.problem, name), case.state.tensors
    for places in (None, torch.tensor([3, 1, 4, 1, 5])):
        value, slopes = goal.gradient(tensors, [key("w")], places)
        assert value == pytest.approx(goal.on_fit(tensors, places), rel=1e-5)
        way = torch.randn(slopes[key("w")].shape, generator=torch.Generator().manual_seed(2))
        ends = [
            goal.on_fit({**tensors, key("w"): tensors[key("w")] + step * way}, places)
            for step in (1e-3, -1e-3)
        ]
        expected = float((slopes[key("w")] * way).sum())
        assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("last", [(), ("Softmax",), ("LogSoftmax",)], ids=str)
def test_cross_entropy_is_that_of_the_logits(last: tuple[str, ...]) -> None:
    case = labelled(ending(*last), classes(3))
    goal, tensors = goal_of(case.problem, "cross-entropy"), case.state.tensors
    each = -scores(case.problem).log_softmax(1)[torch.arange(SAMPLES), classes(3)]
    assert goal.on_fit(tensors) == pytest.approx(float(each.mean()), rel=1e-5)
    assert goal.on_choose(tensors) == pytest.approx(float(each[SAMPLES // 2 :].mean()), rel=1e-5)
    assert ("probabilities" in goal.told) == (last == ("Softmax",))
    check_gradient(case, "cross-entropy")


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    case = labelled(ending("Softmax"), classes(3))
    goal = goal_of(case.problem, "cross-entropy")
    sure = {key("w"): 1e4 * case.problem.reference[key("w")]}
    wrong = (scores(case.problem).argmax(1) != classes(3)).double().mean()
    assert goal.on_fit(sure) == pytest.approx(-np.log(LEAST_PROBABILITY) * float(wrong), rel=1e-6)


@pytest.mark.parametrize("last", [(), ("Sigmoid",)], ids=str)
@pytest.mark.parametrize("outputs", [1, 3])
def test_binary_cross_entropy(last: tuple[str, ...], outputs: int) -> None:
    labels = torch.stack([classes(2), 1 - classes(2), classes(2)], 1)[:, :outputs].squeeze(1)
    case = labelled(ending(*last, outputs=outputs), labels)
    goal = goal_of(case.problem, "binary-cross-entropy")
    chance = scores(case.problem).sigmoid()
    truth = labels.reshape(SAMPLES, outputs).double()
    expected = -(truth * chance.log() + (1 - truth) * (1 - chance).log()).mean()
    assert goal.on_fit(case.state.tensors) == pytest.approx(float(expected), rel=1e-5)
    assert ("probabilities" in goal.told) == (last == ("Sigmoid",))
    check_gradient(case, "binary-cross-entropy")


def test_mean_squared_error() -> None:
    targets = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(3))
    case = labelled(ending(), targets)
    goal = goal_of(case.problem, "mse")
    expected = (scores(case.problem) - targets.double()).square().mean()
    assert goal.on_fit(case.state.tensors) == pytest.approx(float(expected), rel=1e-6)
    check_gradient(case, "mse")


def test_the_distance_is_the_objective() -> None:
    case = case_of(two_headed_model())
    pruned = Magnitude(0.5)(case.state, case.problem).tensors
    objective, goal = objective_of(case.problem), goal_of(case.problem, "distance")
    keys = sorted(case.state.free)
    value, slopes = goal.gradient(pruned, keys)
    known, wanted = objective.gradient(pruned, keys)
    assert value == known
    assert all(torch.equal(slopes[key], wanted[key]) for key in keys)
    summed = float(objective.measure_fit(pruned).per_output.sum())
    assert goal.on_fit(pruned) == pytest.approx(summed, rel=1e-9)
    assert goal.on_choose(pruned) == objective.measure_choose(pruned).value
    assert goal_of(case.problem, "distance") is goal


def test_draws_keep_samples_and_labels_together() -> None:
    case = labelled(ending(), torch.arange(SAMPLES) % 3)
    goal = goal_of(case.problem, "cross-entropy")
    rows = [row.tobytes() for row in case.problem.fit[0].numpy()]
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = goal.draw(16, generator, Drawing(interpolate=1.0, move=1.0))
    assert wanted is not None
    places = [rows.index(row.tobytes()) for row in inputs[0].numpy()]
    assert wanted[0].tolist() == [place % 3 for place in places]
    between, _ = goal_of(case.problem, "distance").draw(16, generator, Drawing(1.0, 0.0))
    known = {row.tobytes() for row in between[0].numpy()} & set(rows)
    assert len(known) < 8  # a sample may be paired with itself


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        (
            "cross-entropy",
            torch.tensor([0, 3] * 20),
            "the label 3 is no class of 'y', which has 3;",
        ),
        ("cross-entropy", torch.tensor([0, -1] * 20), "the label -1 is no class of 'y', which"),
        (
            "cross-entropy",
            torch.tensor([0, 0.5] * 20),
            "needs class numbers, and one label is 0.5;",
        ),
        (
            "cross-entropy",
            torch.zeros(SAMPLES, 3),
            "one class number a sample, and the labels have",
        ),
        ("binary-cross-entropy", torch.zeros(SAMPLES), "have 1 numbers a sample, and 'y' has 3;"),
        ("binary-cross-entropy", classes(3), "needs labels 0 and 1, and one is 2; use cross-"),
        ("mse", torch.zeros(SAMPLES, 2), "the labels have 2 numbers a sample, and 'y' has 3; give"),
    ],
)
def test_labels_that_do_not_fit(name: GoalName, labels: Tensor, message: str) -> None:
    case = labelled(ending(), labels)
    with pytest.raises(MisuseError) as caught:
        goal_of(case.problem, name)
    assert message in str(caught.value)


def test_one_number_a_sample_has_no_classes() -> None:
    case = labelled(ending(outputs=1), classes(2))
    with pytest.raises(MisuseError, match=r"needs a score for each class, and 'y' has one number"):
        goal_of(case.problem, "cross-entropy")


def test_labels_speak_of_one_output() -> None:
    case = case_of(two_headed_model())
    labels = (torch.zeros(192).long(), torch.zeros(96).long())
    problem = replace(case.problem, labels=labels)
    with pytest.raises(MisuseError, match=r"and 2 count \(a, b\); choose one, such as --output a"):
        goal_of(problem, "cross-entropy")
    assert goal_of(replace(problem, judged=(1,), memo={}), "cross-entropy").told == (
        "the cross-entropy of 'b', taken for logits"
    )


class Task:
    """A step that minimises a loss of labels."""

    objective: GoalName = "mse"

    def __call__(self, state: object, problem: object, /) -> object:
        """Do nothing."""
        del problem
        return state


def test_tasks_are_found_wherever_they_stand() -> None:
    step = Chain((Magnitude(), Only("*", Task())))  # type: ignore[arg-type]  # any state will do
    assert tasks_of(step) == {"mse"}
    assert tasks_of(Search(step)) == {"mse"}
    assert tasks_of(Best((Magnitude(), step))) == {"mse"}
    assert tasks_of(Magnitude()) == frozenset()


def test_labels_and_tasks_need_each_other() -> None:
    case = case_of(perceptron())
    task: Chain = Chain((Task(),))  # type: ignore[arg-type]
    check_labels(Magnitude(), case.problem)
    with pytest.raises(MisuseError, match="mse needs to know what is right: give --labels with"):
        check_labels(task, case.problem)
    problem = replace(case.problem, labels=(torch.zeros(192, 4), torch.zeros(96, 4)))
    check_labels(task, problem)
    with pytest.raises(MisuseError, match="no step has any use for --labels: leave it out, or"):
        check_labels(Magnitude(), problem)
