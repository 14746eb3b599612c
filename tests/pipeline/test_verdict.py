"""Verdicts: the bounds, the rule, and the words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from onnxpress.problem import Tolerance
from onnxpress.verdict import Decision, decide, flips_upper, percent, upper_bound, words
from onnxpress_adapters.distance import Distance, DistanceMeter
from onnxpress_adapters.errors import MisuseError


def measured(*outputs: tuple[np.ndarray, np.ndarray]) -> Distance:
    """Measure outputs ``y0``, ``y1``, … given as (original, pressed), each ``[samples, ...]``."""
    meter = DistanceMeter([f"y{place}" for place in range(len(outputs))])
    meter.add([old for old, _ in outputs], [new for _, new in outputs])
    return meter.distance()


def moved(share: float, samples: int = 200, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Give an output of variance ``scale**2`` and one exactly ``share`` of it away, per sample."""
    old = scale * np.resize([[1.0], [-1.0]], (samples, 1))
    return old, old + scale * math.sqrt(share)


def verdict(distance: Distance, tolerance: Tolerance | None) -> str:
    return decide(distance, tolerance, seed=0).verdict


def test_a_constant_error_is_its_own_bound() -> None:
    assert upper_bound(np.full(10, 0.5), np.full(10, 2.0), seed=0) == 0.25


def test_the_bound_is_never_below_students() -> None:
    rng = np.random.default_rng(1)
    for samples in (5, 30, 300):
        errors = rng.random(samples)
        students = errors.mean() + stats.t.ppf(0.95, samples - 1) * stats.sem(errors)
        assert upper_bound(errors, np.ones(samples), seed=0) >= students - 1e-12


def test_the_bound_sees_skewness() -> None:
    """Of lognormal errors, a normal bound covers the mean in 83 of 100 cases at this size."""
    rng = np.random.default_rng(2)
    bounds = [upper_bound(np.exp(rng.normal(size=60)), np.ones(60), seed) for seed in range(200)]
    assert np.mean(np.array(bounds) >= math.exp(0.5)) >= 0.87


def test_one_large_error_among_many_counts_like_a_few() -> None:
    errors = np.zeros(500)
    errors[7] = 1.0
    bound = upper_bound(errors, np.ones(500), seed=0)
    assert 4 / 500 < bound < 8 / 500


def test_the_bound_is_seeded() -> None:
    errors = np.random.default_rng(3).exponential(size=50)
    ones = np.ones(50)
    assert upper_bound(errors, ones, 4) == upper_bound(errors, ones, 4)
    assert upper_bound(errors, ones, 4) != upper_bound(errors, ones, 5)


def test_scale_of_the_outputs_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    errors, spread = rng.exponential(size=40), rng.exponential(size=40)
    ratio = upper_bound(errors, spread, 0)
    assert upper_bound(errors * 2.0**-40, spread * 2.0**-40, 0) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("errors", "spread", "bound"),
    [
        ([0.0], [1.0], math.inf),
        ([math.inf, 0.0], [1.0, 1.0], math.inf),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1.0], [0.0, 0.0], math.inf),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], 0.0),
    ],
)
def test_edges_of_the_bound(errors: list[float], spread: list[float], bound: float) -> None:
    assert upper_bound(np.array(errors), np.array(spread), seed=0) == bound


@pytest.mark.parametrize(("changed", "answers"), [(0, 100), (1, 100), (37, 100), (9, 10)])
def test_flips_agree_with_scipys_exact_interval(changed: int, answers: int) -> None:
    test = stats.binomtest(changed, answers, alternative="less")
    exact = test.proportion_ci(confidence_level=0.95, method="exact").high
    assert flips_upper(changed, answers) == pytest.approx(exact)


def test_all_answers_changed_is_bounded_by_one() -> None:
    assert flips_upper(10, 10) == 1.0


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, "within"), (0.0099, "within"), (0.0101, "exceeded")]
)
def test_relative_tolerance(share: float, expected: str) -> None:
    assert verdict(measured(moved(share)), Tolerance(0.01)) == expected


def test_undecided_between_the_point_and_its_bound() -> None:
    old = np.resize([[1.0], [-1.0]], (20, 1))
    new = old + np.random.default_rng(5).normal(size=(20, 1)) * 0.09
    decision = decide(measured((old, new)), Tolerance(0.01), seed=0)
    point, upper = decision.relative
    assert point < 0.01 < upper
    assert decision.verdict == "undecided"
    assert "from 20 samples it may be up to" in decision.reason
    assert "give more samples" in decision.reason


def test_the_mean_answer_is_exceeded_even_at_fifty_percent() -> None:
    old = np.random.default_rng(6).normal(5.0, 1.0, size=(100, 4))
    new = np.broadcast_to(old.mean(0), old.shape)
    assert verdict(measured((old, new)), Tolerance(0.5)) == "exceeded"


def test_nonfinite_comes_before_everything() -> None:
    old, new = moved(0.0)
    new = new.copy()
    new[3] = np.nan
    decision = decide(measured((old, new)), Tolerance(0.01), seed=0)
    assert decision.verdict == "nonfinite"
    assert decision.reason == "the outputs hold NaN or infinity"
    assert words(decision, measured((old, new))) == "the outputs hold NaN or infinity"


def test_the_worst_output_decides_a_relative_tolerance() -> None:
    distance = measured(moved(0.0001, scale=1e6), moved(0.02, scale=1e-6))
    decision = decide(distance, Tolerance(0.01), seed=0)
    assert decision.verdict == "exceeded"
    assert decision.reason == ("the output 'y1' moves by 2 % of its variance, and 1 % is allowed")
    assert [row.ok for row in decision.per_output] == [True, False]
    assert [row.tolerance for row in decision.per_output] == [0.01, 0.01]


def test_an_absolute_tolerance_limits_the_sum() -> None:
    distance = measured(moved(0.6), moved(0.6))
    assert verdict(distance, Tolerance(1.3, absolute=True)) == "within"
    decision = decide(distance, Tolerance(1.0, absolute=True), seed=0)
    assert decision.verdict == "exceeded"
    assert decision.absolute[0] == pytest.approx(1.2)
    assert [row.tolerance for row in decision.per_output] == [None, None]
    assert "sum over the outputs" in decision.reason


def test_selected_outputs_only_are_judged() -> None:
    distance = measured(moved(0.5), moved(0.001))
    decision = decide(distance, Tolerance(0.01, outputs=(("y1", None),)), seed=0)
    assert decision.verdict == "within"
    assert [row.name for row in decision.per_output] == ["y1"]
    assert decision.relative[0] == pytest.approx(0.001)


def test_an_output_may_have_its_own_tolerance() -> None:
    distance = measured(moved(0.5), moved(0.001))
    own = Tolerance(0.01, outputs=(("y0", 0.6), ("y1", None)))
    decision = decide(distance, own, seed=0)
    assert decision.verdict == "within"
    assert [row.tolerance for row in decision.per_output] == [0.6, 0.01]


def test_own_absolute_tolerances_leave_the_sum() -> None:
    distance = measured(moved(0.5), moved(0.001))
    own = Tolerance(0.01, absolute=True, outputs=(("y0", 0.6), ("y1", None)))
    assert verdict(distance, own) == "within"
    strict = Tolerance(0.01, absolute=True, outputs=(("y0", 0.4), ("y1", None)))
    assert verdict(distance, strict) == "exceeded"


def test_an_unknown_output_is_refused_with_the_nearest() -> None:
    with pytest.raises(MisuseError, match=r"no output 'y00'.*did you mean 'y0'.*there are y0, y1"):
        decide(measured(moved(0), moved(0)), Tolerance(0.01, outputs=(("y00", None),)), seed=0)


def test_a_model_without_real_outputs_is_refused() -> None:
    labels = np.arange(5)[:, None]
    with pytest.raises(MisuseError, match="none of the outputs compared holds real numbers"):
        decide(measured((labels, labels)), Tolerance(0.01), seed=0)


def classified(samples: int, flipped: int) -> Distance:
    """Two classes with huge margins but for ``flipped`` samples, whose answers change."""
    old = np.resize([[9.0, 0.0], [0.0, 9.0]], (samples, 2))
    new = old.copy()
    old[:flipped] = [0.0, 0.001]
    new[:flipped] = [0.001, 0.0]
    return measured((old, new))


@pytest.mark.parametrize(
    ("flipped", "expected"), [(0, "within"), (4, "undecided"), (6, "exceeded")]
)
def test_flips_are_limited_with_their_bound(flipped: int, expected: str) -> None:
    decision = decide(classified(1000, flipped), Tolerance(0.01, flips=0.005), seed=0)
    assert decision.verdict == expected
    assert decision.flips == (flipped / 1000, flips_upper(flipped, 1000))
    if expected == "exceeded":
        assert decision.reason == "0.6 % of the answers change, and 0.5 % is allowed"


def test_flips_need_a_classifier() -> None:
    with pytest.raises(MisuseError, match="leave out --flips"):
        decide(measured(moved(0.0)), Tolerance(0.01, flips=0.1), seed=0)


def test_without_a_tolerance_everything_finite_is_within() -> None:
    decision = decide(measured(moved(0.7)), None, seed=0)
    assert (decision.verdict, decision.reason) == ("within", "no tolerance was asked for")


def test_the_words_of_the_readme() -> None:
    old = np.resize([[9.0, -9.0], [-9.0, 9.0]], (1000, 2))
    new = old + 9 * math.sqrt(0.008)
    new[:3] = -old[:3] / 9
    distance = measured((old, new))
    said = words(decide(distance, None, 0), distance)
    assert said.endswith("% RMS), 0.3 % of the answers change")
    distance = measured(moved(0.008))
    said = words(decide(distance, None, 0), distance)
    assert said == "0.8 % of the output's variance (8.9 % RMS)"


def test_the_words_name_the_worst_of_several_outputs() -> None:
    distance = measured(moved(0.01), moved(0.04))
    said = words(decide(distance, None, 0), distance)
    assert said == "4 % of the variance of 'y1', the output that moves most (20 % RMS)"


def test_the_words_count_changed_labels() -> None:
    old = np.arange(100)[:, None]
    distance = measured(moved(0.01, samples=100), (old, np.where(old == 3, 4, old)))
    decision: Decision = decide(distance, None, 0)
    assert words(decision, distance).endswith("1 % of the whole-number outputs change")


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50 %"), (12.345, "1200 %"), (1e-7, "1e-05 %"), (math.inf, "inf %")]
)
def test_percentages(share: float, text: str) -> None:
    assert percent(share) == text
