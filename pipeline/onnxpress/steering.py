"""A penalty weight that finds itself: it rises while too much is left, and falls after that."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, log

HORIZON = 8.0
"""How far ahead the trend is looked, in units of the gates' locations: what has begun to close goes
on closing for a while, and what is closed learns nothing any more and does not come back."""

GAIN = 2.0
"""By how much the logarithm of the weight moves for each unit a location can move."""

LARGEST = 0.5
"""An excess counts as this much at most: or the weight would run up while the first gates, all
open, are on their way to the border, and close far too many then."""

LEAST = 1e-2
"""The least weight. That is next to nothing, and from less it would take long to come back."""

MEMORY = 0.8
"""Share of the trend that stays from step to step."""

RAMP = 0.8
"""Share of the steps in which the wanted L0 norm falls to where it shall be."""

AHEAD = 1.15
"""How far the wanted share may be from the present one, where a loss leads it."""


@dataclass
class Steering:
    """Drives the weight of a penalty so that what is measured becomes what is wanted.

    The logarithm of the weight adds up the excess there will be soon (an integral controller with a
    look ahead).

    Attributes:
        weight: the penalty's, above 0.
        rate: how far a location can move in a step.

    >>> steering = Steering(weight=1.0, rate=0.1)
    >>> round(steering.towards(0.9, 0.5), 3)  # too many gates are open
    1.105
    >>> round(steering.towards(0.8, 0.5), 3)  # and now they close faster than can be stopped
    1.0
    """

    weight: float
    rate: float
    _trend: float = field(default=0.0, repr=False)
    _last: float | None = field(default=None, repr=False)

    def towards(self, measured: float, wanted: float) -> float:
        """Give the weight for the next step.

        Args:
            measured: grows with what is left; above 0.
            wanted: what it should be, above 0; it may differ from step to step.
        """
        here = log(max(measured, 1e-30))
        if self._last is not None:
            self._trend = MEMORY * self._trend + (1 - MEMORY) * (here - self._last)
        self._last = here
        soon = here + HORIZON / self.rate * self._trend - log(max(wanted, 1e-30))
        factor = exp(GAIN * self.rate * max(-LARGEST, min(LARGEST, soon)))
        self.weight = max(LEAST, self.weight * factor)
        return self.weight


@dataclass(frozen=True)
class Ramp:
    """The share wanted falls to a target along a cube.

    Attributes:
        target: share of the entries.

    Source:
        Zhu & Gupta 2017, equation 1.

    >>> [round(Ramp(0.2).wanted(done), 3) for done in (0.0, 0.4, 0.8, 1.0)]
    [1.0, 0.3, 0.2, 0.2]
    """

    target: float

    def wanted(self, done: float) -> float:
        """Give the share wanted after a part of the steps, 0 to 1."""
        return self.target + (1 - self.target) * max(0.0, 1 - done / RAMP) ** 3


@dataclass
class Feeler:
    """The share wanted falls while the loss is below what is allowed, and rises above it.

    Slowly, in proportion to how far it is: what a closed gate does to the loss shows only after the
    other weights have made up for some of it.

    Attributes:
        within: the loss allowed, above 0.
        pace: by how much the logarithm of the share can fall in a step.

    >>> feeler = Feeler(within=0.1, pace=0.01)
    >>> round(feeler.wanted(share=1.0, loss=0.01), 4), round(feeler.wanted(share=1.0, loss=0.1), 4)
    (0.99, 0.99)
    """

    within: float
    pace: float
    _share: float = field(default=1.0, repr=False)

    def wanted(self, share: float, loss: float) -> float:
        """Give the share wanted for the next step.

        Args:
            share: there is now, as it is expected.
            loss: the mean of late.
        """
        room = max(-1.0, min(1.0, log(self.within / max(loss, 1e-30))))
        # Never far from what there is, or it would run ahead while gates are on their way.
        aimed = self._share * exp(-self.pace * room)
        self._share = max(share / AHEAD, min(AHEAD * share, aimed))
        return self._share
