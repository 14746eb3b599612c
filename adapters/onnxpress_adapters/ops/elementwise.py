"""Arithmetic, comparison, logic and bits: every output entry from its own input entries."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import widened
from onnxpress_adapters.registry import Converter, converter


def square_root(x: Tensor) -> Tensor:
    """Give the square root, with the derivative 0 where it is 0.

    It is infinite there. The roots of models are those of sums of squares and of variances, which
    are at a minimum then; and one infinity times zero would spoil the gradient of every weight.
    """
    if not x.is_floating_point():
        return torch.sqrt(x)
    positive = x != 0
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), x.detach())


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": square_root,
    "Tan": torch.tan,
}


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Divide; integers towards zero, as C does."""
    if a.is_floating_point() or b.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


# The operators that had the attributes `broadcast` and `axis` before opset 7.
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Div": divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "Less": torch.lt,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

YOUNGER_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "GreaterOrEqual": torch.ge,
    "LessOrEqual": torch.le,
}

VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Converter:
    run = widened(function)
    return lambda node, x: run(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Converter:
    run = widened(function)
    return lambda node, a, b: run(a, b)


def _old_binary(function: Callable[[Tensor, Tensor], Tensor]) -> Converter:
    run = widened(function)
    return lambda node, a, b: run(a, align(node, a, b))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Converter:
    run = widened(function)
    return lambda node, *xs: reduce(run, xs)


for _name, _function in UNARY.items():
    converter(_name)(_unary(_function))
for _name, _function2 in BINARY.items():
    converter(_name, until=6)(_old_binary(_function2))
    converter(_name, since=7)(_binary(_function2))
for _name, _function2 in YOUNGER_BINARY.items():
    converter(_name)(_binary(_function2))
for _name, _function2 in VARIADIC.items():
    converter(_name)(_variadic(_function2))


def align(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """Shape the right operand the way opsets before 7 broadcast it.

    With ``broadcast=1`` the axes of ``b`` match those of ``a`` from ``axis`` on, and the last ones
    without ``axis``.
    """
    axis = node.get("axis")
    if not node.get("broadcast", 0) or axis is None:
        return b
    return b.reshape(tuple(b.shape) + (1,) * (a.dim() - axis % a.dim() - b.dim()))


@converter("Mean")
def mean(node: NodeView, *xs: Tensor) -> Tensor:
    """Average the inputs entry by entry, with broadcasting."""
    return reduce(torch.add, xs) / len(xs)


@converter("Pow", until=6)
def pow_old(node: NodeView, base: Tensor, exponent: Tensor) -> Tensor:
    """Raise to a power, broadcasting as opsets before 7 did."""
    return power(base, align(node, base, exponent))


@converter("Pow", since=7)
def pow_(node: NodeView, base: Tensor, exponent: Tensor) -> Tensor:
    """Raise to a power, with broadcasting."""
    return power(base, exponent)


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Raise to a power; the result has the type of the base."""
    if base.is_floating_point():
        real = exponent if exponent.is_floating_point() else exponent.to(base.dtype)
        return _real_power(base, real).to(base.dtype)
    if exponent.is_floating_point():
        return torch.pow(base, exponent).to(base.dtype)
    return torch.pow(base.to(torch.int64), exponent.to(torch.int64)).to(base.dtype)


def _real_power(base: Tensor, exponent: Tensor) -> Tensor:
    """Raise to a power, with an exponent that moves only where the base is positive.

    Elsewhere its derivative does not exist, and one NaN there would spoil those of all weights:
    models write a square as ``Pow(x, 2)``, with the 2 among their constants.
    """
    if not exponent.requires_grad:
        return torch.pow(base, exponent)
    positive = base > 0
    moving = torch.pow(torch.where(positive, base, 1.0), exponent)
    return torch.where(positive, moving, torch.pow(base, exponent.detach()))


@converter("Mod")
def mod(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """Remainder with the sign of the divisor, or of the dividend with ``fmod=1``."""
    return widened(torch.fmod if node.get("fmod", 0) else torch.remainder)(a, b)


@converter("BitShift")
def bit_shift(node: NodeView, x: Tensor, places: Tensor) -> Tensor:
    """Shift unsigned numbers by whole bits."""
    if node.get("direction") == "LEFT":
        return widened(torch.bitwise_left_shift)(x, places)
    if x.dtype == torch.uint64:
        # int64 holds the bits: copies of the sign that a right shift brings in are cut off.
        bits, count = x.to(torch.int64), places.to(torch.int64)
        lowest = torch.bitwise_left_shift(torch.full_like(bits, -1), 64 - count.clamp(1, 63))
        shifted = torch.bitwise_right_shift(bits, count.clamp(0, 63)) & ~lowest
        result = torch.where(count == 0, bits, torch.where(count > 63, 0, shifted))
        return result.to(x.dtype)
    return widened(torch.bitwise_right_shift)(x, places)


@converter("IsInf")
def is_inf(node: NodeView, x: Tensor) -> Tensor:
    """Mark infinities, of both signs or of one."""
    result = torch.zeros_like(x, dtype=torch.bool)
    if node.get("detect_negative", 1):
        result = result | (x == -torch.inf)
    if node.get("detect_positive", 1):
        result = result | (x == torch.inf)
    return result


@converter("Where")
def where(node: NodeView, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Choose between two tensors entry by entry, with broadcasting."""
    return torch.where(condition, x, y)
