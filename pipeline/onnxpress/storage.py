"""What a file can hold: values rounded to the type a constant has there, or to how it is stored.

Steps work in float32 (or float64). A constant of float16, bfloat16 or whole numbers holds less, and
so does one that is stored as halves, codes with a scale or places in a codebook. What is lost
belongs to the distance: so the state after each step holds what the file will hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onnxpress.state import State, is_same
from onnxpress_adapters.specs import kind, whole_range
from onnxpress_adapters.weights import Dense, WeightKey
from onnxpress_exporters.values import MOST_CODE, MOST_HALF, Half, Palette, Plain, Scaled, Storage

if TYPE_CHECKING:
    from onnxpress.problem import Problem

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def representable(values: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """Round values to what a type can hold; the same object where it holds them all.

    Args:
        values: real, any shape and device.
        dtype: of the constant in the file; whole numbers are rounded to the nearest and kept within
            the range of the type.

    >>> representable(torch.tensor([0.4, 1.6, 200.0]), np.dtype("int8"))
    tensor([  0.,   2., 127.])
    """
    if dtype.name in HALVES:
        return values.to(HALVES[dtype.name]).to(values.dtype)
    if kind(dtype) == "integer":
        least, most = whole_range(dtype)
        return values.round().clamp(least, most)
    return values


def narrow(problem: Problem) -> Mapping[WeightKey, np.dtype[Any]]:
    """Give the constants whose type in the file holds less than what steps compute with."""
    known = problem.memo.get("narrow")
    if isinstance(known, dict):
        return known
    constants = problem.network.program.constants
    types = {
        key: array.dtype
        for key, array in constants.items()
        if array.dtype.name in HALVES or kind(array.dtype) == "integer"
    }
    problem.memo["narrow"] = types
    return types


Rounding = Callable[[Tensor], Tensor]
"""Gives the nearest values a constant can hold, without a gradient."""


def rounding(storage: Storage, device: torch.device) -> Rounding:
    """Give ``onnxpress_exporters.values.rounded`` for tensors: the same bits, on any device."""
    if isinstance(storage, Plain):
        return Tensor.detach
    if isinstance(storage, Half):
        return _halved
    if isinstance(storage, Scaled):
        scales = torch.tensor(storage.scales, dtype=torch.float32, device=device)
        return scaled(scales, storage.most)
    return _gathered(storage, device)


def _halved(values: Tensor) -> Tensor:
    # Adding zero takes the sign from a zero.
    return values.detach().float().clamp(-MOST_HALF, MOST_HALF).half().to(values.dtype) + 0.0


def scaled(scales: Tensor, most: int = MOST_CODE) -> Rounding:
    """Round to whole multiples of scales: float32, of a shape that fits the values.

    Args:
        scales: positive.
        most: times a scale is the largest magnitude.
    """

    def nearest(values: Tensor) -> Tensor:
        codes = (values.detach().float() / scales).round_().clamp_(-most, most)
        return codes.add_(0.0).mul_(scales).to(values.dtype)

    return nearest


def _gathered(palette: Palette, device: torch.device) -> Rounding:
    codebook = torch.from_numpy(palette.codebook).to(device)
    borders = torch.from_numpy(palette.borders).to(device)

    def nearest(values: Tensor) -> Tensor:
        single = values.detach().float().contiguous()
        found = codebook[torch.bucketize(single, borders, out_int32=True)]
        return found.masked_fill_(single == 0, 0.0).to(values.dtype)

    return nearest


def roundings(state: State, problem: Problem) -> Mapping[WeightKey, Rounding]:
    """Give what rounds each constant that holds less than what steps compute with."""
    typed = {
        key: partial(_to_type, dtype=dtype)
        for key, dtype in narrow(problem).items()
        if key in state.weights or key in state.extras
    }
    chosen = {
        key: rounding(each, problem.device)
        for key, each in state.storage.items()
        if not isinstance(each, Plain)
    }
    return {**typed, **chosen}


def _to_type(values: Tensor, dtype: np.dtype[Any]) -> Tensor:
    return representable(values.detach(), dtype)


def has_grid(state: State, problem: Problem) -> bool:
    """Say whether some values can only take steps of a size: no line search works on those."""
    whole = any(kind(dtype) == "integer" for dtype in narrow(problem).values())
    return whole or any(isinstance(each, Scaled | Palette) for each in state.storage.values())


def told_of(storage: Mapping[WeightKey, Storage]) -> str:
    """Say in a sentence how values are stored; nothing where all are as in the original.

    >>> told_of({WeightKey((), "a"): Half(), WeightKey((), "b"): Half()})
    'the values of 2 weights are rounded to fp16'
    """
    counts = Counter(str(each) for each in storage.values() if not isinstance(each, Plain))
    parts = [
        f"{count} weight{'s' if count > 1 else ''} are rounded to {name}"
        for name, count in sorted(counts.items())
    ]
    return f"the values of {', of '.join(parts)}" if parts else ""


class _Through(torch.autograd.Function):
    """Rounds on the way forward and does nothing on the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, nearest: Rounding) -> Tensor:
        """Round."""
        return nearest(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Hand the gradient on."""
        return gradients[0], None


def through(values: Tensor, nearest: Rounding) -> Tensor:
    """Round values and hand the gradient on as if nothing had been rounded.

    Source:
        Bengio, Léonard & Courville 2013, the straight-through estimator.
    """
    found: Tensor = _Through.apply(values, nearest)  # type: ignore[no-untyped-call]  # torch's
    return found


def stored(state: State, before: State, problem: Problem) -> State:
    """Round what a step changed to what the file can hold.

    Args:
        state: after the step.
        before: the state it was given; what is the same object in both is left alone.
        problem: knows the types.
    """
    nearby = roundings(state, problem)
    if not nearby:
        return state
    weights = dict(state.weights)
    extras = dict(state.extras)
    for key, nearest in nearby.items():
        if key in weights and weights[key] is not before.weights[key]:
            form, old = weights[key], before.weights[key]
            fresh = Dense(nearest(form.values), form.support)
            weights[key] = old if is_same(fresh, old) else fresh
        elif key in extras and extras[key] is not before.extras[key]:
            values = nearest(extras[key])
            extras[key] = before.extras[key] if values.equal(before.extras[key]) else values
    return replace(state, weights=weights, extras=extras)
