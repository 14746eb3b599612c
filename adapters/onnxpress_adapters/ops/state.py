"""Operators that hand a state from call to call: caches, linear attention, streamed convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.attention import split_heads
from onnxpress_adapters.ops.dtypes import widened
from onnxpress_adapters.registry import converter


@converter("TensorScatter", since=24)
def tensor_scatter(
    node: NodeView, cache: Tensor, update: Tensor, starts: Tensor | None = None
) -> Tensor:
    """Write new entries into a cache along ``axis``, from a place of its own for each sample.

    Raises:
        AdapterError: the node has an unknown mode, or the update is longer than the cache.
    """
    mode = node.get("mode", "linear")
    if mode not in ("linear", "circular"):
        raise AdapterError(f"{node} has the unknown mode '{mode}'; it is linear or circular")
    axis = node.get("axis", -2) % cache.dim()
    size, count = cache.shape[axis], update.shape[axis]
    if count > size:
        raise AdapterError(f"{node} cannot write {count} entries into a cache of {size}")
    if count == 0:
        return cache
    places = torch.arange(size, device=cache.device).unsqueeze(0)
    if starts is not None:
        places = places - starts.to(torch.int64).reshape(-1, 1)
    if mode == "circular":
        places = torch.remainder(places, size)
    # Every place of the cache asks which entry comes to it, so none is written twice.
    shape = (-1,) + (1,) * (axis - 1) + (size,) + (1,) * (cache.dim() - 1 - axis)
    places = places.reshape(shape)
    written = (places >= 0) & (places < count)
    taken = places.clamp(0, count - 1).expand(cache.shape)

    def place(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(written, torch.gather(new, axis, taken), old)

    return widened(place)(cache, update)


RULES = ("linear", "gated", "delta", "gated_delta")


@converter("LinearAttention", since=27)
def linear_attention(
    node: NodeView,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend through a matrix of memory that each token fades, corrects and writes to.

    Raises:
        AdapterError: the update rule is unknown, lacks an input or has one too many.
    """
    rule = node.get("update_rule", "gated_delta")
    if rule not in RULES:
        raise AdapterError(f"{node} has the unknown update_rule '{rule}'; it is one of {RULES}")
    for name, given in (("decay", decay), ("beta", beta)):
        needed = rule in (("gated", "gated_delta") if name == "decay" else ("delta", "gated_delta"))
        if needed != (given is not None):
            raise AdapterError(
                f"{node} updates by the rule '{rule}', which {'needs' if needed else 'has no'} "
                f"input '{name}'"
            )
    result_type, state_type = query.dtype, (query if past is None else past).dtype
    working = torch.promote_types(torch.float32, query.dtype)
    groups = node.get("kv_num_heads")
    queries = split_heads(node, query.to(working), node.get("q_num_heads"))
    keys = split_heads(node, key.to(working), groups)
    values = split_heads(node, value.to(working), groups)
    if queries.shape[1] % groups:
        raise AdapterError(
            f"{node} has {queries.shape[1]} query heads for {groups} key heads; "
            "the first number must be a multiple of the second"
        )
    # Queries that share a memory stand side by side: [batch, groups, sharing, tokens, size].
    queries = queries.unflatten(1, (groups, -1))
    fades = None if decay is None else torch.exp(split_heads(node, decay.to(working), groups))
    rates = None if beta is None else split_heads(node, beta.to(working), beta.shape[2])
    size = keys.shape[3]
    shape = (keys.shape[0], groups, size, values.shape[3])
    memory = keys.new_zeros(shape) if past is None else past.to(working)
    read = []
    for token in range(keys.shape[2]):
        one_key, one_value = keys[:, :, token, :, None], values[:, :, token, None, :]
        if fades is not None:
            memory = memory * fades[:, :, token, :, None]
        if rates is not None:
            found = one_key.transpose(2, 3) @ memory
            one_value = rates[:, :, token, :, None] * (one_value - found)
        memory = memory + one_key * one_value
        read.append(queries[:, :, :, token] @ memory)
    if read:
        result = torch.stack(read, 3).flatten(1, 2).transpose(1, 2).flatten(2)
    else:
        result = query.new_zeros(*query.shape[:2], queries.shape[1] * queries.shape[2] * shape[3])
    scale = node.get("scale", 0.0) or 1 / math.sqrt(size)
    return (result * scale).to(result_type), memory.to(state_type)


@converter("CausalConvWithState", since=27)
def causal_conv_with_state(
    node: NodeView,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own kernel, over what came before as well.

    Raises:
        AdapterError: the fused activation is unknown.
    """
    activation = node.get("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise AdapterError(
            f"{node} has the unknown activation '{activation}'; it is none, silu or swish"
        )
    channels, _, reach = weight.shape
    if past is None:
        past = x.new_zeros((x.shape[0], channels, reach - 1))
    whole = torch.cat([past, x], 2)
    working = torch.promote_types(torch.float32, x.dtype)
    offset = None if bias is None else bias.to(working)
    result = functional.conv1d(whole.to(working), weight.to(working), offset, groups=channels)
    if activation != "none":
        result = functional.silu(result)
    return result.to(x.dtype), whole[:, :, x.shape[2] :]
