"""Three disjoint sets of inputs, and the only way to get them.

*fit* is what steps optimise on, *choose* steers search and early stopping, *judge* is seen once,
for the file as written. No sample stands in two of them, exact repeats included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxpress.arrays import read_arrays
from onnxpress.domain import Domain
from onnxpress.inputs import Shape, fits, listed
from onnxpress.sources import Sources
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.specs import InputSpec, batched_first, kind, whole_range

Array = NDArray[Any]
Arrays = Mapping[str, Array]

SHARES = (3, 1, 1)
"""How data is shared out between fit, choose and judge."""

COMMON = (6, 1, 1)
"""Likewise samples of the sources that all of them see, where choose and judge have others too."""

FEWEST = (9, 3, 3)
"""The fewest different samples each of them can work with."""

FEW = 4
"""Sources below which a set of held-out ones says little of how others differ."""


@dataclass(frozen=True)
class Shared:
    """Where sources went, a line of the report as text.

    Attributes:
        total: how many there are.
        alone: how many only choose has, and how many only judge has, where it is of the same data.
        told: how they are known, in words.
    """

    total: int
    alone: tuple[int, ...]
    told: str

    @property
    def few(self) -> bool:
        """Whether those held out are too few to show how sources differ."""
        return min(self.alone) < FEW

    def __str__(self) -> str:
        """Say it in a sentence."""
        uses = zip(self.alone, ("to choose with", "to judge on"), strict=False)
        parts = [f"{number} only {use}" for number, use in uses if number]
        return (
            f"the samples come from {self.total} sources ({self.told}): {', '.join(parts)}, and "
            "samples of the others in each set"
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs for fitting, for choosing and for the verdict.

    Attributes:
        fit: by input ``[samples, *feed shape]``; all inputs have the same number of samples.
        choose: likewise.
        judge: likewise.
        duplicates: how many samples of the data were exact repeats of another one.
        labels: of fit and of choose, sample by sample; None where there are none. The judge needs
            none: it measures the distance between two models.
        sources: how many there are and where they went; None where each sample goes its own way.
        seen: those that were found and not kept apart, as nobody asked for it.
    """

    fit: Arrays
    choose: Arrays
    judge: Arrays
    duplicates: int = 0
    labels: tuple[Array, Array] | None = None
    sources: Shared | None = None
    seen: Sources | None = None


def count(arrays: Arrays) -> int:
    """Say how many samples a set has."""
    return next((len(array) for array in arrays.values()), 0)


def from_domains(domains: Mapping[str, Domain], counts: tuple[int, int, int], seed: int) -> Samples:
    """Draw three sets, independent of each other.

    Args:
        domains: one per input.
        counts: how many samples fit, choose and judge get.
        seed: 0 or more; the same one gives the same samples.

    Raises:
        MisuseError: the seed is negative.
    """
    fit, choose, judge = (
        _draw(domains, size, _generator(seed, place)) for place, size in enumerate(counts)
    )
    return Samples(fit, choose, judge)


def from_data(
    arrays: Arrays,
    seed: int,
    *,
    sequence: bool = False,
    sources: Sources | None = None,
    judge: Arrays | None = None,
    labels: Array | None = None,
) -> Samples:
    """Share data out: 60 % to fit, 20 % to choose, 20 % to judge.

    Exact repeats of a sample go to the same set, together. Where the order must be kept, repeats
    are left out of the earlier sets instead, so that the judge sees its block as it is.

    Args:
        arrays: by input ``[samples, *feed shape]``, as ``load_data`` gives them.
        seed: 0 or more; the same one gives the same sets.
        sequence: neighbours are alike (frames, a time series): take contiguous blocks in the order
            of the data, the judge's last, instead of shuffling.
        sources: of the samples; the judge sees some that nothing was fitted on or chosen with, and
            choose, where there are three or more, some that nothing was fitted on.
        judge: samples for the judge from elsewhere; ``arrays`` is then shared out between fit and
            choose 3 to 1, without what the judge sees.
        labels: ``[samples, ...]``, one for each; they go where their samples go.

    Raises:
        MisuseError: too few different samples, or the seed is negative.
    """
    marks = marks_of(arrays)
    theirs = [] if judge is None else marks_of(judge)
    seen = set(theirs)
    duplicates = len(marks) + len(theirs) - len({*marks, *seen})
    kept = np.flatnonzero([mark not in seen for mark in marks])
    left = [marks[place] for place in kept]
    needed = FEWEST if judge is None else FEWEST[:2]
    shares = SHARES[: len(needed)]
    parts = None
    if sources is not None:
        parts = _by_source(sources.of[kept], left, shares, seed)
        if not sources.given and (parts is None or _lacking(parts, left, needed)):
            parts = sources = None  # what was only found does not stand in the way
        elif parts is None:
            raise MisuseError(
                "every source of the data has samples of another one in it, exactly repeated; take "
                "them out, or share samples out at random with --sources none"
            )
    if parts is None:
        parts = (_blocks if sequence else _shuffled)(left, shares, seed)
    if lacking := _lacking(parts, left, needed):
        apart = "" if sources is None else "; --sources none shares them out at random"
        raise MisuseError(lacking + apart)
    if judge is not None:
        _check_judge(seen)
    chosen = [kept[places] for places in parts]
    fit, choose, *rest = ({n: a[places] for n, a in arrays.items()} for places in chosen)
    beside = None if labels is None else (labels[chosen[0]], labels[chosen[1]])
    shared = None
    if sources is not None:
        first, *others = (set(sources.of[places].tolist()) for places in chosen)
        alone = tuple(len(each - first) for each in others)
        shared = Shared(sources.count, alone, sources.told)
    return Samples(fit, choose, judge if judge is not None else rest[0], duplicates, beside, shared)


def load_data(
    path: Path, specs: Sequence[InputSpec], shapes: Mapping[str, Shape] | None = None
) -> dict[str, Array]:
    """Read samples for every input of a model.

    A sample may leave out the first dimension of the model where that is a batch of 1 or open; the
    feeds get it back. A type of the same family is converted where nothing is lost but precision.

    Args:
        path: an .npz, a folder of .npy, or a folder of ``test_data_set_*/input_*.pb``.
        specs: the inputs of the model.
        shapes: sizes the call fixes, by input.

    Returns:
        By input, in the order of the model: ``[samples, *feed shape]`` in the input's type.

    Raises:
        MisuseError: whatever does not fit: files, names, shapes, types, counts, NaN or infinity.
    """
    found = read_arrays(path, specs)
    missing = [spec for spec in specs if spec.name not in found]
    if missing:
        raise MisuseError(f"{path} has no data for {listed(missing)}; add an array of that name")
    arrays: dict[str, Array] = {}
    for spec in specs:
        try:
            shaped = _shaped(found[spec.name], spec, (shapes or {}).get(spec.name))
            arrays[spec.name] = _finite(_typed(shaped, spec), shaped, spec)
        except MisuseError as error:
            raise MisuseError(f"{path}: {error}") from None
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise MisuseError(
            f"{path}: the inputs differ in their number of samples ("
            + ", ".join(f"{name} {size}" for name, size in counts.items())
            + "); give each as many"
        )
    if not count(arrays):
        raise MisuseError(f"{path} holds no samples; the first axis of each array counts them")
    return arrays


def _draw(domains: Mapping[str, Domain], size: int, rng: np.random.Generator) -> Arrays:
    return {name: domain.draw(rng, size) for name, domain in domains.items()}


def _generator(seed: int, place: int) -> np.random.Generator:
    if seed < 0:
        raise MisuseError(f"the seed is {seed}; give one from 0 on")
    return np.random.default_rng([seed, place])


def marks_of(arrays: Arrays) -> list[bytes]:
    """Give each sample 16 bytes that two samples share only where all their bytes are equal."""
    marks = []
    for place in range(count(arrays)):
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(arrays):
            digest.update(arrays[name][place].tobytes())
        marks.append(digest.digest())
    return marks


def _sizes(total: int, shares: tuple[int, ...]) -> list[int]:
    """Cut a number in parts; what does not divide goes to the first.

    >>> _sizes(17, (3, 1, 1))
    [11, 3, 3]
    """
    rest = [total * share // sum(shares) for share in shares[1:]]
    return [total - sum(rest), *rest]


def _shuffled(marks: Sequence[bytes], shares: tuple[int, ...], seed: int) -> list[Array]:
    """Share places out at random, equal marks together.

    Each set gets its share of the *different* samples. The largest groups of equals are dealt
    first: so each set also gets its share of groups of every size, and a single huge one, which
    would drown the others' verdict, goes to *fit*.
    """
    rng = _generator(seed, 0)
    groups: dict[bytes, list[int]] = {}
    for place in rng.permutation(len(marks)):
        groups.setdefault(marks[place], []).append(int(place))
    wanted = _sizes(len(groups), shares)
    dealt: list[list[list[int]]] = [[] for _ in shares]
    for group in sorted(groups.values(), key=len, reverse=True):
        missing = [1 - len(have) / max(want, 1) for have, want in zip(dealt, wanted, strict=True)]
        dealt[missing.index(max(missing))].append(group)
    return [
        rng.permutation(np.asarray(list(chain.from_iterable(part)), dtype=np.int64))
        for part in dealt
    ]


def _by_source(
    of: Array, marks: Sequence[bytes], shares: tuple[int, ...], seed: int
) -> list[Array] | None:
    """Share places out at random, with sources of its own for choose and for judge.

    Each of the two gets its share of the sources, one at least, and what repeats their samples; of
    two sources for three sets the judge alone gets one. The others' samples are shared out between
    all sets: one photograph lies far off and the next one does not, so that both are to see many.
    None where repeats of samples make all sources one.
    """
    joined = _joined(of, marks)
    rng = _generator(seed, 0)
    groups = [np.flatnonzero(joined == name) for name in rng.permutation(np.unique(joined))]
    if len(groups) < 2:
        return None
    own = [max(1, size) for size in _sizes(len(groups), shares)[1:]]
    if len(groups) < len(shares):
        own[0] = 0
    wanted = [len(groups) - sum(own), *own]
    dealt: list[list[Array]] = [[] for _ in shares]
    for group in sorted(groups, key=len, reverse=True):
        missing = [1 - len(have) / (want or 1) for have, want in zip(dealt, wanted, strict=True)]
        missing = [each if want else -1.0 for each, want in zip(missing, wanted, strict=True)]
        dealt[missing.index(max(missing))].append(group)
    common = np.concatenate(dealt[0])
    within = _shuffled([marks[int(place)] for place in common], COMMON[: len(shares)], seed)
    return [
        rng.permutation(np.concatenate((common[places], *alone)))
        for places, alone in zip(within, ([], *dealt[1:]), strict=True)
    ]


def _joined(of: Array, marks: Sequence[bytes]) -> Array:
    """Make sources one that have a sample in common."""
    joined = of.copy()
    first: dict[bytes, int] = {}
    for place, mark in enumerate(marks):
        other = first.setdefault(mark, place)
        if joined[other] != joined[place]:
            joined[joined == joined[place]] = joined[other]
    return joined


def _blocks(marks: Sequence[bytes], shares: tuple[int, ...], seed: int) -> list[Array]:
    """Cut places in blocks, in their order; a block leaves out what a later one has too."""
    del seed  # the order of the data decides
    ends = np.cumsum(_sizes(len(marks), shares))
    blocks: list[Array] = []
    later: set[bytes] = set()
    for block in reversed(np.split(np.arange(len(marks)), ends[:-1])):
        fresh = [place for place in block if marks[place] not in later]
        later.update(marks[place] for place in fresh)
        blocks.insert(0, np.asarray(fresh, dtype=np.int64))
    return blocks


def _lacking(parts: Sequence[Array], marks: Sequence[bytes], needed: tuple[int, ...]) -> str:
    """Say what is wrong with sets of too few different samples; empty where nothing is."""
    found = [{marks[place] for place in places} for places in parts]
    names = ("fit", "choose", "judge")
    total = sum(map(len, found))
    words = ", ".join(f"{need} to {name}" for need, name in zip(needed, names, strict=False))
    if total < sum(needed):
        return (
            f"the data has {total} different samples"
            f"{'' if len(needed) == len(FEWEST) else ' beside the judge'}; "
            f"at least {sum(needed)} are needed ({words})"
        )
    for have, need, name in zip(found, needed, names, strict=False):
        if len(have) < need:
            return (
                f"exact repeats, or sources kept apart, leave {len(have)} different samples to "
                f"{name} on, which needs {need}; give more data"
            )
    return ""


def _check_judge(found: set[bytes]) -> None:
    if len(found) < FEWEST[2]:
        raise MisuseError(
            f"the judge's data has {len(found)} different samples; at least {FEWEST[2]} are needed"
        )


def _shaped(array: Array, spec: InputSpec, fixed: Shape | None) -> Array:
    """Bring an array to ``[samples, *feed shape]``."""
    if not spec.ranked and fixed is None:
        if array.ndim == 0:
            raise MisuseError(f"'{spec.name}' is a single number; the first axis counts samples")
        return array
    wanted = spec.shape if fixed is None else fixed
    if fits(array.shape[1:], wanted) and array.ndim:
        return array
    batched = batched_first(spec) if fixed is None else fixed[:1] == (1,)
    if batched and array.ndim and fits(array.shape[1:], wanted[1:]):
        return array[:, np.newaxis]
    ways = [wanted, wanted[1:]] if batched else [wanted]
    shown = " or ".join(f"[{', '.join(['samples', *_words(way)])}]" for way in ways)
    raise MisuseError(
        f"'{spec.name}' has shape {list(array.shape)}; the model takes {spec.describe()}, "
        f"so give it as {shown}"
    )


def _words(shape: Sequence[int | None]) -> list[str]:
    return ["any" if size is None else str(size) for size in shape]


def _typed(array: Array, spec: InputSpec) -> Array:
    """Convert within a family of types; never between families."""
    if spec.kind == "other":
        raise MisuseError(
            f"the input {spec.describe()} holds neither numbers nor truth values; onnxpress "
            "cannot feed it"
        )
    if kind(array.dtype) != spec.kind:
        raise MisuseError(
            f"'{spec.name}' holds {array.dtype}, the model takes {spec.dtype}; convert it "
            "yourself if that is what you mean"
        )
    if spec.kind == "integer" and array.size and array.dtype != spec.dtype:
        least, most = whole_range(spec.dtype)
        if int(array.min()) < least or int(array.max()) > most:
            raise MisuseError(
                f"'{spec.name}' goes from {array.min()} to {array.max()}, and the model's "
                f"{spec.dtype} only from {least} to {most}"
            )
    with np.errstate(over="ignore"):
        return array.astype(spec.dtype, copy=False)


def _finite(array: Array, given: Array, spec: InputSpec) -> Array:
    """Refuse NaN and infinity, and what only the conversion made infinite."""
    if spec.kind != "float":
        return array
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1) if array.size else np.zeros(0)
    if not bad.any():
        return array
    first = int(np.flatnonzero(bad)[0])
    if np.isfinite(given[first]).all():
        raise MisuseError(
            f"'{spec.name}' holds values too large for {spec.dtype}, first in sample {first}"
        )
    raise MisuseError(
        f"'{spec.name}' holds NaN or infinity in {int(bad.sum())} of {len(array)} samples, "
        f"first in sample {first}; remove them"
    )
