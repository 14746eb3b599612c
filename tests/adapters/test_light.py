"""Copies without data, sizes without bytes, and the checker on what is left."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxpress_adapters.checker import check
from onnxpress_adapters.light import inline_bytes, lightened, message_bytes, raw_bytes
from onnxpress_adapters.tensors import every_tensor
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.write import patch
from small_models import branching, constant, model, perceptron, thinned, value

UNKNOWN = b"\xf8\x07\x01"  # field 127, which no version of ONNX has


def wide(operator: str = "MatMul") -> ModelProto:
    """Give two weights of 120 kB, one an initializer and one a Constant node."""
    array = np.random.default_rng(0).normal(size=(200, 150)).astype(np.float32)
    nodes = [
        constant("v", array.T.copy()),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(operator, ["h", "v"], ["y"]),
    ]
    ends = [value("x", 1, 200)], [value("y", 1, 200)]
    return model(helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(array, "w")]))


def models() -> list[ModelProto]:
    changed = {WeightKey((), "w"): thinned(200, 150), WeightKey((), "v"): thinned(150, 200)}
    forms = [patch(wide(), changed, form).model for form in ("sparse", "packed")]
    return [perceptron(), branching(np.ones((16, 4)), True), wide(), *forms]


def test_a_copy_that_leaves_nothing_is_equal() -> None:
    for made in models():
        assert lightened(made, lambda _: False).SerializeToString() == made.SerializeToString()


def test_a_copy_leaves_data_and_nothing_else() -> None:
    for made in models():
        made.graph.doc_string = "kept"
        before = made.SerializeToString()
        light = lightened(made, lambda _: True)
        assert made.SerializeToString() == before
        pairs = list(zip(every_tensor(made), every_tensor(light), strict=True))
        assert pairs
        for (_, old), (_, new) in pairs:
            assert not new.HasField("raw_data")
            assert raw_bytes(new) == old.ByteSize()
            new.raw_data = old.raw_data
        assert light.SerializeToString() == before


def test_what_is_not_understood_is_copied_whole() -> None:
    made = ModelProto.FromString(wide().SerializeToString() + UNKNOWN)
    light = lightened(made, lambda _: True)
    assert light.SerializeToString() == made.SerializeToString()
    assert message_bytes(made) == made.ByteSize()


def test_bytes_are_counted_exactly() -> None:
    for made in models():
        assert message_bytes(made) == made.ByteSize()
        for _, tensor in every_tensor(made):
            assert message_bytes(tensor) == raw_bytes(tensor) == tensor.ByteSize()


def test_only_numbers_in_the_model_count_as_inline() -> None:
    text = TensorProto(data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"b"])
    away = TensorProto(data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    nibbles = helper.make_tensor("n", TensorProto.INT4, [3], [1, 2, 3])
    assert [inline_bytes(tensor) for tensor in (text, away, nibbles)] == [0, 0, 2]


def test_the_checker_needs_no_data() -> None:
    for made in models():
        before = made.SerializeToString()
        check(made, whole_bytes=0)
        assert made.SerializeToString() == before


def test_the_checker_sees_the_rest() -> None:
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        check(wide("NoSuchOperator"), whole_bytes=0)
