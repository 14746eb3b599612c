"""Axes through operators that compute entry by entry, with broadcasting."""

from __future__ import annotations

from onnxpress_adapters.axes import Role
from onnxpress_adapters.axes_site import Rules, Site

MICROSOFT = "com.microsoft"

OF_ONE = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike",
    "Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg",
    "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""What only looks at the entries of its first input; further inputs are single numbers."""

OF_SEVERAL = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow",
    "Sub", "Sum", "Where", "Xor",
)  # fmt: skip

SHIFTING = frozenset({"Add", "Sub", "Sum"})
"""Operators that add what they read; a constant there is a bias."""

ACTIVATIONS_OF_MICROSOFT = ("Gelu", "QuickGelu")
BIASED_ACTIVATIONS = ("BiasGelu", "FastGelu")


def of_one(site: Site) -> None:
    """Every output has the axes of the first input."""
    for name in site.node.outputs:
        if name:
            site.broadcast([site.x], name)


def of_several(site: Site) -> None:
    """The axes of the operands are matched from the last, as numpy does."""
    operands = [name for name in site.node.inputs if name]
    if site.node.version < 7 and site.node.get("broadcast", 0):
        _old(site)
    else:
        site.broadcast(operands, site.y)
    if site.node.operator in SHIFTING:
        for name in operands:
            site.mark(name, Role.SHIFT)


def _old(site: Site) -> None:
    """Before opset 7 the second operand may stand at an axis that an attribute names."""
    second = site.node.inputs[1]
    behind = site.node.get("axis", site.rank(site.y) - site.rank(second))
    site.broadcast([site.x], site.y)
    for axis in range(site.rank(second)):
        site.link(second, axis, site.y, axis + behind)


def prelu(site: Site) -> None:
    """One slope per channel before opset 7, afterwards slopes are matched from the last axis."""
    slope = site.node.inputs[1]
    site.broadcast([site.x], site.y)
    if site.node.version < 7 and site.rank(slope) == 1 and site.rank(site.x) > 1:
        site.link(slope, 0, site.y, 1)
    else:
        site.broadcast([slope], site.y)


def biased(site: Site) -> None:
    """An activation of the sum of two inputs."""
    site.broadcast([name for name in site.node.inputs if name], site.y)
    if site.input(1):
        site.mark(site.input(1), Role.SHIFT)


def quantise(site: Site) -> None:
    """Scales and zero points stand along one axis, or for everything."""
    site.link_all(site.x, site.y)
    axis = site.node.get("axis", 1)
    for name in site.node.inputs[1:]:
        if name and site.rank(name) == 1 and site.shape(name)[0] > 1:
            site.link(name, 0, site.x, axis % site.rank(site.x))
        elif name and site.rank(name) > 1:
            site.keep(f"{site.node} has scales for blocks of entries")


RULES: Rules = {
    **{("", operator): of_one for operator in OF_ONE},
    **{("", operator): of_several for operator in OF_SEVERAL},
    ("", "PRelu"): prelu,
    ("", "QuantizeLinear"): quantise,
    ("", "DequantizeLinear"): quantise,
    **{(MICROSOFT, operator): of_one for operator in ACTIVATIONS_OF_MICROSOFT},
    **{(MICROSOFT, operator): biased for operator in BIASED_ACTIVATIONS},
}
