"""Estimates of L_2s against quadratics, where it can be counted out."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor

from onnxpress.smoothness import sampled_smoothness, threshold, trajectory_smoothness
from onnxpress.support import keep_largest_each

SIZES = [(6, 1), (8, 2), (12, 3), (12, 5)]
"""Parameters and nonzeros."""


def keeping(count: int) -> partial[Tensor]:
    return partial(keep_largest_each, count=count)


def gram(size: int, seed: int) -> Tensor:
    """Give XᵀX of a random X with columns of all lengths: f = ‖Xθ‖² / 2, the paper's example 1."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.rand(size, generator=drawn).sqrt()
    columns = torch.randn(2 * size, size, generator=drawn, dtype=torch.float64) * lengths
    return columns.T @ columns


def unions(size: int, count: int) -> list[list[int]]:
    """Give every union the supports of two points with ``count`` nonzeros can have, at most."""
    return [list(chosen) for chosen in combinations(range(size), min(size, 2 * count))]


@pytest.mark.parametrize(("size", "count"), SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_the_papers_estimate_is_never_above_the_columns_on_a_union(
    size: int, count: int, seed: int
) -> None:
    matrix = gram(size, seed)
    most = max(float(torch.linalg.matrix_norm(matrix[:, u], 2)) for u in unions(size, count))
    drawn = torch.Generator().manual_seed(seed)
    found = sampled_smoothness(
        lambda points: points @ matrix,
        lambda: torch.randn(size, generator=drawn, dtype=torch.float64),
        keeping(count),
        drawn,
        simulations=300,
    )
    assert 0.3 * most < float(found) <= most * (1 + 1e-9)


@pytest.mark.parametrize(("size", "count"), SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_around_a_point_it_is_the_largest_restricted_eigenvalue(
    size: int, count: int, seed: int
) -> None:
    matrix = gram(size, seed)
    wanted = max(float(torch.linalg.eigvalsh(matrix[u][:, u])[-1]) for u in unions(size, count))
    drawn = torch.Generator().manual_seed(seed)
    start = torch.randn(size, generator=drawn, dtype=torch.float64)
    found = trajectory_smoothness(
        lambda points: points @ matrix,
        threshold(start, keeping(count)),
        keeping(count),
        keeping(min(size, 2 * count)),
        drawn,
        pairs=64,
        rounds=20,
    )
    assert float(found) == pytest.approx(wanted, rel=0.01)
    assert float(found) <= wanted * (1 + 1e-9)


def test_problems_in_front_are_estimated_side_by_side() -> None:
    matrices = torch.stack([gram(8, seed) for seed in range(3)])

    def gradient(points: Tensor) -> Tensor:
        return (matrices @ points[..., None])[..., 0]

    drawn = torch.Generator().manual_seed(0)
    point = threshold(torch.randn(3, 8, generator=drawn, dtype=torch.float64), keeping(2))
    beside = trajectory_smoothness(gradient, point, keeping(2), keeping(4), drawn, 64, 20)
    assert beside.shape == (3,)
    for place, matrix in enumerate(matrices):
        wanted = max(float(torch.linalg.eigvalsh(matrix[u][:, u])[-1]) for u in unions(8, 2))
        assert float(beside[place]) == pytest.approx(wanted, rel=0.02)
    sampled = sampled_smoothness(gradient, lambda: point + 1, keeping(2), drawn, 20)
    assert sampled.shape == (3,)
    assert len(set(sampled.tolist())) == 3


def test_more_simulations_never_lower_the_estimate() -> None:
    matrix = gram(10, 0)

    def found(simulations: int) -> float:
        drawn = torch.Generator().manual_seed(3)
        return float(
            sampled_smoothness(
                lambda points: points @ matrix,
                lambda: torch.randn(10, generator=drawn, dtype=torch.float64),
                keeping(2),
                drawn,
                simulations,
            )
        )

    values = [found(simulations) for simulations in (1, 5, 25, 125)]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_a_gradient_that_is_not_finite_gives_infinity() -> None:
    drawn = torch.Generator().manual_seed(0)

    def broken(points: Tensor) -> Tensor:
        return points * torch.nan

    start = torch.ones(4)
    assert sampled_smoothness(broken, lambda: start, keeping(2), drawn, 3) == torch.inf
    around = trajectory_smoothness(broken, start, keeping(2), keeping(4), drawn, 1, 2)
    assert around == torch.inf


def test_a_flat_function_has_no_curvature() -> None:
    drawn = torch.Generator().manual_seed(0)
    start = torch.zeros(4)
    flat = trajectory_smoothness(torch.zeros_like, start, keeping(2), keeping(4), drawn, 2, 3)
    assert flat == 0.0
    assert sampled_smoothness(torch.zeros_like, lambda: start, keeping(2), drawn, 3) == 0.0
    with pytest.raises(ValueError, match="no simulation, no estimate"):
        sampled_smoothness(torch.zeros_like, lambda: start, keeping(2), drawn, 0)


def test_thresholding_leaves_exact_zeros_and_takes_the_lower_of_equals() -> None:
    points = torch.tensor([[1.0, -3.0, 1.0], [-1.0, 1.0, -1.0]])
    found = threshold(points, keeping(2))
    assert found.tolist() == [[1.0, -3.0, 0.0], [-1.0, 1.0, 0.0]]
    assert not torch.signbit(found[found == 0]).any()
