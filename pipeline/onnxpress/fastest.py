"""The fastest file within the tolerance: what is removed, so that onnxruntime has less to do.

Zeros in a dense weight buy no time. Two things do: units that are no longer there, and rows that
share their columns. Which of them is faster on a model, and whether either is, depends on its
layers and on the machine: so each is searched roughly for how far it can go, and its best candidate
is timed against the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxpress.candidates import over_free, rough_search
from onnxpress.objective import objective_of
from onnxpress.plans import FINAL, POLISHING, ROUGH, Plan
from onnxpress.search import Point, best_of, tolerance_of
from onnxpress.step import Chain
from onnxpress.steps.gather import HEIGHTS, Gather, gatherable
from onnxpress.steps.polish import Polish
from onnxpress.steps.repair import Repair
from onnxpress.steps.units import TRIFLE, Units, read_by
from onnxpress.unit_scores import runs_of
from onnxpress_adapters.errors import StepError
from onnxpress_exporters.gathered_times import GatheredTimes, gathered_times

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress_adapters.layers import Layer
    from onnxpress_adapters.weights import WeightKey
    from onnxpress_exporters.write import Form

MULTIPLE = 8
"""Units that leave together: kernels of matrices work on blocks of 8 columns or more."""

CHANNELS = 16
"""Channels that leave together: with AVX-512 onnxruntime convolves blocks of 16, filled or not."""

BEYOND = 4.0
"""Times the tolerance after which no more units leave."""

ENOUGH = 0.1
"""Share of the tolerance below which a rough candidate is not repaired."""

WIDE = 256
"""Rows and columns a matrix needs for its rows to be worth gathering for."""

GATHERED_SHARE = 0.25
"""Share of a model's multiplications that such matrices have to be, to be worth a search."""

MOST_TIMED = 24
"""Matrices that are timed in groups, those with most of the work; the others stay whole."""

Clock = Callable[["State", "Form"], float]
"""Gives the time of the file a state makes, as a share of the original's."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way to be faster.

    Attributes:
        name: what the report calls it.
        plan: the steps.
        form: how weights are written.
    """

    name: str
    plan: Plan
    form: Form


@dataclass(frozen=True, eq=False)
class Fastest:
    """The way to take.

    Attributes:
        way: None where none is faster than the original.
        points: what was tried on it.
        told: what was tried, in a line.
    """

    way: Way | None
    points: tuple[Point, ...]
    told: str


def ways_for(state: State, problem: Problem) -> tuple[Way, ...]:
    """List the ways a model has: units that can leave, and matrices wide enough to be gathered."""
    ways = []
    final, rough = Repair(work=FINAL, enough=TRIFLE), Repair(work=ROUGH, enough=ENOUGH)
    polish = Polish(work=POLISHING)
    if problem.groups is not None and read_by(problem.groups, state.free):
        units = Units(multiple=MULTIPLE, channels=CHANNELS, beyond=BEYOND)
        plan = Plan(Chain((units, final)), Chain((units, rough)), polish=polish)
        ways.append(Way("units", plan, "auto"))
    counts = runs_of(objective_of(problem), state)
    layers = [layer for layer in gatherable(problem.network.layers, state) if layer.key in counts]
    if _wide_share(layers, problem, counts) >= GATHERED_SHARE:
        gather = Gather(times=_timed(layers, problem, counts))
        plan = Plan(Chain((gather, final)), Chain((gather, rough)), polish=polish)
        ways.append(Way("rows in groups", plan, "gathered"))
    return tuple(ways)


def _wide_share(
    layers: Sequence[Layer], problem: Problem, counts: Mapping[WeightKey, float]
) -> float:
    """Give the share of a sample's multiplications that wide matrices are."""
    known = [layer for layer in problem.network.layers if layer.key in counts]
    work = {layer.key: counts[layer.key] * layer.rows * layer.columns for layer in known}
    wide = (layer for layer in layers if min(layer.rows, layer.columns) >= WIDE)
    return sum(work[layer.key] for layer in wide) / max(sum(work.values()), 1.0)


def _timed(
    layers: Sequence[Layer], problem: Problem, counts: Mapping[WeightKey, float]
) -> tuple[tuple[str, GatheredTimes], ...]:
    """Time the matrices with most of the work, one of each size."""
    most = sorted(
        layers, key=lambda layer: (-counts[layer.key] * layer.rows * layer.columns, layer.key)
    )[:MOST_TIMED]
    sizes: dict[tuple[int, int, int], GatheredTimes] = {}
    found = []
    for layer in most:
        size = layer.rows, layer.columns, max(1, round(counts[layer.key]))
        if size not in sizes:
            problem.progress("pressing", 0.0, f"timing {size[0]} x {size[1]} in groups of rows")
            sizes[size] = gathered_times(*size, HEIGHTS)
        found.append((str(layer.key), sizes[size]))
    return tuple(found)


def choose_way(
    ways: Sequence[Way],
    state: State,
    problem: Problem,
    clock: Clock,
    *,
    sparsity: float | None = None,
    deadline: float | None = None,
) -> Fastest:
    """Find the fastest way by rough candidates on the choose set.

    Args:
        ways: to choose from.
        state: where to begin.
        problem: the promise; it has a tolerance.
        clock: times a candidate.
        sparsity: zeros over all prunable weights, the least to accept; None for any.
        deadline: a moment of ``time.monotonic``; half of the time until then is for this.

    Raises:
        MisuseError: the sparsity cannot be reached with the weights that may change.
    """
    floor = 0.0 if sparsity is None else over_free(state, sparsity)
    found: list[tuple[float, Way, tuple[Point, ...]]] = []
    lines = []
    for way in ways:
        search = rough_search(way.plan, problem, floor, deadline)
        limit = tolerance_of(problem) * search.margin
        try:
            points = tuple(search.points(state, problem))
        except StepError as error:
            lines.append(f"{way.name} ({error})")
            continue
        best = best_of(points, limit)
        if best.bound > limit:
            lines.append(f"{way.name} (beyond the tolerance at sparsity {best.sparsity:.2f})")
            continue
        problem.progress("pressing", 0.6, f"timing {way.name} at sparsity {best.sparsity:.3f}")
        ratio = clock(best.state, way.form)
        lines.append(f"{way.name} (sparsity {best.sparsity:.2f}: {ratio:.2f} of the time)")
        found.append((ratio, way, points))
        if any(point.notes for point in points):  # interrupted
            break
    told = (
        f"tried {', '.join(lines)}"
        if lines
        else "no units can leave, and wide matrices are not what takes the time"
    )
    ratio, chosen, points = min(found, key=lambda one: one[0], default=(1.0, None, ()))
    return Fastest(chosen if ratio < 1 else None, points if ratio < 1 else (), told)
