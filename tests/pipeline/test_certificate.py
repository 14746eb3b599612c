"""HT-stability, by hand."""

from __future__ import annotations

import pytest
import torch

from onnxpress.certificate import Certificate, parts

POINT = torch.tensor([0.0, -2.0, 0.5, 0.0])
GRADIENT = torch.tensor([0.5, 1e-6, -2e-6, -0.1])


@pytest.mark.parametrize(("step", "holds"), [(0.5, True), (1.0, True), (1.1, False)])
def test_inequality_8_compares_two_numbers(step: float, holds: bool) -> None:
    found = Certificate.of(POINT, GRADIENT, step, 2)
    assert found.least == 0.5
    assert found.pull == pytest.approx(step * 0.5)
    assert found.slope == pytest.approx(2e-6)
    assert found.holds is holds
    assert found.is_stationary
    assert found.is_stable is holds


def test_both_halves_are_needed() -> None:
    found = Certificate.of(POINT, GRADIENT * 100, 0.001, 2)
    assert found.holds
    assert not found.is_stationary
    assert not found.is_stable
    assert Certificate.of(POINT, GRADIENT * 100, 0.001, 2, tolerance=1e-3).is_stable
    assert str(found) == (
        "inequality 8 holds (smallest kept 0.5 ≥ step times largest slope off the support 0.05), "
        "largest slope on it 0.0002 > 1e-05"
    )


def test_with_fewer_nonzeros_than_allowed_nothing_may_pull() -> None:
    found = Certificate.of(POINT, GRADIENT, 0.5, 3)
    assert found.least == 0.0
    assert not found.holds
    assert Certificate.of(POINT, GRADIENT * 0, 0.5, 3).holds


def test_the_ends() -> None:
    nothing, everything = torch.zeros(3), torch.ones(3)
    assert Certificate.of(nothing, everything, 1.0, 0) == Certificate(0.0, 1.0, 0.0)
    assert Certificate.of(everything, nothing, 1.0, 3) == Certificate(1.0, 0.0, 0.0)


def test_many_points_at_once() -> None:
    least, off, on = parts(torch.stack([POINT, POINT * 2]), torch.stack([GRADIENT] * 2), 2)
    assert least.tolist() == [0.5, 1.0]
    assert off.tolist() == pytest.approx([0.5, 0.5])
    assert on.tolist() == pytest.approx([2e-6, 2e-6])
