"""The functional distance between two lists of outputs: the one definition.

For an output F of the original and F' of the pressed model, over samples x:

    absolute   E ||F(x) - F'(x)||^2, summed over the float outputs of the model
    relative   E ||F - F'||^2 / E ||F - EF||^2, the largest over the float outputs

so that 0 is equal and 1 is no better than always answering the mean. An output that does not vary
(its variance is below 1e-12 of its power) is divided by E ||F||^2 instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.specs import kind

KEPT_BYTES = 64 << 20
STILL = 1e-12  # variance over power below which an output is taken not to vary


@dataclass(frozen=True, eq=False)
class OutputDistance:
    """The distance of one float output.

    Attributes:
        name: of the output.
        absolute: E||F - F'||^2.
        relative: ``absolute`` divided by the mean of ``spread``; infinite where F does not vary
            around anything but zero and F' differs.
        errors: float64 ``[samples]``: ||F - F'||^2 of each sample; infinite where F' is not finite
            or has another shape.
        spread: float64 ``[samples]``: ||F - EF||^2 of each sample, or ||F||^2 for an output that
            does not vary. Where the outputs were too large to keep (over 64 MB in all), every
            entry is the mean over the samples, which is exact.
    """

    name: str
    absolute: float
    relative: float
    errors: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class Distance:
    """How far a candidate is from a reference over the samples seen.

    Attributes:
        names: of all outputs compared.
        absolute: summed over the float outputs; nan where there is none.
        relative: the largest over the float outputs; nan where there is none.
        per_output: the float outputs, in order.
        flips: share of answers that change: (sample, position) pairs whose largest entry along the
            last axis moves, in the first float output whose last axis has two entries or more;
            None where there is no such output.
        changed_integers: share of the entries that change in all other outputs (whole numbers,
            booleans, text); None where there are none.
        nonfinite: whether the reference or the candidate answered NaN or infinity anywhere.
        samples: how many were compared.
    """

    names: tuple[str, ...]
    absolute: float
    relative: float
    per_output: tuple[OutputDistance, ...]
    flips: float | None
    changed_integers: float | None
    nonfinite: bool
    samples: int


class DistanceMeter:
    """Accumulates the distance batch by batch, in float64.

    Nothing but one mean output, a few numbers per sample and, up to 64 MB, the reference outputs
    themselves is kept, so any number of samples can pass through.

    >>> meter = DistanceMeter(["y"])
    >>> meter.add([np.array([[0.0], [2.0]])], [np.array([[0.5], [2.0]])])
    >>> meter.distance().absolute, meter.distance().relative
    (0.125, 0.125)
    """

    def __init__(self, names: Sequence[str], kept_bytes: int = KEPT_BYTES) -> None:
        """Start at no samples.

        Args:
            names: of the outputs, in the order in which ``add`` gets them.
            kept_bytes: how much of the reference may be kept for the exact spread per sample.
        """
        self.names = tuple(names)
        self._room = kept_bytes
        self._samples = 0
        self._floats: dict[str, _Float] = {}
        self._answers = _Changes()
        self._entries = _Changes()
        self._classifier: str | None = None
        self._nonfinite = False

    def add(self, reference: Sequence[np.ndarray], candidate: Sequence[np.ndarray]) -> None:
        """Compare one batch of samples.

        Args:
            reference: one array ``[samples, *shape]`` per output; the shape may change from one
                call to the next.
            candidate: the same of the pressed model; an output of another shape counts as
                infinitely far.

        Raises:
            AdapterError: another number of outputs, or outputs with different numbers of samples.
        """
        counts = {len(array) for array in (*reference, *candidate)}
        if len(reference) != len(self.names) or len(candidate) != len(self.names):
            raise AdapterError(
                f"{len(self.names)} outputs are compared; got {len(reference)} of the original "
                f"and {len(candidate)} of the pressed model"
            )
        if len(counts) > 1:
            raise AdapterError(f"the outputs of one batch hold {sorted(counts)} samples each")
        for name, old, new in zip(self.names, reference, candidate, strict=True):
            if kind(old.dtype) == "float":
                self._add_float(name, old, new)
            else:
                self._entries.add(old, new)
        self._samples += counts.pop() if counts else 0

    def _add_float(self, name: str, old: np.ndarray, new: np.ndarray) -> None:
        if self._classifier is None and old.ndim > 1 and old.shape[-1] > 1:
            self._classifier = name
        if name == self._classifier and old.size:
            self._answers.add(old.argmax(-1), new.argmax(-1) if new.shape == old.shape else new)
        output = self._floats.setdefault(name, _Float())
        self._nonfinite |= not output.add(old.astype(np.float64), new.astype(np.float64))
        if self._room >= old.nbytes:
            self._room -= old.nbytes
            output.kept.append(old)
        else:
            self._room = -1
        if self._room < 0:
            for each in self._floats.values():
                each.kept.clear()

    def distance(self) -> Distance:
        """Give the distance over everything added so far; more can be added afterwards.

        Raises:
            AdapterError: nothing was added.
        """
        if not self._samples:
            raise AdapterError("no samples were compared; at least one is needed for a distance")
        per_output = tuple(
            output.distance(name, exact=self._room >= 0) for name, output in self._floats.items()
        )
        return Distance(
            names=self.names,
            absolute=sum(o.absolute for o in per_output) if per_output else float("nan"),
            relative=max((o.relative for o in per_output), default=float("nan")),
            per_output=per_output,
            flips=self._answers.share(),
            changed_integers=self._entries.share(),
            nonfinite=self._nonfinite,
            samples=self._samples,
        )


@dataclass
class _Changes:
    """How many entries were compared and how many of them differ."""

    compared: int = 0
    changed: int = 0

    def add(self, old: np.ndarray, new: np.ndarray) -> None:
        self.compared += old.size
        self.changed += int((old != new).sum()) if old.shape == new.shape else old.size

    def share(self) -> float | None:
        return self.changed / self.compared if self.compared else None


@dataclass
class _Float:
    """What is remembered of one float output.

    ``mean`` and ``scatter`` are the running mean and the summed squared deviation from it, merged
    batch by batch (Chan, Golub & LeVeque 1979): E||F||^2 - ||EF||^2 would lose every digit of an
    output that varies little around a large mean.
    """

    mean: np.ndarray | None = None  # [*shape]; None once the shape has changed between samples
    same_shape: bool = True
    samples: int = 0
    scatter: float = 0.0
    errors: list[np.ndarray] = field(default_factory=list)  # [batch] each, as the next three
    powers: list[np.ndarray] = field(default_factory=list)
    own_means: list[np.ndarray] = field(default_factory=list)
    own_scatters: list[np.ndarray] = field(default_factory=list)
    sizes: list[np.ndarray] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)

    def add(self, old: np.ndarray, new: np.ndarray) -> bool:
        """Take one batch ``[samples, *shape]``, float64; say whether all of it is finite."""
        count = len(old)
        flat = old.reshape(count, -1)
        finite = bool(np.isfinite(flat).all() and np.isfinite(new).all())
        with np.errstate(invalid="ignore", over="ignore"):
            if old.shape == new.shape:
                errors = ((flat - new.reshape(count, -1)) ** 2).sum(1)
                errors[np.isnan(errors)] = np.inf
            else:
                errors = np.full(count, np.inf)
            own = flat.mean(1) if flat.shape[1] else np.zeros(count)
            self.errors.append(errors)
            self.powers.append((flat**2).sum(1))
            self.own_means.append(own)
            self.own_scatters.append(((flat - own[:, None]) ** 2).sum(1))
            self.sizes.append(np.full(count, flat.shape[1]))
            self._merge(old, count)
        return finite

    def _merge(self, old: np.ndarray, count: int) -> None:
        if not count or not self.same_shape:
            return
        centre = old.mean(0)
        mean = np.zeros_like(centre) if self.mean is None else self.mean
        if mean.shape != centre.shape:
            self.same_shape, self.mean = False, None
            return
        step = centre - mean
        total = self.samples + count
        self.scatter += float(((old - centre) ** 2).sum())
        self.scatter += float((step**2).sum()) * self.samples * count / total
        self.mean = mean + step * (count / total)
        self.samples = total

    def distance(self, name: str, exact: bool) -> OutputDistance:
        """Divide what was summed; ``exact`` says that the reference outputs were all kept."""
        errors, powers = np.concatenate(self.errors), np.concatenate(self.powers)
        with np.errstate(invalid="ignore", over="ignore"):
            spread = self._spread(len(errors), exact)
            if not spread.sum() > STILL * powers.sum():
                spread = powers
        total, scale = float(errors.sum()), float(spread.sum())
        relative = total / scale if scale else (0.0 if total == 0 else float("inf"))
        if np.isinf(total):
            relative = float("inf")
        return OutputDistance(name, total / len(errors), relative, errors, spread)

    def _spread(self, samples: int, exact: bool) -> np.ndarray:
        if self.mean is None:
            # Shapes that change have no mean output; the mean of all means stands in for it.
            own, size = np.concatenate(self.own_means), np.concatenate(self.sizes)
            spread: np.ndarray = np.concatenate(self.own_scatters) + size * (own - own.mean()) ** 2
            return spread
        if not exact:
            return np.full(samples, self.scatter / samples)
        axes = tuple(range(1, self.mean.ndim + 1))
        parts = [((old.astype(np.float64) - self.mean) ** 2).sum(axes) for old in self.kept]
        return np.concatenate(parts)
