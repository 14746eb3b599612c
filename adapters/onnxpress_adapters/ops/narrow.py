"""Numbers torch holds in wider types (2, 4 and 6 bits, bare exponents): how values become them.

Integers wrap around, floats without infinities saturate, and bare exponents (powers of two from
``2 ** -127`` to ``2 ** 127``, and NaN) do one or the other as the node says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import by_type

INTEGERS: dict[int, tuple[int, int]] = by_type(
    {"INT2": (-2, 1), "INT4": (-8, 7), "UINT2": (0, 3), "UINT4": (0, 15)}
)
"""The lowest and highest value of each narrow integer type."""

EXPONENT_TYPES = by_type({"FLOAT8E8M0": 8})
LOWEST_EXPONENT = -127
"""The lowest power of two a bare exponent stands for; the highest is its opposite."""


@dataclass(frozen=True)
class Format:
    """A float type without infinities and NaN.

    Attributes:
        exponent_bits: how many bits the exponent has.
        mantissa_bits: how many bits follow the point.
        lowest: the exponent of the smallest normal number, and of those below it.
    """

    exponent_bits: int
    mantissa_bits: int
    lowest: int

    def magnitudes(self) -> list[float]:
        """Give the absolute values of all numbers, in the order of their bits without the sign."""
        steps = 1 << self.mantissa_bits
        below = [2.0**self.lowest * m / steps for m in range(steps)]
        normal = [
            2.0 ** (self.lowest + exponent) * (1 + m / steps)
            for exponent in range((1 << self.exponent_bits) - 1)
            for m in range(steps)
        ]
        return below + normal


FLOATS: dict[int, Format] = by_type(
    {"FLOAT4E2M1": Format(2, 1, 0), "FLOAT6E2M3": Format(2, 3, 0), "FLOAT6E3M2": Format(3, 2, -2)}
)


def wrapped(x: Tensor, element_type: int) -> Tensor:
    """Keep the lowest bits of whole numbers, as two's complement reads them.

    A float is rounded first, halves away from zero: the specification is silent, and onnxruntime
    does so.
    """
    low, high = INTEGERS[element_type]
    if x.is_floating_point():
        x = x.to(torch.float64)
        x = torch.sign(x) * torch.floor(torch.abs(x) + 0.5)
    bits = (x.to(torch.int64) - low) & (high - low)
    return (bits + low).to(torch.int8 if low < 0 else torch.uint8)


def rounded(x: Tensor, element_type: int) -> Tensor:
    """Give the nearest numbers of a narrow float type, ties to even; too large ones saturate.

    There is no NaN among them: it becomes zero.
    """
    form = FLOATS[element_type]
    highest = form.magnitudes()[-1]
    value = torch.nan_to_num(x.to(torch.float64), nan=0.0, posinf=highest, neginf=-highest)
    value = value.clamp(-highest, highest)
    _, power = _parts(torch.abs(value))
    step = power.clamp(min=2.0**form.lowest) / (1 << form.mantissa_bits)
    return (torch.round(value / step) * step).to(torch.float32)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split positive numbers into a factor from 1 to 2 and the power of two below them."""
    mantissa, _ = torch.frexp(x)
    # A quotient of floats is exact where the true one is a float, and `pow` need not be. A zero
    # gets any power.
    fraction = torch.where(x > 0, 2 * mantissa, 1.0)
    return fraction, x / fraction


def powers_of_two(node: NodeView, x: Tensor, saturate: bool) -> Tensor:
    """Round to powers of two, as the node's ``round_mode`` says.

    Numbers outside the range, zero and negative ones among them, become its nearest end, or NaN
    without ``saturate``. The specification leaves some of them open; this is onnxruntime's way.

    Raises:
        AdapterError: the mode is none that ONNX knows.
    """
    highest = 2.0**-LOWEST_EXPONENT
    wide = x.to(torch.float64)
    value = wide.clamp(1 / highest, highest)
    fraction, power = _parts(value)
    mode = node.get("round_mode", "up")
    match mode:
        case "up":
            grows = fraction > 1
        case "down":
            grows = torch.zeros_like(fraction, dtype=torch.bool)
        case "nearest":
            grows = fraction >= 1.5
        case _:
            raise AdapterError(f"{node} rounds in an unknown mode '{mode}'; it is not an ONNX mode")
    result = torch.where(grows, 2 * power, power).clamp(max=highest)
    lost = torch.isnan(wide) if saturate else ~(value == wide)
    return torch.where(lost, torch.nan, result).to(torch.float32)


def held(node: NodeView, x: Tensor, element_type: int, saturate: bool) -> Tensor | None:
    """Turn numbers into those of a narrow type; None where the type is none of them."""
    if element_type in INTEGERS:
        return wrapped(x, element_type)
    if element_type in FLOATS:
        return rounded(x, element_type)
    if element_type in EXPONENT_TYPES:
        return powers_of_two(node, x, saturate)
    return None
