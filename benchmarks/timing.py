"""Times of several files side by side: one run of each in turns, so that noise hits all alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter, thread_time
from typing import Any

WARM = 5
LEAST = 9
SECONDS = 6.0

Run = Callable[[Any], Sequence[Any]]


def interleaved(
    runs: Sequence[Run], feed: Any, rounds: int, seconds: float = SECONDS
) -> list[float]:
    """Time files in turns on one thread.

    Args:
        runs: give the answers of a file to a feed; the first is what the others are held against.
        feed: the input.
        rounds: runs of each, at most.
        seconds: after which it ends, with ``LEAST`` runs of each.

    Returns:
        Seconds of processor time, so that what else a machine does is not counted: the median of
        the first, and of each other one that times the median of its share of the first in the same
        turn. A processor that runs now faster and now slower does so for both of a turn.
    """
    for run in runs:
        for _ in range(WARM):
            run(feed)
    taken: list[list[float]] = [[] for _ in runs]
    permutations = list(itertools.permutations(range(len(runs))))
    begin = perf_counter()
    while len(taken[0]) < rounds and (len(taken[0]) < LEAST or perf_counter() - begin < seconds):
        # Each file comes after each other one equally often: what ran before fills the caches.
        for place in permutations[len(taken[0]) % len(permutations)]:
            start = thread_time()
            runs[place](feed)
            taken[place].append(thread_time() - start)
    first = taken[0]
    shares = [median(b / a for a, b in zip(first, each, strict=True)) for each in taken]
    return [median(first) * share for share in shares]
