"""Scales and codebooks: the least error, hand-made cases, and when more scales pay."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress_exporters.grids import palette_for, scaled_for
from onnxpress_exporters.values import Palette, Scaled, Storage, rounded


def drawn(seed: int, *shape: int, density: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made: np.ndarray = np.where(rng.random(shape) < density, rng.normal(size=shape), 0.0)
    return made.astype(np.float32)


def lost(values: np.ndarray, storage: Storage, importance: np.ndarray | None = None) -> float:
    error = np.square(values.astype(np.float64) - rounded(values, storage))
    return float((error if importance is None else error * importance).sum())


def test_rows_of_one_size_share_a_scale() -> None:
    values = drawn(0, 8, 16)
    assert scaled_for(values, np.ones_like(values)).scales.shape == ()


@pytest.mark.parametrize(("axis", "shape"), [(0, (40, 1, 1)), (2, (1, 1, 50))])
def test_scales_follow_the_axis_along_which_sizes_differ(axis: int, shape: tuple[int, ...]) -> None:
    values = drawn(1, 40, 60, 50, density=0.1)
    sizes = np.logspace(-2, 0, values.shape[axis]).astype(np.float32)
    values = np.moveaxis(np.moveaxis(values, axis, -1) * sizes, -1, axis)
    found = scaled_for(values, np.ones_like(values))
    assert found.scales.shape == shape
    assert found.scales.dtype == np.float16
    one = Scaled(np.abs(values).max() / np.float32(127))
    assert lost(values, found) < 0.2 * lost(values, one)


def test_scales_are_halves_where_these_are_precise() -> None:
    assert scaled_for(drawn(2, 50), np.ones(50)).scales.dtype == np.float16
    assert scaled_for(drawn(2, 50) * np.float32(1e-3), np.ones(50)).scales.dtype == np.float32
    assert scaled_for(drawn(2, 50) * np.float32(1e9), np.ones(50)).scales.dtype == np.float32


def test_an_outlier_is_clipped_where_it_does_not_matter() -> None:
    values = drawn(3, 5000)
    values[7] = 9.0
    importance = np.ones(5000)
    heeded = scaled_for(values, importance)
    importance[7] = 0.0
    clipped = scaled_for(values, importance)
    assert rounded(values, clipped)[7] < 6 < 8.9 < rounded(values, heeded)[7] + 5.0
    assert lost(values, clipped, importance) < 0.5 * lost(values, heeded, importance)


def test_no_scale_nearby_is_better() -> None:
    values, importance = drawn(4, 300), np.random.default_rng(4).random(300)
    found = scaled_for(values, importance).scales
    least = lost(values, Scaled(found), importance)
    plain = Scaled(np.abs(values).max() / np.float32(127))
    assert least <= 1.001 * lost(values, plain, importance)


def test_empty_channels_and_empty_constants_get_a_scale_of_one() -> None:
    assert scaled_for(np.zeros((3, 4), np.float32), np.ones((3, 4))).scales.tolist() == 1.0
    assert scaled_for(np.zeros((0, 4), np.float32), np.ones((0, 4))).scales.tolist() == 1.0
    assert palette_for(np.zeros(3, np.float32), np.ones(3), 16).codebook.tolist() == [0.0]
    values = drawn(5, 30, 4000)
    values[::2] *= 100
    values[3] = 0.0
    assert scaled_for(values, np.ones_like(values)).scales[3, 0] == 1.0


def test_few_values_are_kept_exactly_whatever_their_number() -> None:
    levels = np.linspace(-1, 1, 130).astype(np.float32)
    values = np.random.default_rng(6).choice(levels, 5000)
    found = palette_for(values, np.ones(5000), 16)
    assert np.array_equal(found.codebook, np.unique(values))
    assert found.bits == 8
    assert lost(values, found) == 0.0


def test_a_few_entries_are_a_codebook_of_their_own() -> None:
    values = drawn(7, 10)
    assert lost(values, palette_for(values, np.ones(10), 16)) == 0.0


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(8)
    centres = np.array([-3.0, -1.0, 0.5, 4.0])
    values = (rng.choice(centres, 2000) + 0.01 * rng.normal(size=2000)).astype(np.float32)
    found = palette_for(values, np.ones(2000), 4).codebook
    np.testing.assert_allclose(found, centres, atol=0.005)


@pytest.mark.parametrize(("entries", "best"), [(16, 0.009501), (4, 0.1175)])
def test_normal_values_are_rounded_as_well_as_can_be(entries: int, best: float) -> None:
    # The least mean squared errors of a normal variable, Max 1960, table I.
    values = drawn(9, 200_000)
    found = palette_for(values, np.ones(200_000), entries)
    assert len(found.codebook) == entries
    assert lost(values, found) / 200_000 < 1.03 * best


def test_what_matters_is_rounded_less() -> None:
    values = drawn(10, 4000)
    importance = np.where(values > 1, 100.0, 1.0)
    even = palette_for(values, np.ones(4000), 16)
    heeding = palette_for(values, importance, 16)
    assert lost(values, heeding, importance) < 0.5 * lost(values, even, importance)


def test_codebooks_rise_and_repeat() -> None:
    values = drawn(11, 3000, density=0.2)
    books = [palette_for(values, np.ones(3000), 256).codebook for _ in range(2)]
    assert books[0].tobytes() == books[1].tobytes()
    assert (np.diff(books[0]) > 0).all()
    assert lost(values, Palette(books[0])) < 0.02 * lost(values, palette_for(values, values**2, 16))
