"""More samples than were given: the original network answers any input, so labels are free.

Between two inputs there are as many as one likes; and a picture moved by a few places is another
one. A repair that learns from these as well is closer to the original on inputs it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from onnxpress.objective import Objective

SMALLEST_PICTURE = 8
"""Places along an axis from which on it counts as one of a picture."""

FARTHEST = 8
"""A picture moves by at most one part in so many of its size."""


def picture_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """Say which axes of a feed are those of a picture, where it is one.

    Args:
        shape: of the feed. A picture has four axes or more, of which exactly two are long.

    >>> picture_axes([1, 3, 32, 32]), picture_axes([1, 48, 48, 3]), picture_axes([1, 784])
    ((2, 3), (1, 2), None)
    """
    long = [axis for axis, size in enumerate(shape) if size >= SMALLEST_PICTURE]
    return (long[0], long[1]) if len(shape) >= 4 and len(long) == 2 else None


def are_pictures(inputs: Sequence[Tensor]) -> bool:
    """Say whether any input has the shape of pictures: ``[samples, *feed shape]`` each."""
    return any(picture_axes(value.shape[1:]) is not None for value in inputs)


def moved(inputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Shift pictures by a few places, around the edges, and mirror half of them.

    Args:
        inputs: one tensor ``[samples, *feed shape]`` per graph input; what is no picture of real
            numbers is given back as it is.
        generator: source of chance; one draw a sample, the same for all inputs.
    """
    samples = len(inputs[0])
    shift = 2 * torch.rand(2, samples, generator=generator) - 1
    mirrored = torch.rand(samples, generator=generator) < 0.5
    result = []
    for value in inputs:
        axes = picture_axes(value.shape[1:]) if value.is_floating_point() else None
        if axes is None:
            result.append(value)
            continue
        places = []
        for axis, share in zip(axes, shift, strict=True):
            size = value.shape[axis + 1]
            start = (share * (size / FARTHEST)).round().long()
            places.append((torch.arange(size) + start[:, None]) % size)
        rows, columns = places
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        front = value.movedim((axes[0] + 1, axes[1] + 1), (1, 2))
        who = torch.arange(samples)[:, None, None]
        index = (who, rows[:, :, None], columns[:, None, :])
        taken = front[tuple(part.to(value.device) for part in index)]
        result.append(taken.movedim((1, 2), (axes[0] + 1, axes[1] + 1)))
    return result


def pasted(
    values: Sequence[Tensor], inputs: Sequence[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """Put a part of another picture into each: a box of a quarter to three quarters of its sides.

    Args:
        values: one tensor ``[count, *feed shape]`` per graph input, to put boxes into.
        inputs: one tensor ``[samples, *feed shape]`` per graph input, to take them from; what is no
            picture of real numbers stays as it is.
        generator: source of chance; one draw a sample, the same for all inputs.

    Source:
        Yun et al. 2019, "CutMix"; here the original network says what the mixture is.
    """
    count = len(values[0])
    others = torch.randint(0, len(inputs[0]), (count,), generator=generator)
    sides = 0.25 + 0.5 * torch.rand(2, count, generator=generator)
    starts = torch.rand(2, count, generator=generator) * (1 - sides)
    result = []
    for value, source in zip(values, inputs, strict=True):
        axes = picture_axes(value.shape[1:]) if value.is_floating_point() else None
        if axes is None:
            result.append(value)
            continue
        inside = torch.ones((), dtype=torch.bool)
        for axis, side, start in zip(axes, sides, starts, strict=True):
            size = value.shape[axis + 1]
            place = (torch.arange(size) + 0.5) / size
            within = (place >= start[:, None]) & (place < (start + side)[:, None])
            shape = [count, *(1,) * (value.ndim - 1)]
            shape[axis + 1] = size
            inside = inside & within.reshape(shape)
        taken = source[others.to(source.device)]
        result.append(torch.where(inside.to(value.device), taken, value))
    return result


def interpolated(inputs: Sequence[Tensor], count: int, generator: torch.Generator) -> list[Tensor]:
    """Draw points between random pairs of samples; integer inputs are taken from the first.

    Args:
        inputs: one tensor ``[samples, *shape]`` per graph input.
        count: how many points.
        generator: source of the pairs and places.
    """
    samples = len(inputs[0])
    first, second = torch.randint(0, samples, (2, count), generator=generator)
    place = torch.rand(count, generator=generator)
    drawn = []
    for value in inputs:
        left = value[first.to(value.device)]
        if value.is_floating_point():
            weight = place.to(value).reshape(-1, *(1,) * (value.ndim - 1))
            left = left + (value[second.to(value.device)] - left) * weight
        drawn.append(left)
    return drawn


@dataclass(frozen=True)
class Drawing:
    """What samples to learn from.

    Attributes:
        interpolate: share that lies between two inputs, 0 to 1; the rest is as it was given.
        move: share of those that are shifted and mirrored, 0 to 1, where they are pictures.
        paste: share of those that have a part of another one in them, likewise.
    """

    interpolate: float
    move: float
    paste: float = 0.0

    def points(
        self, inputs: Sequence[Tensor], count: int, generator: torch.Generator
    ) -> list[Tensor]:
        """Draw points between pairs of inputs, some of them moved or mixed.

        Args:
            inputs: one tensor ``[samples, *feed shape]`` per graph input.
            count: how many points.
            generator: source of chance.
        """
        drawn = interpolated(inputs, count, generator)
        if not are_pictures(inputs):
            return drawn
        # What is moved is taken from the front, what gets a part of another one from the back.
        if some := round(self.move * count):
            first = moved([value[:some] for value in drawn], generator)
            drawn = _join(first, [value[some:] for value in drawn])
        if some := round(self.paste * count):
            last = pasted([value[count - some :] for value in drawn], inputs, generator)
            drawn = _join([value[: count - some] for value in drawn], last)
        return drawn

    def batch(
        self, objective: Objective, size: int, generator: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Draw samples from the fit set, and say what the original network answers.

        Args:
            objective: whose fit set to draw from.
            size: how many samples.
            generator: source of chance.
        """
        problem, targets = objective.problem, objective.targets
        between = round(self.interpolate * size)
        picks = torch.randint(0, len(problem.fit[0]), (size - between,), generator=generator)
        picks = picks.to(problem.device)
        inputs = [value[picks] for value in problem.fit]
        drawn = self.points(problem.fit, between, generator) if between else []
        if targets is None:
            inputs = _join(inputs, drawn) if between else inputs
            return inputs, objective.reference(inputs)
        known = [value[picks] for value in targets]
        if not between:
            return inputs, known
        return _join(inputs, drawn), _join(known, objective.reference(drawn))


def _join(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat(pair) for pair in zip(left, right, strict=True)]
