"""Converters against onnxruntime, where the node cases of onnx do not reach.

Older opsets, attributes in odd combinations, and the operators onnxruntime's optimizer writes.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from beside_runtime import Row, check, microsoft, row
from one_node import Array

rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


def softmax_rows() -> Iterator[Row]:
    for operator, version, axis in itertools.product(
        ("Hardmax", "LogSoftmax", "Softmax"), (7, 11), (0, 1, 2, 3)
    ):
        yield row(operator, version, normal(2, 3, 4, 5), axis=axis)
    yield row("Softmax", 9, normal(2, 3, 4))
    yield row("Softmax", 13, normal(2, 3, 4))


def elementwise_rows() -> Iterator[Row]:
    for operator in ("Add", "Sub", "Mul", "Div"):
        yield row(operator, 13, rng.integers(-9, 9, (3, 4)), rng.integers(1, 5, 4))
    yield row("Div", 13, ints(-7, 7, -7, 7), ints(2, 2, -2, -2))
    for fmod in (0, 1):
        yield row("Mod", 13, ints(-7, 7, -7, 7), ints(2, 2, -2, -2), fmod=fmod)
    yield row("Mod", 13, normal(9), normal(9), fmod=1)
    for base, power in itertools.product((np.float32, np.int64, np.int32), repeat=2):
        yield row("Pow", 13, np.array([1, 2, 3], base), np.array([3, 0, 2], power))
    yield row("Max", 13, normal(3, 4), normal(4), normal(3, 1))
    yield row("Mean", 13, normal(3, 4), normal(4), normal(3, 1))
    yield row("Sum", 8, normal(3, 4), normal(4))
    yield row("Min", 13, rng.integers(0, 9, 3), rng.integers(0, 9, 3))
    for kind in (TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.DOUBLE):
        yield row("Cast", 13, np.array([0, 1.7, -3.2, 100], np.float32), to=kind)


def activation_rows() -> Iterator[Row]:
    yield row("Clip", 6, normal(3, 4), min=-0.5, max=0.5)
    yield row("Clip", 10, normal(3, 4), max=0.5)
    yield row("Clip", 7, normal(3, 4))
    yield row("Clip", 13, normal(3, 4), None, scalar(0.2))
    yield row("Clip", 13, rng.integers(-9, 9, (3, 4)), np.array(-2), np.array(3))
    yield row("PRelu", 7, normal(2, 3, 4), normal(3, 1))
    yield row("Softplus", 13, np.array([-1000, -90, 0, 90, 1000], np.float32))
    for operator in ("Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish"):
        yield row(operator, 20, normal(5, 6) * 4)
    for operator in ("Selu", "Shrink", "Softsign", "ThresholdedRelu"):
        yield row(operator, 20, normal(5, 6) * 4)


def shape_rows() -> Iterator[Row]:
    yield row("Slice", 1, normal(5, 6, 7), starts=[1, -3], ends=[1000, -1], axes=[0, 2])
    yield row("Slice", 9, normal(5, 6, 7), starts=[1, -30], ends=[4, 3])
    x = normal(5, 6, 7)
    yield row("Slice", 13, x, ints(-1, 100), ints(-1000, -100), ints(0, 2), ints(-2, -3))
    yield row("Slice", 13, x, ints(3), ints(1), ints(1))
    yield row("Slice", 13, x, ints(2**63 - 1), ints(-(2**63)), ints(1), ints(-1))
    yield row("Pad", 2, normal(2, 3, 4), pads=[0, 1, 2, 0, 2, 1], value=1.5)
    for mode in ("constant", "edge", "reflect"):
        yield row("Pad", 13, normal(2, 3, 4), ints(0, 1, 2, 0, 2, 1), mode=mode)
        yield row("Pad", 13, normal(2, 3, 5), ints(0, -1, 2, 0, 0, -1), mode=mode)
        yield row("Pad", 18, normal(2, 3, 5), ints(-1, 2, 1, 1), None, ints(-1, 1), mode=mode)
    yield row("Pad", 18, normal(2, 3), ints(1, 2), scalar(3), ints(-1))
    yield row("Pad", 19, normal(2, 3, 5), ints(0, 2, 1, 0, 3, 2), mode="wrap")
    yield row("Split", 2, normal(6, 5), outputs=3)
    yield row("Split", 11, normal(6, 5), axis=1, split=[2, 3], outputs=2)
    yield row("Split", 18, normal(7, 5), num_outputs=3, outputs=3)
    yield row("Reshape", 13, normal(2, 3, 4), ints(0, -1))
    for axis in (0, 3, -2):
        yield row("Flatten", 13, normal(2, 3, 4), axis=axis)
    yield row("Squeeze", 11, normal(1, 3, 1))
    yield row("Squeeze", 11, normal(1, 3, 1), axes=[-1])
    yield row("Unsqueeze", 11, normal(3, 4), axes=[1, 3])
    yield row("Unsqueeze", 13, normal(3, 4), ints(0, -1))
    yield row("Expand", 13, normal(3, 1), ints(2, 1, 6))
    yield row("Range", 11, scalar(1), scalar(5.1), scalar(0.7))
    yield row("Range", 11, np.array(5), np.array(-3), np.array(-2))
    yield row("ConstantOfShape", 9, ints())
    yield row("Dropout", 7, normal(3, 4))
    yield row("DepthToSpace", 1, normal(1, 8, 2, 3), blocksize=2)


def indexing_rows() -> Iterator[Row]:
    yield row("Gather", 13, normal(4, 5, 6), np.array([[0, -1], [2, 1]]), axis=1)
    yield row("Gather", 13, normal(4, 5), np.array(-1))
    yield row("GatherElements", 13, normal(4, 5), rng.integers(-4, 4, (3, 5)))
    yield row("GatherND", 13, normal(4, 5, 6), rng.integers(-4, 4, (4, 3, 1)), batch_dims=1)
    places = np.array([[1, -1], [0, 2]])
    yield row("ScatterElements", 13, normal(4, 5), places, normal(2, 2), axis=1)
    yield row("Scatter", 9, normal(4, 5), abs(places), normal(2, 2), axis=1)
    yield row("ScatterND", 13, normal(4, 5, 6), np.array([[1, 2], [-1, 0]]), normal(2, 6))
    indices, values = np.array([[0, -1], [5, 2]]), np.array([2, 5], np.float32)
    yield row("OneHot", 11, indices, np.array(4), values, axis=1)
    yield row("ReverseSequence", 13, normal(3, 4, 2), ints(1, 4, 2), time_axis=1, batch_axis=0)
    ties = np.array([[1, 2, 2, 1, 2]], np.float32)
    for largest in (0, 1):
        yield row("TopK", 11, ties, ints(4), largest=largest, outputs=2)
    yield row("TopK", 7, normal(3, 5), k=2, outputs=2)


def reduce_rows() -> Iterator[Row]:
    names = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
    for name in names.split(" "):
        x = np.abs(normal(2, 3, 4)) + np.float32(0.1)
        yield row(f"Reduce{name}", 11, x, axes=[0, -1])
        yield row(f"Reduce{name}", 11, x, keepdims=0)
        yield row(f"Reduce{name}", 18, x, ints(1), keepdims=0)
        yield row(f"Reduce{name}", 18, x, noop_with_empty_axes=1)
        yield row(f"Reduce{name}", 18, scalar(3))


def linear_rows() -> Iterator[Row]:
    yield row("Gemm", 11, normal(3, 4), normal(5, 4), normal(5), transB=1)
    yield row("Gemm", 11, normal(4, 3), normal(4, 5), normal(3, 1), transA=1, alpha=0.5, beta=2.0)
    yield row("Gemm", 13, normal(4, 3), normal(3, 5), alpha=0.5, beta=2.0)
    yield row("Gemm", 13, normal(4, 3), normal(3, 1), normal(1))
    yield row("Gemm", 13, normal(4, 3), normal(3, 5), scalar(2))
    shapes = [((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 2, 3), (3,)), ((3,), (5, 3, 2))]
    for left, right in shapes:
        yield row("MatMul", 13, normal(*left), normal(*right))
    for first, second in itertools.product((0, 1), repeat=2):
        a = normal(*((2, 4, 3) if first else (2, 3, 4)))
        b = normal(*((2, 5, 4) if second else (2, 4, 5)))
        yield microsoft("FusedMatMul", a, b, transA=first, transB=second, alpha=0.5)
    yield microsoft("FusedMatMul", normal(3, 2, 4), normal(2, 4, 5), transBatchA=1)
    both = {"transBatchA": 1, "transA": 1, "transBatchB": 1, "transB": 1}
    yield microsoft("FusedMatMul", normal(4, 2, 6, 3), normal(5, 2, 6, 4), **both)
    fused: list[tuple[str, list[float]]] = [("Relu", []), ("Tanh", []), ("Sigmoid", [])]
    fused += [("LeakyRelu", [0.2]), ("HardSigmoid", [0.3, 0.4]), ("Clip", [-0.3, 0.6])]
    for name, numbers in fused:
        given: dict[str, Any] = {"activation": name, "kernel_shape": [3, 3]}
        given |= {"activation_params": numbers} if numbers else {}
        x, w, bias = normal(1, 2, 5, 5), normal(4, 2, 3, 3), normal(4)
        yield microsoft("FusedConv", x, w, bias, **given)
        yield microsoft("FusedConv", x, w, None, normal(1, 4, 3, 3), **given)
        if name != "Clip":
            keys = ("activation_alpha", "activation_beta")
            more = dict(zip(keys, numbers, strict=False))
            a, b, c = normal(3, 4), normal(5, 4), normal(5)
            yield microsoft("FusedGemm", a, b, c, transB=1, activation=name, **more)


def norm_rows() -> Iterator[Row]:
    positive = np.abs(normal(3))
    yield row(
        "BatchNormalization", 7, normal(2, 3, 4, 5), normal(3), normal(3), normal(3), positive
    )
    own = [normal(3, 4), normal(3, 4), normal(3, 4), np.abs(normal(3, 4))]
    yield row("BatchNormalization", 7, normal(2, 3, 4), *own, spatial=0)
    yield row("LRN", 13, normal(2, 7, 3, 3), size=3, alpha=0.5, beta=0.6, bias=1.2)
    yield row("GroupNormalization", 18, normal(2, 4, 3, 3), normal(2), normal(2), num_groups=2)
    yield row("GroupNormalization", 21, normal(2, 4, 3, 3), normal(4), normal(4), num_groups=2)
    yield row("LpNormalization", 13, np.zeros((2, 3), np.float32))


def quantize_rows() -> Iterator[Row]:
    for kind in (np.uint8, np.int8):
        points, steps = rng.integers(0, 100, 5).astype(kind), np.abs(normal(5)) + np.float32(0.1)
        yield row("QuantizeLinear", 13, normal(4, 5, 2) * 50, steps, points, axis=-2)
        yield row("QuantizeLinear", 10, normal(4, 5) * 50, scalar(0.5), np.array(3, kind))
        codes = rng.integers(0, 120, (4, 5)).astype(kind)
        yield row("DequantizeLinear", 13, codes, steps, points)
        yield row("DequantizeLinear", 10, codes, scalar(0.3), np.array(3, kind))
        blocks = rng.integers(0, 120, (6, 5)).astype(kind)
        scales, zeros = np.abs(normal(3, 5)), rng.integers(0, 100, (3, 5)).astype(kind)
        yield row("DequantizeLinear", 21, blocks, scales, zeros, axis=0, block_size=2)
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9], np.float32)
    yield row("QuantizeLinear", 13, halves, scalar(1))
    yield row("DynamicQuantizeLinear", 11, np.zeros(4, np.float32), outputs=3)


FAMILIES = (
    activation_rows,
    elementwise_rows,
    indexing_rows,
    linear_rows,
    norm_rows,
    quantize_rows,
    reduce_rows,
    shape_rows,
    softmax_rows,
)


@pytest.mark.parametrize("chosen", [row for family in FAMILIES for row in family()], ids=str)
def test_answers_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


dice = random.Random(0)
SAMPLES = 100


def numbers(low: int, high: int, count: int) -> list[int]:
    return [dice.randint(low, high) for _ in range(count)]


def drawn_window(rank: int, kernel: list[int], highest_pad: int) -> dict[str, Any]:
    """Draw strides, and either pads and dilations or an automatic padding."""
    mode = dice.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if mode != "NOTSET":
        # onnxruntime refuses or shifts windows that step further than they reach.
        strides = [dice.randint(1, size) for size in kernel]
        return {"kernel_shape": kernel, "strides": strides, "auto_pad": mode}
    pads = [dice.randint(0, min(highest_pad, size - 1)) for size in kernel + kernel]
    return {"kernel_shape": kernel, "strides": numbers(1, 3, rank), "pads": pads}


def drawn_conv() -> Row:
    rank, groups = dice.randint(1, 3), dice.randint(1, 2)
    kernel, sizes = numbers(1, 3, rank), numbers(5, 9, rank)
    attributes = drawn_window(rank, kernel, 2) | {"group": groups}
    if "pads" in attributes:
        attributes["dilations"] = numbers(1, 2, rank)
    bias = (normal(3 * groups),) if dice.random() < 0.5 else ()
    return row(
        "Conv",
        11,
        normal(2, 2 * groups, *sizes),
        normal(3 * groups, 2, *kernel),
        *bias,
        **attributes,
    )


def drawn_transposed() -> Row:
    rank, groups = dice.randint(1, 3), dice.randint(1, 2)
    kernel, sizes, strides = numbers(1, 4, rank), numbers(3, 5, rank), numbers(1, 3, rank)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "group": groups}
    if dice.random() < 0.5:
        attributes["output_padding"] = [dice.randint(0, stride - 1) for stride in strides]
    mode = dice.choice(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if dice.random() < 0.4:
        lasts = zip(sizes, strides, kernel, strict=True)
        full = [(size - 1) * stride + reach for size, stride, reach in lasts]
        shifts = [dice.randint(-2, stride - 1) for stride in strides]
        shape = [length + shift for length, shift in zip(full, shifts, strict=True)]
        attributes |= {"output_shape": shape, "auto_pad": mode}
    elif mode == "NOTSET":
        attributes["pads"] = numbers(0, 1, 2 * rank)
    else:
        attributes["auto_pad"] = mode
    bias = (normal(3 * groups),) if dice.random() < 0.5 else ()
    x, w = normal(2, 2 * groups, *sizes), normal(2 * groups, 3, *kernel)
    return row("ConvTranspose", 11, x, w, *bias, **attributes)


def drawn_pool() -> Row:
    rank, version = dice.randint(1, 3), dice.choice([7, 11, 19])
    operator = dice.choice(["MaxPool", "AveragePool", "LpPool"])
    attributes = drawn_window(rank, numbers(1, 4, rank), 3)
    free = "pads" in attributes
    if free and version >= (18 if operator == "LpPool" else 10):
        attributes["ceil_mode"] = dice.randint(0, 1)
    if free and (operator, version) in (("MaxPool", 11), ("MaxPool", 19), ("AveragePool", 19)):
        attributes["dilations"] = numbers(1, 2, rank)
    if operator == "AveragePool":
        attributes["count_include_pad"] = dice.randint(0, 1)
    outputs = 2 if operator == "MaxPool" and version > 7 and dice.random() < 0.5 else 1
    if outputs == 2:
        attributes["storage_order"] = dice.randint(0, 1)
    return row(operator, version, normal(2, 3, *numbers(5, 9, rank)), outputs=outputs, **attributes)


def drawn_resize() -> Row:
    mode = dice.choice(["nearest", "nearest", "linear", "cubic"])
    rank = 2 if mode == "cubic" else dice.randint(1, 3)
    ways = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"]
    way = dice.choice(ways)
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": way}
    roundings = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
    if mode == "nearest":
        attributes["nearest_mode"] = dice.choice(roundings)
    if mode == "cubic":
        attributes |= {"exclude_outside": dice.randint(0, 1), "cubic_coeff_a": -0.5}
    region = np.zeros(0, np.float32)
    if way == "tf_crop_and_resize":
        starts = [dice.choice([0, 0.1, 0.3, -0.2]) for _ in range(rank)]
        ends = [dice.choice([1, 0.8, 0.6, 1.3]) for _ in range(rank)]
        region = np.array([0, 0, *starts, 1, 1, *ends], np.float32)
        attributes["extrapolation_value"] = 2.5
    elif mode in ("linear", "cubic") and rank == 2 and dice.random() < 0.3:
        attributes["antialias"] = 1
    x, version = normal(2, 3, *numbers(2, 9, rank)), 18 if "antialias" in attributes else 13
    if dice.random() < 0.5:
        scales = [dice.choice([0.5, 0.6, 0.8, 1, 1.5, 2, 2.2, 3]) for _ in range(rank)]
        return row(
            "Resize", version, x, region, np.array([1, 1, *scales], np.float32), **attributes
        )
    return row("Resize", version, x, region, None, ints(2, 3, *numbers(1, 12, rank)), **attributes)


def drawn_first_resize() -> Row:
    scales = np.array([1, 1, *(dice.choice([0.5, 0.6, 1, 1.5, 2.2, 3]) for _ in range(2))])
    x, mode = normal(2, 3, *numbers(2, 9, 2)), dice.choice(["nearest", "linear"])
    if dice.random() < 0.5:
        return row("Resize", 10, x, scales.astype(np.float32), mode=mode)
    larger = np.maximum(scales, 1).astype(np.float32)
    if dice.random() < 0.5:
        return row("Upsample", 9, x, larger, mode=mode)
    return row("Upsample", 7, x, mode=mode, scales=larger.tolist())


GATES = {"RNN": (1, 1), "GRU": (3, 2), "LSTM": (4, 3)}
NUMBERS = {"Elu": 1, "HardSigmoid": 2, "LeakyRelu": 1, "ScaledTanh": 2, "Relu": 0, "Softsign": 0}


def maybe(value: Array) -> Array | None:
    return value if dice.random() < 0.5 else None


def drawn_recurrent() -> Row:
    operator = dice.choice(list(GATES))
    gates, functions = GATES[operator]
    direction = dice.choice(["forward", "reverse", "bidirectional"])
    ways = 2 if direction == "bidirectional" else 1
    steps, batch, features, hidden = numbers(1, 4, 4)
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": hidden}
    if dice.random() < 0.3:
        attributes["clip"] = 0.3
    if operator == "GRU":
        attributes["linear_before_reset"] = dice.randint(0, 1)
    if operator == "LSTM":
        attributes["input_forget"] = dice.randint(0, 1)
    if dice.random() < 0.4:
        names = [dice.choice(list(NUMBERS)) for _ in range(functions * ways)]
        attributes["activations"] = names
        for least, key in ((1, "activation_alpha"), (2, "activation_beta")):
            drawn = [round(dice.uniform(0.1, 0.9), 2) for n in names if NUMBERS[n] >= least]
            attributes |= {key: drawn} if drawn else {}
    inputs: list[Array | None] = [
        normal(steps, batch, features),
        normal(ways, gates * hidden, features),
        normal(ways, gates * hidden, hidden),
        maybe(normal(ways, 2 * gates * hidden)),
        maybe(rng.integers(1, steps + 1, batch).astype(np.int32)),
        maybe(normal(ways, batch, hidden)),
    ]
    if operator == "LSTM":
        inputs += [maybe(normal(ways, batch, hidden)), maybe(normal(ways, 3 * hidden))]
    while inputs[-1] is None:
        inputs.pop()
    return row(operator, 14, *inputs, outputs=functions if operator == "LSTM" else 2, **attributes)


DRAWS = {
    "conv": drawn_conv,
    "first resize": drawn_first_resize,
    "pool": drawn_pool,
    "recurrent": drawn_recurrent,
    "resize": drawn_resize,
    "transposed": drawn_transposed,
}


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_drawn_attributes_answer_as_onnxruntime(kind: str) -> None:
    dice.seed(kind)
    for _ in range(SAMPLES):
        check(DRAWS[kind]())
