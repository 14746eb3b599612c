"""Tolerances, and chance from one seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models import case_of, two_headed_model
from onnxpress.problem import Tolerance, parse_amount, silent
from onnxpress_adapters.errors import MisuseError


@pytest.mark.parametrize(
    ("text", "value", "absolute", "shown"),
    [
        ("1%", 0.01, False, "1 %"),
        (" 0.5 % ", 0.005, False, "0.5 %"),
        ("150%", 1.5, False, "150 %"),
        ("1e-3", 1e-3, True, "0.001"),
        ("2", 2.0, True, "2"),
    ],
)
def test_tolerances_read(text: str, value: float, absolute: bool, shown: str) -> None:
    tolerance = Tolerance.parse(text)
    assert tolerance == Tolerance(pytest.approx(value), absolute)  # type: ignore[arg-type]
    assert str(tolerance) == shown
    assert parse_amount(text) == (tolerance.value, absolute)


@pytest.mark.parametrize("text", ["", "%", "much", "1 %%", "1e", "1,5%"])
def test_what_is_no_tolerance(text: str) -> None:
    message = f"^'{text}' is no tolerance; write a share of the output's variance such as 1%, "
    with pytest.raises(MisuseError, match=message):
        Tolerance.parse(text)


@pytest.mark.parametrize("text", ["0", "0%", "-1%", "-1e-3", "inf", "nan%", "nan"])
def test_a_tolerance_is_above_zero(text: str) -> None:
    with pytest.raises(MisuseError, match=f"^a tolerance is a number above zero, not '{text}'$"):
        Tolerance.parse(text)


def test_chance_depends_on_the_seed_and_the_purpose() -> None:
    problem = case_of(two_headed_model()).problem
    draws = {
        (seed, purpose): torch.rand(
            4, generator=replace(problem, seed=seed).generator(purpose)
        ).tolist()
        for seed in (0, 1, 10**12)
        for purpose in ("block 1", "block 2", "1 block", "")
    }
    assert len({tuple(values) for values in draws.values()}) == len(draws)
    again = torch.rand(4, generator=problem.generator("block 1")).tolist()
    assert again == draws[0, "block 1"]


def test_silence() -> None:
    silent("stage", 0.5, "note")
    assert case_of(two_headed_model()).problem.progress is silent
