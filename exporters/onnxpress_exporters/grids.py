"""Scales and codebooks chosen for the values of a constant: the least squared error for its bytes.

Errors are weighted by an importance per entry, such as the diagonal of a layer's Hessian: what a
rounding error there does to what the network computes.
"""

from __future__ import annotations

import numpy as np

from onnxpress_exporters.values import MOST_HALF, Palette, Scaled

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""The share of the largest magnitude that the largest code may stand for."""

FLOOR = 3e-2
"""Share of the mean importance every entry has at least: inputs may differ from those seen."""

LARGEST = 256
"""Entries of a codebook, at most."""

REPEATS = 4
"""How often each value has to occur on average before a constant is said to have few of them."""

BINS = 4096
ROUNDS = 100
SMALLEST_HALF = 2.0**-14
"""The smallest half of full precision."""


def scaled_for(values: np.ndarray, importance: np.ndarray, bits: int = 8) -> Scaled:
    """Choose one scale, or one for each place along the first or the last axis.

    More scales pay where they save more bytes than they take. To halve the error of every entry
    otherwise would take one more bit for each: so n entries whose squared error falls by a factor f
    save n · log2(f) / 2 bits.

    Args:
        values: floating-point ``[...]``, finite; zeros are left out of everything.
        importance: ``[...]``, not negative.
        bits: of a code.

    Returns:
        Scales that minimise the error over ``CLIPS`` of the largest magnitude and a regression onto
        the codes of the best of these; in float16 where that has its full precision.

    >>> scaled_for(np.float32([[0.5, -1.27], [0.0, 1.0]]), np.ones((2, 2))).scales
    array(0.01, dtype=float16)
    """
    places = np.flatnonzero(values)
    sizes = np.abs(values.reshape(-1)[places]).astype(np.float32)
    weights = _weights(importance.reshape(-1)[places])
    best, cost = Scaled(np.ones((), np.float16), bits), np.inf
    for shape, channels in _ways(values.shape, places):
        scales, error = _fitted(sizes, weights, channels, int(np.prod(shape)), best.most)
        found = Scaled(scales.reshape(shape), bits)
        worth = scales.nbytes + len(sizes) / 16 * np.log2(max(error, np.finfo(float).tiny))
        if worth < cost:
            best, cost = found, worth
    return best


def _ways(shape: tuple[int, ...], places: np.ndarray) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """List the shapes scales can have, and the scale of each of the places."""
    ways: list[tuple[tuple[int, ...], np.ndarray]] = [((), np.zeros(len(places), np.intp))]
    if len(shape) > 1 and shape[0] > 1:
        ways.append(((shape[0], *(1 for _ in shape[1:])), places // int(np.prod(shape[1:]))))
    if len(shape) > 1 and shape[-1] > 1:
        ways.append(((*(1 for _ in shape[1:]), shape[-1]), places % shape[-1]))
    return ways


def _weights(importance: np.ndarray) -> np.ndarray:
    mean = float(importance.mean()) if importance.size else 0.0
    return importance.astype(np.float64) + (FLOOR * mean or 1.0)


def _fitted(
    sizes: np.ndarray, weights: np.ndarray, channels: np.ndarray, count: int, most: int
) -> tuple[np.ndarray, float]:
    """Fit the scales of some channels, and give the weighted squared error they leave."""
    largest = np.zeros(count, np.float32)
    np.maximum.at(largest, channels, sizes)
    best = np.ones(count, np.float32)
    errors = np.full(count, np.inf)
    for clip in CLIPS:
        tried = _storable(clip * largest / most)
        best, errors = _better(best, errors, tried, sizes, weights, channels, most)
    codes = _codes(sizes, best[channels], most)
    crossed = np.bincount(channels, weights * codes * sizes, count)
    squared = np.bincount(channels, weights * codes * codes, count)
    fresh = np.divide(crossed, squared, out=best.astype(np.float64), where=squared > 0)
    best, errors = _better(best, errors, _storable(fresh), sizes, weights, channels, most)
    half = np.minimum(best, MOST_HALF).astype(np.float16)
    return (half if np.array_equal(half, best) else best), float(errors.sum())


def _better(
    best: np.ndarray,
    errors: np.ndarray,
    tried: np.ndarray,
    sizes: np.ndarray,
    weights: np.ndarray,
    channels: np.ndarray,
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Take the scales that leave less, channel by channel."""
    scales = tried[channels]
    off = sizes - _codes(sizes, scales, most) * scales
    found = np.bincount(channels, weights * off * off, len(tried))
    less = found < errors
    return np.where(less, tried, best), np.where(less, found, errors)


def _codes(sizes: np.ndarray, scales: np.ndarray, most: int) -> np.ndarray:
    codes: np.ndarray = np.minimum(np.rint(sizes / scales), most)
    return codes


def _storable(scales: np.ndarray) -> np.ndarray:
    """Round scales to float16 where all of them have its full precision; empty channels get 1."""
    single: np.ndarray = np.where(scales > 0, scales, 1).astype(np.float32)
    single[single == 0] = 1  # too small for a float
    least, most = (float(single.min()), float(single.max())) if single.size else (1.0, 1.0)
    if least >= SMALLEST_HALF and most <= MOST_HALF:
        return single.astype(np.float16).astype(np.float32)
    return single


def palette_for(values: np.ndarray, importance: np.ndarray, entries: int) -> Palette:
    """Choose a codebook by weighted k-means in one dimension.

    Args:
        values: floating-point ``[...]``, finite; zeros are left out of everything.
        importance: ``[...]``, not negative.
        entries: of the codebook, at most.

    Returns:
        The values themselves where they are few (at most ``LARGEST``, each ``REPEATS`` times on
        average), as in a binarised network: nothing is lost then.

    Source:
        Lloyd 1982; Panter & Dite 1951: where points are many, their density goes with the cube root
        of that of the values, which is where the rounds begin.

    >>> palette_for(np.float32([1, -1] * 4 + [0.0]), np.ones(9), 16).codebook
    array([-1.,  1.], dtype=float32)
    """
    flat = values.reshape(-1)
    kept = flat != 0
    sizes = flat[kept].astype(np.float32)
    distinct = np.unique(sizes)
    few = len(distinct) <= LARGEST and REPEATS * len(distinct) <= len(sizes)
    if few or len(distinct) <= entries:
        return Palette(distinct if len(distinct) else np.zeros(1, np.float32))
    order = np.argsort(sizes, kind="stable")
    ranked = sizes[order]
    weights = _weights(importance.reshape(-1)[kept])[order]
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * ranked)])
    points = _spread(ranked, weights, entries)
    before = np.empty(0)
    for _ in range(ROUNDS):
        ends = np.searchsorted(ranked, (points[1:] + points[:-1]) / 2, side="right")
        if np.array_equal(ends, before):
            break
        before, ends = ends, np.concatenate([[0], ends, [len(ranked)]])
        held = np.diff(mass[ends])
        points = np.divide(np.diff(moment[ends]), held, out=points.copy(), where=held > 0)
    return Palette(np.unique(points.astype(np.float32)))


def _spread(ranked: np.ndarray, weights: np.ndarray, entries: int) -> np.ndarray:
    """Place points with the density of the cube root of the weight of the values there."""
    heights, edges = np.histogram(ranked, BINS, weights=weights)
    risen = np.concatenate([[0.0], np.cumsum(np.cbrt(heights))])
    wanted = (np.arange(entries) + 0.5) / entries * risen[-1]
    found: np.ndarray = np.interp(wanted, risen, edges)
    return found
