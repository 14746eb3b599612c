"""How long two models take in onnxruntime, measured against each other.

One run after the other tells little: a machine gets warm, another process wakes up. So the two are
run in turns, each turn gives one ratio, and the ratio of the whole is their median, with an
interval that holds whatever the times are distributed like.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import comb
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CONFIDENCE = 0.95
"""Of the interval around a ratio."""

MOST_FEEDS = 16
"""Inputs a race goes through in a circle, at most."""

FEWEST_TURNS = 11
"""So many turns are run even where they take longer than they should."""

MOST_TURNS = 2001

WARMING = 3
"""Runs of each model before anything counts: the first ones allocate."""

TURN_SECONDS = 1e-3
"""A model runs so often in each turn that this is its least length: a clock and the call itself
have their own noise."""


class Answering(Protocol):
    """A model that can be run: ``onnxpress_exporters.compare.Runner``."""

    def run(self, feed: dict[str, np.ndarray], /) -> object:
        """Run it once."""
        ...


@dataclass(frozen=True)
class Race:
    """How long two models took, turn by turn.

    Attributes:
        first: seconds of one run of the first model in each turn.
        second: of the second model in the same turns.
    """

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """The second model's time as a share of the first one's, in each turn."""
        return tuple(b / a for a, b in zip(self.first, self.second, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the ratios: below 1, the second model is faster."""
        return median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the median of all such ratios lies, with ``CONFIDENCE``."""
        return median_interval(self.ratios, CONFIDENCE)


def median_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Bound the median of a distribution by two of the values drawn from it.

    Of ``n`` values, the number below the median is binomial with a half, whatever the distribution:
    so the k-th from either end bound it with a confidence that can be counted out.

    Args:
        values: at least one; independent draws.
        confidence: at least this much, where there are enough values; the extremes otherwise.

    Source:
        Hahn & Meeker 1991, Statistical Intervals, 5.2.

    >>> median_interval([5.0, 1.0, 2.0, 4.0, 3.0, 6.0], 0.95)
    (1.0, 6.0)
    """
    ordered = sorted(values)
    count = len(ordered)
    allowed = Fraction(1 - confidence) * 2**count
    outside, trim = 0, 0  # what both tails hold, in parts of 2 ** count
    while trim < (count - 1) // 2:
        outside += 2 * comb(count, trim)
        if outside > allowed:
            break
        trim += 1
    place = max(0, trim - 1)
    return ordered[place], ordered[count - 1 - place]


def spread(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Give the 5th, the 50th and the 95th percentile of at least two times.

    >>> spread([float(n) for n in range(101)])
    (5.0, 50.0, 95.0)
    """
    parts = quantiles(seconds, n=20, method="inclusive")
    return parts[0], median(seconds), parts[-1]


def feeds_of(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Cut samples into what one run takes each, ``MOST_FEEDS`` of them at most.

    Args:
        arrays: by input ``[samples, *feed shape]``.
    """
    samples = min(len(array) for array in arrays.values())
    return [
        {name: np.asarray(array[place]) for name, array in arrays.items()}
        for place in range(min(samples, MOST_FEEDS))
    ]


def race(
    first: Answering,
    second: Answering,
    feeds: Sequence[dict[str, np.ndarray]],
    seconds: float,
    progress: Callable[[float], None] = lambda done: None,
) -> Race:
    """Run two models in turns on the same inputs, which of them first by turns too.

    Args:
        first: the model to compare with.
        second: the other one, with the same inputs.
        feeds: what one run takes; gone through in a circle.
        seconds: about how long to go on.
        progress: told how much is done, 0 to 1.

    Returns:
        An odd number of turns, at least ``FEWEST_TURNS``.

    Raises:
        ExportError: a model cannot run these inputs.
    """
    runners = (first, second)
    for runner in runners:
        for turn in range(WARMING):
            runner.run(feeds[turn % len(feeds)])
    repeats = [1, 1]
    for place, runner in enumerate(runners):
        alone = _seconds(runner, feeds[0], 1)
        repeats[place] = max(1, round(TURN_SECONDS / max(alone, 1e-9)))
    times: tuple[list[float], list[float]] = ([], [])
    start = perf_counter()
    for turn in range(MOST_TURNS):
        spent = perf_counter() - start
        if turn >= FEWEST_TURNS and turn % 2 and spent > seconds:
            break
        progress(min(1.0, spent / seconds) if seconds > 0 else 1.0)
        feed = feeds[turn % len(feeds)]
        for place in (0, 1) if turn % 2 else (1, 0):
            times[place].append(_seconds(runners[place], feed, repeats[place]))
    return Race(tuple(times[0]), tuple(times[1]))


def _seconds(runner: Answering, feed: dict[str, np.ndarray], repeats: int) -> float:
    """Time one run, as the mean of several without a pause."""
    start = perf_counter()
    for _ in range(repeats):
        runner.run(feed)
    return (perf_counter() - start) / repeats
