"""Operators of com.microsoft that hand a state from call to call, as hybrid language models do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT
from onnxpress_adapters.ops.state import linear_attention
from onnxpress_adapters.registry import converter


def refuse(node: NodeView, **expected: int) -> None:
    """Refuse attributes that ask for more than onnxpress has.

    Raises:
        AdapterError: one of them is not as expected.
    """
    for name, value in expected.items():
        if node.get(name, value) != value:
            raise AdapterError(
                f"{node} has {name}={node.get(name)}, and onnxpress runs it with {value} only; "
                "export the model so"
            )


@converter("LinearAttention", domain=MICROSOFT)
def linear_attention_by_window(node: NodeView, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attend through a matrix of memory, as ONNX's own operator does."""
    refuse(node, state_window=0)
    result: tuple[Tensor, Tensor] = linear_attention(node, *inputs)
    return result


@converter("LinearAttentionGate", domain=MICROSOFT)
def linear_attention_gate(
    node: NodeView, x: Tensor, shift: Tensor, scale: Tensor, rate: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Give how fast a memory fades, ``scale softplus(x + shift)``, and how fast it is written."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) + shift
    fade = (scale * torch.logaddexp(wide, torch.zeros_like(wide))).to(x.dtype)
    return fade, None if rate is None else torch.sigmoid(rate)


@converter("CausalConvWithState", domain=MICROSOFT)
def causal_conv_with_state(
    node: NodeView,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own kernel, over what came before as well.

    Channels stand behind the batch, or last, and then on as many axes as one likes.

    Raises:
        AdapterError: the node works on images, hands on several states, or fuses an activation
            onnxpress does not know.
    """
    refuse(node, ndim=1, state_window=0)
    activation = node.get("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise AdapterError(
            f"{node} has the unknown activation '{activation}'; it is none, silu or swish"
        )
    last = bool(node.get("channels_last", 0))

    def first(value: Tensor) -> Tensor:
        return value.flatten(2).transpose(1, 2) if last else value

    def back(value: Tensor) -> Tensor:
        return value.transpose(1, 2).unflatten(2, x.shape[2:]) if last else value

    channels, _, taps = weight.shape
    step = node.get("dilation", 1)
    new = first(x)
    before = (taps - 1) * step
    old = new.new_zeros((new.shape[0], channels, before)) if past is None else first(past)
    whole = torch.cat([old, new], 2)
    result = functional.conv1d(whole, weight, bias, dilation=step, groups=channels)
    if activation != "none":
        result = functional.silu(result)
    return back(result), back(whole[:, :, new.shape[2] :])
