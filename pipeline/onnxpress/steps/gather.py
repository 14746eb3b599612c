"""Gather: rows share their columns, in groups as high as pays, where that makes a layer faster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, prod
from typing import TYPE_CHECKING

from onnxpress.allocate import allocate
from onnxpress.layerwise import Curve, curves_of
from onnxpress.objective import Objective, objective_of
from onnxpress.pattern import Pattern
from onnxpress.step import target_count
from onnxpress.steps.greedy import Greedy, is_untouched
from onnxpress.unit_scores import runs_of
from onnxpress_adapters.errors import SparsityError, StepError
from onnxpress_exporters.gathered import GATHERING
from onnxpress_exporters.gathered_times import GatheredTimes

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress_adapters.layers import Layer
    from onnxpress_adapters.weights import WeightKey

HEIGHTS = (32, 64, 128, 256)
"""Rows in a group, to choose from."""

SMALLEST = 64
"""Rows and columns a matrix needs, or nothing is gained by gathering for it."""

PRECISION = 1 << 20
"""Into how many parts the time of all whole matrices is divided."""

HALVINGS = 24


@dataclass(frozen=True)
class Gather:
    """Prune matrices so that groups of rows share their columns, as many in every group.

    Zeros alone make nothing faster; a group of rows that reads few columns does, by a Gather and a
    small dense product. How high the groups of a layer are and how many columns they keep is
    chosen over all layers together, by dynamic programming: the least d, as measured with each
    layer alone, at a given time, as measured for a layer of its size. A layer that would be no
    faster stays whole, and so do convolutions wider than a point, recurrent weights and what is no
    plain matrix on the right: zeros in them would cost d and gain nothing.

    From a network that is pruned already, columns of groups of one height leave in blocks, as
    ``Greedy`` has it.

    Attributes:
        sparsity: share of zeros over the free weights, 0 to 1; None for a search to find.
        heights: rows in a group, to choose from.
        times: what each weight's product takes, by the weight's name; without them, one counts
            multiplications.

    Source:
        FACTS section 2, "What really is faster in stock onnxruntime"; the allocation is that of
        ``layerwise.allocated`` with times in the place of entries.
    """

    sparsity: float | None = None
    heights: tuple[int, ...] = HEIGHTS
    times: tuple[tuple[str, GatheredTimes], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Refuse heights that are none."""
        if not self.heights or min(self.heights) < 1:
            raise StepError(f"groups have heights from 1 on, not {self.heights}")

    def at(self, sparsity: float) -> Gather:
        """Give the same step with its sparsity fixed."""
        return replace(self, sparsity=sparsity)

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Prune to the sparsity.

        Raises:
            SparsityError: the layers that can be gathered do not have as many entries to lose.
        """
        if self.sparsity is None:
            raise StepError(f"{self} has no sparsity: give it one, or put it in a search")
        objective = objective_of(problem)
        goal = target_count(state, self.sparsity)
        if goal >= state.kept:
            return state
        if not is_untouched(state, problem):
            height = self.heights[len(self.heights) // 2]
            return Greedy(sparsity=self.sparsity, pattern=f"even:{height}")(state, problem)
        options = self._options(state, objective)
        others = state.kept - sum(whole[0].count for whole in options.values())
        chosen = _cheapest(list(options.values()), goal - others)
        if chosen is None:
            least = sum(min(one.count for one in some) for some in options.values()) + others
            raise SparsityError(
                f"a sparsity of {self.sparsity:.0%} cannot be reached by rows that share their "
                f"columns: the layers that can be written so are enough for "
                f"{1 - least / max(1, state.kept):.0%}"
            )
        chosen = _filled(chosen, goal - others)
        changed = {one.curve.key: one.curve.at(one.count) for one in chosen if one.curve}
        told = ", ".join(one.told for one in chosen if one.curve)
        return state.with_weights(changed).noted(f"rows in groups: {told}")

    def _options(self, state: State, objective: Objective) -> dict[WeightKey, list[_Option]]:
        """List what each layer can be: whole first, then groups by height and columns."""
        known = dict(self.times)
        layers = {
            layer.key: layer
            for layer in gatherable(objective.problem.network.layers, state)
            if not known or str(layer.key) in known
        }
        runs = runs_of(objective, state)
        times = {
            key: known.get(str(key)) or _counted(layer, runs.get(key, 1.0), self.heights)
            for key, layer in layers.items()
        }
        found = {
            key: [_Option(state.weights[key].nonzeros, times[key].whole, 0.0)] for key in layers
        }
        narrowed = replace(state, free=frozenset(layers))
        # Each height takes a trace of its own; together they may take as long as one.
        cost = replace(objective.cost, effort=objective.cost.effort / len(self.heights))
        shared = replace(objective, cost=cost)
        for height in self.heights:
            if not any(layer.rows >= height for layer in layers.values()):
                continue
            for curve in curves_of(shared, narrowed, Pattern(rows=height, even=True)):
                options, taken = found[curve.key], times[curve.key]
                if height not in (tried for tried, _, _ in taken.heights):
                    continue
                for count, loss in zip(curve.counts(), curve.losses, strict=True):
                    seconds = taken.seconds(height, count / layers[curve.key].rows)
                    if count and seconds < options[0].seconds and isfinite(loss):
                        options.append(_Option(count, seconds, loss, height, curve))
        return found


@dataclass(frozen=True, eq=False)
class _Option:
    """What one layer can be.

    Attributes:
        count: entries it keeps.
        seconds: its product takes.
        loss: d measured with only this layer so.
        height: rows in a group; 0 for the whole matrix.
        curve: makes it; None for the whole matrix.
    """

    count: int
    seconds: float
    loss: float
    height: int = 0
    curve: Curve | None = None

    @property
    def told(self) -> str:
        """What it is, in words."""
        if self.curve is None or self.curve.layer is None:
            return ""
        layer = self.curve.layer
        return (
            f"{layer.key} {self.height} rows by {self.count // layer.rows} of {layer.columns} "
            "columns"
        )


def gatherable(layers: Iterable[Layer], state: State) -> list[Layer]:
    """Pick the layers whose rows can be written in groups, and are enough to be worth it."""
    return [
        layer
        for layer in layers
        if layer.key in state.free
        and not layer.key.path
        and layer.slot == 1
        and layer.groups == 1
        and min(layer.rows, layer.columns) >= SMALLEST
        and (
            layer.node.operator in ("MatMul", "Gemm")
            or (layer.node.operator == "Conv" and prod(layer.shape[2:]) == 1)
        )
    ]


def _counted(layer: Layer, runs: float, heights: Sequence[int]) -> GatheredTimes:
    """Give multiplications for seconds, where nothing was timed."""
    return GatheredTimes(
        runs * layer.rows * layer.columns,
        tuple((height, 0.0, runs * layer.rows * (1 + GATHERING / height)) for height in heights),
    )


def _cheapest(options: Sequence[Sequence[_Option]], goal: int) -> list[_Option] | None:
    """Choose for each layer, with the least d at a time, the longest in which few enough stay.

    Args:
        options: of each layer, the whole matrix first.
        goal: entries that may stay.

    Returns:
        The options; None where even the least keep more.
    """
    if sum(min(one.count for one in some) for some in options) > goal:
        return None
    total = sum(some[0].seconds for some in options)
    unit = max(total, 1e-30) / PRECISION
    sizes = [[round(one.seconds / unit) for one in some] for some in options]
    losses = [[one.loss for one in some] for some in options]
    low, high = sum(map(min, sizes)), PRECISION + len(sizes)
    best: list[_Option] | None = None
    for _ in range(HALVINGS):
        if high - low <= 1:
            break
        budget = (low + high) // 2
        try:
            levels = allocate(losses, sizes, budget)
        except StepError:  # rounded up, not even the fastest fit
            low = budget
            continue
        picked = [some[level] for some, level in zip(options, levels, strict=True)]
        if sum(one.count for one in picked) <= goal:
            best, low = picked, budget
        else:
            high = budget
    if best is None:  # the fastest keep more than some slower ones do
        best = [min(some, key=lambda one: one.count) for some in options]
    return best


def _filled(chosen: Sequence[_Option], goal: int) -> list[_Option]:
    """Let the groups keep what the levels have left of the entries that may stay."""
    grouped = sum(one.count for one in chosen if one.curve)
    share = (goal - sum(one.count for one in chosen)) / max(1, grouped)
    filled = []
    for one in chosen:
        if one.curve is not None and one.curve.layer is not None:
            layer = one.curve.layer
            width = int(one.count / layer.rows * (1 + share) + 1e-9)
            one = replace(one, count=layer.rows * min(layer.columns, width))
        filled.append(one)
    return filled
