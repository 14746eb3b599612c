"""Numbers of 2, 4, 6 and 8 bits: rounding, wrapping, saturating, and their bits."""

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from calculus import check_meta, check_vmap
from one_node import Array, make
from onnxpress_adapters import node as nodes
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.ops.cast import cast_like
from onnxpress_adapters.ops.dtypes import to_tensor, torch_dtype

INTEGERS = {
    "int2": TensorProto.INT2,
    "int4": TensorProto.INT4,
    "uint2": TensorProto.UINT2,
    "uint4": TensorProto.UINT4,
}
FLOATS = {
    "float4_e2m1fn": TensorProto.FLOAT4E2M1,
    "float6_e2m3fn": TensorProto.FLOAT6E2M3,
    "float6_e3m2fn": TensorProto.FLOAT6E3M2,
}
BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}
BITS |= {"float6_e2m3fn": 6, "float6_e3m2fn": 6, "float8_e8m0fnu": 8}
KINDS = {**INTEGERS, **FLOATS, "float8_e8m0fnu": TensorProto.FLOAT8E8M0}

rng = np.random.default_rng(0)


def run(operator: str, *inputs: Array | None, **attributes: Any) -> Tensor:
    _, node = make(operator, inputs, attributes, version=28)
    (result,) = node.run()
    assert result is not None
    return result


def in_runtime(
    steps: list[NodeProto], x: Array, kept: dict[str, Array] | None = None, opset: int = 25
) -> Array:
    """Run nodes in onnxruntime, from ``x`` to ``y``, as they stand."""
    info = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    constants = [numpy_helper.from_array(value, name) for name, value in (kept or {}).items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(steps, "steps", [info], [result], constants)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def there_and_back(x: Array, kind: int, **how: Any) -> Array:
    """Cast to a type and to float32 in onnxruntime."""
    steps = [
        helper.make_node("Cast", ["x"], ["z"], to=kind, **how),
        helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT),
    ]
    return in_runtime(steps, x)


WIDE = np.concatenate([np.arange(-40, 40) / 4, [300, -300, 1e6 + 0.5, 2.5, -2.5]])


@pytest.mark.parametrize("kind", sorted(INTEGERS))
@pytest.mark.parametrize("source", [np.float32, np.int32, np.int8, np.uint8, np.bool_])
def test_integers_wrap_around_as_in_onnxruntime(kind: str, source: Any) -> None:
    least = 0 if source in (np.uint8, np.bool_) else -100
    x = WIDE if source is np.float32 else WIDE.clip(least, 100)
    x = x.astype(source)
    result = run("Cast", x, to=INTEGERS[kind])
    assert result.dtype == (torch.uint8 if kind.startswith("u") else torch.int8)
    assert result.tolist() == there_and_back(x, INTEGERS[kind]).tolist()


@pytest.mark.parametrize("kind", sorted(FLOATS))
@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64])
def test_floats_round_to_the_nearest_and_saturate(kind: str, source: Any) -> None:
    """Against ml_dtypes, on and between all values, and beyond them."""
    grid = np.arange(-40 * 64, 40 * 64) / 64
    x = np.concatenate([grid, rng.standard_normal(1000), [1e4, -1e4]]).astype(source)
    result = run("Cast", x, to=FLOATS[kind])
    expected = x.astype(getattr(ml_dtypes, kind)).astype(np.float32)
    assert result.dtype == torch.float32
    assert result.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", sorted(FLOATS))
def test_floats_without_infinity_and_nan_take_the_next_best(kind: str) -> None:
    highest = float(np.array([1e9], getattr(ml_dtypes, kind)).astype(np.float32)[0])
    x = np.array([np.inf, -np.inf, np.nan], np.float32)
    assert run("Cast", x, to=FLOATS[kind]).tolist() == [highest, -highest, 0]


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
@pytest.mark.parametrize("saturate", [0, 1])
def test_powers_of_two_are_those_of_onnxruntime(mode: str, saturate: int) -> None:
    ends = [2.0**-127 * f for f in (0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2)]
    ends += [2.0**127 * f for f in (1, 1.2, 1.5, 1.99)]
    middle = [1, 1.25, 1.4999, 1.5, 1.75, 3, 0.1, 0, -3, np.inf, -np.inf, np.nan]
    x = np.array(ends + middle, np.float32)
    kind, how = TensorProto.FLOAT8E8M0, {"round_mode": mode, "saturate": saturate}
    np.testing.assert_array_equal(run("Cast", x, to=kind, **how), there_and_back(x, kind, **how))


def test_unknown_rounding_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"^Cast 'here' rounds in an unknown mode 'odd'"):
        run("Cast", np.ones(1), to=TensorProto.FLOAT8E8M0, round_mode="odd")


@pytest.mark.parametrize("source", [np.int32, np.bool_])
def test_whole_numbers_become_8_bit_floats(source: Any) -> None:
    x = np.array([0, 1, 3, 100000, -100000]).astype(source)
    result = run("Cast", x, to=TensorProto.FLOAT8E5M2).float()
    expected = x.astype(np.float32).clip(-57344, 57344).astype(ml_dtypes.float8_e5m2)
    assert result.tolist() == expected.astype(np.float32).tolist()


def test_the_type_of_another_tensor_is_that_of_the_model() -> None:
    x, like = np.array([9.0, -9.0, 2.0], np.float32), np.zeros(1, ml_dtypes.int4)
    assert run("CastLike", x, like).tolist() == [-7, 7, 2]
    proto = helper.make_node("CastLike", ["x", "like"], ["y"])
    unknown = nodes.view(proto, 28, {})
    assert cast_like(unknown, torch.from_numpy(x), to_tensor(like)).tolist() == [9, -9, 2]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_arrays_become_tensors_of_the_same_values(kind: str) -> None:
    result = to_tensor(codes(kind))
    assert result.dtype == torch_dtype(KINDS[kind])
    np.testing.assert_array_equal(result.numpy(), codes(kind).astype(np.float64))


ONE = np.array(1, np.float32)


@pytest.mark.parametrize("kind", ["int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_quantised_numbers_are_those_of_onnxruntime(kind: str, axis: int | None) -> None:
    dtype, shape = getattr(ml_dtypes, kind), () if axis is None else (6, 5)[axis : axis + 1 or None]
    x = (rng.standard_normal((6, 5)) * 9).astype(np.float32)
    scale = np.asarray(rng.uniform(0.5, 2, shape), np.float32)
    point = np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    how: dict[str, Any] = {} if axis is None else {"axis": axis}
    steps = [
        helper.make_node("QuantizeLinear", ["x", "s", "p"], ["q"], **how),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
    ]
    expected = in_runtime(steps, x, {"s": scale, "p": point})
    result = run("QuantizeLinear", x, scale, point, **how)
    assert result.tolist() == expected.tolist()
    back = [
        helper.make_node("Cast", ["x"], ["q"], to=INTEGERS[kind]),
        helper.make_node("DequantizeLinear", ["q", "s", "p"], ["y"], **how),
    ]
    codes = result.numpy().astype(dtype)
    expected = in_runtime(back, result.numpy().astype(np.float32), {"s": scale, "p": point})
    again = run("DequantizeLinear", codes, scale, point, **how)
    np.testing.assert_allclose(again, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int4", "uint4"])
@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 5)), (1, (6, 2))])
def test_blocks_are_quantised_as_in_onnxruntime(kind: str, axis: int, shape: Any) -> None:
    """The last block may be shorter than the others."""
    dtype, size = getattr(ml_dtypes, kind), 2 if axis == 0 else 3
    x = (rng.standard_normal((6, 5)) * 9).astype(np.float32)
    scale = np.asarray(rng.uniform(0.5, 2, shape), np.float32)
    point = rng.integers(0, 5, shape).astype(dtype)
    how: dict[str, Any] = {"axis": axis, "block_size": size}
    steps = [
        helper.make_node("QuantizeLinear", ["x", "s", "p"], ["q"], **how),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
    ]
    expected = in_runtime(steps, x, {"s": scale, "p": point})
    assert run("QuantizeLinear", x, scale, point, **how).tolist() == expected.tolist()


def test_blocks_of_a_vector_have_their_scales() -> None:
    x = np.array([1, 2, 3, 4, 5], np.float32)
    scale = np.array([1, 2, 4], np.float32)
    result = run("QuantizeLinear", x, scale, axis=0, block_size=2, output_dtype=TensorProto.INT4)
    assert result.tolist() == [1, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("INT2", -2, 1), ("UINT2", 0, 3), ("INT4", -8, 7), ("UINT4", 0, 15), ("FLOAT4E2M1", -6, 6)],
)
def test_the_output_type_alone_sets_the_limits(kind: str, low: int, high: int) -> None:
    x = np.array([-1e6, 0.6, 1e6], np.float32)
    element_type = TensorProto.DataType.Value(kind)
    result = run("QuantizeLinear", x, ONE, output_dtype=element_type)
    assert result.tolist() == [low, 0.5 if kind == "FLOAT4E2M1" else 1, high]


def test_scales_may_be_bare_exponents() -> None:
    scale = np.array([2, 0.25], np.float32).astype(ml_dtypes.float8_e8m0fnu)
    x = np.array([[3, -6]], np.float32).astype(ml_dtypes.float4_e2m1fn)
    result = run("DequantizeLinear", x, scale, output_dtype=TensorProto.FLOAT)
    assert result.tolist() == [[6, -1.5]]


def codes(kind: str) -> Array:
    """Give all numbers of a type, in the order of their bits."""
    dtype, bits = getattr(ml_dtypes, kind), np.arange(1 << BITS[kind], dtype=np.uint8)
    return bits.astype(dtype) if kind in INTEGERS else bits.view(dtype)


@pytest.mark.parametrize(
    ("source", "target"),
    [(a, b) for a, b in itertools.permutations(KINDS, 2) if BITS[a] == BITS[b]],
)
def test_bits_of_narrow_numbers_are_read_as_another_type(source: str, target: str) -> None:
    result = run("BitCast", codes(source), to=KINDS[target])
    assert result.tolist() == codes(target).astype(np.float64).tolist()


EIGHT = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ,
}


@pytest.mark.parametrize("kind", sorted(EIGHT))
def test_bits_of_bare_exponents_are_a_byte(kind: str) -> None:
    """There and back, and the same byte as numpy sees."""
    dtype = np.dtype(kind) if kind.endswith("int8") else np.dtype(getattr(ml_dtypes, kind))
    x = np.arange(256, dtype=np.uint8)
    there = run("BitCast", x.view(ml_dtypes.float8_e8m0fnu), to=EIGHT[kind])
    assert there.view(torch.uint8).tolist() == x.tolist()
    back = run("BitCast", x.view(dtype), to=TensorProto.FLOAT8E8M0)
    np.testing.assert_array_equal(back, x.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_bits_of_half_precision_are_read_where_it_arrives_widened(kind: str) -> None:
    dtype = np.dtype(np.float16 if kind == "float16" else ml_dtypes.bfloat16)
    x = np.array([1.5, -2, 0.1], dtype)
    _, node = make("BitCast", [x], {"to": TensorProto.INT16}, version=26)
    expected = x.view(np.int16).tolist()
    assert node.with_({})[0].tolist() == expected
    assert node.with_({0: torch.from_numpy(x.astype(np.float32))})[0].tolist() == expected


def test_bits_of_complex_numbers_are_a_word() -> None:
    x = np.array([1 + 2j], np.complex64)
    result = run("BitCast", x, to=TensorProto.INT64)
    assert result.tolist() == x.view(np.int64).tolist()


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (np.zeros(1, np.float32), TensorProto.INT16),
        (np.zeros(1, ml_dtypes.int4), TensorProto.INT8),
        (np.zeros(1, np.int8), TensorProto.FLOAT4E2M1),
    ],
)
def test_bits_of_another_width_are_refused(x: Array, kind: int) -> None:
    with pytest.raises(AdapterError, match=r"^BitCast 'here' reads numbers of \d+ bits as \w+"):
        run("BitCast", x, to=kind)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_bits_can_be_vectorised_and_need_no_values(kind: str) -> None:
    other = {2: "int2", 4: "float4_e2m1fn", 6: "float6_e3m2fn", 8: "float8_e8m0fnu"}[BITS[kind]]
    x = np.ones((2, 3), np.float32).astype(getattr(ml_dtypes, kind))
    for operator in ("BitCast", "Cast"):
        _, node = make(operator, [x], {"to": KINDS[other]}, version=28)
        check_vmap(node)
        check_meta(node)
