"""From measured distances to a verdict: is the promise kept, as far as the samples can tell?

A file is accepted when the one-sided 95 % upper bound of its distance lies within the tolerance.
The bound is asymptotic: no finite number of samples bounds an error that hides in rare inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import special

from onnxpress_adapters.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxpress.problem import Tolerance
    from onnxpress_adapters.distance import Distance, OutputDistance

Verdict = Literal["within", "exceeded", "undecided", "nonfinite"]

CONFIDENCE = 0.95
RESAMPLES = 2000
CHUNK = 2_000_000
"""Entries of one block of resamples, to bound memory."""

# A resample that misses a rare large error has a standard error near zero, which would make the
# bound infinite. With a fifth as the least share, one error among many samples counts like six:
# a Poisson count of one has the upper limit 4.7.
LEAST_SHARE = 0.2


@dataclass(frozen=True)
class OutputRow:
    """What was found for one judged output.

    Attributes:
        name: of the output.
        relative: share of the output's variance.
        absolute: E‖F-F'‖².
        upper: 95 % upper bound of ``absolute`` where the tolerance is absolute, else of
            ``relative``.
        tolerance: what ``upper`` must not pass; None where the output has no limit of its own.
        ok: whether it does not.
    """

    name: str
    relative: float
    absolute: float
    upper: float
    tolerance: float | None
    ok: bool


@dataclass(frozen=True)
class Decision:
    """A verdict and what it rests on.

    Attributes:
        verdict: of the whole file.
        relative: the largest over the judged outputs, and the largest upper bound.
        absolute: the sum over the judged outputs, and its upper bound.
        flips: share of changed answers and its upper bound; None where no output is a classifier.
        per_output: the judged outputs, in the order of the model.
        reason: one plain sentence.
    """

    verdict: Verdict
    relative: tuple[float, float]
    absolute: tuple[float, float]
    flips: tuple[float, float] | None
    per_output: tuple[OutputRow, ...]
    reason: str


@dataclass(frozen=True)
class _Limit:
    """One thing that must not pass a limit; ``what`` and ``unit`` are for the sentence."""

    what: str
    point: float
    upper: float
    allowed: float
    unit: str

    def shown(self, value: float) -> str:
        return f"{value:.2g}" if self.unit == "absolute" else percent(value)


def upper_bound(errors: np.ndarray, spread: np.ndarray, seed: int) -> float:
    """Bound the ratio mean(errors) / mean(spread) from above, with 95 % confidence.

    The largest of three: the ratio itself, Student's bound of the linearised ratio, and a
    bootstrap-t, which sees that errors are skewed.

    Args:
        errors: ``[samples]``, not negative; infinite where a sample is lost.
        spread: ``[samples]``, not negative; ones for a bound of the mean error itself.
        seed: of the resampling.

    Returns:
        The bound; infinite for a single sample, or where no bound exists.

    Source:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 12.5.
    """
    samples = len(errors)
    scale = float(spread.mean()) if samples else 0.0
    if samples < 2 or not np.isfinite(errors).all() or not isfinite(scale):
        return float("inf")
    if not scale:
        return float("inf") if errors.any() else 0.0
    ratio = float(errors.mean()) / scale
    spent = float(_standard_errors(errors[None], spread[None])[0])
    if not spent:
        return ratio
    student = ratio + float(special.stdtrit(samples - 1, CONFIDENCE)) * spent
    rng = np.random.default_rng([seed, samples])
    deviations = []
    rows = max(1, CHUNK // samples)
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(samples, size=(min(rows, RESAMPLES - start), samples))
        new_errors, new_spread = errors[drawn], spread[drawn]
        means = new_spread.mean(1)
        usable = means > 0
        ratios = new_errors.mean(1)[usable] / means[usable]
        spread_out = _standard_errors(new_errors[usable], new_spread[usable])
        deviations.append((ratios - ratio) / np.maximum(spread_out, LEAST_SHARE * spent))
    low = float(np.quantile(np.concatenate(deviations), 1 - CONFIDENCE))
    return max(ratio, student, ratio - low * spent)


def _standard_errors(errors: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Give the standard error of mean(errors) / mean(spread) for each row ``[rows, samples]``."""
    scale = spread.mean(1, keepdims=True)
    residuals = errors - errors.mean(1, keepdims=True) / scale * spread
    found: np.ndarray = residuals.std(1, ddof=1) / scale[:, 0] / sqrt(errors.shape[1])
    return found


def flips_upper(changed: float, answers: int) -> float:
    """Bound the share of changed answers from above, with 95 % confidence (Clopper & Pearson 1934).

    Args:
        changed: how many changed; may be broken where a sample holds several answers and counts
            once, which only makes the bound wider.
        answers: out of how many.

    >>> round(flips_upper(0, 100), 4)
    0.0295
    """
    if changed >= answers:
        return 1.0
    return float(special.betaincinv(changed + 1, answers - changed, CONFIDENCE))


def decide(distance: Distance, tolerance: Tolerance | None, seed: int) -> Decision:
    """Judge a measured distance.

    ``nonfinite`` when an output is NaN or infinite; ``within`` when every upper bound is within
    its limit; ``exceeded`` when a measured value is already above; else ``undecided``.

    Args:
        distance: over the judge's samples.
        tolerance: the promise; None where none was asked for, which every finite distance keeps.
        seed: of the resampling.

    Raises:
        MisuseError: the tolerance names an output that was not compared, nothing that was compared
            holds real numbers, or changed answers are limited where no output is a classifier.
    """
    judged = _judged(distance, tolerance)
    absolute = tolerance is not None and tolerance.absolute
    own = dict(tolerance.outputs) if tolerance is not None else {}
    relative_upper = {o.name: upper_bound(o.errors, o.spread, seed) for o in judged}
    rows, limits = [], []
    for output in judged:
        upper = _mean_upper([output], seed) if absolute else relative_upper[output.name]
        allowed = own.get(output.name)
        if allowed is None and tolerance is not None and not absolute:
            allowed = tolerance.value
        point = output.absolute if absolute else output.relative
        ok = upper <= allowed if allowed is not None else isfinite(point)
        rows.append(OutputRow(output.name, output.relative, output.absolute, upper, allowed, ok))
        if allowed is not None:
            unit = "absolute" if absolute else "relative"
            limits.append(_Limit(f"output '{output.name}'", point, upper, allowed, unit))
    if absolute and tolerance is not None:
        limits += _sum_limit([o for o in judged if own.get(o.name) is None], tolerance, seed)
    flips = None
    if distance.flips is not None:
        flips = distance.flips, flips_upper(distance.flips * distance.samples, distance.samples)
    if tolerance is not None and tolerance.flips is not None:
        if flips is None:
            raise MisuseError(
                "changed answers are limited, but no output that is judged has two entries or more "
                "to choose an answer from; leave out --flips"
            )
        limits.append(_Limit("answers", *flips, tolerance.flips, "flips"))
    verdict, reason = _conclude(limits, distance)
    return Decision(
        verdict=verdict,
        relative=(max(o.relative for o in judged), max(relative_upper.values())),
        absolute=(sum(o.absolute for o in judged), _mean_upper(judged, seed)),
        flips=flips,
        per_output=tuple(rows),
        reason=reason,
    )


def _judged(distance: Distance, tolerance: Tolerance | None) -> Sequence[OutputDistance]:
    """Give the float outputs the tolerance speaks of."""
    known = {output.name: output for output in distance.per_output}
    if not known:
        raise MisuseError(
            "none of the outputs compared holds real numbers, so no distance can be measured"
        )
    if tolerance is None or not tolerance.outputs:
        return distance.per_output
    for name, _ in tolerance.outputs:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            meant = f" (did you mean '{close[0]}'?)" if close else ""
            raise MisuseError(
                f"no output '{name}' with real numbers was compared{meant}; "
                f"there are {', '.join(known)}"
            )
    chosen = {name for name, _ in tolerance.outputs}
    return tuple(output for output in distance.per_output if output.name in chosen)


def _mean_upper(outputs: Sequence[OutputDistance], seed: int) -> float:
    """Bound the sum of the absolute distances of some outputs."""
    errors = np.sum([output.errors for output in outputs], axis=0)
    return upper_bound(errors, np.ones_like(errors), seed)


def _sum_limit(
    outputs: Sequence[OutputDistance], tolerance: Tolerance, seed: int
) -> Sequence[_Limit]:
    """Give the limit on the sum over the outputs without one of their own."""
    if not outputs:
        return []
    what = f"output '{outputs[0].name}'" if len(outputs) == 1 else "sum over the outputs"
    point = sum(output.absolute for output in outputs)
    return [_Limit(what, point, _mean_upper(outputs, seed), tolerance.value, "absolute")]


def _conclude(limits: Sequence[_Limit], distance: Distance) -> tuple[Verdict, str]:
    """Give the verdict and the sentence for it, about the limit that is worst."""
    if distance.nonfinite:
        return "nonfinite", "the outputs hold NaN or infinity"
    if not limits:
        return "within", "no tolerance was asked for"
    worst = max(limits, key=lambda limit: limit.point / limit.allowed)
    if not worst.point <= worst.allowed:
        return "exceeded", f"{_moved(worst, worst.point)}, and {_allowed(worst)}"
    worst = max(limits, key=lambda limit: limit.upper / limit.allowed)
    if not worst.upper <= worst.allowed:
        bound = "without a bound" if not isfinite(worst.upper) else worst.shown(worst.upper)
        return "undecided", (
            f"{_moved(worst, worst.point)}, but from {distance.samples} samples it may be up to "
            f"{bound}, and {_allowed(worst)}; give more samples, or a larger tolerance"
        )
    return "within", f"{_moved(worst, worst.upper, 'at most ')}, and {_allowed(worst)}"


def _moved(limit: _Limit, value: float, bound: str = "") -> str:
    shown = f"{bound}{limit.shown(value)}"
    if limit.unit == "flips":
        return f"{shown} of the answers change"
    if limit.unit == "absolute":
        return f"the {limit.what} moves by {shown} (mean squared)"
    return f"the {limit.what} moves by {shown} of its variance"


def _allowed(limit: _Limit) -> str:
    return f"{limit.shown(limit.allowed)} is allowed"


def percent(share: float, digits: int = 2) -> str:
    """Write a share as a percentage of so many digits.

    >>> percent(0.00834), percent(1.0), percent(0.0), percent(0.97459, digits=3)
    ('0.83 %', '100 %', '0 %', '97.5 %')
    """
    return f"{float(f'{100 * share:.{digits}g}'):g} %"


def words(decision: Decision, distance: Distance) -> str:
    """Say in plain words how far the outputs moved.

    >>> from onnxpress_adapters.distance import DistanceMeter
    >>> meter = DistanceMeter(["y"])
    >>> meter.add([np.array([[0.0], [2.0]])], [np.array([[0.1], [2.1]])])
    >>> words(decide(meter.distance(), None, 0), meter.distance())
    "1 % of the output's variance (10 % RMS)"
    """
    if distance.nonfinite:
        return "the outputs hold NaN or infinity"
    worst = max(decision.per_output, key=lambda row: row.relative)
    if len(decision.per_output) > 1:
        whose = f"the variance of '{worst.name}', the output that moves most"
    else:
        whose = "the output's variance"
    parts = [f"{percent(worst.relative)} of {whose} ({percent(sqrt(worst.relative))} RMS)"]
    if distance.flips is not None:
        parts.append(f"{percent(distance.flips)} of the answers change")
    if distance.changed_integers:
        parts.append(f"{percent(distance.changed_integers)} of the whole-number outputs change")
    return ", ".join(parts)
