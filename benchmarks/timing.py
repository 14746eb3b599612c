"""Times of several files side by side: one run of each in turns, so that noise hits all alike."""

from __future__ import annotations

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
    orders = balanced_orders(len(runs))
    begin = perf_counter()
    while len(taken[0]) < rounds and (len(taken[0]) < LEAST or perf_counter() - begin < seconds):
        # Each file comes after each other one equally often: what ran before fills the caches.
        for place in orders[len(taken[0]) % len(orders)]:
            start = thread_time()
            runs[place](feed)
            taken[place].append(thread_time() - start)
    first = taken[0]
    shares = [median(b / a for a, b in zip(first, each, strict=True)) for each in taken]
    return [median(first) * share for share in shares]


def balanced_orders(count: int) -> list[list[int]]:
    """List orders of so many things, in which each comes right after each other equally often.

    Williams' design: one order that goes to and fro, 0, 1, n - 1, 2, n - 2, ..., its turns by one
    each, and for an odd count those from the back as well.

    >>> balanced_orders(3)
    [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 2, 1], [1, 0, 2]]
    """
    first = [(-(place // 2) if place % 2 == 0 else (place + 1) // 2) for place in range(count)]
    orders = [[(place + turn) % count for place in first] for turn in range(count)]
    return orders if count % 2 == 0 else orders + [order[::-1] for order in orders]
