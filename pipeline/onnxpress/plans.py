"""The steps a hunt takes where no recipe says which, and how much work each of them gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from onnxpress.cost import Cost
from onnxpress.step import Best, Chain, Step, follow
from onnxpress.steps.greedy import Greedy, points_of
from onnxpress.steps.polish import Polish, has_polish
from onnxpress.steps.repair import Repair
from onnxpress.steps.store import Store, Values
from onnxpress_adapters.errors import MisuseError

if TYPE_CHECKING:
    from onnxpress.problem import Problem

SPARE = 0.15
"""Entries a final candidate spares until it has been repaired once, as a share of what stays."""

REHEARSING, REHEARSING_ALONE = 0.5, 0.27
"""Share of the work that is for that repair, in a search and where only a sparsity is asked for."""

SMALL_MACS = 350_000
"""Multiply-adds of a forward pass up to which a network is small: it is then also pruned another
way, and the nearer of the two stays."""

UNHURRIED = 1.0
"""The effort from which on there is time for that; ``quick`` is for speed."""

EARLY, GRADUAL, GRADUAL_ALONE = 0.5, 1.5, 3.0
"""That way: the sparsity from which on entries leave in blocks, and units of work for the repair
after each, in a search and where only a sparsity is asked for. Surgery on whole layers breaks small
perceptrons: at 90 % this came 2 to 4 times nearer on three of them. On two image classifiers it
came 11 and 26 % less near, and on a wider perceptron 12 % nearer in five times the time."""

FURTHER = 3
"""Final candidates of such a network made beyond one that leaves much of the tolerance, at most."""

ENOUGH_POINTS = 100
"""Inputs, where there are as many, that a block must be measured on to be worth its time."""

ROUGH = 8.0
"""Units of work for the repair of a candidate that shows where the tolerance lies."""

FINAL, FINAL_SPARING = 28.0, 16.0
"""Units of work for the repair of a candidate that the judge may see; one that spares entries until
it has been repaired once comes as near with less."""

ALONE, MOST_ALONE = 80.0, 160.0
"""Units of work for the repair where only a sparsity is asked for, so that it runs once: the more
of them, the fewer steps they pay for."""

STEPS_ALONE = 6000
"""Steps it should have, each on ``BATCH_ALONE`` samples."""

BATCH_ALONE = 128
"""Samples of each, where memory is not short."""

POLISHING, POLISHING_ALONE = 8.0, 20.0
"""Units of work for the polish after either."""

MENDING = 0.5
"""Units of work for the repair after a single weight left."""

ROUNDED = 0.4
"""Share of the work that is for the repair after rounding."""

GAIN = 1.18
"""How much further a final candidate may aim than rough ones did: its repair gains more."""

GAINS: Mapping[Values, float] = {"int6": 1.1, "int5": 1.08, "int4": 1.0, "palette": 1.0}
"""The same where values take fewer bits: the more of d is rounding, the less a repair gains."""


@dataclass(frozen=True)
class Plan:
    """The steps of a hunt.

    Attributes:
        final: makes what the judge sees.
        rough: makes what shows how far to go, in less time; ``final`` itself where a recipe says
            what to do.
        gain: how much further ``final`` may aim than ``rough`` went.
        polish: what a candidate gets when all is chosen, before the judge sees it; None for
            nothing.
        further: how many more final candidates are made, at most, where one leaves much of the
            tolerance.
    """

    final: Step
    rough: Step
    gain: float = GAIN
    polish: Polish | None = None
    further: int = 0

    @classmethod
    def of(cls, recipe: Step) -> Plan:
        """Run a recipe as it is written, every time; a polish at its end only for the judge.

        Raises:
            MisuseError: there is a polish anywhere else.
        """
        polish = None
        steps = recipe.steps if isinstance(recipe, Chain) else (recipe,)
        if steps and isinstance(steps[-1], Polish):
            recipe, polish = Chain(steps[:-1]), steps[-1]
        if has_polish(recipe):
            raise MisuseError(
                "polish learns from the inputs that choose, so nothing can be chosen after it: "
                "make it the last step of the recipe"
            )
        return cls(recipe, recipe, polish=polish)

    def following(self, pattern: str) -> Plan:
        """Set the pattern of zeros in every step that has one."""
        return replace(self, final=follow(self.final, pattern), rough=follow(self.rough, pattern))

    @property
    def is_staged(self) -> bool:
        """Whether a candidate for the judge is made in another way than the others."""
        return self.final is not self.rough


def default_plan(problem: Problem, *, searched: bool, values: Values = "fp32") -> Plan:
    """Give the steps used where no recipe is given.

    Args:
        problem: the promise; where a look at its samples is dear, final candidates spare nothing.
        searched: whether there is a tolerance to search for, or only a sparsity to go to.
        values: how they are stored. They are repaired as they are and then rounded, with a repair
            that sees rounded values after it: on a grid, most of what pruning costs is not won
            back.
    """
    polish = Polish(work=POLISHING if searched else POLISHING_ALONE)
    ways: Callable[[float], tuple[Step, ...]] = _once
    given = len(problem.fit[0])
    cost = Cost.of(problem.network, problem.reference, problem.fit, problem.effort)
    work, further = (FINAL if searched else _work_alone(cost)), 0
    if points_of(cost, given) >= min(ENOUGH_POINTS, given):
        ways = partial(_twice, REHEARSING if searched else REHEARSING_ALONE)
        work = FINAL_SPARING if searched else work
        if cost.macs <= SMALL_MACS and cost.effort >= UNHURRIED:
            ways = partial(_either, ways, GRADUAL if searched else GRADUAL_ALONE)
            further = FURTHER if searched else 0
    return Plan(
        Chain(ways(work) if values == "fp32" else _stored(ways, work, values)),
        Chain(_once(ROUGH) if values == "fp32" else _stored(_once, ROUGH, values)),
        GAINS.get(values, GAIN),
        polish,
        further,
    )


def faithful_plan() -> Plan:
    """Give the greedy of seeds/sparsification_mathematics.md, to the letter and nothing else."""
    return Plan.of(Chain((Greedy(score="exact", between=Repair("lbfgs", work=MENDING)),)))


def _work_alone(cost: Cost) -> float:
    """Say how much work pays for the steps of a repair that runs once.

    More steps help until there are some thousand. Where one takes long, d falls with every one: by
    9 to 43 % with twice the work, on three networks of the zoo.
    """
    paid = cost.steps(ALONE, min(BATCH_ALONE, cost.batch)) / cost.effort
    return min(MOST_ALONE, max(ALONE, ALONE * STEPS_ALONE / paid))


def _once(work: float) -> tuple[Step, ...]:
    return Greedy(), Repair(work=work)


def _twice(share: float, work: float) -> tuple[Step, ...]:
    first = Repair(work=share * work)
    return Greedy(spare=SPARE, rehearsal=first), Repair(work=work - first.work)


def _either(
    ways: Callable[[float], tuple[Step, ...]], between: float, work: float
) -> tuple[Step, ...]:
    sparing, last = ways(work)
    gradual = Greedy(layerwise=EARLY, between=Repair(work=between))
    return (Best((Chain((sparing, last)), Chain((gradual, last)))),)


def _stored(
    ways: Callable[[float], tuple[Step, ...]], work: float, values: Values
) -> tuple[Step, ...]:
    after = ROUNDED * work
    return (*ways(work - after), Store(values), Repair(work=after))
