"""The smallest file within the tolerance: how values are stored, and how sparse that may be.

Fewer bits for each value leave less of the tolerance for zeros, and how much less only a trial
tells. A search with values that cost next to nothing comes first and says how sparse the network
can get. Then each other storage is asked one question: at the sparsity where it would take a little
fewer bytes, is it within the tolerance as well? One that is goes on from there, and is the one to
beat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from time import monotonic
from typing import TYPE_CHECKING

from onnxpress.candidates import Candidate, over_free, rough_search
from onnxpress.plans import Plan, default_plan
from onnxpress.search import INTERRUPTED, Point, Search, best_of, tolerance_of, tried
from onnxpress.step import Chain, checked
from onnxpress.steps.store import Store, Values
from onnxpress_exporters.packable import unpackable

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress_adapters.weights import WeightKey

BITS: Mapping[Values, float] = {"fp32": 32, "fp16": 16, "int8": 8, "int6": 6, "int5": 5, "int4": 4}
"""Bits a stored value takes, the most first."""

FIRST: Values = "int6"
"""What is tried first; where no sparsity is within the tolerance, those of more bits are."""

FEW = 1 << 15
FIRST_OF_FEW: Values = "int8"
"""What is tried first with fewer weights: whole bytes need the least to decode them."""

WORTH = 0.97
"""Share of the bytes another storage has to take to be worth a trial."""

GIVING_UP = 3
"""Candidates after which a storage is given up where none was within the tolerance."""

CODED = 1.1
"""Places take a bit each in a mask, or about so many times their entropy as gaps."""


@dataclass(frozen=True, eq=False)
class Choice:
    """How values are to be stored.

    Attributes:
        plan: the steps that do so.
        points: what was tried with them.
        told: what was tried and what came of it, in a line.
    """

    plan: Plan
    points: tuple[Point, ...]
    told: str


SAFE: Values = "fp16"
"""What hardly moves an output and is half as large."""

REFUSED = "onnxruntime put all that was chosen outside the tolerance; the values are written as"


def bits_per_weight(sparsity: float, values: Values) -> float:
    """Estimate what a weight takes in a packed file, its place and its value, without decoders.

    >>> bits_per_weight(0.0, "int8"), bits_per_weight(0.5, "int4")
    (8.0, 3.0)
    """
    kept = 1.0 - sparsity
    entropy = -sum(share * log2(share) for share in (kept, sparsity) if share > 0)
    return min(float(BITS[values]), min(1.0, CODED * entropy) + kept * BITS[values])


def breaking_even(bits: float, values: Values) -> float:
    """Give the least sparsity at which a weight takes no more than so many bits.

    >>> breaking_even(4.0, "int4"), round(breaking_even(3.0, "int4"), 6)
    (0.0, 0.5)
    """
    if bits_per_weight(0.0, values) <= bits:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if bits_per_weight(middle, values) <= bits else (middle, high)
    return high


def choose(
    storages: Sequence[Values],
    state: State,
    problem: Problem,
    weigh: Callable[[State], int],
    *,
    pattern: str = "none",
    sparsity: float | None = None,
    deadline: float | None = None,
) -> Choice:
    """Choose how values are stored, by rough candidates on the choose set.

    Args:
        storages: to choose from.
        state: where to begin.
        problem: the promise; it has a tolerance.
        weigh: gives the bytes of the file a state makes.
        pattern: of the zeros, as ``Greedy`` takes it.
        sparsity: zeros over all prunable weights, the least to accept; None for any.
        deadline: a moment of ``time.monotonic``; half of the time until then is for this.

    Raises:
        MisuseError: the sparsity cannot be reached with the weights that may change.
    """
    floor = 0.0 if sparsity is None else over_free(state, sparsity)
    ranked = [values for values in BITS if values in storages]
    entries = sum(state.weights[key].values.numel() for key in state.free)
    least = BITS[FIRST_OF_FEW if entries < FEW else FIRST]
    first = max((place for place, each in enumerate(ranked) if BITS[each] >= least), default=0)
    lines = []
    sizes: dict[int, int] = {}

    def size(found: State) -> int:
        if id(found) not in sizes:
            sizes[id(found)] = weigh(found)
        return sizes[id(found)]

    for place in range(first, -1, -1):
        best = _Trial.of(ranked[place], pattern, problem, floor, deadline).searched(state, problem)
        lines.append(best.told(size))
        if best.is_within:
            break
    for values in ranked[first + 1 :] if best.values == ranked[first] and best.is_within else ():
        if best.is_over:
            break
        other = _Trial.of(values, pattern, problem, floor, deadline)
        try:
            other = other.against(best, state, problem)
        except KeyboardInterrupt:
            best = replace(best, points=tuple(_interrupted(point) for point in best.points))
            break
        lines.append(other.told(size))
        if not other.is_within or other.size_bytes(size) >= best.size_bytes(size):
            break
        best = other
    return Choice(best.plan, best.points, f"values as {best.values}; tried {', '.join(lines)}")


def at_least(storages: Sequence[Values], state: State, problem: Problem) -> Candidate | None:
    """Give what there is to write where the judge refused all that was chosen: halves, all of them.

    Args:
        storages: that the model allows.
        state: where to begin.
        problem: the promise.
    """
    if SAFE not in storages:
        return None
    steps = Chain((Store(SAFE),))
    return Candidate(checked(steps, state, problem), steps, (f"{REFUSED} {SAFE}, unpruned",))


def storages_for(
    model: ModelProto, free: Collection[WeightKey], *, freeze: bool
) -> tuple[Values, ...]:
    """List how values can be stored: as they are where no weight can be packed.

    Args:
        model: the original.
        free: the weights that may change.
        freeze: whether weights that are inputs as well may be packed.
    """
    held = unpackable(model, freeze=freeze)
    return ("fp32",) if all(key in held for key in free) else tuple(BITS)


@dataclass(frozen=True, eq=False)
class _Trial:
    """A way to store values, and what was tried with it.

    Attributes:
        values: the way.
        plan: the steps.
        search: for the sparsity.
        limit: for a candidate's bound.
        points: tried so far.
    """

    values: Values
    plan: Plan
    search: Search
    limit: float
    points: tuple[Point, ...] = ()

    @classmethod
    def of(
        cls, values: Values, pattern: str, problem: Problem, floor: float, deadline: float | None
    ) -> _Trial:
        """Begin with nothing tried."""
        plan = default_plan(problem, searched=True, values=values).following(pattern)
        search = rough_search(plan, problem, floor, deadline)
        return cls(values, plan, search, tolerance_of(problem) * search.margin)

    @property
    def is_within(self) -> bool:
        """Whether some candidate is within the limit."""
        return any(point.bound <= self.limit for point in self.points)

    @property
    def is_over(self) -> bool:
        """Whether somebody or the clock wants an end."""
        late = self.search.deadline is not None and monotonic() > self.search.deadline
        return late or any(point.notes for point in self.points)

    def size_bytes(self, weigh: Callable[[State], int]) -> int:
        """Weigh the best candidate."""
        return weigh(best_of(self.points, self.limit).state)

    def told(self, weigh: Callable[[State], int]) -> str:
        """Say what came of it, for the report."""
        if self.is_within:
            reached = best_of(self.points, self.limit).sparsity
            size = self.size_bytes(weigh)
            return f"{self.values} (within at sparsity {reached:.2f}: {size:,} bytes)"
        least = min(self.points, key=lambda point: point.sparsity)
        return f"{self.values} (beyond at sparsity {least.sparsity:.2f})"

    def searched(self, state: State, problem: Problem) -> _Trial:
        """Look for the sparsity; soon give up where nothing is within."""
        begun = replace(self.search, rounds=GIVING_UP)
        tried_ = self._with(begun.points(state, problem, self.points))
        if not tried_.is_within or tried_.is_over:
            return tried_
        return tried_._with(self.search.points(state, problem, tried_.points))

    def against(self, best: _Trial, state: State, problem: Problem) -> _Trial:
        """Try the sparsity that would make a smaller file than the best so far; go on if it can."""
        reached = best.search.proposal(best.points, best.limit)
        worth = WORTH * bits_per_weight(reached, best.values)
        sparsity = max(self.search.floor, breaking_even(worth, self.values))
        problem.progress("pressing", 0.5, f"trying {self.values} at sparsity {sparsity:.3f}")
        found = self._with([tried(self.plan.rough, sparsity, state, problem)])
        if not found.is_within or found.is_over:
            return found
        return found._with(self.search.points(state, problem, found.points))

    def _with(self, points: Sequence[Point]) -> _Trial:
        return replace(self, points=tuple(points))


def _interrupted(point: Point) -> Point:
    return replace(point, notes=(*point.notes, INTERRUPTED))
