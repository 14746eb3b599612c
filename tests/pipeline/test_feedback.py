"""Rounding with feedback: by hand, against brute force, and never worse than entry by entry."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from onnxpress import feedback, obs


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram(seed: int, groups: int, columns: int) -> Tensor:
    """A Hessian of correlated inputs, ``[groups, columns, columns]``."""
    inputs = drawn(seed, groups, 4 * columns, columns) + 1.0
    inputs = inputs + 0.7 * inputs.roll(1, 2)
    return inputs.transpose(1, 2) @ inputs / inputs.shape[1]


def whole(values: Tensor, columns: slice) -> Tensor:
    del columns
    return values.round()


def errors(change: Tensor, hessian: Tensor) -> Tensor:
    return ((change @ obs.damped(hessian)) * change).sum(2)


def test_the_second_makes_up_for_the_first() -> None:
    # Two inputs that are the same: only the sum of the weights counts. 0.4 + 0.4 is nearer to
    # 0 + 1 than to 0 + 0.
    hessian = torch.ones(1, 2, 2)
    found = feedback.fed_back(
        torch.full((1, 1, 2), 0.4), hessian, torch.ones(1, 1, 2, dtype=torch.bool), whole
    )
    assert sorted(found.flatten().tolist()) == [0.0, 1.0]


@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_worse_than_entry_by_entry(seed: int) -> None:
    columns = 2 * feedback.BLOCK + 7
    target, hessian = 2 * drawn(seed, 2, 30, columns), gram(seed, 2, columns)
    support = drawn(seed + 10, 2, 30, columns) > 0.8
    target = torch.where(support, target, 0.0)
    plain = torch.where(support, target.round(), 0.0)
    found = feedback.fed_back(target, hessian, support, whole)
    assert not found[~support].any()
    assert torch.equal(found, found.round())
    before, after = errors(plain - target, hessian), errors(found - target, hessian)
    assert (after <= before).all()
    assert after.sum() < 0.5 * before.sum()
    assert obs.layer_error(found - target, hessian) < 0.5 * obs.layer_error(plain - target, hessian)


def test_no_single_entry_could_be_better() -> None:
    target, hessian = drawn(1, 1, 5, 8), gram(1, 1, 8)
    everywhere = torch.ones(1, 5, 8, dtype=torch.bool)
    found = feedback.fed_back(target, hessian, everywhere, whole)
    least = errors(found - target, hessian)
    for column, step in product(range(8), (-1.0, 1.0)):
        other = found.clone()
        other[:, :, column] += step
        assert (errors(other - target, hessian) >= least - 1e-5).all()


def test_it_comes_close_to_the_best_of_all() -> None:
    target, hessian = drawn(2, 1, 40, 4), gram(2, 1, 4)
    everywhere = torch.ones(1, 40, 4, dtype=torch.bool)
    found = errors(feedback.fed_back(target, hessian, everywhere, whole) - target, hessian)
    steps = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=4)))[:, None]
    all_errors = torch.stack([errors(target.round() + s - target, hessian) for s in steps])
    best = all_errors.min(0).values
    plain = errors(target.round() - target, hessian)
    assert best.sum() <= found.sum() < best.sum() + 0.3 * (plain - best).sum()


def test_every_column_has_a_grid_of_its_own() -> None:
    target, hessian = drawn(3, 1, 6, 70), gram(3, 1, 70)
    sizes = torch.logspace(-2, 0, 70)

    def nearest(values: Tensor, columns: slice) -> Tensor:
        return (values / sizes[columns]).round() * sizes[columns]

    everywhere = torch.ones_like(target, dtype=torch.bool)
    found = feedback.fed_back(target, hessian, everywhere, nearest)
    assert torch.equal(found, nearest(found, slice(None)))


def test_what_is_on_the_grid_stays() -> None:
    target, hessian = drawn(4, 1, 6, 9).round(), gram(4, 1, 9)
    assert torch.equal(feedback.fed_back(target, hessian, target != 0, whole), target)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    target, hessian = drawn(5, 1, 6, 9), gram(5, 1, 9)
    hessian[:, 3] = hessian[:, :, 3] = 0.0
    found = feedback.fed_back(target, hessian, torch.ones_like(target, dtype=torch.bool), whole)
    assert torch.equal(found[:, :, 3], target[:, :, 3].round())
    nothing = feedback.fed_back(target, 0 * hessian, target != 0, whole)
    assert torch.equal(nothing, target.round())


def test_work_is_counted() -> None:
    assert feedback.work(2, 3, 5) == 2 * 3 * 25 * (2 * feedback.PASSES + 1)
