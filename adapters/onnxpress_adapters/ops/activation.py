"""Activation functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import widened
from onnxpress_adapters.registry import Converter, converter

MICROSOFT = "com.microsoft"


def hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``alpha x + beta``, cut to [0, 1]."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    """``x`` where positive, ``alpha x`` elsewhere."""
    return functional.leaky_relu(x, alpha)


def selu(x: Tensor, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    """``gamma`` times Elu."""
    return gamma * functional.elu(x, alpha)


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, for any size of ``x``."""
    return torch.logaddexp(x, torch.zeros_like(x))


def thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """``x`` above ``alpha``, zero elsewhere."""
    return functional.threshold(x, alpha, 0.0)


def scaled_tanh(x: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """``alpha tanh(beta x)``."""
    return alpha * torch.tanh(beta * x)


def affine(x: Tensor, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """``alpha x + beta``."""
    return alpha * x + beta


# By ONNX name, with up to three numbers behind the tensor: for operators with attributes, for
# recurrent layers and for nodes that onnxruntime's optimizer fused.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Affine": affine,
    "Celu": functional.celu,
    "Clip": torch.clamp,
    "Elu": functional.elu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": functional.hardswish,
    "LeakyRelu": leaky_relu,
    "Mish": functional.mish,
    "Relu": torch.relu,
    "ScaledTanh": scaled_tanh,
    "Selu": selu,
    "Sigmoid": torch.sigmoid,
    "Softplus": softplus,
    "Softsign": functional.softsign,
    "Tanh": torch.tanh,
    "ThresholdedRelu": thresholded_relu,
}
# The attributes of an operator, in the order in which its function takes them.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "Affine": ("alpha", "beta"),
    "Celu": ("alpha",),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "HardSwish": (),
    "LeakyRelu": ("alpha",),
    "Mish": (),
    "Relu": (),
    "ScaledTanh": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "Tanh": (),
    "ThresholdedRelu": ("alpha",),
}


def _by_attributes(name: str) -> Converter:
    function, places = FUNCTIONS[name], ATTRIBUTES[name]

    def run(node: NodeView, x: Tensor) -> Tensor:
        given = {place: node.get(place) for place in places if node.get(place) is not None}
        return function(x, **given)

    return run


for _name in ATTRIBUTES:
    converter(_name, since=6 if _name == "Selu" else 1)(_by_attributes(_name))


@converter("Selu", until=5)
def selu_old(node: NodeView, x: Tensor) -> Tensor:
    """Selu with the shorter numbers of the first opsets."""
    return selu(x, node.get("alpha", 1.6732), node.get("gamma", 1.0507))


def fused_activation(node: NodeView, x: Tensor, parameters: Sequence[float]) -> Tensor:
    """Apply the activation that a fused node carries; none, if it names none.

    Args:
        node: may have the attribute ``activation``, a name in ``FUNCTIONS``.
        x: what the activation is applied to, of any shape.
        parameters: of the activation, in onnxruntime's order; those missing are the defaults.

    Raises:
        AdapterError: onnxpress does not know the activation.
    """
    name = node.get("activation", "")
    if not name:
        return x
    if name not in FUNCTIONS:
        raise AdapterError(
            f"{node} fuses the activation '{name}', which onnxpress does not know; "
            "use the model as it was before onnxruntime optimised it"
        )
    return FUNCTIONS[name](x, *parameters)


@converter("Gelu")
def gelu(node: NodeView, x: Tensor) -> Tensor:
    """``x`` times the normal distribution function, exact or by tanh."""
    return functional.gelu(x, approximate=node.get("approximate", "none"))


@converter("Swish")
def swish(node: NodeView, x: Tensor) -> Tensor:
    """``x sigmoid(alpha x)``."""
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@converter("SwiGLU", since=28)
def swiglu(node: NodeView, gate: Tensor, x: Tensor) -> Tensor:
    """``x`` times Swish of the gate."""
    wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
    return (wide * torch.sigmoid(node.get("alpha", 1.0) * wide) * x).to(gate.dtype)


@converter("Shrink")
def shrink(node: NodeView, x: Tensor) -> Tensor:
    """Move by ``bias`` towards zero, and to zero inside ``[-lambd, lambd]``."""
    limit, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    outside = torch.where(x > limit, x - bias, torch.zeros_like(x))
    return torch.where(x < -limit, x + bias, outside).to(x.dtype)


@converter("PRelu", until=6)
def prelu_old(node: NodeView, x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where positive, ``slope x`` elsewhere; one slope, or one per channel."""
    if slope.numel() > 1 and x.dim() > 1:
        slope = slope.reshape((-1,) + (1,) * (x.dim() - 2))
    return torch.where(x < 0, x * slope, x)


@converter("PRelu", since=7)
def prelu(node: NodeView, x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where positive, ``slope x`` elsewhere; the slope broadcasts to ``x``."""
    return torch.where(x < 0, x * slope, x)


@converter("Clip", until=10)
def clip_old(node: NodeView, x: Tensor) -> Tensor:
    """Cut to the bounds given as attributes."""
    low, high = node.get("min"), node.get("max")
    return x if low is None and high is None else torch.clamp(x, low, high)


@converter("Clip", since=11)
def clip(
    node: NodeView, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    """Cut to the bounds given as inputs; the upper one wins where they cross."""
    if low is not None:
        x = widened(torch.maximum)(x, low)
    if high is not None:
        x = widened(torch.minimum)(x, high)
    return x
