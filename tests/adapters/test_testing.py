"""The import as a function of arrays, beside onnx's reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator

from onnxpress_adapters.errors import MisuseError, UnsupportedOperatorError
from onnxpress_adapters.testing import importer, importer_without_reference
from small_models import model, perceptron, value

Array = np.ndarray[Any, Any]
X = np.array([[1.5, -2.0, 0.25], [3.0, 1e-3, -7.0]], np.float32)
SEQUENCE = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
OPTIONAL = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))


def whole(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    ir: int = 10,
) -> ModelProto:
    return model(helper.make_graph(nodes, "g", inputs, outputs, weights), opset=23, ir=ir)


def reference(model: ModelProto, inputs: Sequence[Any]) -> list[Any]:
    evaluator = ReferenceEvaluator(model)
    answers = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=False)))
    assert isinstance(answers, list)
    return answers


def same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, list):
        assert isinstance(found, list)
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            same(ours, theirs)
    elif wanted is None:
        assert found is None
    else:
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, wanted, strict=True)


def check(model: ModelProto, *inputs: Any) -> None:
    same(importer_without_reference(model)(inputs), reference(model, inputs))


def test_a_sequence_is_a_list() -> None:
    node = helper.make_node("SequenceConstruct", ["x", "y"], ["s"])
    built = whole(
        [node], [value("x", 2, 3), value("y", 3)], [helper.make_value_info("s", SEQUENCE)]
    )
    check(built, X, X[0])


def test_a_sequence_is_taken_as_a_list() -> None:
    nodes = [
        helper.make_node("SequenceLength", ["s"], ["n"]),
        helper.make_node("ConcatFromSequence", ["s"], ["c"], axis=0),
    ]
    outputs = [value("n", kind=TensorProto.INT64), value("c", "rows", 3)]
    check(whole(nodes, [helper.make_value_info("s", SEQUENCE)], outputs), [X, X[:1], X[1:]])


def test_an_empty_optional_is_none() -> None:
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    node = helper.make_node("Optional", [], ["o"], type=inner)
    built = whole([node], [], [helper.make_value_info("o", OPTIONAL)])
    assert importer_without_reference(built)([]) == [None]


@pytest.mark.parametrize("given", [X, None])
def test_an_optional_is_its_value_or_none(given: Array | None) -> None:
    node = helper.make_node("OptionalHasElement", ["o"], ["has"])
    outputs = [value("has", kind=TensorProto.BOOL)]
    check(whole([node], [helper.make_value_info("o", OPTIONAL)], outputs), given)


def test_a_full_optional_is_its_value() -> None:
    node = helper.make_node("Optional", ["x"], ["o"])
    built = whole([node], [value("x", 2, 3)], [helper.make_value_info("o", OPTIONAL)])
    # The reference holds a full optional as a list of one, onnxruntime as we do.
    (wanted,) = reference(built, [X])
    same(importer_without_reference(built)([X]), wanted)


def test_initializers_among_the_inputs_may_be_given_or_left_out() -> None:
    built = perceptron(ir=3)
    x = np.linspace(-1, 1, 2 * 16, dtype=np.float32).reshape(2, 16)
    weights = [to_array(tensor) for tensor in built.graph.initializer]
    run = importer_without_reference(built)
    (wanted,) = reference(built, [x])
    for inputs in ([x], [x, *weights]):
        (found,) = run(inputs)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_initializers_may_stand_before_the_inputs() -> None:
    node = helper.make_node("Sub", ["x", "w"], ["y"])
    w = from_array(X[1], "w")
    built = whole([node], [value("w", 3), value("x", 2, 3)], [value("y", 2, 3)], [w], ir=3)
    for inputs in ([X], [X[1], X]):
        same(importer_without_reference(built)(inputs), [X - X[1]])


@pytest.mark.parametrize("count", [0, 2, 6])
def test_a_wrong_number_of_inputs_is_refused(count: int) -> None:
    run = importer(perceptron(ir=3))  # one input and four initializers that are listed as inputs
    with pytest.raises(MisuseError, match=f"the model takes 1 inputs, not {count}"):
        run([X] * count)


TEXT = whole(
    [helper.make_node("StringConcat", ["a", "b"], ["c"], name="glue")],
    [value("a", 2, kind=TensorProto.STRING), value("b", 2, kind=TensorProto.STRING)],
    [value("c", 2, kind=TensorProto.STRING)],
)


@pytest.mark.parametrize("kind", [object, np.str_])
def test_text_passes_through_the_reference(kind: type) -> None:
    inputs: list[Array] = [np.array(["on", "ünï"], kind), np.array(["nx", "cödé"], kind)]
    (found,) = importer(TEXT)(inputs)
    assert found.tolist() == reference(TEXT, inputs)[0].tolist() == ["onnx", "ünïcödé"]


def test_text_is_refused_by_name_without_the_reference() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"ai\.onnx::StringConcat .*'glue'"):
        importer_without_reference(TEXT)


NARROW = {
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e5m2": TensorProto.FLOAT8E5M2,
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
}


@pytest.mark.parametrize("name", NARROW)
def test_outputs_are_of_the_type_the_model_declares(name: str) -> None:
    kind = NARROW[name]
    node = helper.make_node("Cast", ["x"], ["y"], to=kind)
    built = whole([node], [value("x", 4)], [value("y", 4, kind=kind)])
    check(built, np.array([0.0, 1.0, 3.0, 6.0], np.float32))
    (found,) = importer(built)([np.zeros(4, np.float32)])
    assert found.dtype == np.dtype(getattr(ml_dtypes, name, name))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_numbers_come_and_go(name: str) -> None:
    kind = NARROW[name]
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    w = X[1].astype(getattr(ml_dtypes, name, name))
    inputs, outputs = [value("x", 2, 3, kind=kind)], [value("y", 2, 3, kind=kind)]
    check(whole([node], inputs, outputs, [from_array(w, "w")]), X.astype(w.dtype))


def test_a_sparse_initializer_is_a_weight() -> None:
    w = np.zeros((3, 4), np.float32)
    w[0, 1], w[2, 3] = 2.5, -1.0
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    border = [value("x", 2, 3)], [value("y", 2, 4)]
    dense = whole([node], *border, [from_array(w, "w")])
    sparse = whole([node], *border)
    places = from_array(np.flatnonzero(w).astype(np.int64), "places")
    values = from_array(w[w != 0], "w")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, w.shape))
    before = sparse.SerializeToString(deterministic=True)
    (found,) = importer_without_reference(sparse)([X])
    same([found], reference(dense, [X]))
    assert sparse.SerializeToString(deterministic=True) == before


def test_each_call_starts_anew() -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    run = importer(whole([node], [value("x", "n", 3)], [value("y", "n", 3)]))
    same(run([X]), [X + X])
    same(run([X[:1]]), [X[:1] + X[:1]])
