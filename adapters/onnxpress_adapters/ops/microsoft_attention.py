"""Attention as onnxruntime fuses it: heads merged or packed, masks of many shapes, caches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT
from onnxpress_adapters.ops.attention import split_heads, working_type
from onnxpress_adapters.registry import converter


def scaled(node: NodeView, query: Tensor) -> Tensor:
    """Multiply queries by the node's scale; 0 stands for none, one over the root of the size."""
    return query * (node.get("scale", 0.0) or 1 / math.sqrt(query.shape[-1]))


def padding_bias(
    node: NodeView, mask: Tensor | None, scores: Tensor, batch: int, past: int
) -> Tensor | None:
    """Give what a mask of integers adds to the scores, or None where it hides nothing.

    Args:
        node: tells what is added to a hidden score.
        mask: where each sequence ends, ``[batch]`` or longer; its ends and then its starts,
            ``[2 * batch]``; or 1 where keys may be seen, ``[batch, keys]``,
            ``[batch, queries, keys]`` or ``[batch, 1, longest, longest]``.
        scores: ``[batch, heads, queries, keys]``; only shape, type and device are read.
        batch: how many sequences there are.
        past: how many keys come before the first query.
    """
    if mask is None:
        return None
    queries, keys = scores.shape[-2:]
    if mask.dim() == 1:
        key = torch.arange(keys, device=scores.device)
        hidden = key >= mask[:batch].unsqueeze(1)
        if mask.shape[0] == 2 * batch:
            hidden = hidden | (key < mask[batch:].unsqueeze(1))
        hidden = hidden[:, None, None]
    elif mask.dim() == 2:
        # One number for a whole sequence moves all its scores alike, which changes nothing.
        if mask.shape[1] == 1:
            return None
        hidden = (mask <= 0)[:, None, None]
    elif mask.dim() == 3:
        hidden = (mask <= 0)[:, None]
    else:
        hidden = mask[:, :, past : past + queries, :keys] <= 0
    return torch.where(hidden, node.get("mask_filter_value", -10000.0), scores.new_zeros(()))


def causal_bias(bias: Tensor | None, scores: Tensor, past: int) -> Tensor | None:
    """Hide from every query what comes after it.

    The last query sees all keys, also where there are more of them than queries and a past:
    onnxruntime takes it to be the newest.
    """
    queries, keys = scores.shape[-2:]
    if queries == 1:
        return bias
    query = torch.arange(queries, device=scores.device).unsqueeze(1)
    later = torch.arange(keys, device=scores.device) > query + past
    hidden = later & (query < queries - 1)
    lowest = torch.finfo(scores.dtype).min
    return torch.where(hidden, lowest, scores.new_zeros(()) if bias is None else bias)


def attended(
    node: NodeView,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    attention_bias: Tensor | None,
    past: int,
) -> tuple[Tensor, Tensor | None]:
    """Attend as onnxruntime does on the CPU.

    Args:
        node: for scale, direction and what hides a score.
        query: ``[batch, heads, queries, size]``.
        key: ``[batch, heads, keys, size]``, those of the past included.
        value: ``[batch, heads, keys, size of values]``.
        mask: as ``padding_bias`` takes it.
        attention_bias: is added to the scores; broadcasts to them.
        past: how many keys come before the first query.

    Returns:
        The result ``[batch, queries, heads * size of values]``; and, where the node has a fourth
        output, the scores with all that is added to them, before the softmax.
    """
    working = working_type(query, key, value)
    scores = torch.matmul(scaled(node, query.to(working)), key.to(working).transpose(2, 3))
    bias = padding_bias(node, mask, scores, query.shape[0], past)
    if node.get("unidirectional", 0):
        bias = causal_bias(bias, scores, past)
    for summand in (bias, attention_bias):
        if summand is not None:
            scores = scores + summand
    result = torch.matmul(torch.softmax(scores, -1), value.to(working))
    shown = scores.to(query.dtype) if len(node.outputs) > 3 else None
    return result.transpose(1, 2).flatten(2).to(query.dtype), shown


def self_attention(
    node: NodeView,
    projected: Tensor,
    sizes: Sequence[int],
    mask: Tensor | None,
    past: Tensor | None,
    attention_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Attend with queries, keys and values that stand side by side.

    Args:
        node: for the number of heads and what ``attended`` reads.
        projected: ``[batch, sequence, sum of sizes]``.
        sizes: of the queries, the keys and the values.
        mask: as ``padding_bias`` takes it.
        past: earlier keys and values, ``[2, batch, heads, past, size]``.
        attention_bias: is added to the scores.

    Returns:
        The result, and all keys and values ``[2, batch, heads, keys, size]``, or None where keys
        and values differ in size.

    Raises:
        AdapterError: the node asks for what onnxruntime has on some GPUs only.
    """
    for name in ("do_rotary", "past_present_share_buffer"):
        if node.get(name, 0):
            raise AdapterError(
                f"{node} has {name}=1, which onnxruntime itself cannot run on a CPU; optimise the "
                "model without it"
            )
    heads = node.get("num_heads")
    query, key, value = (split_heads(node, x, heads) for x in projected.split(list(sizes), 2))
    count = 0
    if past is not None:
        count = past.shape[3]
        key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
    result, _ = attended(node, query, key, value, mask, attention_bias, count)
    return result, torch.stack([key, value]) if key.shape == value.shape else None


@converter("Attention", domain=MICROSOFT)
def attention(
    node: NodeView,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_length: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Project, then attend; the weight ``[in, q + k + v]`` makes queries, keys and values."""
    projected = torch.matmul(x, weight)
    if bias is not None:
        projected = projected + bias
    sizes = node.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    return self_attention(node, projected, sizes, mask, past, attention_bias)


def headed(node: NodeView, x: Tensor, bias: Tensor | None) -> Tensor:
    """Turn queries, keys or values into ``[batch, heads, sequence, size]``.

    Args:
        node: for the number of heads.
        x: ``[batch, sequence, heads * size]``, or ``[batch, sequence, heads, size]`` as packed
            inputs hold it.
        bias: is added, ``[heads * size]``.
    """
    if x.dim() == 4:
        x = x.flatten(2)
    return split_heads(node, x if bias is None else x + bias, node.get("num_heads"))


def unpacked(
    node: NodeView, query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give queries, keys and values as ``[batch, heads, sequence, size]``, the bias added.

    All three stand in ``query`` ``[batch, sequence, heads, 3, size]``; or keys and values in
    ``key`` ``[batch, sequence, heads, 2, size]``; or each on its own, ``[batch, sequence,
    features]``. Keys and values of four dimensions have their heads and their bias already.

    Raises:
        AdapterError: keys or values are missing.
    """
    if query.dim() == 5:
        query, key, value = query.unbind(3)
    elif key is not None and key.dim() == 5:
        key, value = key.unbind(3)
    elif key is not None and value is not None and key.dim() == 4:
        own = None if bias is None else bias[: query.shape[2]]
        return headed(node, query, own), key, value
    if key is None or value is None:
        raise AdapterError(f"{node} has no keys or no values; export the model again")
    if bias is None:
        return headed(node, query, None), headed(node, key, None), headed(node, value, None)
    sizes = [x[0, 0].numel() for x in (query, key, value)]
    of_query, of_key, of_value = bias.split(sizes)
    return headed(node, query, of_query), headed(node, key, of_key), headed(node, value, of_value)


def length_of(past_length: np.ndarray | None) -> int | None:
    """Read how much of a shared buffer is used."""
    return None if past_length is None else int(past_length.reshape(-1)[0])


def reordered(buffer: Tensor, beams: Tensor | None) -> Tensor:
    """Collect the past of every beam from the beams it came through.

    Args:
        buffer: ``[batch * beams, heads, longest, size]``.
        beams: ``[batch, beams, longest]``, the beam each place of the past is taken from; or None.
    """
    if beams is None:
        return buffer
    batch, width, longest = beams.shape
    apart = buffer[:, :, :longest].unflatten(0, (batch, width))
    places = beams.to(torch.int64)[:, :, None, :, None].expand(apart.shape)
    return torch.gather(apart, 1, places).flatten(0, 1)


def cached(
    past: Tensor | None, new: Tensor, length: int | None, beams: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Put new keys or values behind those of the past.

    Args:
        past: ``[batch, heads, past, size]``, or None.
        new: ``[batch, heads, sequence, size]``.
        length: how much of ``past`` is used, where it is a buffer for all that will ever come.
        beams: as ``reordered`` takes it.

    Returns:
        All there is to attend to, and what the node hands on: the same, or the buffer with the
        new part written into it.
    """
    if past is None:
        return new, new
    if length is None:
        joined = torch.cat([past, new], 2)
        return joined, joined
    end = length + new.shape[2]
    written = torch.cat([past[:, :, :length], new, past[:, :, end:]], 2)
    return torch.cat([reordered(past, beams)[:, :, :length], new], 2), written


@converter("MultiHeadAttention", domain=MICROSOFT, host=(8,))
def multi_head_attention(
    node: NodeView,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_length: np.ndarray | None = None,
    beams: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Attend to oneself or to others; also give all keys, all values and the scores."""
    query, key, value = unpacked(node, query, key, value, bias)
    length = length_of(past_length)
    keys, present_key = cached(past_key, key, length, beams)
    values, present_value = cached(past_value, value, length, beams)
    past = keys.shape[2] - key.shape[2]
    result, scores = attended(node, query, keys, values, mask, attention_bias, past)
    return result, present_key, present_value, scores


@converter("DecoderMaskedMultiHeadAttention", domain=MICROSOFT, host=(7, 8))
def decoder_masked_multi_head_attention(
    node: NodeView,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_length: np.ndarray | None = None,
    beam_width: np.ndarray | None = None,
    beams: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Attend with one query, that of the newest token; else as MultiHeadAttention does."""
    if key is None:
        query, key, value = query.chunk(3, 2)
    query, key, value = unpacked(node, query, key, value, bias)
    length = length_of(past_length) if node.get("past_present_share_buffer", 0) else None
    keys, present_key = cached(past_key, key, length, beams)
    values, present_value = cached(past_value, value, length, beams)
    result, scores = attended(node, query, keys, values, mask, attention_bias, 0)
    return result, present_key, present_value, scores
