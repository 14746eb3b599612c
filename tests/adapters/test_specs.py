from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxpress_adapters.errors import AdapterError, BrokenModelError
from onnxpress_adapters.specs import (
    InputSpec,
    ValueSpec,
    batched_first,
    check_plain,
    kind,
    specs,
    whole_range,
)

F32 = np.dtype("float32")


def model(inputs: list[ValueInfoProto], outputs: list[ValueInfoProto] | None = None) -> ModelProto:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", inputs, outputs or [y], [weight]))


def test_reads_names_shapes_and_types_in_order() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 32, 32])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, None])
    inputs, outputs = specs(model([x, ids]))
    assert [spec.name for spec in inputs] == ["x", "ids"]
    assert inputs[0].shape == (None, 3, 32, 32)
    assert inputs[0].symbols == ("batch", None, None, None)
    assert inputs[1].shape == (1, None)
    assert inputs[1].dtype == np.int64
    assert outputs[0].shape == (None, 10)
    assert [spec.describe() for spec in (*inputs, *outputs)] == [
        "x float32[batch,3,32,32]",
        "ids int64[1,?]",
        "y float32[batch,10]",
    ]


def test_an_initializer_among_the_inputs_is_a_weight() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    w = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2])
    assert [spec.name for spec in specs(model([w, x]))[0]] == ["x"]


def test_a_sparse_initializer_among_the_inputs_is_a_weight() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    s = helper.make_tensor_value_info("s", TensorProto.FLOAT, [2, 2])
    made = model([s, x])
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2, 2]))
    assert [spec.name for spec in specs(made)[0]] == ["x"]


def test_sizes_that_are_not_positive_are_open() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 0, 4])
    assert specs(model([x]))[0][0].shape == (None, None, 4)


def test_a_scalar_and_an_unknown_rank_differ() -> None:
    scalar = helper.make_tensor_value_info("scalar", TensorProto.FLOAT, [])
    anything = helper.make_tensor_value_info("anything", TensorProto.FLOAT, None)
    first, second = specs(model([scalar, anything]))[0]
    assert (first.shape, first.ranked, first.describe()) == ((), True, "scalar float32[]")
    assert (second.shape, second.ranked) == ((), False)
    assert second.describe() == "anything float32 of any shape"


def test_types_beyond_numpy() -> None:
    half = helper.make_tensor_value_info("half", TensorProto.BFLOAT16, [2])
    words = helper.make_tensor_value_info("words", TensorProto.STRING, [2])
    first, second = specs(model([half, words]))[0]
    assert first.dtype == ml_dtypes.bfloat16
    assert first.kind == "float"
    assert (second.kind, second.describe()) == ("other", "words string[2]")


def sequence(name: str) -> ValueInfoProto:
    held = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    return helper.make_value_info(name, helper.make_sequence_type_proto(held))


def test_a_sequence_among_the_outputs_is_listed() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    (output,) = specs(model([x], [sequence("frames")]))[1]
    assert (output.holds, output.kind, output.describe()) == (
        "sequence",
        "other",
        "frames sequence",
    )


def test_what_is_no_tensor_is_refused_where_only_tensors_will_do() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    for inputs, outputs, role in (
        ([sequence("frames")], [x], "in"),
        ([x], [sequence("frames")], "out"),
    ):
        with pytest.raises(AdapterError, match=f"{role}put 'frames' is a sequence; .* plain tens"):
            check_plain(*specs(model(inputs, outputs)))


@pytest.mark.parametrize("value", [ValueInfoProto(name="x")])
def test_a_missing_type_is_refused(value: ValueInfoProto) -> None:
    with pytest.raises(BrokenModelError, match="input 'x' has no type; export the model again"):
        specs(model([value]))


def test_an_element_type_onnx_does_not_define_is_refused() -> None:
    x = helper.make_tensor_value_info("x", 250, [2])
    with pytest.raises(BrokenModelError, match=r"element type \(250\) that ONNX does not define"):
        specs(model([x]))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InputSpec("x", (1, 3), F32), True),
        (InputSpec("x", (None, 3), F32), True),
        (InputSpec("x", (2, 3), F32), False),
        (InputSpec("x", (), F32), False),
        (InputSpec("x", (), F32, ranked=False), False),
    ],
)
def test_batched_first(spec: ValueSpec, expected: bool) -> None:
    assert batched_first(spec) is expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.dtype("float64"), "float"),
        (np.dtype(ml_dtypes.float8_e4m3fn), "float"),
        (np.dtype(ml_dtypes.uint4), "integer"),
        (np.dtype("bool"), "bool"),
        (np.dtype("complex64"), "other"),
        (np.dtype("U3"), "other"),
    ],
)
def test_kind(dtype: np.dtype[np.generic], expected: str) -> None:
    assert kind(dtype) == expected


@pytest.mark.parametrize("name", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_whole_range_is_that_of_numpy(name: str) -> None:
    limits = np.iinfo(name)
    assert whole_range(np.dtype(name)) == (limits.min, limits.max)


def test_whole_range_of_four_bits() -> None:
    assert whole_range(np.dtype(ml_dtypes.int4)) == (-8, 7)
    assert whole_range(np.dtype(ml_dtypes.uint4)) == (0, 15)
