"""Scaled dot-product attention: queries look keys up, and values come back."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import torch_dtype
from onnxpress_adapters.registry import converter

PREVIEW = "ai.onnx.preview"

# What the fourth output of Attention shows, by `qk_matmul_output_mode`.
CAPPED, BIASED, NORMALISED = 1, 2, 3


def split_heads(node: NodeView, x: Tensor, heads: int | None) -> Tensor:
    """Turn ``[batch, sequence, heads * size]`` into ``[batch, heads, sequence, size]``.

    Raises:
        AdapterError: the node does not say how many heads there are, or they do not fit.
    """
    if not heads or x.shape[2] % heads:
        raise AdapterError(
            f"{node} cannot divide {x.shape[2]} features among {heads or 'an unknown number of'} "
            "heads; give it numbers of heads that divide its inputs"
        )
    divided: Tensor = x.unflatten(2, (heads, -1))
    return divided.transpose(1, 2)


def shared_heads(node: NodeView, x: Tensor, heads: int) -> Tensor:
    """Repeat each key or value head for the run of query heads that shares it.

    Raises:
        AdapterError: the query heads cannot be dealt out evenly.
    """
    if x.shape[1] == heads:
        return x
    if x.shape[1] == 0 or heads % x.shape[1]:
        raise AdapterError(
            f"{node} has {heads} query heads for {x.shape[1]} key heads; "
            "the first number must be a multiple of the second"
        )
    return torch.repeat_interleave(x, heads // x.shape[1], 1)


def working_type(*tensors: Tensor) -> torch.dtype:
    """Give the type attention is computed in: float32, or wider where an input is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def attention_bias(
    node: NodeView,
    scores: Tensor,
    mask: Tensor | None,
    past: int,
    lengths: Tensor | None,
) -> Tensor | None:
    """Give what is added to the scores: the mask, and minus infinity where nobody may look.

    Args:
        node: tells whether attention is causal and how wide its window is.
        scores: ``[batch, heads, queries, keys]``; only shape, type and device are read.
        mask: broadcasts to the scores, but may end before the last key: what it does not reach is
            hidden. Booleans say who may look, numbers are added.
        past: how many keys come before the first query.
        lengths: ``[batch]``, how many keys of each sample are no padding. The last query then
            stands at the last of them.

    Returns:
        The bias, or None where everybody may look at everything and nothing is added.
    """
    queries, keys = scores.shape[-2:]
    left, right = node.get("left_window_size", -1), node.get("right_window_size", -1)
    causal = bool(node.get("is_causal", 0))
    rules: list[Tensor] = []
    key = torch.arange(keys, device=scores.device)
    if causal or left >= 0 or right >= 0:
        query = torch.arange(queries, device=scores.device).unsqueeze(1)
        if lengths is None:
            ahead = key - query - past
        else:
            ahead = key - query - (lengths.reshape(-1, 1, 1, 1) - queries)
        if causal:
            rules.append(ahead <= 0)
        if left >= 0:
            rules.append(ahead >= -left)
        if right >= 0:
            rules.append(ahead <= right)
    if lengths is not None:
        rules.append(key < lengths.reshape(-1, 1, 1, 1))
    if mask is not None:
        short = keys - mask.shape[-1]
        if mask.dtype == torch.bool:
            rules.append(functional.pad(mask, (0, short)) if short > 0 else mask)
        else:
            mask = mask.to(scores.dtype)
            mask = functional.pad(mask, (0, short), value=-math.inf) if short > 0 else mask
    added = mask if mask is not None and mask.dtype != torch.bool else None
    if not rules:
        return added
    open_ = rules[0]
    for rule in rules[1:]:
        open_ = open_ & rule
    value = scores.new_zeros(()) if added is None else added
    return torch.where(open_, value, -math.inf)


def normalised(scores: Tensor, bias: Tensor | None, precision: torch.dtype) -> Tensor:
    """Take the softmax over keys; a query that may look at no key gets zeros.

    Args:
        scores: with the bias already added.
        bias: what was added, or None; it alone tells which queries are hidden.
        precision: the type the softmax is computed in.
    """
    if bias is None:
        return torch.softmax(scores.to(precision), -1).to(scores.dtype)
    # Zeros in place of the hidden rows keep NaN out of the result and out of its gradient.
    hidden = (bias == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(torch.where(hidden, 0.0, scores).to(precision), -1)
    return torch.where(hidden, 0.0, weights).to(scores.dtype)


@converter("Attention", since=23)
def attention(
    node: NodeView,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attend; also give all keys and values so far, and one stage of the scores.

    Raises:
        AdapterError: the numbers of heads do not fit, or the stage asked for does not exist.
    """
    result_type, packed = query.dtype, query.dim() == 3
    if packed:
        query = split_heads(node, query, node.get("q_num_heads"))
        key = split_heads(node, key, node.get("kv_num_heads"))
        value = split_heads(node, value, node.get("kv_num_heads"))
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)

    # The stage nobody asked for is the last one, which is at hand anyway.
    shown = node.get("qk_matmul_output_mode", 0) if len(node.outputs) > 3 else NORMALISED
    if shown not in (0, CAPPED, BIASED, NORMALISED):
        raise AdapterError(f"{node} has the qk_matmul_output_mode {shown}, not one of 0, 1, 2, 3")
    working = working_type(query, value)
    heads = query.shape[1]
    scale = node.get("scale", 1 / math.sqrt(query.shape[3]))
    keys = shared_heads(node, key, heads).to(working)
    scores = (query.to(working) * scale) @ keys.transpose(2, 3)
    stage = scores
    if cap := node.get("softcap", 0.0):
        scores = torch.tanh(scores / cap) * cap
    if shown >= CAPPED:
        stage = scores
    bias = attention_bias(node, scores, mask, past, lengths)
    if bias is not None:
        scores = scores + bias
    if shown >= BIASED:
        stage = scores
    precision = node.get("softmax_precision")
    weights = normalised(scores, bias, torch_dtype(precision) if precision else working)
    if shown == NORMALISED:
        stage = weights
    result = weights @ shared_heads(node, value, heads).to(working)
    if packed:
        result = result.transpose(1, 2).flatten(2)
    return result.to(result_type), key, value, stage.to(result_type)


@converter("FlexAttention", domain=PREVIEW)
def flex_attention(node: NodeView, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with nothing between the stages.

    Raises:
        AdapterError: the node carries a graph that changes the scores or the weights. The
            interpreter runs such a node as the function ONNX defines it by.
    """
    for name in ("score_mod", "prob_mod"):
        if node.get(name) is not None:
            raise AdapterError(
                f"{node} changes its stages by the graph '{name}'; run it as part of a model"
            )
    heads = query.shape[1]
    working = working_type(query)
    precision = node.get("softmax_precision")
    inner = torch_dtype(precision) if precision else working
    scale = node.get("scale", 1 / math.sqrt(query.shape[3]))
    keys = shared_heads(node, key, heads).to(working)
    scores = (query.to(working) * scale) @ keys.transpose(2, 3)
    weights = torch.softmax(scores.to(inner), -1)
    return (weights @ shared_heads(node, value, heads).to(inner)).to(value.dtype)
