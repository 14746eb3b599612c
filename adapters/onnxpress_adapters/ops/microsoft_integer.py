"""Products of com.microsoft with 8-bit weights: exact sums of integers first, then the scales."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT
from onnxpress_adapters.ops.integer import (
    centred,
    factor_of,
    qlinear_conv,
    requantised,
    single,
    whole,
)
from onnxpress_adapters.ops.microsoft_attention import self_attention
from onnxpress_adapters.ops.microsoft_fused import count_of_ones, embedded
from onnxpress_adapters.ops.microsoft_quantized import channels_back, channels_first
from onnxpress_adapters.ops.norm import standardised
from onnxpress_adapters.ops.quantize import dynamic_quantize_linear
from onnxpress_adapters.ops.recurrent import Product, lstm_layer
from onnxpress_adapters.registry import converter


def product(
    a: Tensor, a_zero_point: Tensor | None, b: Tensor, b_zero_point: Tensor | None
) -> Tensor:
    """Multiply matrices of 8-bit numbers, each less its zero point, into 32-bit ones."""
    return whole(torch.matmul(centred(a, a_zero_point), centred(b, b_zero_point)))


def rescaled(total: Tensor, *scales: Tensor) -> Tensor:
    """Turn sums into real numbers: times the scales of both sides, multiplied first."""
    factor = single(scales[0])
    for scale in scales[1:]:
        factor = factor * single(scale)
    return total.to(factor.dtype) * factor


def plus(x: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias, if there is one."""
    return x if bias is None else x + bias


@converter("MatMulInteger16", domain=MICROSOFT)
def matmul_integer_16(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices of 16-bit numbers into 32-bit ones."""
    return product(a, None, b, None)


@converter("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(
    node: NodeView,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply matrices of 8-bit numbers into real ones."""
    return plus(rescaled(product(a, a_zero_point, b, b_zero_point), a_scale, b_scale), bias)


def dynamic_product(
    node: NodeView, x: Tensor, weight: Tensor, scale: Tensor, zero_point: Tensor | None
) -> Tensor:
    """Quantise real numbers by their own range, then multiply with an 8-bit weight."""
    codes, step, shift = dynamic_quantize_linear(node, x)
    return rescaled(product(codes, shift, weight, zero_point), step, scale)


@converter("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(
    node: NodeView,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply real numbers, quantised on the way, with an 8-bit weight."""
    return plus(dynamic_product(node, x, weight, scale, zero_point), bias)


@converter("QGemm", domain=MICROSOFT)
def qgemm(
    node: NodeView,
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    c: Tensor | None = None,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
) -> Tensor:
    """``alpha (A' B' + C)``, each of A and B transposed or not; real numbers without a scale."""
    left = centred(a, a_zero_point)
    right = centred(b, None)
    if node.get("transA", 0):
        left = left.transpose(0, 1)
    if node.get("transB", 0):
        right = right.transpose(0, 1)
    # The zero points of B are those of its columns once it is transposed.
    right = right - single(b_zero_point).to(right.dtype)
    total = whole(plus(torch.matmul(left, right), None if c is None else centred(c, None)))
    factor = node.get("alpha", 1.0) * single(a_scale)
    if scale is None or zero_point is None:
        return rescaled(total, factor, b_scale)
    return requantised(total, factor_of(factor, b_scale, scale), zero_point)


@converter("QLinearConv", domain=MICROSOFT)
def qlinear_conv_of_either_layout(
    node: NodeView, x: Tensor, x_scale: Tensor, x_zero_point: Tensor, *rest: Tensor | None
) -> Tensor:
    """Convolve 8-bit numbers into 8-bit ones; the channels stand first or last."""
    result = qlinear_conv(node, channels_first(node, x), x_scale, x_zero_point, *rest)
    return channels_back(node, result)


@converter("QAttention", domain=MICROSOFT)
def qattention(
    node: NodeView,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    mask: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    weight_zero_point: Tensor | None = None,
    past: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention whose input and merged weight ``[in, 3 * hidden]`` are 8-bit numbers."""
    total = product(x, x_zero_point, weight, weight_zero_point)
    projected = rescaled(total, x_scale, weight_scale) + bias
    sizes = [weight.shape[1] // 3] * 3
    return self_attention(node, projected, sizes, mask, past, None)


@converter("QEmbedLayerNormalization", domain=MICROSOFT)
def qembed_layer_normalization(
    node: NodeView,
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    positions: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    *quantisation: Tensor,
) -> tuple[Tensor, Tensor]:
    """Embed words by tables of 8-bit numbers and standardise; also give the sentences' lengths.

    Behind the mask stand the five scales, then the five zero points, in the order of the tables.
    """

    def table(place: int, codes: Tensor) -> Tensor:
        return rescaled(centred(codes, quantisation[5 + place]), quantisation[place])

    of_segments = None if segment_table is None else table(2, segment_table)
    tables = table(0, words), table(1, positions), of_segments
    normal, _, _ = standardised(
        embedded(ids, segments, *tables, None), (-1,), node.get("epsilon", 1e-12)
    )
    return normal * table(3, scale) + table(4, shift), count_of_ones(mask, ids)


@converter("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    start: Tensor | None,
    start_cell: Tensor | None,
    peepholes: Tensor | None,
    w_scale: Tensor,
    w_zero_point: Tensor,
    r_scale: Tensor,
    r_zero_point: Tensor,
) -> tuple[Tensor, ...]:
    """LSTM with 8-bit weights ``[directions, in, gates * hidden]``.

    The input is quantised as a whole, the states of all sequences at each step.
    """

    def products(place: int) -> tuple[Product, Product]:
        def of(weight: Tensor, scale: Tensor, zero_point: Tensor) -> Product:
            own = weight[place], scale[place], zero_point[place]
            return lambda values: dynamic_product(node, values, *own)

        return of(w, w_scale, w_zero_point), of(r, r_scale, r_zero_point)

    starts = [start, start_cell]
    return lstm_layer(node, x, r.shape[1], products, bias, lengths, starts, peepholes)
