"""A penalty weight that finds itself: it rises while too much is left, and falls after that."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, log

HORIZON = 4.0
"""How far ahead the trend is looked, in units of the gates' locations: what has begun to close goes
on closing for a while, and what is closed learns nothing any more and does not come back."""

GAIN = 2.0
"""By how much the logarithm of the weight moves for each unit a location can move."""

LARGEST = 0.5
"""An excess counts as this much at most: or the weight would run up while the first gates, all
open, are on their way to the border, and close far too many then."""

MEMORY = 0.9
"""Share of the trend that stays from step to step."""


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
    >>> round(steering.towards(0.8, 0.5), 3)  # and now they close fast enough
    1.105
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
        self.weight *= exp(GAIN * self.rate * max(-LARGEST, min(LARGEST, soon)))
        return self.weight
