"""What a file can hold: values rounded to the type a constant has there.

Steps work in float32 (or float64). A constant of float16, bfloat16 or whole numbers holds less, and
what is lost belongs to the distance: so the state after each step holds what the file will hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.specs import kind, whole_range
from onnxpress_adapters.weights import Dense, WeightKey

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

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


def through(values: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """Round values to a type and hand the gradient on as if nothing had been rounded.

    Source:
        Bengio, Léonard & Courville 2013, the straight-through estimator.
    """
    return values + (representable(values, dtype) - values).detach()


def stored(state: State, before: State, problem: Problem) -> State:
    """Round what a step changed to what the file can hold.

    Args:
        state: after the step.
        before: the state it was given; what is the same object in both is left alone.
        problem: knows the types.
    """
    types = narrow(problem)
    if not types:
        return state
    weights = dict(state.weights)
    extras = dict(state.extras)
    for key, dtype in types.items():
        if key in weights and weights[key] is not before.weights[key]:
            form = weights[key]
            weights[key] = Dense(representable(form.values, dtype), form.support)
        elif key in extras and extras[key] is not before.extras[key]:
            extras[key] = representable(extras[key], dtype)
    return replace(state, weights=weights, extras=extras)
