"""Which samples come from one source: crops of one photograph, pieces of one recording.

A thousand crops of six photographs are six photographs. Where some of the crops of each are fitted
on and others judge, the verdict speaks of these six and of no seventh. So samples of one source go
to one set. A file says which they are, or they are found: whoever makes samples out of a few goes
round, and then every sixth sample is alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from onnxpress.labels import SOURCES, read_labels
from onnxpress_adapters.errors import MisuseError

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

Said = Path | Literal["auto", "none"]
"""What a call says: a file, or whether to look for rounds."""

AUTO: Final = "auto"
NONE: Final = "none"

MOST_SAMPLES = 1024
MOST_VALUES = 16384
"""Samples, and values of a channel of each, that are looked at."""

QUANTILES = 17
MOST_CHANNELS = 4
FEWEST_EACH = 4
"""Samples a source has at least, for a round to be one."""

SHUFFLES = 39
ALIKE = 0.85
"""Distance within a round's places as a share of that between them, at most. Crops of photographs
have .2 to .8; samples of one class, which may go round as well, .89 (digits, small pictures)."""

EQUAL = 1.02
"""Distance of two places as a share of that within them, up to which they are one source."""

AS_GOOD = 0.1
"""Share of what the best length of a round gains that a shorter one may lack."""

ROUNDING = 1e-6
"""Of a distance in units of spread, by the way it is computed."""


@dataclass(frozen=True, eq=False)
class Sources:
    """The source of each sample.

    Attributes:
        of: int64 ``[samples]``, numbered from 0.
        told: how they are known, in words.
        given: whether a file says so, and it is an error if that cannot be kept.
    """

    of: NDArray[np.int64]
    told: str
    given: bool = False

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.of.max()) + 1


def said_as(text: str) -> Said:
    """Read what a flag or a trace says.

    >>> said_as("auto"), said_as("patients.csv").name
    ('auto', 'patients.csv')
    """
    words: dict[str, Said] = {AUTO: AUTO, NONE: NONE}
    return words.get(text, Path(text))


def sources_of(said: Said, data: Arrays, samples: int) -> Sources | None:
    """Read or find the sources of samples.

    Args:
        said: ``auto`` to look for a round, ``none``, or a file with a number for each sample, as
            ``labels.read_labels`` reads them.
        data: by input ``[samples, *feed shape]``.
        samples: how many there are.

    Returns:
        None where all are different sources, as far as one can tell.

    Raises:
        MisuseError: the file cannot be read, or names a single source.
    """
    if not isinstance(said, Path):
        return round_of(data) if said == AUTO else None
    numbers = read_labels(said, samples, what=SOURCES)
    if numbers.ndim > 1:
        raise MisuseError(f"{said} has {numbers.shape[1]} numbers for each sample; a source is one")
    of = np.unique(numbers, return_inverse=True)[1].astype(np.int64)
    if not of.any():
        raise MisuseError(
            f"{said} has one source for all samples, and those that judge need another one; leave "
            "out --sources to share samples out at random"
        )
    return Sources(of, f"as {said} says", given=True)


def round_of(data: Arrays) -> Sources | None:
    """Find whether samples go round few sources: whether every so many samples are alike.

    Each sample is summed up by quantiles of its values, channel by channel, which crops, turns and
    moves of a picture share. Of all lengths of a round the one is taken whose places are most
    alike, if that is nothing that shuffled samples show as well. Where neighbours are alike it is
    no round but a sequence, for ``--sequence``.

    Args:
        data: by input ``[samples, *feed shape]``.

    Returns:
        None where nothing goes round.

    >>> rng = np.random.default_rng(0)
    >>> levels = np.tile([0.0, 5.0, 9.0], 20)[:, None]
    >>> found = round_of({"x": levels + rng.normal(size=(60, 30))})
    >>> found.count, found.of[:5].tolist()
    (3, [0, 1, 2, 0, 1])
    """
    total = len(next(iter(data.values()))) if data else 0
    if total < 2 * FEWEST_EACH:
        return None
    apart = _apart({name: array[:MOST_SAMPLES] for name, array in data.items()})
    length, ratio = _best_round(apart)
    together = np.trace(apart, 1) / (len(apart) - 1)
    if ratio > ALIKE or together < ALIKE * apart.mean():  # or else a sequence, where all is alike
        return None
    rng = np.random.default_rng(0)
    for _ in range(SHUFFLES):
        order = rng.permutation(len(apart))
        if _best_round(apart[np.ix_(order, order)])[1] <= ratio:
            return None
    places = _merged(apart, length)
    if not places.any():
        return None
    return Sources(places[np.arange(total) % length], f"every {length} samples they come round")


def _apart(data: Arrays) -> Floats:
    """Give how far samples are apart by their summaries, ``[samples, samples]``."""
    columns = np.concatenate([_summary(array) for array in data.values()], axis=1)
    spread = columns.std(axis=0)
    columns = (columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    squares = np.square(columns).sum(axis=1)
    between = squares[:, None] + squares - 2 * columns @ columns.T
    np.fill_diagonal(between, 0.0)
    apart: Floats = np.sqrt(np.maximum(between, 0.0))
    return apart


def _summary(array: NDArray[Any]) -> Floats:
    """Sum samples up: quantiles of each channel, or the values themselves where they are few."""
    if array.dtype.kind not in "biuf":
        return np.zeros((len(array), 0))
    rng = np.random.default_rng(0)
    columns = []
    for channel in _channels(array):
        values = channel.reshape(len(array), -1)
        if values.shape[1] > MOST_VALUES:
            values = values[:, np.sort(rng.choice(values.shape[1], MOST_VALUES, replace=False))]
        wide = values.astype(np.float64)
        if values.shape[1] > QUANTILES:
            wide = np.quantile(wide, np.linspace(0, 1, QUANTILES), axis=1).T
        columns.append(wide)
    return np.concatenate(columns, axis=1)


def _channels(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Take a picture's channels apart: ``[samples, 1, channels, ...]`` or ``[..., channels]``."""
    if array.ndim >= 4:
        for axis in (2, array.ndim - 1):
            if 1 < array.shape[axis] <= MOST_CHANNELS:
                return [np.take(array, place, axis) for place in range(array.shape[axis])]
    return [array]


def _best_round(apart: Floats) -> tuple[int, float]:
    """Give the length of a round whose places are most alike, and within as a share of between.

    Of a length and its multiples, which are rounds as well, the shortest.
    """
    samples = len(apart)
    lags = np.array([np.trace(apart, lag) for lag in range(1, samples)])
    pairs = np.arange(samples - 1, 0, -1)
    lengths = np.arange(2, samples // FEWEST_EACH + 1)
    ratios = np.ones(len(lengths))
    for place, length in enumerate(lengths):
        inside = slice(length - 1, None, length)
        within, count = lags[inside].sum(), pairs[inside].sum()
        outside = (lags.sum() - within) / (pairs.sum() - count)
        ratios[place] = within / count / outside if outside > 0 else 1.0
    least = ratios.min()
    best = int(np.argmax(ratios <= least + AS_GOOD * (1 - least)))
    return int(lengths[best]), float(ratios[best])


def _merged(apart: Floats, length: int) -> NDArray[np.int64]:
    """Number the places of a round; two that are as near each other as themselves are one."""
    place = np.arange(len(apart)) % length
    near = np.array(
        [
            [apart[np.ix_(place == a, place == b)].mean() for b in range(length)]
            for a in range(length)
        ]
    )
    each = np.bincount(place)
    own = np.diag(near) * each / (each - 1)  # without each sample's distance from itself
    root = np.arange(length)
    for a, b in combinations(range(length), 2):
        if near[a, b] <= EQUAL * min(own[a], own[b]) + ROUNDING:
            root[root == root[b]] = root[a]
    return np.unique(root, return_inverse=True)[1].astype(np.int64)
