from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxpress_adapters.distance import Distance, DistanceMeter
from onnxpress_adapters.errors import AdapterError
from zoo_beside import load_zoo

Arrays = Sequence[np.ndarray]


def measure(reference: Arrays, candidate: Arrays, batch: int = 7, **options: Any) -> Distance:
    meter = DistanceMeter([f"o{k}" for k in range(len(reference))], **options)
    for start in range(0, len(reference[0]), batch):
        part = slice(start, start + batch)
        meter.add([a[part] for a in reference], [a[part] for a in candidate])
    return meter.distance()


def pair(*shape: int, mean: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    old = (rng.normal(size=shape) + mean).astype(np.float32)
    return old, (old + 0.1 * rng.normal(size=shape)).astype(np.float32)


def test_a_case_by_hand() -> None:
    old = np.array([[1.0, 0.0], [3.0, 4.0]])
    new = np.array([[1.0, 2.0], [3.0, 3.0]])
    found = measure([old], [new])
    # Errors 4 and 1; the mean is (2, 2), so both samples lie 1 + 4 from it.
    assert (found.absolute, found.relative, found.samples) == (2.5, 0.5, 2)
    (output,) = found.per_output
    np.testing.assert_array_equal(output.errors, [4.0, 1.0])
    np.testing.assert_array_equal(output.spread, [5.0, 5.0])
    # The first sample answers 0, then 1; the second answers 1, then (a tie) 0.
    assert found.flips == 1.0
    assert found.changed_integers is None
    assert not found.nonfinite


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_it_agrees_with_the_zoo(batch: int) -> None:
    constant = np.full((40, 2), 5.0, np.float32)
    pairs: list[tuple[np.ndarray, np.ndarray]] = [
        pair(40, 10),
        pair(40, 3, 4, mean=1e4, seed=1),  # varies little around a large mean
        pair(40, seed=2),
        (constant, constant + np.float32(0.01)),
        (np.arange(40), np.arange(40) + 1),
    ]
    olds, news = zip(*pairs, strict=True)
    expected = load_zoo().distances(
        lambda k: [a[k : k + 1] for a in olds], lambda k: [a[k : k + 1] for a in news], range(40)
    )
    for kept in (1 << 20, 0):
        found = measure(olds, news, batch, kept_bytes=kept)
        assert found.relative == pytest.approx(expected["relative"], rel=1e-9)
        assert found.absolute == pytest.approx(expected["absolute"], rel=1e-9)
        relatives = [output.relative for output in found.per_output]
        assert relatives == pytest.approx(expected["per_output"], rel=1e-9)
        assert found.changed_integers == 1.0


def test_it_agrees_with_the_zoo_where_shapes_change() -> None:
    olds, news = zip(*(pair(1, 2 + k % 3, 4, seed=k) for k in range(9)), strict=True)
    expected = load_zoo().distances(lambda k: [olds[k]], lambda k: [news[k]], range(9))
    meter = DistanceMeter(["boxes"])
    for old, new in zip(olds, news, strict=True):
        meter.add([old], [new])
    found = meter.distance()
    assert found.relative == pytest.approx(expected["relative"], rel=1e-9)
    assert found.absolute == pytest.approx(expected["absolute"], rel=1e-9)


def test_the_order_and_size_of_batches_do_not_matter() -> None:
    old, new = pair(100, 6, mean=1e3)
    results = [measure([old], [new], batch).relative for batch in (1, 13, 100)]
    assert results == pytest.approx([results[0]] * 3, rel=1e-12)


def test_a_small_variance_around_a_large_mean_keeps_its_digits() -> None:
    rng = np.random.default_rng(0)
    old = 1e5 + rng.normal(size=(1000, 1))
    found = measure([old], [old + 0.5], kept_bytes=0)
    assert found.relative == pytest.approx(0.25 / old.var(), rel=1e-6)


def test_spread_of_each_sample_is_exact_or_the_mean() -> None:
    old, new = pair(50, 8)
    exact = ((old - old.mean(0, dtype=np.float64)) ** 2).sum(1)
    (output,) = measure([old], [new]).per_output
    np.testing.assert_allclose(output.spread, exact, rtol=1e-12)
    (output,) = measure([old], [new], kept_bytes=1000).per_output
    np.testing.assert_allclose(output.spread, np.full(50, exact.mean()), rtol=1e-12)


def test_an_output_that_does_not_vary_is_divided_by_its_power() -> None:
    old = np.full((4, 2), 10.0)
    found = measure([old], [old + 1.0])
    assert found.relative == pytest.approx(0.01)
    np.testing.assert_array_equal(found.per_output[0].spread, [200.0] * 4)


def test_an_output_of_zeros_is_all_or_nothing() -> None:
    zeros = np.zeros((4, 2))
    assert measure([zeros], [zeros]).relative == 0.0
    assert measure([zeros], [zeros + 1e-9]).relative == float("inf")


def test_the_worst_output_decides() -> None:
    good, bad = pair(30, 4), pair(30, 4, seed=1)
    found = measure([good[0], bad[0]], [good[0], np.broadcast_to(bad[0].mean(0), bad[0].shape)])
    assert [o.name for o in found.per_output] == ["o0", "o1"]
    assert found.per_output[0].relative == 0.0
    assert found.relative == pytest.approx(1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_infinitely_far(value: float) -> None:
    old, new = pair(10, 3)
    new[4, 1] = value
    found = measure([old], [new])
    assert found.nonfinite
    assert (found.relative, found.absolute) == (float("inf"), float("inf"))
    assert np.isinf(found.per_output[0].errors).tolist() == [k == 4 for k in range(10)]


def test_a_reference_that_is_no_number_is_reported() -> None:
    old, new = pair(10, 3)
    old[0, 0] = np.nan
    found = measure([old], [new])
    assert found.nonfinite
    assert found.relative == float("inf")


def test_another_shape_is_infinitely_far() -> None:
    old, _ = pair(10, 3)
    found = measure([old], [old[:, :2]])
    assert found.relative == float("inf")
    assert not found.nonfinite
    assert found.flips == 1.0


def test_flips_count_answers_at_every_position() -> None:
    old = np.zeros((2, 3, 2))
    old[..., 0] = 1.0
    new = old.copy()
    new[1, 2] = [0.0, 1.0]
    assert measure([np.ones((2, 1)), old], [np.ones((2, 1)), new]).flips == pytest.approx(1 / 6)


def test_numbers_without_classes_have_no_flips() -> None:
    old, new = pair(10, 1)
    assert measure([old], [new]).flips is None
    old, new = pair(10)
    assert measure([old], [new]).flips is None


def test_outputs_that_are_not_floats_only_count_changes() -> None:
    whole, truth = np.array([[1, 2], [3, 4]]), np.array([True, True])
    changed = np.array([[1, 3], [3, 4]])
    found = measure([whole, truth], [changed, truth])
    assert found.changed_integers == pytest.approx(1 / 6)
    assert np.isnan(found.relative)
    assert np.isnan(found.absolute)
    assert found.per_output == ()


def test_bfloat16_is_a_float() -> None:
    old = np.array([[1.0], [2.0]]).astype(ml_dtypes.bfloat16)
    assert measure([old], [old]).relative == 0.0


def test_wrong_calls_are_named() -> None:
    meter = DistanceMeter(["a"])
    with pytest.raises(AdapterError, match="no samples were compared"):
        meter.distance()
    with pytest.raises(AdapterError, match="1 outputs are compared; got 2 of the original and 1"):
        meter.add([np.zeros(1), np.zeros(1)], [np.zeros(1)])
    with pytest.raises(AdapterError, match=r"hold \[1, 2\] samples each"):
        meter.add([np.zeros(1)], [np.zeros(2)])
