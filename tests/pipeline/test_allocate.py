"""Allocation against brute force."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from onnxpress import allocate as module
from onnxpress.allocate import allocate
from onnxpress_adapters.errors import StepError

Table = list[list[float]]
Sizes = list[list[int]]


def instance(seed: int) -> tuple[Table, Sizes, int]:
    """Three layers with four levels each, sizes falling and losses rising."""
    rng = np.random.default_rng(seed)
    losses = [[0.0, *np.sort(rng.exponential(size=3)).tolist()] for _ in range(3)]
    sizes = [sorted(rng.integers(1, 60, size=4).tolist(), reverse=True) for _ in range(3)]
    least, most = sum(s[-1] for s in sizes), sum(s[0] for s in sizes)
    return losses, sizes, int(rng.integers(least, most + 1))


def total(table: Sequence[Sequence[float]], levels: Sequence[int]) -> float:
    return sum(layer[level] for layer, level in zip(table, levels, strict=True))


def brute_force(losses: Table, sizes: Sizes, budget: int) -> float:
    every = product(*(range(len(layer)) for layer in losses))
    return min(total(losses, levels) for levels in every if total(sizes, levels) <= budget)


@pytest.mark.parametrize("seed", range(40))
def test_it_equals_brute_force(seed: int) -> None:
    losses, sizes, budget = instance(seed)
    found = allocate(losses, sizes, budget)
    assert total(sizes, found) <= budget
    assert total(losses, found) == pytest.approx(brute_force(losses, sizes, budget))


@pytest.mark.parametrize("seed", range(40))
def test_rounding_costs_at_most_a_bucket_per_layer(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUCKETS", 16)
    losses, sizes, budget = instance(seed)
    unit = max(1.0, budget / 16)
    try:
        found = allocate(losses, sizes, budget)
    except StepError:
        # Even the smallest sizes, rounded up, did not fit.
        assert sum(np.ceil(layer[-1] / unit) for layer in sizes) > int(budget / unit)
        return
    assert total(sizes, found) <= budget
    tighter = int(budget - (len(sizes) + 1) * unit)
    if tighter >= sum(layer[-1] for layer in sizes):
        assert total(losses, found) <= brute_force(losses, sizes, tighter) + 1e-12


def test_a_large_budget_is_shared_in_buckets() -> None:
    sizes = [[1_000_000, 500_000, 0], [3_000_000, 1_500_000, 0]]
    losses = [[0.0, 0.1, 5.0], [0.0, 0.4, 9.0]]
    assert allocate(losses, sizes, 3_510_000) == [1, 0]
    assert allocate(losses, sizes, 2_510_000) == [0, 1]
    assert allocate(losses, sizes, 2_010_000) == [1, 1]


def test_the_lower_level_wins_a_tie() -> None:
    assert allocate([[0.0, 0.0]], [[10, 5]], 10) == [0]


def test_infinite_losses_are_forbidden() -> None:
    assert allocate([[0.0, np.inf, 3.0]], [[10, 5, 1]], 6) == [2]
    with pytest.raises(StepError, match="no allocation keeps at most 4 entries; the least is 5"):
        allocate([[0.0, 1.0]], [[10, 5]], 4)


def test_nothing_to_allocate() -> None:
    assert allocate([], [], 0) == []
    assert allocate([[0.0, 2.0]], [[3, 0]], 0) == [1]
