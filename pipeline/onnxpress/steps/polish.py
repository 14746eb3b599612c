"""Polish: when everything is chosen, the inputs that chose are there to learn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from onnxpress.objective import Objective
from onnxpress.step import Step, inside
from onnxpress.steps.repair import Repair
from onnxpress.task import GoalName, goal_of

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State


@dataclass(frozen=True)
class Polish:
    """Repair once more, on the fit and the choose set together.

    The choose set says which sparsity, which method and how long; as long as it has to say that,
    nothing may learn from it. Before the judge's look all of that is settled, and there are a third
    more samples to learn from. What the choose set says afterwards is no longer held out, so this
    can only be the last step of a chain, and a search measures before it.

    Attributes:
        work: units of work (about seconds of one core) at effort 1.
        rate: Adam's first step, as a share of each tensor's root mean square: short, for the
            weights have been repaired already.
        objective: what is minimised: the ``distance``, or the loss of a task.
    """

    work: float = 20.0
    rate: float = 0.003
    objective: GoalName = "distance"

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Move the values; supports stay as they are."""
        goal = goal_of(problem, self.objective)
        before = goal.on_choose(state.tensors)
        repair = Repair("adam", work=self.work, rate=self.rate, objective=self.objective)
        after = repair(state, _together(goal.objective).problem)
        if after.weights is state.weights and after.extras is state.extras:
            return state.noted(f"{self}: nothing was better")
        # What the repair says of the choose set is no longer held out, and stays out of the log.
        name = "d" if self.objective == "distance" else self.objective
        told = f"{self}: learned from the choose set as well; {name} there was {before:.3g} before"
        return replace(after, log=(*state.log, told))


def _together(objective: Objective) -> Objective:
    """Give the objective with the choose set in the fit set."""
    problem = objective.problem
    known = problem.memo.get("together")
    if isinstance(known, Objective):
        return known
    fit = [torch.cat(pair) for pair in zip(problem.fit, problem.choose, strict=True)]
    labels = problem.labels and (torch.cat(problem.labels), problem.labels[1])
    targets = None
    if objective.targets is not None and objective.chosen is not None:
        pairs = zip(objective.targets, objective.chosen, strict=True)
        targets = tuple(torch.cat(pair) for pair in pairs)
    problem.memo["together"] = made = objective.on(fit, targets, labels)
    return made


def has_polish(step: Step) -> bool:
    """Say whether a step, or one inside it, is a polish."""
    return any(isinstance(each, Polish) for each in inside(step))
