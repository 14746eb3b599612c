"""Normalisation by statistics: of the training set, of a channel, of a group, of neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.elementwise import square_root
from onnxpress_adapters.registry import converter


@converter("BatchNormalization")
def batch_normalization(
    node: NodeView, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """``scale (x - mean) / sqrt(variance + epsilon) + bias`` per channel.

    The mean and the variance are given in inference. In training mode they are those of the batch,
    and the given ones, moved towards them, come out as well.
    """
    if not in_training(node):
        return standardised_by(node, x, scale, bias, mean, variance)
    working = torch.promote_types(x.dtype, torch.float32)
    axes = (0, *range(2, x.dim())) if node.get("spatial", 1) else (0,)
    wide = x.to(working)
    batch_mean = torch.mean(wide, axes).reshape(mean.shape)
    batch_variance = torch.var(wide, axes, correction=0).reshape(variance.shape)
    momentum = node.get("momentum", 0.9)
    moved = (
        (mean * momentum + batch_mean * (1 - momentum)).to(mean.dtype),
        (variance * momentum + batch_variance * (1 - momentum)).to(variance.dtype),
    )
    result = standardised_by(node, wide, scale, bias, batch_mean, batch_variance).to(x.dtype)
    # Before opset 14 the statistics of the batch are outputs too.
    own = (batch_mean.to(mean.dtype), batch_variance.to(variance.dtype))
    return (result, *moved, *own) if node.version < 14 else (result, *moved)


def in_training(node: NodeView) -> bool:
    """Say whether a BatchNormalization takes the statistics of the batch.

    Before opset 14 it does where somebody asks for the statistics.
    """
    if node.version >= 14:
        return bool(node.get("training_mode", 0))
    return any(node.outputs[1:]) and not node.get("is_test", 0)


def standardised_by(
    node: NodeView, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Apply a mean and a variance, and then scale and bias, per channel or per feature."""
    slope = scale / torch.sqrt(variance + node.get("epsilon", 1e-5))
    offset = bias - mean * slope
    if node.get("spatial", 1):
        shape = (-1,) + (1,) * (x.dim() - 2) if x.dim() > 1 else (-1,)
        slope, offset = slope.reshape(shape), offset.reshape(shape)
    # One pass over x instead of two: this is memory-bound.
    return torch.addcmul(offset, x, slope).to(x.dtype)


def standardised(x: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Give ``x`` with mean 0 and variance 1 over the axes, the mean, and 1 / deviation.

    Half precision becomes float32, in which ONNX keeps statistics.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = torch.mean(x, axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(torch.mean(centred * centred, axes, keepdim=True) + epsilon)
    return centred * inverse, mean, inverse


@converter("InstanceNormalization")
def instance_normalization(node: NodeView, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Standardise each channel of each sample, then scale and shift per channel."""
    shape = (-1,) + (1,) * (x.dim() - 2)
    normal, _, _ = standardised(x, tuple(range(2, x.dim())), node.get("epsilon", 1e-5))
    return (normal * scale.reshape(shape) + bias.reshape(shape)).to(x.dtype)


@converter("LayerNormalization")
def layer_normalization(
    node: NodeView, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Standardise over the axes from ``axis`` on; also give mean and 1 / deviation if asked."""
    axes = tuple(range(node.get("axis", -1) % x.dim(), x.dim()))
    sizes = x.shape[axes[0] :]
    fits = scale.shape == sizes and (bias is None or bias.shape == sizes)
    alike = x.dtype == scale.dtype in (torch.float32, torch.float64)
    if fits and alike and not any(node.outputs[1:]):
        # torch's own keeps less for the gradient.
        return functional.layer_norm(x, sizes, scale, bias, node.get("epsilon", 1e-5)), None, None
    normal, mean, inverse = standardised(x, axes, node.get("epsilon", 1e-5))
    result = normal.to(x.dtype) * scale
    return (result if bias is None else result + bias), mean, inverse


@converter("RMSNormalization")
def rms_normalization(node: NodeView, x: Tensor, scale: Tensor) -> Tensor:
    """Divide by the root of the mean square over the axes from ``axis`` on, then scale."""
    axes = tuple(range(node.get("axis", -1) % x.dim(), x.dim()))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    square = torch.mean(wide * wide, axes, keepdim=True)
    return (wide * torch.rsqrt(square + node.get("epsilon", 1e-5))).to(x.dtype) * scale


@converter("GroupNormalization")
def group_normalization(node: NodeView, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Standardise groups of channels; scale and shift per channel, before opset 21 per group."""
    groups = node.get("num_groups")
    count, channels, *spatial = x.shape
    grouped = x.reshape(count, groups, channels // groups, *spatial)
    normal, _, _ = standardised(grouped, tuple(range(2, grouped.dim())), node.get("epsilon", 1e-5))
    if node.version < 21:
        shape: tuple[int, ...] = (groups, 1) + (1,) * len(spatial)
    else:
        shape = (groups, channels // groups) + (1,) * len(spatial)
    return (normal * scale.reshape(shape) + bias.reshape(shape)).reshape(x.shape).to(x.dtype)


@converter("MeanVarianceNormalization")
def mean_variance_normalization(node: NodeView, x: Tensor) -> Tensor:
    """Standardise over the axes; the deviation, not the variance, carries a tiny offset."""
    axes = tuple(node.get("axes") or (0, 2, 3))
    centred = x - torch.mean(x, axes, keepdim=True)
    deviation = square_root(torch.mean(centred * centred, axes, keepdim=True))
    return centred / (deviation + 1e-9)


@converter("LRN")
def local_response_normalization(node: NodeView, x: Tensor) -> Tensor:
    """Divide by the energy of the neighbouring channels."""
    size = node.get("size")
    before, after = (size - 1) // 2, math.ceil((size - 1) / 2)
    tail = (0, 0) * (x.dim() - 2)
    squares = functional.pad(x * x, (*tail, before, after))
    channels = x.shape[1]
    energy = squares[:, :channels]
    for shift in range(1, size):
        energy = energy + squares[:, shift : shift + channels]
    base = node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * energy
    return x / torch.pow(base, node.get("beta", 0.75))


@converter("LpNormalization")
def lp_normalization(node: NodeView, x: Tensor) -> Tensor:
    """Divide by the p-norm along an axis; where that is zero, give zeros."""
    axis, order = node.get("axis", -1), node.get("p", 2)
    norm = torch.linalg.vector_norm(x, ord=order, dim=axis, keepdim=True)
    return torch.where(norm == 0, 0.0, x / torch.where(norm == 0, 1.0, norm)).to(x.dtype)
