"""Attention of language models in com.microsoft: grouped heads over a cache, rotary positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT
from onnxpress_adapters.ops.attention import (
    normalised,
    shared_heads,
    split_heads,
    working_type,
)
from onnxpress_adapters.ops.rotary import rotated
from onnxpress_adapters.registry import converter

BEFORE_SOFTMAX, AFTER_SOFTMAX = 1, 2

# Which of the three positions of a token turns a pair, by `mrope_layout`.
SECTIONED, INTERLEAVED = 0, 1


def packed_nibbles(codes: Tensor) -> Tensor:
    """Put two numbers from -8 to 7 into a byte, the first one low, each raised by 8."""
    raised = codes + 8
    return (raised[..., 0::2] + 16 * raised[..., 1::2]).to(torch.uint8)


def unpacked_nibbles(stored: Tensor) -> Tensor:
    """Undo ``packed_nibbles``; the result is of an integer type."""
    pair = torch.stack([stored & 15, stored >> 4], -1).flatten(-2)
    return pair.to(torch.int16) - 8


@dataclass(frozen=True, eq=False)
class Codec:
    """How a cache stores keys or values: as whole numbers times a scale."""

    scale: Tensor
    low: int
    high: int
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor], Tensor]

    def coded(self, x: Tensor) -> Tensor:
        """Give what the cache holds for new keys or values."""
        return self.pack(torch.clamp(torch.round(x / self.scale), self.low, self.high))

    def value(self, stored: Tensor) -> Tensor:
        """Give the numbers that stored ones stand for."""
        return self.unpack(stored).to(self.scale.dtype) * self.scale


def codec(node: NodeView, letter: str, scale: Tensor | None) -> Codec | None:
    """Read how the keys (``"k"``) or values (``"v"``) are stored; None for plain floats.

    Raises:
        AdapterError: the node lacks the scale, or stores in a way onnxpress does not know.
    """
    if node.get(f"{letter}_quant_type", "NONE") == "NONE":
        return None
    bits = node.get("kv_cache_bit_width", 0)
    if scale is None or bits not in (4, 8):
        raise AdapterError(
            f"{node} stores its cache in {bits} bits; onnxpress reads 4 and 8 bits with a scale"
        )
    if bits == 4:
        return Codec(scale, -8, 7, packed_nibbles, unpacked_nibbles)
    return Codec(scale, -128, 127, lambda codes: codes.to(torch.int8), lambda stored: stored)


def written(past: Tensor | None, new: Tensor, used: Tensor, length: int) -> Tensor:
    """Put new keys or values behind those a sample has used of its cache.

    Args:
        past: ``[batch, heads, past, size]``, or None.
        new: ``[batch, heads, sequence, size]``.
        used: how many of the past each sample has, ``[batch]``.
        length: of the result, which is zero behind the new part.
    """
    place = torch.arange(length, device=new.device)
    start = used.reshape(-1, 1)
    count = new.shape[2]
    result = new.new_zeros(())
    if count:
        source = torch.clamp(place - start, 0, count - 1)
        wide = source[:, None, :, None].expand(*new.shape[:2], length, new.shape[3])
        fresh = (place < start + count)[:, None, :, None]
        result = torch.where(fresh, torch.gather(new, 2, wide), result)
    if past is not None:
        grown = functional.pad(past, (0, 0, 0, length - past.shape[2]))
        result = torch.where((place < start)[:, None, :, None], grown, result)
    return result


@dataclass(frozen=True, eq=False)
class Places:
    """Where queries and keys stand in their sequences.

    Attributes:
        longest: how many keys the longest sequence has so far.
        totals: how many each has, ``[batch]``.
        first: the place of each sample's first query, ``[batch]``.
    """

    longest: int
    totals: Tensor
    first: Tensor

    def of_queries(self, count: int) -> Tensor:
        """Give the places of the queries, ``[batch, count]``."""
        return self.first.unsqueeze(1) + torch.arange(count, device=self.first.device)


def visible(node: NodeView, places: Places, queries: int) -> Tensor:
    """Say which keys each query may look at, ``[batch, 1, queries, keys]``."""
    key = torch.arange(places.longest, device=places.totals.device)
    allowed = key < places.totals[:, None, None, None]
    own = places.of_queries(queries)[:, None, :, None]
    if node.get("causal", 1):
        allowed = allowed & (key <= own)
    window = node.get("local_window_size", -1)
    if window > 0:
        allowed = allowed & (key > own - window)
    return allowed


def turned(
    node: NodeView,
    x: Tensor,
    angles: tuple[Tensor, Tensor],
    positions: Tensor | None,
    places: Places,
) -> Tensor:
    """Turn the features of ``[batch, heads, sequence, size]`` by the place of each token."""
    own = places.of_queries(x.shape[2])
    if positions is not None:
        # Of a first prompt onnxruntime reads one position; the others follow it.
        prompt = x.shape[2] == places.longest
        own = own + positions.reshape(-1)[0] if prompt else positions
    cos, sin = (table[own].unsqueeze(1) for table in angles)
    return rotated(x, cos, sin, bool(node.get("rotary_interleaved", 0)))


def norm_of_heads(node: NodeView, x: Tensor, weight: Tensor | None) -> Tensor:
    """Divide each head's features by the root of their mean square, and scale them."""
    if weight is None:
        return x
    square = torch.mean(x * x, -1, keepdim=True)
    return x * torch.rsqrt(square + node.get("qk_norm_epsilon", 1e-6)) * weight


def with_sink(scores: Tensor, sink: Tensor) -> Tensor:
    """Take the softmax over keys and one more score per head, which draws no value.

    Args:
        scores: ``[batch, heads, queries, keys]``.
        sink: ``[heads]``, or one number.
    """
    more = sink.to(scores.dtype).reshape(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, more], -1), -1)[..., :-1]


def separated(
    node: NodeView, query: Tensor, key: Tensor | None, value: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give queries, keys and values as ``[batch, heads, sequence, size]``.

    All three may stand side by side in ``query``.
    """
    heads, few = node.get("num_heads"), node.get("kv_num_heads")
    if key is None or value is None:
        size = query.shape[2] // (heads + 2 * few)
        query, key, value = query.split([heads * size, few * size, few * size], 2)
    return (
        split_heads(node, query, heads),
        split_heads(node, key, few),
        split_heads(node, value, few),
    )


def shares(node: NodeView, scores: Tensor, seen: Tensor, sink: Tensor | None) -> Tensor:
    """Take the softmax over the keys that may be seen; a query that sees none gets zeros.

    Args:
        node: may ask for one more score of zero, which draws no value.
        scores: ``[batch, heads, queries, keys]``.
        seen: broadcasts to the scores.
        sink: the one more score of each head, ``[heads]``.
    """
    hidden = torch.where(seen, scores.new_zeros(()), -math.inf)
    if sink is None and node.get("smooth_softmax", 0) == 1:
        sink = scores.new_zeros(1)
    if sink is None:
        return normalised(scores + hidden, hidden, scores.dtype)
    return with_sink(scores + hidden, sink)


@converter("GroupQueryAttention", domain=MICROSOFT, host=(6,))
def group_query_attention(
    node: NodeView,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor,
    longest: np.ndarray,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    attention_bias: Tensor | None = None,
    sink: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Attend with runs of query heads that share a key head, over a cache of ragged sequences.

    ``lengths`` are the numbers of keys so far, less one. Behind a prompt the queries of a sample
    are its last tokens.

    Raises:
        AdapterError: the heads do not fit, or the cache is of a kind onnxpress does not know.
    """
    if node.get("sliding_window_cache", 0):
        raise AdapterError(
            f"{node} keeps only a window of its cache, which onnxpress does not run; "
            "export the model with sliding_window_cache=0"
        )
    query, key, value = separated(node, query, key, value)
    query, key = norm_of_heads(node, query, query_norm), norm_of_heads(node, key, key_norm)
    total = int(longest.reshape(-1)[0])
    count, new = query.shape[2], key.shape[2]
    totals = lengths.reshape(-1).to(torch.int64) + 1
    prompt = count == total
    places = Places(total, totals, torch.zeros_like(totals) if prompt else totals - count)
    if node.get("do_rotary", 0):
        if cos is None or sin is None:
            raise AdapterError(f"{node} turns its features but has no angles for it")
        query = turned(node, query, (cos, sin), positions, places)
        key = turned(node, key, (cos, sin), positions, places) if new else key

    used = torch.zeros_like(totals) if prompt and new else totals - new
    size = max(total, 0 if past_key is None else past_key.shape[2])
    of_keys, of_values = codec(node, "k", key_scale), codec(node, "v", value_scale)
    present_key = written(past_key, of_keys.coded(key) if of_keys else key, used, size)
    present_value = written(past_value, of_values.coded(value) if of_values else value, used, size)
    keys = of_keys.value(present_key) if of_keys else present_key
    values = of_values.value(present_value) if of_values else present_value

    working = working_type(query, keys)
    heads = query.shape[1]
    keys = shared_heads(node, keys[:, :, :total], heads).to(working)
    values = shared_heads(node, values[:, :, :total], heads).to(working)
    scale = node.get("scale", 0.0) or 1 / math.sqrt(query.shape[3])
    scores = torch.matmul(query.to(working) * scale, keys.transpose(2, 3))
    if cap := node.get("softcap", 0.0):
        scores = cap * torch.tanh(scores / cap)
    if attention_bias is not None:
        scores = scores + attention_bias
    seen = visible(node, places, count)
    weights = shares(node, scores, seen, sink)
    result = torch.matmul(weights, values).transpose(1, 2).flatten(2).to(query.dtype)
    shown = None
    if len(node.outputs) > 3:
        stages = {BEFORE_SOFTMAX: torch.where(seen, scores, 0.0), AFTER_SOFTMAX: weights}
        shown = stages.get(node.get("qk_output", 0))
    return result, present_key, present_value, shown


def by_heads(node: NodeView, x: Tensor, cos: Tensor) -> Tensor:
    """Turn ``[batch, sequence, features]`` into ``[batch, heads, sequence, size]``.

    A head is as large as the node says, or as the angles need.
    """
    if x.dim() == 4:
        return x
    heads = x.shape[2] // (2 * cos.shape[1])
    if node.get("rotary_embedding_dim", 0):
        heads = node.get("num_heads", 0)
    return split_heads(node, x, heads)


def as_given(x: Tensor, result: Tensor) -> Tensor:
    """Undo ``by_heads``: give a result the axes its input had."""
    return result if x.dim() == 4 else result.transpose(1, 2).flatten(2)


@converter("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(
    node: NodeView, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """Turn features by the place of each token: one per token, or that of the first one."""
    y = by_heads(node, x, cos)
    if positions.dim() < 2:
        positions = positions.reshape(1, 1) + torch.arange(y.shape[2], device=x.device)
    own = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    return as_given(x, rotated(y, *own, bool(node.get("interleaved", 0))))


def streams(node: NodeView, pairs: int) -> list[int]:
    """Say which of three positions turns each pair of features."""
    sections = node.get("mrope_section")
    if node.get("mrope_layout", 0) == SECTIONED:
        return [stream for stream in range(3) for _ in range(sections[stream])]
    chosen = [0] * pairs
    for stream in (1, 2):
        for pair in range(stream, min(3 * sections[stream], pairs), 3):
            chosen[pair] = stream
    return chosen


@converter("MRotaryEmbedding", domain=MICROSOFT)
def multimodal_rotary_embedding(
    node: NodeView, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """Turn each pair of features by one of a token's three places: in time, height or width.

    ``positions`` are ``[3, batch, sequence]``.
    """
    pairs = cos.shape[1]
    stream = torch.tensor(streams(node, pairs), device=x.device)
    pair = torch.arange(pairs, device=x.device)

    def chosen(table: Tensor) -> Tensor:
        return torch.movedim(table[positions][stream, :, :, pair], 0, -1).unsqueeze(1)

    y = rotated(by_heads(node, x, cos), chosen(cos), chosen(sin), bool(node.get("interleaved", 0)))
    return as_given(x, y)


@converter("GemmaRotaryEmbedding", domain=MICROSOFT)
def gemma_rotary_embedding(
    node: NodeView, angle: Tensor, q: Tensor, q_turned: Tensor, k: Tensor, k_turned: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn queries and keys whose quarter turns are given by angles ``[batch, sequence, size]``."""
    cos = torch.cos(angle).to(q.dtype).unsqueeze(1)
    sin = torch.sin(angle).to(q.dtype).unsqueeze(1)
    return q * cos + q_turned * sin, k * cos + k_turned * sin
