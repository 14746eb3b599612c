"""Rotary position embedding: pairs of features turn by an angle that grows with the place."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.registry import converter


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn pairs of features; those behind the last pair stay.

    Args:
        x: ``[..., size]``.
        cos: ``[..., pairs]`` with ``2 * pairs <= size``, broadcasts to the leading axes of ``x``.
        sin: as ``cos``.
        interleaved: whether a pair is two neighbours, or the first and the second half otherwise.
    """
    turned = 2 * cos.shape[-1]
    working = torch.promote_types(x.dtype, torch.float32)
    moving, rest = x[..., :turned].to(working), x[..., turned:]
    if interleaved:
        first, second = moving[..., 0::2], moving[..., 1::2]
    else:
        first, second = moving.chunk(2, -1)
    cos, sin = cos.to(working), sin.to(working)
    pair = (first * cos - second * sin, first * sin + second * cos)
    result = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([result.to(x.dtype), rest], -1)


@converter("RotaryEmbedding", since=23)
def rotary_embedding(
    node: NodeView, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Turn the features of each head by the angles of the token's place.

    Raises:
        AdapterError: the heads do not divide the features, or the angles are too many or too few.
    """
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    heads = node.get("num_heads") or 0
    packed = x.dim() == 3
    if packed and (heads <= 0 or x.shape[2] % heads):
        raise AdapterError(
            f"{node} cannot divide {x.shape[2]} features among {heads} heads; give it a num_heads "
            "that divides them"
        )
    size = x.shape[2] // heads if packed else x.shape[3]
    turned = node.get("rotary_embedding_dim", 0) or size
    if turned > size or 2 * cos.shape[-1] != turned or 2 * sin.shape[-1] != turned:
        raise AdapterError(
            f"{node} turns {turned} of {size} features and needs half as many angles, "
            f"not {cos.shape[-1]} cosines and {sin.shape[-1]} sines"
        )
    interleaved = bool(node.get("interleaved", 0))
    if packed:
        # Heads stand behind the place here, before it in four dimensions.
        y = x.unflatten(2, (heads, size))
        return rotated(y, cos.unsqueeze(2), sin.unsqueeze(2), interleaved).flatten(2)
    return rotated(x, cos.unsqueeze(1), sin.unsqueeze(1), interleaved)
