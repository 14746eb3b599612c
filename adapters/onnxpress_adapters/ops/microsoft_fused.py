"""Activations, sums, normalisations and products that onnxruntime fuses into one operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT, fused_activation
from onnxpress_adapters.ops.linear import fused_matmul
from onnxpress_adapters.ops.norm import standardised
from onnxpress_adapters.registry import converter


def wide(x: Tensor) -> Tensor:
    """Widen half precision to float32, in which onnxruntime computes it on a CPU."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@converter("Gelu", domain=MICROSOFT)
def gelu(node: NodeView, x: Tensor) -> Tensor:
    """``x`` times the normal distribution function."""
    return functional.gelu(wide(x)).to(x.dtype)


@converter("BiasGelu", domain=MICROSOFT)
def bias_gelu(node: NodeView, x: Tensor, bias: Tensor) -> Tensor:
    """Gelu of ``x + bias``."""
    return functional.gelu(wide(x) + bias).to(x.dtype)


@converter("FastGelu", domain=MICROSOFT)
def fast_gelu(node: NodeView, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu by tanh, of ``x`` or ``x + bias``."""
    total = wide(x) if bias is None else wide(x) + bias
    return functional.gelu(total, approximate="tanh").to(x.dtype)


@converter("QuickGelu", domain=MICROSOFT)
def quick_gelu(node: NodeView, x: Tensor) -> Tensor:
    """``x sigmoid(alpha x)``."""
    value = wide(x)
    return (value * torch.sigmoid(node.get("alpha", 1.702) * value)).to(x.dtype)


@converter("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(node: NodeView, x: Tensor, bias: Tensor) -> Tensor:
    """Multiply the first half of the features of ``x + bias`` with the Gelu of the second."""
    value, gate = (wide(x) + bias).chunk(2, -1)
    return (value * functional.gelu(gate)).to(x.dtype)


@converter("BiasAdd", domain=MICROSOFT)
def bias_add(node: NodeView, x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """``x + bias + skip``."""
    return x + bias + skip


@converter("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(node: NodeView, x: Tensor, bias: Tensor) -> Tensor:
    """Softmax of ``x + bias`` over all axes from ``axis`` on at once."""
    axis = node.get("axis", 1) % x.dim()
    rows = wide(x + bias).flatten(axis)
    return torch.softmax(rows, -1).reshape(x.shape).to(x.dtype)


@converter("ScaledSiLU", domain=MICROSOFT)
def scaled_silu(node: NodeView, x: Tensor, scale: Tensor | None = None) -> Tensor:
    """``z sigmoid(z)`` of ``z``, which is ``x`` times an input or else an attribute."""
    factor = node.get("alpha", 1.0) if scale is None else wide(scale).reshape(())
    return functional.silu((wide(x) * factor).to(x.dtype))


@converter("GatedAdd", domain=MICROSOFT)
def gated_add(node: NodeView, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """``x + y gate``."""
    return x + y * gate


def root_mean_square(x: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor]:
    """Give ``x`` with a mean square of 1 over the axes, and what it was multiplied with."""
    value = wide(x)
    inverse = torch.rsqrt(torch.mean(value * value, axes, keepdim=True) + epsilon)
    return value * inverse, inverse


@converter("SimplifiedLayerNormalization")
@converter("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(
    node: NodeView, x: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Divide by the root of the mean square, then scale; also give 1 / root.

    onnxruntime writes it into the domain of ONNX, which has no such operator.
    """
    axes = tuple(range(node.get("axis", -1) % x.dim(), x.dim()))
    normal, inverse = root_mean_square(x, axes, node.get("epsilon", 1e-5))
    return (normal * scale).to(scale.dtype), inverse


def skipped(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    """Add up the inputs of a layer and those it skips."""
    total = wide(x) + skip
    return total if bias is None else total + bias


@converter("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    node: NodeView,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardise the features of ``x + skip + bias``; also give mean, 1 / deviation and sum."""
    total = skipped(x, skip, bias)
    normal, mean, inverse = standardised(total, (-1,), node.get("epsilon", 1e-12))
    result = normal * scale if shift is None else normal * scale + shift
    return result.to(x.dtype), mean, inverse, total.to(x.dtype)


@converter("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(
    node: NodeView, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide ``x + skip + bias`` by its root mean square, then scale.

    Also give a mean, which is not computed and zero; 1 / root; and the sum.
    """
    total = skipped(x, skip, bias)
    normal, inverse = root_mean_square(total, (-1,), node.get("epsilon", 1e-12))
    result = (normal * scale).to(x.dtype)
    return result, torch.zeros_like(inverse), inverse, total.to(x.dtype)


def embedded(
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    positions: Tensor,
    segment_table: Tensor | None,
    places: Tensor | None,
) -> Tensor:
    """Add up the rows of three tables: of the words, of their places, and of their sentences.

    Args:
        ids: ``[batch, sequence]``.
        segments: as ``ids``, or None.
        words: ``[ids, features]``.
        positions: ``[places, features]``.
        segment_table: ``[segments, features]``, or None.
        places: ``[batch or 1, sequence]``; 0, 1, 2... where None.
    """
    of_places = positions[: ids.shape[1]] if places is None else positions[places]
    total = words[ids] + of_places
    if segments is not None and segment_table is not None:
        total = total + segment_table[segments]
    return total


def count_of_ones(mask: Tensor | None, ids: Tensor) -> Tensor:
    """Give how many words of each sentence a mask marks; zero without one."""
    if mask is None:
        return torch.zeros_like(ids[:, 0], dtype=torch.int32)
    return torch.sum(mask == 1, 1).to(torch.int32)


@converter("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    node: NodeView,
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    positions: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Embed words and standardise; also give the lengths of the sentences and the embedding."""
    total = embedded(ids, segments, words, positions, segment_table, places)
    normal, _, _ = standardised(total, (-1,), node.get("epsilon", 1e-12))
    return (normal * scale + shift).to(words.dtype), count_of_ones(mask, ids), total


def grouped_norm(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Standardise groups of channels, scale and shift each channel, then perhaps apply SiLU."""
    last = bool(node.get("channels_last", 1))
    value = torch.movedim(x, -1, 1) if last else x
    groups = value.unflatten(1, (node.get("groups"), -1))
    axes = tuple(range(2, groups.dim()))
    normal, _, _ = standardised(groups, axes, node.get("epsilon", 1e-5))
    shape = (-1,) + (1,) * (value.dim() - 2)
    result = normal.flatten(1, 2) * scale.reshape(shape) + shift.reshape(shape)
    if node.get("activation", 0):
        result = functional.silu(result)
    return (torch.movedim(result, 1, -1) if last else result).to(x.dtype)


@converter("GroupNorm", domain=MICROSOFT)
def group_norm(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Standardise groups of channels, which stand first or last."""
    return grouped_norm(node, x, scale, shift)


@converter("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(
    node: NodeView,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    skip: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Standardise groups of channels of ``x + skip + bias``; also give the sum.

    The skip holds one number per channel, ``[batch, channels]``, or as many as ``x``.
    """
    channel = x.dim() - 1 if node.get("channels_last", 1) else 1
    if skip.dim() == 2:
        shape = [x.shape[0]] + [1] * (x.dim() - 1)
        shape[channel] = x.shape[channel]
        skip = skip.reshape(shape)
    total = wide(x) + skip
    if bias is not None:
        total = total + bias.reshape((-1,) + (1,) * (x.dim() - 1 - channel))
    return grouped_norm(node, total, scale, shift).to(x.dtype), total.to(x.dtype)


@converter("GatedRMSNorm", domain=MICROSOFT)
def gated_rms_norm(node: NodeView, x: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    """Divide runs of features by their root mean square; scale, and multiply with a gate."""
    runs = x.unflatten(-1, (-1, scale.shape[0]))
    normal, _ = root_mean_square(runs, (-1,), node.get("epsilon", 1e-5))
    value = wide(gate)
    opens = torch.sigmoid if node.get("activation", "silu") == "sigmoid" else functional.silu
    return ((normal * scale).flatten(-2) * opens(value)).to(x.dtype)


@converter("BranchwiseRMSNorm", domain=MICROSOFT)
def branchwise_rms_norm(node: NodeView, x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Divide the features of each branch by their root mean square, then scale.

    The branches are an axis of their own, or the node says how many stand side by side.
    """
    count = node.get("num_branches", 0)
    branches = x.unflatten(-1, (count, -1)) if count else x
    normal, _ = root_mean_square(branches, (-1,), node.get("epsilon", 1e-5))
    if scale is not None:
        size = branches.shape[-1]
        own = scale.dim() == 1 and scale.shape[0] > size
        normal = normal * wide(scale.reshape(-1, size) if own else scale)
    return normal.to(x.dtype).reshape(x.shape)


converter("TransposeMatMul", domain=MICROSOFT)(fused_matmul)


@converter("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul_activation(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """Multiply as FusedMatMul does, then apply an activation."""
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [node.get(name) for name in names if node.get(name) is not None]
    return fused_activation(node, fused_matmul(node, a, b), parameters)


@converter("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """FastGelu of ``x weight + bias``."""
    result: Tensor = fast_gelu(node, torch.matmul(x, weight), bias)
    return result
