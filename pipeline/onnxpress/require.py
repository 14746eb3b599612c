"""What a pressed file has to reach beside its tolerance: ``--require size=-50%,latency=-10%``.

The requirement is asked of the file that would be written, once its verdict is ``within``; where it
is not met, nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from re import fullmatch
from typing import TYPE_CHECKING

import numpy as np

from onnxpress.verdict import percent
from onnxpress_adapters.errors import MisuseError
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.latency import Race, feeds_of, race

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import ModelProto

RACE_SECONDS = 5.0
"""About how long the original and the pressed model run in turns."""


@dataclass(frozen=True)
class Requirement:
    """How much smaller and how much faster a file must be.

    Attributes:
        size: the least share of the original's bytes that has to go, between 0 and 1; None where
            any size will do.
        latency: the least share of the original's time that has to go, likewise.
    """

    size: float | None = None
    latency: float | None = None

    def unmet(self, original_bytes: int, pressed_bytes: int, times: Race | None = None) -> str:
        """Say what was reached where that is not enough, else ``""``.

        Args:
            original_bytes: of the original on disk, data files included.
            pressed_bytes: of the file that would be written, likewise.
            times: of both models, the original first; needed where a latency is asked for. The
                upper end of its interval has to be low enough: a race won by luck is not won.

        >>> Requirement(0.5).unmet(1000, 620)
        'the file would be 62 % of the original (620 of 1,000 bytes); -50 % was asked'
        >>> Requirement(0.5).unmet(1000, 500)
        ''
        """
        lacking = []
        if self.size is not None and pressed_bytes > (1 - self.size) * original_bytes:
            lacking.append(
                f"the file would be {percent(pressed_bytes / original_bytes, 3)} of the original "
                f"({pressed_bytes:,} of {original_bytes:,} bytes); -{percent(self.size, 4)} was "
                "asked"
            )
        if self.latency is not None and times is not None:
            upper = times.interval[1]
            if upper > 1 - self.latency:
                lacking.append(
                    f"a run would take {percent(times.ratio, 3)} of the original's time, at most "
                    f"{percent(upper, 3)}; -{percent(self.latency, 4)} was asked"
                )
        return "; ".join(lacking)


def timed(
    original: ModelProto | Path,
    pressed: ModelProto | Path,
    arrays: Mapping[str, np.ndarray],
    seconds: float = RACE_SECONDS,
) -> Race:
    """Run the original and the pressed model in turns, on one thread, a sample at a time.

    Args:
        original: a path must be one that ``read_model`` took.
        pressed: likewise, with the same inputs.
        arrays: by input ``[samples, *feed shape]``.
        seconds: about how long.

    Raises:
        ExportError: onnxruntime refuses or fails to run a model.
    """
    runners = Runner(original, threads=1), Runner(pressed, threads=1)
    return race(*runners, feeds_of(arrays), seconds)


def parse_requirements(texts: Iterable[str]) -> Requirement:
    """Read every ``--require``, each of which may hold several with commas between them.

    Returns:
        What is asked of the file; an empty requirement where nothing is.

    Raises:
        MisuseError: something does not read, is asked twice, or cannot be asked.

    >>> parse_requirements(["size=-50%,latency=-10%"])
    Requirement(size=0.5, latency=0.1)
    """
    found = Requirement()
    for text in (piece.strip() for whole in texts for piece in whole.split(",")):
        what, equals, amount = (part.strip() for part in text.partition("="))
        if what not in ("size", "latency") or not equals:
            raise MisuseError(
                f"--require '{text}' does not read; write size=-50% for a file at least 50 % "
                "smaller than the original, or latency=-10% for runs at least 10 % shorter"
            )
        if getattr(found, what) is not None:
            raise MisuseError(f"--require asks for a {what} twice; keep one")
        share = _share(what, amount)
        found = replace(found, size=share) if what == "size" else replace(found, latency=share)
    return found


def _share(what: str, amount: str) -> float:
    """Read ``-50%``."""
    match = fullmatch(r"[-\u2212](\d+(?:\.\d*)?|\.\d+)\s*%", amount)
    if match is None:
        raise MisuseError(
            f"--require {what}={amount} does not read; write how much has to go as a percentage "
            f"with a minus, such as {what}=-50%"
        )
    share = float(match[1]) / 100
    if not 0 < share < 1:
        raise MisuseError(f"--require {what}={amount}: it has to lie between 0 and -100 %")
    return share
