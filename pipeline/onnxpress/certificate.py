"""When a sparse point may be called a solution: both halves of HT-stability, in numbers.

θ with support S is HT-stable for a step γ where H_s(θ - γ∇f(θ)) gives θ again. That needs

    min(|θ_i| : i in S) ≥ γ max(|∂_j f(θ)| : j not in S)        (inequality 8)

and that the gradient is zero on S. A run that stops early, at a wanted loss say, may well meet the
first without the second (FACTS section 4): so both are measured.

Source: seeds/learning_sparse_network_iht.txt, section IV-B, inequality 8; Beck & Eldar 2013,
definition 2.3 (L-stationarity).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SLOPE = 1e-5
"""The largest slope on a support that counts as none, unless another is asked for."""


@dataclass(frozen=True)
class Certificate:
    """How near one point is to being HT-stable.

    Attributes:
        least: the s-th largest magnitude: the smallest kept entry, or 0 where fewer than s are
            nonzero.
        pull: γ times the largest slope off the support; 0 where nothing is off it.
        slope: the largest slope on the support, max|g_S|; 0 where nothing is on it.
        tolerance: the slope that counts as none.
    """

    least: float
    pull: float
    slope: float
    tolerance: float = SLOPE

    @classmethod
    def of(
        cls, point: Tensor, gradient: Tensor, step: float, count: int, tolerance: float = SLOPE
    ) -> Certificate:
        """Measure one point.

        Args:
            point: θ ``[n]``.
            gradient: ∇f(θ) ``[n]``.
            step: γ.
            count: s.
            tolerance: the slope that counts as none.

        >>> Certificate.of(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5, 1)
        Certificate(least=2.0, pull=1.5, slope=0.0, tolerance=1e-05)
        """
        least, off, slope = parts(point, gradient, count)
        return cls(float(least), step * float(off), float(slope), tolerance)

    @property
    def holds(self) -> bool:
        """Whether inequality 8 holds."""
        return self.least >= self.pull

    @property
    def is_stationary(self) -> bool:
        """Whether the gradient is zero on the support, within the tolerance."""
        return self.slope <= self.tolerance

    @property
    def is_stable(self) -> bool:
        """Whether the point is HT-stable: both."""
        return self.holds and self.is_stationary

    def __str__(self) -> str:
        """Say it in one clause."""
        stands, sign = ("holds", "≥") if self.holds else ("fails", "<")
        still = "≤" if self.is_stationary else ">"
        return (
            f"inequality 8 {stands} (smallest kept {self.least:.3g} {sign} step times largest "
            f"slope off the support {self.pull:.3g}), largest slope on it {self.slope:.2g} "
            f"{still} {self.tolerance:g}"
        )


def parts(point: Tensor, gradient: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Measure what inequality 8 compares, without γ, and the slope on the support.

    Args:
        point: θ ``[..., n]``, at most ``count`` nonzeros each.
        gradient: ∇f(θ), of the same shape.
        count: s.

    Returns:
        The s-th largest magnitude, the largest slope off the support and the largest on it, each
        ``[...]``.
    """
    support, sizes, slopes = point != 0, point.abs(), gradient.abs()
    none = torch.zeros_like(slopes)
    least = torch.where(support, sizes, torch.inf).amin(-1)
    full = support.sum(-1) >= count
    return (
        torch.where(full & least.isfinite(), least, torch.zeros_like(least)),
        torch.where(support, none, slopes).amax(-1),
        torch.where(support, slopes, none).amax(-1),
    )
