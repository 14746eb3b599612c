"""The hard concrete distribution: a gate that is exactly 0 or exactly 1 with a chance of its own.

A logistic number is squeezed into (0, 1) by a sigmoid, stretched a little beyond both ends and cut
off there. What lies beyond an end lands on it: so 0 and 1 have a chance each, in between there is a
gradient, and the chance of not being 0, which is what an L0 norm counts, has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from onnxpress_adapters.errors import MisuseError

CPU = torch.device("cpu")

SMALLEST = 1e-6
"""Uniform numbers are kept this far from 0 and 1, so that their logits are finite."""


@dataclass(frozen=True)
class HardConcrete:
    """A family of gates; each has a *location* log alpha, a real number without a unit.

    Attributes:
        temperature: beta, above 0: the smaller, the closer to a coin that shows 0 or 1.
        low: gamma, below 0: where the stretched interval begins.
        high: zeta, above 1: where it ends.

    Source:
        Louizos, Welling & Kingma 2018, "Learning Sparse Neural Networks through L0
        Regularization", equations 10 to 13 and the values of section 4;
        seeds/l0_regularization_notes.md, "On to hard-concrete distributions", steps 1 to 4 (where
        the interval is called (A, B)).

    >>> gates = HardConcrete()
    >>> location = torch.tensor([-3.0, 0.0, 3.0])
    >>> gates.settled(location)  # equation 13
    tensor([0.0000, 0.5000, 1.0000])
    >>> gates.chance(location)  # equation 12
    tensor([0.1976, 0.8318, 0.9900])
    """

    temperature: float = 2 / 3
    low: float = -0.1
    high: float = 1.1

    def __post_init__(self) -> None:
        """Refuse numbers that make no gate."""
        if not (self.temperature > 0 and self.low < 0 and self.high > 1):
            raise MisuseError(
                f"{self} is no gate: its temperature lies above 0, and the interval reaches from "
                "below 0 to above 1"
            )

    @property
    def border(self) -> float:
        """The location up to which the deterministic gate is 0.

        >>> round(HardConcrete().border, 4)  # log(0.1 / 1.1)
        -2.3979
        """
        return log(-self.low / self.high)

    def noise(
        self, shape: torch.Size, generator: torch.Generator, device: torch.device = CPU
    ) -> Tensor:
        """Draw logistic numbers log u - log(1 - u); u on the CPU, so that a GPU sees the same.

        Args:
            shape: of the locations.
            generator: source of chance.
            device: of the locations.
        """
        return torch.rand(shape, generator=generator).to(device).logit_(SMALLEST)

    def sample(self, location: Tensor, noise: Tensor) -> Tensor:
        """Give a gate for each location: 0 to 1, differentiable in the location.

        Args:
            location: log alpha, any shape.
            noise: logistic numbers, of the same shape.

        Source:
            Equations 10 and 11: sigmoid((log u - log(1 - u) + log alpha) / beta), stretched to
            (low, high) and cut off at 0 and 1.

        >>> HardConcrete().sample(torch.zeros(3), torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.0000, 0.5000, 1.0000])
        """
        return self._stretched((location + noise) / self.temperature)

    def settled(self, location: Tensor) -> Tensor:
        """Give the deterministic gate that is used when training is over.

        Source:
            Equation 13: min(1, max(0, sigmoid(log alpha) (high - low) + low)).
        """
        return self._stretched(location)

    def chance(self, location: Tensor) -> Tensor:
        """Give the chance that a gate is not 0; added up, the expected L0 norm.

        Source:
            Equation 12: sigmoid(log alpha - beta log(-low / high)).
        """
        return torch.sigmoid(location - self.temperature * self.border)

    def location(self, chance: float) -> float:
        """Give the location at which a gate is not 0 with a chance: undoes ``chance``.

        Args:
            chance: above 0, below 1.

        >>> HardConcrete().chance(torch.tensor(HardConcrete().location(0.9)))
        tensor(0.9000)
        """
        return log(chance / (1 - chance)) + self.temperature * self.border

    def _stretched(self, logit: Tensor) -> Tensor:
        return (torch.sigmoid(logit) * (self.high - self.low) + self.low).clamp(0.0, 1.0)
