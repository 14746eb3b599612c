"""Small inputs for converters, picked by hand, on which they are smooth.

Each stands for a converter whose gradient the node cases of onnx do not show: they leave out old
opsets and the operators of com.microsoft, and some are too large to difference, or not smooth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import TensorProto

from beside_runtime import Row, microsoft, row
from one_node import Array

rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape)


def positive(*shape: int) -> Array:
    return rng.random(shape) + 0.5


def apart(*shape: int) -> Array:
    """Draw numbers that keep a distance from each other, from zero and from whole numbers."""
    count = int(np.prod(shape))
    values = np.arange(count) - count // 2 + 0.3 + 0.2 * rng.random(count)
    return np.asarray(rng.permutation(values).reshape(shape))


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def elementwise_picks() -> Iterator[Row]:
    for operator in ("Add", "Sub", "Mul", "Div"):
        yield row(operator, 6, normal(2, 3, 4), positive(3), broadcast=1, axis=1)
    yield row("Pow", 6, positive(2, 3), normal(3), broadcast=1)
    yield row("Pow", 15, positive(2, 3), normal(3))
    yield row("PRelu", 6, apart(2, 3, 2), normal(3))
    yield row("Clip", 6, apart(3, 4), min=-2.0, max=2.0)
    yield row("Selu", 1, apart(2, 3), alpha=1.5)
    yield row("Affine", 1, normal(3), alpha=2.0, beta=1.0)
    yield row("ScaledTanh", 1, normal(3), alpha=2.0, beta=0.5)
    yield row("Erf", 13, normal(3))
    yield row("Mish", 22, normal(3))
    yield row("Mod", 13, apart(3, 4), np.array(3.7), fmod=1)
    yield row("Cast", 13, normal(3), to=TensorProto.DOUBLE)
    yield row("CastLike", 15, normal(3), np.zeros(1))
    yield row("DynamicQuantizeLinear", 11, apart(3, 4), outputs=3)
    for operator in ("Softmax", "LogSoftmax"):
        yield row(operator, 11, normal(2, 3, 2), axis=1)


def window_picks() -> Iterator[Row]:
    yield row("LRN", 13, positive(1, 4, 1, 2), size=3, alpha=0.5)
    yield row("GlobalLpPool", 2, apart(1, 2, 2, 2), p=3)
    region = np.array([[0, 0.6, 0.75, 3.4, 3.1]])
    yield row("MaxRoiPool", 1, apart(1, 1, 4, 4), region, pooled_shape=[2, 2])
    size = {"output_height": 2, "output_width": 2, "sampling_ratio": 2}
    yield row("RoiAlign", 10, normal(1, 1, 4, 4), region[:, 1:], ints(0), **size)
    yield row("RoiAlign", 16, normal(1, 1, 4, 4), region[:, 1:], ints(0), **size)


def moving_picks() -> Iterator[Row]:
    x = normal(2, 3)
    yield row("OneHot", 11, ints(0, 2), np.array(3), normal(2))
    yield row("Pad", 2, x, pads=[1, 0, 0, 2])
    yield row("Reshape", 1, x, shape=[3, -1])
    yield row("Slice", 1, x, starts=[0, 1], ends=[2, 3])
    yield row("Slice", 13, x, ints(2, 0), ints(-4, 2), ints(1, 0), ints(-1, 1))
    yield row("Split", 1, x, ints(1, 2), axis=1, outputs=2)
    yield row("Split", 2, x, axis=1, split=[1, 2], outputs=2)
    yield row("Squeeze", 11, normal(2, 1), axes=[1])
    yield row("Unsqueeze", 11, x, axes=[0])
    yield row("Tile", 1, x, np.array(2), np.array(1))
    yield row("TopK", 1, apart(2, 4), k=2, outputs=2)
    yield row("Trilu", 14, normal(3, 3), upper=0)
    yield row("Upsample", 1, normal(1, 1, 2, 2), height_scale=2.0, width_scale=1.5)
    yield row("Upsample", 7, normal(1, 1, 2, 2), scales=[1.0, 1.0, 2.0, 1.5], mode="linear")
    scales = np.array([1, 1, 2, 1.5], np.float32)
    yield row("Resize", 10, normal(1, 1, 2, 2), scales, mode="linear")


def reducing_picks() -> Iterator[Row]:
    for name in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        yield row(f"Reduce{name}", 11, apart(2, 3), axes=[1], keepdims=0)
    yield row("ReduceLogSum", 11, positive(2, 3), axes=[1], keepdims=0)


def product_picks() -> Iterator[Row]:
    image, kernel = normal(1, 2, 3, 3), normal(2, 2, 2, 2)
    yield microsoft("FusedConv", image, kernel, normal(2), normal(1, 2, 2, 2), activation="Tanh")
    a, b, c = normal(2, 3), normal(3, 4), normal(4)
    yield microsoft("FusedGemm", a, b, c, activation="Sigmoid")
    yield microsoft("FusedMatMul", normal(3, 2), b, transA=1, alpha=0.5)
    yield microsoft("FusedMatMulActivation", a, normal(4, 3), transB=1, activation="Tanh")
    yield microsoft("TransposeMatMul", normal(3, 2), b, transA=1)
    yield microsoft("GemmFastGelu", a, b, c)


def activation_picks() -> Iterator[Row]:
    x, bias = normal(2, 4), normal(4)
    yield microsoft("Gelu", x)
    yield microsoft("BiasGelu", x, bias)
    yield microsoft("FastGelu", x, bias)
    yield microsoft("QuickGelu", x, alpha=2.0)
    yield microsoft("BiasSplitGelu", x, bias)
    yield microsoft("BiasAdd", x, bias, normal(2, 4))
    yield microsoft("BiasSoftmax", x, normal(1, 4), axis=1, is_inner_broadcast=0)
    yield microsoft("ScaledSiLU", x, np.array(1.5))
    yield microsoft("GatedAdd", x, normal(2, 4), normal(2, 1))


def norm_picks() -> Iterator[Row]:
    x, scale, bias = normal(2, 4), normal(4), normal(4)
    yield row("SimplifiedLayerNormalization", 1, x, scale, outputs=2)
    yield microsoft("SimplifiedLayerNormalization", x, scale)
    yield microsoft("SkipLayerNormalization", x, normal(2, 4), scale, bias, normal(4))
    yield microsoft("SkipSimplifiedLayerNormalization", x, normal(2, 4), scale, bias)
    tables = normal(4, 3), normal(3, 3), normal(2, 3), normal(3), normal(3)
    words, kinds = ints(2, 0).reshape(1, 2), ints(1, 0).reshape(1, 2)
    yield microsoft("EmbedLayerNormalization", words, kinds, *tables)
    yield microsoft("GroupNorm", normal(1, 2, 2, 4), scale, bias, groups=2, activation=1)
    channels = normal(1, 2, 2, 4), scale, bias, normal(1, 4)
    yield microsoft("SkipGroupNorm", *channels, normal(4), groups=2, activation=0)
    yield microsoft("GatedRMSNorm", x, normal(2), normal(2, 4))
    yield microsoft("BranchwiseRMSNorm", x, scale, num_branches=2)


def attention_picks() -> Iterator[Row]:
    q, k, v = normal(1, 2, 2, 3), normal(1, 1, 3, 3), normal(1, 1, 3, 2)
    yield Row("FlexAttention", 1, {}, (q, k, v), 1, "ai.onnx.preview")
    x, heads = normal(1, 3, 4), {"num_heads": 2}
    yield microsoft("Attention", normal(1, 3, 2), normal(2, 12), normal(12), **heads)
    yield microsoft("MultiHeadAttention", x, normal(1, 2, 4), normal(1, 2, 4), **heads)
    decoder, one, past = "DecoderMaskedMultiHeadAttention", normal(1, 1, 4), normal(2, 1, 2, 3, 2)
    yield microsoft(decoder, one, *past, **heads)
    yield microsoft(
        "GroupQueryAttention",
        *(x, normal(1, 3, 2), normal(1, 3, 2), None, None, ints(2), np.array(3, np.int32)),
        kv_num_heads=1,
        **heads,
    )


def rotary_picks() -> Iterator[Row]:
    x, at, table = normal(1, 2, 2, 4), ints(1, 3).reshape(1, 2), (normal(4, 2), normal(4, 2))
    yield microsoft("RotaryEmbedding", x, at, *table)
    yield microsoft(
        "MRotaryEmbedding", x, np.stack([at, at - 1, at]), *table, mrope_section=[1, 1, 0]
    )
    whole = (normal(1, 2, 4), *(normal(1, 2, 2, 4) for _ in range(4)))
    yield microsoft("GemmaRotaryEmbedding", *whole)._replace(outputs=2)


def codes(kind: type, *shape: int) -> Array:
    return rng.integers(0, 100, shape).astype(kind)


def quantised_picks() -> Iterator[Row]:
    a, b = codes(np.uint8, 2, 3), codes(np.int8, 3, 4)
    scale, scales, zero, zeros = np.array(0.3), positive(4), np.array(7, np.uint8), np.int8(3)
    yield microsoft("DequantizeLinear", a, scale, zero)
    yield microsoft(
        "DynamicQuantizeMatMul", apart(2, 3), b, scales, np.full(4, 3, np.int8), normal(4)
    )
    yield microsoft("MatMulIntegerToFloat", a, b, scale, scales, zero, np.full(4, 3, np.int8))
    yield microsoft("QGemm", a, scale, zero, b, np.array(0.2), np.array(zeros))
    projection = codes(np.int8, 2, 12), normal(12), np.array(0.01), np.array(0.01)
    yield microsoft("QAttention", codes(np.uint8, 1, 3, 2), *projection, num_heads=2)
    words, kinds = ints(2, 0).reshape(1, 2), ints(1, 0).reshape(1, 2)
    tables = [codes(np.uint8, *size) for size in ((4, 3), (3, 3), (2, 3), (3,), (3,))]
    steps = [np.array(0.1 * place) for place in range(1, 6)]
    yield microsoft("QEmbedLayerNormalization", words, kinds, *tables, None, *steps, *[zero] * 5)
    weights = codes(np.int8, 1, 3, 8), codes(np.int8, 1, 2, 8)
    start = apart(1, 1, 2), apart(1, 1, 2)
    shifts = np.array([0.02]), np.zeros(1, np.int8)
    yield microsoft(
        "DynamicQuantizeLSTM",
        *(apart(2, 1, 3), *weights, normal(1, 16), None, *start, None, *shifts, *shifts),
        hidden_size=2,
    )


def block_picks() -> Iterator[Row]:
    sizes: Any = {"N": 3, "K": 16, "block_size": 16}
    x, stored, steps = normal(2, 16), codes(np.uint8, 3, 1, 8), positive(3, 1)
    yield microsoft("MatMulNBits", x, stored, steps, None, None, normal(3), bits=4, **sizes)
    yield microsoft("MatMulBnb4", x, codes(np.uint8, 24), positive(3), quant_type=1, **sizes)
    table: Any = {"block_size": 16, "quantize_axis": 1, "gather_axis": 0}
    yield microsoft("GatherBlockQuantized", codes(np.uint8, 3, 8), ints(2, 0, 1), steps, **table)


def early_picks() -> Iterator[Row]:
    x, pairs = normal(2, 3), normal(2, 3, 2)
    yield microsoft("GatherND", x, ints(0, 1, 1, 2).reshape(2, 2))
    yield microsoft("Trilu", normal(3, 3), np.array(1))
    yield microsoft("ExpandDims", x, np.array(1))
    yield microsoft("SampleOp", x)
    yield microsoft("UnfoldTensor", normal(5), size=3, step=1)
    yield microsoft("Unique", np.array([2.5, 0.5, 1.5]))
    yield microsoft("Inverse", normal(2, 2) + 3 * np.eye(2))
    for metric in ("euclidean", "sqeuclidean"):
        yield microsoft("CDist", x, normal(4, 3) + 2, metric=metric)
    yield microsoft("Rfft", normal(2, 4), signal_ndim=1, onesided=1, normalized=0)
    yield microsoft("Irfft", normal(2, 3, 2), signal_ndim=1, onesided=1, normalized=0)
    yield microsoft("ComplexMul", pairs, normal(2, 3, 2))
    yield microsoft("ComplexMulConj", pairs, normal(2, 3, 2))


def image_picks() -> Iterator[Row]:
    image = normal(1, 2, 3, 3)
    yield microsoft("GridSample", image, rng.uniform(-0.9, 0.9, (1, 2, 2, 2)))
    yield microsoft("Pad", normal(2, 3), ints(1, 0, 0, -1))
    kernel, pads = normal(2, 1, 2, 2), ints(0, 1, 1, 0)
    yield microsoft("ConvTransposeWithDynamicPads", image, kernel, pads, normal(1))
    last = np.moveaxis(image, 1, -1).copy()
    summand = normal(1, 2, 2, 3)
    yield microsoft(
        "NhwcFusedConv", last, normal(3, 2, 2, 2), normal(3), summand, activation="Tanh"
    )
    region = np.array([[0.12, 0.07, 0.81, 0.93]])
    yield microsoft("CropAndResize", image, region, np.zeros(1, np.int32), ints(3, 2))
    mask = np.ones((1, 1, 3, 3), np.int32)
    yield microsoft("MaxpoolWithMask", apart(1, 2, 3, 3), mask, kernel_shape=[2, 2])
    words, letters = np.array([[1, 2, 3, 0], [2, 0, 0, 0]], np.int32), normal(4, 2)
    kernel = normal(3, 1, 2, 2)
    yield microsoft("WordConvEmbedding", words, kernel, normal(3), letters, conv_window_size=2)


def state_picks() -> Iterator[Row]:
    sizes, beta = {"q_num_heads": 2, "kv_num_heads": 1}, rng.random((1, 2, 1))
    memory = normal(1, 2, 4), normal(1, 2, 2), normal(1, 2, 3), normal(1, 1, 2, 3)
    yield microsoft("LinearAttention", *memory, -positive(1, 2, 1), beta, **sizes)
    gate = normal(1, 2, 3), normal(3), normal(3), normal(1, 2, 3)
    yield microsoft("LinearAttentionGate", *gate)._replace(outputs=2)
    signal = normal(1, 2, 4), normal(2, 1, 3), normal(2), normal(1, 2, 2)
    yield microsoft("CausalConvWithState", *signal)._replace(outputs=2)


def experimental_picks() -> Iterator[Row]:
    image = normal(1, 2, 3, 4)
    yield row("Crop", 9, image, border=[1, 0, 1, 1])
    yield row("DynamicSlice", 9, image, ints(1, 1), ints(2, 3), ints(2, 3))
    yield row("ImageScaler", 9, image, bias=[0.1, 0.2], scale=2.0)
    yield row("ParametricSoftplus", 9, normal(4), alpha=0.5, beta=2.0)
    yield row("Scale", 9, normal(4), scale=3.0)


PICKS = [
    pick
    for family in (
        elementwise_picks,
        window_picks,
        moving_picks,
        reducing_picks,
        product_picks,
        activation_picks,
        norm_picks,
        attention_picks,
        rotary_picks,
        quantised_picks,
        block_picks,
        early_picks,
        image_picks,
        state_picks,
        experimental_picks,
    )
    for pick in family()
]

IDLE = {"CastLike": {1}, "MaxRoiPool": {1}}
"""Inputs without a gradient, by operator: only their type counts, or what they are rounded to."""
