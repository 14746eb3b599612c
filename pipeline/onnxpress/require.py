"""What a pressed file has to reach beside its tolerance: ``--require size=-50%``.

The requirement is asked of the file that would be written, once its verdict is ``within``; where it
is not met, nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from re import fullmatch

from onnxpress.verdict import percent
from onnxpress_adapters.errors import MisuseError


@dataclass(frozen=True)
class Requirement:
    """How much smaller a file must be.

    Attributes:
        shrink: the least share of the original's bytes that has to go, between 0 and 1.
    """

    shrink: float

    def unmet(self, original_bytes: int, pressed_bytes: int) -> str:
        """Say what was reached where that is not enough, else ``""``.

        Args:
            original_bytes: of the original on disk, data files included.
            pressed_bytes: of the file that would be written, likewise.

        >>> Requirement(0.5).unmet(1000, 620)
        'the file would be 62 % of the original (620 of 1,000 bytes); -50 % was asked'
        >>> Requirement(0.5).unmet(1000, 500)
        ''
        """
        if pressed_bytes <= (1 - self.shrink) * original_bytes:
            return ""
        return (
            f"the file would be {percent(pressed_bytes / original_bytes, 3)} of the original "
            f"({pressed_bytes:,} of {original_bytes:,} bytes); -{percent(self.shrink, 4)} was asked"
        )


def parse_requirements(texts: Iterable[str]) -> Requirement | None:
    """Read every ``--require``, each of which may hold several with commas between them.

    Returns:
        What is asked of the file; None where nothing is.

    Raises:
        MisuseError: something does not read, is asked twice, or cannot be asked.

    >>> parse_requirements(["size=-50%"])
    Requirement(shrink=0.5)
    """
    found = None
    for text in (piece.strip() for whole in texts for piece in whole.split(",")):
        what, equals, amount = (part.strip() for part in text.partition("="))
        if what == "latency":
            raise MisuseError(
                f"--require {text}: requiring a latency is not there yet; only a size can be "
                "required, such as size=-50%"
            )
        if what != "size" or not equals:
            raise MisuseError(
                f"--require '{text}' does not read; write size=-50% for a file at least 50 % "
                "smaller than the original"
            )
        if found is not None:
            raise MisuseError("--require asks for a size twice; keep one")
        found = Requirement(_shrink(amount))
    return found


def _shrink(amount: str) -> float:
    """Read ``-50%``."""
    match = fullmatch(r"[-\u2212](\d+(?:\.\d*)?|\.\d+)\s*%", amount)
    if match is None:
        raise MisuseError(
            f"--require size={amount} does not read; write how much has to go as a percentage "
            "with a minus, such as size=-50%"
        )
    shrink = float(match[1]) / 100
    if not 0 < shrink < 1:
        raise MisuseError(f"--require size={amount}: it has to lie between 0 and -100 %")
    return shrink
