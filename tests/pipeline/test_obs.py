"""Optimal brain surgery against pencil and paper, brute force and least squares."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from onnxpress import obs


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram(seed: int, groups: int, columns: int) -> Tensor:
    """A Hessian of correlated inputs, ``[groups, columns, columns]``."""
    inputs = drawn(seed, groups, 4 * columns, columns)
    inputs = inputs + 0.7 * inputs.roll(1, 2)
    return inputs.transpose(1, 2) @ inputs / inputs.shape[1]


@pytest.fixture
def undamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "DAMP", 0.0)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "BLOCK", 1e-9)


def test_damping_adds_a_share_of_the_mean_diagonal() -> None:
    hessian = torch.tensor([[[1.0, 0.5], [0.5, 3.0]], [[2.0, 0.0], [0.0, 0.0]]])
    first, second = 2 * obs.DAMP, 1 * obs.DAMP
    wanted = [[[1 + first, 0.5], [0.5, 3 + first]], [[2 + second, 0], [0, second]]]
    torch.testing.assert_close(obs.damped(hessian), torch.tensor(wanted))


@pytest.mark.usefixtures("undamped")
def test_two_columns_by_hand() -> None:
    # H = [[2, 1], [1, 1]] has the inverse [[1, -1], [-1, 2]]. For the row (3, 2):
    # removing the first entry costs 3²/1 = 9, the second 2²/2 = 2. So the second goes first, the
    # first becomes 3 + 2·(1/2) = 4, its H⁻¹ then is 1/2, and its removal costs 4²/(1/2) = 32.
    hessian = torch.tensor([[[2.0, 1.0], [1.0, 1.0]]])
    row = torch.tensor([[[3.0, 2.0]]])
    torch.testing.assert_close(obs.one_shot_costs(row, hessian), torch.tensor([[[9.0, 2.0]]]))
    torch.testing.assert_close(obs.removal_costs(row, hessian), torch.tensor([[[32.0, 2.0]]]))
    support = torch.tensor([[[True, False]]])
    fitted = obs.refit(row, hessian, support, row, 1)
    assert fitted.tolist() == [[[4.0, 0.0]]]
    # (1, -2)ᵀ H (1, -2) = 2 - 4 + 4 = 2: what the removal was said to cost.
    assert obs.layer_error(fitted - row, hessian) == pytest.approx(2.0)


@pytest.mark.usefixtures("undamped")
def test_the_costs_add_up_to_the_whole() -> None:
    # Removing everything costs w H wᵀ, whatever the order.
    hessian, row = torch.tensor([[[2.0, 1.0], [1.0, 1.0]]]), torch.tensor([[[3.0, 2.0]]])
    total = float(obs.removal_costs(row, hessian).sum())
    assert obs.layer_error(row, hessian) == 34.0
    assert total == pytest.approx(34.0, rel=1e-5)


def exact(row: Tensor, hessian: Tensor) -> Tensor:
    """Operate on one row, one entry at a time, with a fresh inverse each time."""
    hessian, row = hessian.double(), row.double()
    left, costs, floor = list(range(len(row))), torch.zeros(len(row)), 0.0
    while left:
        part = hessian[left][:, left]
        # The best values on what is left: (H_LL)⁻¹ H_L: wᵀ.
        values = torch.linalg.solve(part, hessian[left] @ row)
        prices = values.square() / torch.linalg.inv(part).diagonal()
        cheapest = int(prices.argmin())
        floor = max(floor, float(prices[cheapest]))
        costs[left.pop(cheapest)] = floor
    return costs


@pytest.mark.usefixtures("one_by_one")
def test_costs_equal_brute_force() -> None:
    matrix, hessian = drawn(0, 2, 5, 9), gram(1, 2, 9)
    found = obs.removal_costs(matrix, hessian)
    damped = obs.damped(hessian)
    for group in range(2):
        for row in range(5):
            wanted = exact(matrix[group, row], damped[group])
            torch.testing.assert_close(found[group, row], wanted, rtol=1e-3, atol=1e-6)


def test_blocks_come_close_to_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, hessian = drawn(0, 1, 6, 60), gram(1, 1, 60)
    blocks = obs.removal_costs(matrix, hessian)
    monkeypatch.setattr(obs, "BLOCK", 1e-9)
    single = obs.removal_costs(matrix, hessian)
    half = matrix.numel() // 2
    agree = [set(costs.flatten().argsort()[:half].tolist()) for costs in (blocks, single)]
    assert len(agree[0] & agree[1]) > 0.9 * half
    losses = []
    for costs in (blocks, single, matrix.square()):
        support = costs > costs.flatten().sort().values[half]
        fitted = obs.refit(matrix, hessian, support, matrix, 100)
        losses.append(obs.layer_error(fitted - matrix, hessian))
    assert losses[0] < 1.1 * losses[1] < losses[2]


def test_rows_do_not_interact(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, hessian = drawn(2, 1, 7, 12), gram(3, 1, 12)
    whole = obs.removal_costs(matrix, hessian)
    torch.testing.assert_close(obs.removal_costs(matrix[:, 3:4], hessian), whole[:, 3:4])
    monkeypatch.setattr(obs, "ROW_ENTRIES", 2 * 12**2)  # two rows at a time
    torch.testing.assert_close(obs.removal_costs(matrix, hessian), whole)


@pytest.mark.parametrize("score", [obs.removal_costs, obs.one_shot_costs])
def test_dead_inputs_cost_nothing(score: Callable[[Tensor, Tensor], Tensor]) -> None:
    hessian = gram(4, 2, 6)
    hessian[0, :, 2] = hessian[0, 2, :] = 0
    hessian[1] = 0
    costs = score(drawn(5, 2, 3, 6), hessian)
    assert not costs[0, :, 2].any()
    assert (costs[0, :, [0, 1, 3, 4, 5]] > 0).all()
    assert not costs[1].any()


@pytest.mark.parametrize("columns", [1, 2])
def test_narrow_layers(columns: int) -> None:
    matrix, hessian = drawn(6, 1, 4, columns), gram(7, 1, columns)
    costs = obs.removal_costs(matrix, hessian)
    for row in range(4):
        wanted = exact(matrix[0, row], obs.damped(hessian)[0])
        torch.testing.assert_close(costs[0, row], wanted, rtol=1e-4, atol=1e-6)


def test_a_refit_is_least_squares() -> None:
    # Damping is a ridge: rows of sqrt(damp)·I below X make it part of a plain regression.
    inputs = drawn(8, 50, 8)
    inputs[:, 1] += 2 * inputs[:, 0]
    target = drawn(9, 1, 4, 8)
    hessian = (inputs.T @ inputs / 50)[None]
    support = drawn(10, 1, 4, 8) > 0
    support[0, 3] = False
    found = obs.refit(target, hessian, support, target, 40)
    assert not found[~support].any()
    damp = float(obs.DAMP * hessian.diagonal(dim1=1, dim2=2).mean())
    ridged = torch.cat([inputs / 50**0.5, damp**0.5 * torch.eye(8)]).double()
    for row in range(3):
        held = support[0, row]
        answers = ridged @ target[0, row].double()
        wanted = torch.linalg.lstsq(ridged[:, held], answers).solution
        torch.testing.assert_close(found[0, row, held].double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_refit_only_ever_helps() -> None:
    matrix, hessian = drawn(11, 1, 5, 20), gram(12, 1, 20)
    support = drawn(13, 1, 5, 20) > 0.3
    errors = [
        obs.layer_error(obs.refit(matrix, hessian, support, matrix, rounds) - matrix, hessian)
        for rounds in (0, 1, 3, 10, 40)
    ]
    # In the damped norm CG falls in every round; the undamped one may waver by the damping.
    assert all(later <= 1.001 * former for former, later in pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]


def test_a_refit_onto_everything_is_the_target() -> None:
    matrix, hessian = drawn(14, 1, 3, 5), gram(15, 1, 5)
    everything = torch.ones_like(matrix, dtype=torch.bool)
    found = obs.refit(matrix, hessian, everything, torch.zeros_like(matrix), 10)
    torch.testing.assert_close(found, matrix, rtol=1e-4, atol=1e-5)


def test_work_is_counted() -> None:
    assert obs.operation_cost({"groups": 2, "rows": 3, "columns": 6}) == 2 * 3 * 72
