"""What a step is, how steps compose, and what is checked around each call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import inf, isfinite
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import torch

from onnxpress.memory import Batch
from onnxpress.objective import objective_of
from onnxpress.storage import stored
from onnxpress_adapters.errors import MisuseError, OnnxpressError, SparsityError, StepError
from onnxpress_adapters.weights import Dense, WeightKey

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State


class Step(Protocol):
    """Turn one pruning state into the next; never edit the one given."""

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Give the next state."""
        ...


@runtime_checkable
class Budgeted(Protocol):
    """A step with a target sparsity over the free weights, which a search may choose.

    ``sparsity`` is the share of zeros over all entries of the free weights, 0 to 1, or None while
    nobody has fixed it. A budgeted step continues from the state it is given: entries already
    pruned stay pruned unless the method is one that lets them return.
    """

    @property
    def sparsity(self) -> float | None:
        """The target, or None."""
        ...

    def at(self, sparsity: float) -> Self:
        """Give the same step with its target fixed."""
        ...

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Give the next state."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A budgeted step that can also be told another way how far to go, such as by a penalty."""

    @property
    def is_bounded(self) -> bool:
        """Whether it knows how far to go; a search then leaves its sparsity alone."""
        ...

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Give the next state."""
        ...


@runtime_checkable
class Patterned(Protocol):
    """A step that can hold a pattern of zeros, such as 2:4 (``Pattern.parse``)."""

    def following(self, pattern: str) -> Self:
        """Give the same step with its pattern set."""
        ...

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Give the next state."""
        ...


@runtime_checkable
class Around(Protocol):
    """A step that runs another one in its own way."""

    @property
    def step(self) -> Step:
        """The other one."""
        ...

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Give the next state."""
        ...


@dataclass(frozen=True)
class Chain:
    """Run steps left to right. A chain is a step."""

    steps: tuple[Step, ...]

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Run every step, each checked; an error says in which step it happened."""
        for place, step in enumerate(self.steps, start=1):
            try:
                state = checked(step, state, problem)
            except OnnxpressError as error:
                error.add_note(f"in step {place} of {len(self.steps)}: {step}")
                raise
        return state


@dataclass(frozen=True)
class Best:
    """Run every step from the same state, and keep what is nearest to the original.

    Ways to the same sparsity, no state of one seen by another; d on the choose set says which of
    them stays, the first where two are as near. One whose outputs are not finite is the furthest.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        """Refuse ways that cannot be compared: none, or to sparsities of different origin."""
        if not self.steps:
            raise MisuseError("there is nothing to choose from: give `best` at least one step")
        if len({is_open(step) for step in self.steps}) > 1:
            raise MisuseError(
                "some steps of `best` have a sparsity and others leave it open, so the nearest "
                "would be the least sparse: give all of them one, or none"
            )

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Run all, each checked; the log says how near each came."""
        objective = objective_of(problem)
        found = []
        for step in self.steps:
            after = checked(step, state, problem)
            found.append((objective.measure_choose(after.tensors).value, after))
        distances = [distance for distance, _ in found]
        finite = [distance if isfinite(distance) else inf for distance in distances]
        nearest = finite.index(min(finite))
        told = ", ".join(f"{distance:.3g}" for distance in distances)
        return found[nearest][1].noted(f"way {nearest + 1} of {len(found)}: d = {told} on choose")


@dataclass(frozen=True)
class Only:
    """Run a step on the free weights whose name matches a pattern (``fnmatch``, case counts)."""

    pattern: str
    step: Step

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Narrow ``free``, run, widen it again.

        Raises:
            StepError: no free weight matches.
        """
        free = frozenset(key for key in state.free if matches(key, self.pattern))
        if not free:
            known = ", ".join(sorted(str(key) for key in state.free)[:5])
            raise StepError(
                f"no free weight matches '{self.pattern}'; free weights begin with: {known}"
            )
        narrowed = replace(state, free=free)
        return replace(checked(self.step, narrowed, problem), free=state.free)


def matches(key: WeightKey, pattern: str) -> bool:
    """Say whether a pattern means a weight; an exact name does, even one with brackets in it."""
    return str(key) == pattern or fnmatchcase(str(key), pattern)


def checked(step: Step, state: State, problem: Problem) -> State:
    """Run a step and hold it to its contract.

    Returns:
        The next state, with what the step changed rounded to what the file can hold.

    Raises:
        StepError: it lost or invented weights, touched one that was not free, left something other
            than exact zeros outside a support, or returned values that are not finite.
    """
    after = _remarked(step(state, problem), problem)
    if after.weights.keys() != state.weights.keys() or after.extras.keys() != state.extras.keys():
        raise StepError(f"{step} lost or invented weights")
    for key, form in after.weights.items():
        if form is state.weights[key]:
            continue
        if key not in state.free:
            raise StepError(f"{step} changed '{key}', which is not free")
        _check_form(key, form, step)
    for key, values in after.extras.items():
        if values is not state.extras[key] and not bool(torch.isfinite(values).all()):
            raise StepError(f"{step} left values in '{key}' that are not finite")
    return stored(after, state, problem)


def _remarked(state: State, problem: Problem) -> State:
    """Say in the log, once, that memory ran out."""
    batch = problem.memo.get("batch")
    note = batch.note if isinstance(batch, Batch) else None
    return state if note is None or note in state.log else state.noted(note)


def _check_form(key: WeightKey, form: Dense, step: Step) -> None:
    if not bool(torch.isfinite(form.values).all()):
        raise StepError(f"{step} left values in '{key}' that are not finite")
    if bool(form.values[~form.support].ne(0).any()):
        raise StepError(f"{step} left nonzeros outside the support of '{key}'")


def inside(step: Step) -> Iterator[Step]:
    """Give a step and all that are made of it: in chains, among the best, under a name, searched.

    >>> [type(each).__name__ for each in inside(Chain((Only("a", Chain(())), Chain(()))))]
    ['Chain', 'Only', 'Chain', 'Chain']
    """
    yield step
    if isinstance(step, Chain | Best):
        for inner in step.steps:
            yield from inside(inner)
    elif isinstance(step, Around):
        yield from inside(step.step)


def is_open(step: Step) -> bool:
    """Say whether a step, or one inside it, waits for a search to fix its sparsity."""
    if isinstance(step, Chain | Best):
        return any(is_open(inner) for inner in step.steps)
    if isinstance(step, Only):
        return is_open(step.step)
    if isinstance(step, Bounded) and step.is_bounded:
        return False
    return isinstance(step, Budgeted) and step.sparsity is None


def fix(step: Step, sparsity: float) -> Step:
    """Give a step with every open sparsity in it fixed.

    Raises:
        SparsityError: ``sparsity`` is not between 0 and 1.
    """
    check_sparsity(sparsity)
    if isinstance(step, Chain | Best):
        return replace(step, steps=tuple(fix(inner, sparsity) for inner in step.steps))
    if isinstance(step, Only):
        return replace(step, step=fix(step.step, sparsity))
    if isinstance(step, Budgeted) and is_open(step):
        return step.at(sparsity)
    return step


def follow(step: Step, pattern: str) -> Step:
    """Give a step, and the steps in it, with the pattern of zeros set wherever one can be."""
    if isinstance(step, Chain | Best):
        return replace(step, steps=tuple(follow(inner, pattern) for inner in step.steps))
    if isinstance(step, Only):  # its own pattern is one of names
        return replace(step, step=follow(step.step, pattern))
    if isinstance(step, Patterned):
        return step.following(pattern)
    return step


def check_sparsity(sparsity: float) -> None:
    """Raise unless a sparsity lies between 0 and 1."""
    if not 0 <= sparsity <= 1:
        raise SparsityError(f"a sparsity lies between 0 and 1, not at {sparsity:g}")


def target_count(state: State, sparsity: float) -> int:
    """Count the nonzeros a sparsity over the free weights leaves, rounded so that it is reached."""
    check_sparsity(sparsity)
    entries = sum(state.weights[key].values.numel() for key in state.free)
    return entries - min(entries, -int(-sparsity * entries // 1))
