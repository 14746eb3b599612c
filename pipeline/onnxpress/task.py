"""What a step minimises: the distance to the original network, or the loss of a task.

A task loss takes labels and learns what they say. It is only what a step descends on: searches, the
judge and the verdict hold the functional distance, as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress.drawing import Drawing
from onnxpress.objective import Objective, objective_of
from onnxpress.step import Step, inside
from onnxpress_adapters.errors import MisuseError

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress_adapters.weights import WeightKey

GoalName = Literal["distance", "cross-entropy", "mse", "binary-cross-entropy"]

LEAST_PROBABILITY = 1e-7
"""Probabilities below this count as this: the logarithm of a rounded zero is no loss to learn from.
About one unit in the last place of a float32 near 1."""

SUMS_TO_ONE = 1e-3
"""How far the answers of a network may be from adding up to 1 and still be probabilities."""

LOOKED_AT = 1024
"""Samples on which that is tried."""

Loss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Takes what a network answers and what it should, ``[samples, ...]`` each; gives their mean."""

Drawn = tuple[Sequence[Tensor], Sequence[Tensor] | None]
"""Samples, and what they should give; None where the original network has to be asked."""


@runtime_checkable
class Aimed(Protocol):
    """A step that says what it minimises."""

    @property
    def objective(self) -> GoalName:
        """The distance, or the loss of a task."""
        ...

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Give the next state."""
        ...


@dataclass(frozen=True, eq=False)
class Goal:
    """A loss, and what the outputs should be on the fit and on the choose set.

    Attributes:
        name: which loss.
        objective: the problem's distance, which runs the network and knows what fits into memory.
        loss: a mean over samples; of the distance, summed over the outputs that count.
        fit: what the fit set should give, ``[samples, ...]`` each; None where the original network
            has to be asked every time.
        chosen: likewise for the choose set.
        told: what is minimised, in words.
    """

    name: GoalName
    objective: Objective
    loss: Loss
    fit: Sequence[Tensor] | None
    chosen: Sequence[Tensor] | None
    told: str

    def on_fit(self, tensors: Mapping[WeightKey, Tensor], places: Tensor | None = None) -> float:
        """Give the loss on the fit set, in float64: what ``gradient`` is the gradient of.

        Args:
            tensors: laid over the reference weights.
            places: int64, which samples; all unless given.
        """
        return self._mean(tensors, *self.part(places))

    def on_choose(self, tensors: Mapping[WeightKey, Tensor]) -> float:
        """Give the loss on the choose set, in float64; of the distance, of the worst output."""
        if self.name == "distance":
            return self.objective.measure_choose(tensors).value
        return self._mean(tensors, self.objective.problem.choose, self.chosen)

    def gradient(
        self,
        tensors: Mapping[WeightKey, Tensor],
        keys: Sequence[WeightKey],
        places: Tensor | None = None,
    ) -> tuple[float, dict[WeightKey, Tensor]]:
        """Give the loss on the fit set and its gradient in some of the tensors.

        Args:
            tensors: laid over the reference weights.
            keys: of the tensors that may move.
            places: int64, which samples; all unless given.
        """
        leaves = {key: tensors[key].detach().requires_grad_() for key in keys}
        laid = {**tensors, **leaves}
        total = self.push(lambda: laid, list(leaves.values()), *self.part(places))
        return total, {
            key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for key, leaf in leaves.items()
        }

    def part(self, places: Tensor | None = None) -> Drawn:
        """Give samples of the fit set, and what they should give."""
        inputs = self.objective.problem.fit
        if places is None:
            return inputs, self.fit
        here = places.to(self.objective.problem.device)
        return [value[here] for value in inputs], self.fit and [value[here] for value in self.fit]

    def draw(self, size: int, generator: torch.Generator, drawing: Drawing | None = None) -> Drawn:
        """Draw samples to learn from, and what they should give.

        Args:
            size: how many samples.
            generator: source of chance.
            drawing: what to draw for the distance, plain samples unless given. A label belongs to
                its own sample, so a task always draws those.
        """
        if self.name == "distance" and drawing is not None:
            return drawing.batch(self.objective, size, generator)
        samples = len(self.objective.problem.fit[0])
        return self.part(torch.randint(0, samples, (size,), generator=generator))

    def push(
        self,
        laid: Callable[[], Mapping[WeightKey, Tensor]],
        leaves: Sequence[Tensor],
        inputs: Sequence[Tensor],
        wanted: Sequence[Tensor] | None,
    ) -> float:
        """Give the loss over samples, and leave its gradient in ``grad`` of the leaves.

        Args:
            laid: makes the tensors to lay over the reference from the leaves; asked once for every
                part of the samples that fits into memory.
            leaves: what they are made of.
            inputs: one per graph input, ``[samples, *feed shape]``.
            wanted: what they should give; None to ask the original network.
        """
        return self.objective.push(laid, leaves, inputs, wanted, self.loss)

    def _mean(
        self,
        tensors: Mapping[WeightKey, Tensor],
        inputs: Sequence[Tensor],
        wanted: Sequence[Tensor] | None,
    ) -> float:
        samples = len(inputs[0])

        def value(start: int, stop: int) -> float:
            part = [value[start:stop] for value in inputs]
            answers = self._wanted(part, wanted, start, stop)
            with torch.no_grad():
                found = [each.double() for each in self.objective.outputs(tensors, part)]
                return float(self.loss(found, answers)) * (stop - start) / samples

        return sum(self.objective.batch.parts(samples, value))

    def _wanted(
        self, inputs: Sequence[Tensor], known: Sequence[Tensor] | None, start: int, stop: int
    ) -> Sequence[Tensor]:
        if known is None:
            return self.objective.reference(inputs)
        return [value[start:stop] for value in known]


def goal_of(problem: Problem, name: GoalName) -> Goal:
    """Give what a step minimises.

    Cross-entropy takes logits or probabilities: where the original's answers are probabilities (of
    a Softmax: none below 0, all adding up to 1; of a Sigmoid: between 0 and 1), it takes their
    logarithm, no probability below ``LEAST_PROBABILITY``; else it takes them for logits. ``told``
    says which.

    Raises:
        MisuseError: a task without labels, with labels that do not fit it, or with several outputs
            that count.
        StepError: an output of the original model is not finite on the given inputs.
    """
    known = problem.memo.get(("goal", name))
    if isinstance(known, Goal):
        return known
    objective = objective_of(problem)
    if name == "distance":
        told = "the distance"
        goal = Goal(name, objective, objective.loss, objective.targets, objective.chosen, told)
    else:
        goal = _task_of(problem, objective, name)
    problem.memo[("goal", name)] = goal
    return goal


def _task_of(problem: Problem, objective: Objective, name: GoalName) -> Goal:
    if problem.labels is None:
        raise MisuseError(
            f"{name} needs to know what is right: give --labels with one label per sample of "
            "--data, or leave the objective of the steps at distance"
        )
    names = [problem.network.outputs[place].name for place in problem.judged]
    if len(names) > 1:
        raise MisuseError(
            f"labels speak of one output, and {len(names)} count ({', '.join(names)}); choose one, "
            f"such as --output {names[0]}"
        )
    answers = objective.reference([value[:LOOKED_AT] for value in problem.fit])[0]
    flat = answers.reshape(len(answers), -1)
    check = {"cross-entropy": _classes, "mse": _targets, "binary-cross-entropy": _truths}[name]
    fit, chosen = (check(labels, flat.shape[1], names[0]) for labels in problem.labels)
    loss, told = _mean_squares, f"the mean squared error of '{names[0]}'"
    if name == "cross-entropy":
        loss, told = _cross_entropy, f"the cross-entropy of '{names[0]}', taken for logits"
        sums = (flat.sum(1) - 1).abs().max()
        if float(flat.min()) >= 0 and float(sums) <= SUMS_TO_ONE:
            loss, told = _cross_entropy_of_probabilities, _told_of_probabilities(name, names[0])
    if name == "binary-cross-entropy":
        loss, told = _binary, f"the binary cross-entropy of '{names[0]}', taken for logits"
        if float(flat.min()) >= 0 and float(flat.max()) <= 1:
            loss, told = _binary_of_probabilities, _told_of_probabilities(name, names[0])
    return Goal(name, objective, loss, (fit,), (chosen,), told)


def _told_of_probabilities(name: str, output: str) -> str:
    return (
        f"the {name.replace('-c', ' c')} of the probabilities in '{output}', none taken for less "
        f"than {LEAST_PROBABILITY:g}"
    )


def _classes(labels: Tensor, size: int, output: str) -> Tensor:
    """Hold labels to be class numbers: int64 ``[samples]``, from 0 on."""
    if size < 2:
        raise MisuseError(
            f"cross-entropy needs a score for each class, and '{output}' has one number a sample; "
            "use binary-cross-entropy"
        )
    if labels.ndim > 1:
        raise MisuseError(
            f"cross-entropy needs one class number a sample, and the labels have "
            f"{labels[0].numel()}; give the place of the right class"
        )
    if len(odd := labels[labels != labels.round()]):
        raise MisuseError(
            f"cross-entropy needs class numbers, and one label is {float(odd[0]):g}; use mse for "
            "targets that are no classes"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= size:
        wrong = least if least < 0 else most
        raise MisuseError(
            f"the label {wrong} is no class of '{output}', which has {size}; classes are numbered "
            f"0 to {size - 1}"
        )
    return labels.long()


def _truths(labels: Tensor, size: int, output: str) -> Tensor:
    """Hold labels to be 0 or 1: float32 ``[samples, entries of the output]``."""
    wrong = labels[(labels != 0) & (labels != 1)]
    if len(wrong):
        raise MisuseError(
            f"binary-cross-entropy needs labels 0 and 1, and one is {float(wrong[0]):g}; use "
            "cross-entropy for more classes"
        )
    return _shaped(labels, size, output)


def _targets(labels: Tensor, size: int, output: str) -> Tensor:
    """Hold labels to be targets: float32 ``[samples, entries of the output]``."""
    return _shaped(labels, size, output)


def _shaped(labels: Tensor, size: int, output: str) -> Tensor:
    rows = labels.reshape(len(labels), -1).float()
    if rows.shape[1] != size:
        raise MisuseError(
            f"the labels have {rows.shape[1]} numbers a sample, and '{output}' has {size}; give "
            "each entry of the output its own"
        )
    return rows


def _rows(found: Sequence[Tensor]) -> Tensor:
    return found[0].reshape(len(found[0]), -1)


def _cross_entropy(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    return functional.cross_entropy(_rows(found), wanted[0])


def _cross_entropy_of_probabilities(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    return functional.nll_loss(_rows(found).clamp_min(LEAST_PROBABILITY).log(), wanted[0])


def _binary(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    rows = _rows(found)
    return functional.binary_cross_entropy_with_logits(rows, wanted[0].to(rows.dtype))


def _binary_of_probabilities(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    rows = _rows(found).clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return functional.binary_cross_entropy(rows, wanted[0].to(rows.dtype))


def _mean_squares(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    rows = _rows(found)
    return (rows - wanted[0].to(rows.dtype)).square().mean()


def tasks_of(step: Step) -> frozenset[GoalName]:
    """Give the task losses a step, and the steps in it, minimise."""
    aimed = (each.objective for each in inside(step) if isinstance(each, Aimed))
    return frozenset(aimed) - {"distance"}


def check_labels(step: Step, problem: Problem) -> None:
    """Refuse, before any work, tasks without labels and labels without a task.

    Raises:
        MisuseError: as ``goal_of`` does, or no step has any use for the labels.
    """
    wanted = tasks_of(step)
    if problem.labels is not None and not wanted:
        raise MisuseError(
            "no step has any use for --labels: leave it out, or give a recipe with a step such as "
            "`l0: {objective: cross-entropy}`"
        )
    for name in get_args(GoalName):
        if name in wanted:
            goal_of(problem, name)
