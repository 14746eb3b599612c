"""Removed units leave the graph, and the file answers as the masked model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from onnx.numpy_helper import to_array

from group_case import IMAGE, Case, made, random
from group_cases import CASES
from group_cases_images import residual
from hand_built import Array, build, key, op
from onnxpress_adapters.errors import ExportError
from onnxpress_exporters.shrink import Shrunk, Subject, settle, shrink
from onnxpress_exporters.write import patch
from shrinking import TIGHT, answers, apart, halved, shrunk_like_masked, subject_of, values_of
from small_models import half_precision, perceptron, value


def setting(name: str) -> tuple[Case, Subject]:
    case = CASES[name]()
    return case, subject_of(case.model, case.feed())


def without(subject: Subject, *units: Sequence[int]) -> Array:
    """Mark units to leave, group by group."""
    masks = [np.zeros(group.units, bool) for group in subject.groups.groups]
    for mask, chosen in zip(masks, units, strict=False):
        mask[list(chosen)] = True
    return subject.groups.gone(masks)


def array(model: ModelProto, name: str) -> Array:
    (found,) = [to_array(t) for t in model.graph.initializer if t.name == name]
    return found


def shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def attribute(model: ModelProto, operator: str, name: str) -> object:
    for node in model.graph.node:
        if node.op_type == operator:
            for each in node.attribute:
                if each.name == name:
                    return onnx.helper.get_attribute_value(each)
    return None


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_shrunk_model_answers_as_the_masked_one(name: str, share: float) -> None:
    case, subject = setting(name)
    gone = halved(subject, seed=3, share=share)
    shrunk = shrunk_like_masked(subject, lambda seed: case.feed(seed, 1 + seed), gone)
    assert shrunk.stays == {}
    np.testing.assert_array_equal(shrunk.removed, gone)
    assert shrunk.model.ByteSize() < case.model.ByteSize()


def test_what_leaves_with_a_unit() -> None:
    _, subject = setting("conv_norm")
    gone = without(subject, [1, 4])
    changed = settle(subject, values_of(subject.model), gone)
    shrunk = shrink(subject, changed, gone)
    kept = [0, 2, 3, 5, 6, 7]
    for name in ("w1", "n_scale", "n_shift", "n_mean", "n_var"):
        np.testing.assert_array_equal(array(shrunk.model, name), array(subject.model, name)[kept])
    np.testing.assert_array_equal(array(shrunk.model, "w2"), array(subject.model, "w2")[:, kept])
    np.testing.assert_array_equal(array(shrunk.model, "b2"), array(subject.model, "b2"))
    assert shrunk.folded == ()
    assert shrunk.model.metadata_props[0].key == "colour"


def test_nothing_to_remove_leaves_the_model_as_it_is() -> None:
    _, subject = setting("conv_norm")
    shrunk = shrink(subject, {}, without(subject))
    assert shrunk.model == subject.model
    assert shrunk.folded == ()


def test_new_values_are_written_even_where_nothing_leaves() -> None:
    _, subject = setting("conv_norm")
    new = np.ones((8, 3, 3, 3), np.float32)
    shrunk = shrink(subject, {key("w1"): new}, without(subject))
    np.testing.assert_array_equal(array(shrunk.model, "w1"), new)


def test_a_constant_goes_into_the_next_bias() -> None:
    _, subject = setting("sigmoid_between_matmuls")
    gone = without(subject, [2])
    shrunk = shrink(subject, settle(subject, values_of(subject.model), gone), gone)
    assert shrunk.folded == ("MatMul 'h4'",)
    w2, b2 = array(subject.model, "w2"), array(subject.model, "b2")
    np.testing.assert_allclose(array(shrunk.model, "b2_shrunk"), b2 + 0.5 * w2[2], rtol=1e-6)
    assert len(shrunk.model.graph.node) == len(subject.model.graph.node)
    assert "b2" not in shapes(shrunk.model)


def test_a_bias_is_added_where_there_is_none() -> None:
    _, subject = setting("sigmoid_without_bias")
    gone = without(subject, [2])
    shrunk = shrink(subject, settle(subject, values_of(subject.model), gone), gone)
    operators = [node.op_type for node in shrunk.model.graph.node]
    assert operators == ["MatMul", "Sigmoid", "MatMul", "Add", "Tanh"]
    np.testing.assert_allclose(
        array(shrunk.model, "h3_constant"), 0.5 * array(subject.model, "w2")[2:3], rtol=1e-6
    )


def test_a_shared_bias_is_parted() -> None:
    _, subject = setting("shared_bias")
    gone = without(subject, [0])
    shrunk = shrink(subject, settle(subject, values_of(subject.model), gone), gone)
    assert [list(node.input)[2] for node in shrunk.model.graph.node if node.op_type == "Gemm"] == [
        "b",
        "c_shrunk",
        "c",
    ]


def test_what_a_border_makes_uneven_stays_unless_its_readers_are_masked() -> None:
    case, subject = setting("sigmoid_before_border")
    gone = without(subject, [0, 5])
    heard = subject.groups.masked(values_of(case.model), gone)
    shrunk = shrink(subject, heard, gone)
    reason = "what Conv 'y' reads of it is a constant that differs from place to place"
    assert shrunk.stays == {0: reason, 5: reason}
    assert not shrunk.removed.any()
    feed = case.feed()
    masked = answers(patch(case.model, heard, "dense").model, feed)
    assert apart(answers(shrunk.model, feed), masked, masked) <= TIGHT
    unread = settle(subject, values_of(case.model), gone)
    assert not unread[key("w2")][:, [0, 5]].any()
    assert shrink(subject, unread, gone).removed.tolist() == gone.tolist()


def test_a_constant_times_something_computed_stays() -> None:
    case, subject = setting("attention_over_places")
    gone = without(subject, [1])
    heard = subject.groups.masked(values_of(case.model), gone)
    shrunk = shrink(subject, heard, gone)
    assert shrunk.stays == {1: "what Conv 'y' reads of it depends on the input"}


def test_a_unit_that_is_silent_on_the_sample_only_stays() -> None:
    """A rectifier that is shut for the sample may open for another input."""
    case, subject = setting("gemm")
    gone = without(subject, [3])
    shut = values_of(case.model)[key("b1")].copy()
    shut[3] = -100
    shrunk = shrink(subject, {key("b1"): shut}, gone)
    assert shrunk.stays == {3: "what Gemm 'y' reads of it depends on the input"}
    assert shrunk.model.graph.initializer[0].dims == subject.model.graph.initializer[0].dims


def test_a_unit_of_zeros_and_a_bias_is_a_constant() -> None:
    """As other steps may leave one behind: all that makes it is pruned, the bias is not."""
    case, subject = setting("gemm")
    gone = without(subject, [3])
    weight, bias = (values_of(case.model)[key(name)].copy() for name in ("w1", "b1"))
    weight[3], bias[3] = 0, 2
    changed = {key("w1"): weight, key("b1"): bias}
    shrunk = shrink(subject, changed, gone)
    assert shrunk.removed.tolist() == gone.tolist()
    assert shrunk.folded == ("Gemm 'y'",)
    feed = case.feed()
    wanted = answers(patch(case.model, changed, "dense").model, feed)
    assert apart(answers(shrunk.model, feed), wanted, wanted) <= TIGHT


def test_a_unit_nobody_reads_leaves_whatever_it_does() -> None:
    case, subject = setting("gemm")
    gone = without(subject, [3])
    reader = values_of(case.model)[key("w2")].copy()
    reader[:, 3] = 0
    shrunk = shrink(subject, {key("w2"): reader}, gone)
    assert shrunk.removed.tolist() == gone.tolist()
    feed = case.feed()
    wanted = answers(patch(case.model, {key("w2"): reader}, "dense").model, feed)
    assert apart(answers(shrunk.model, feed), wanted, wanted) <= TIGHT


def test_a_hidden_unit_that_moves_stays() -> None:
    _, subject = setting("lstm_with_states")
    gone = without(subject, [], [1])
    shrunk = shrink(subject, {}, gone)
    (reason,) = shrunk.stays.values()
    assert reason.startswith("what LSTM")


@pytest.mark.parametrize(
    ("name", "operator", "what", "value"),
    [
        ("depthwise", "Conv", "group", 6),
        ("depthwise_twice_as_many", "Conv", "group", 2),
        ("grouped", "Conv", "group", 2),
        ("grouped_at_the_end", "Conv", "group", 2),
        ("lstm", "LSTM", "hidden_size", 2),
        ("gru", "GRU", "hidden_size", 2),
        ("old_squeezed", "Slice", "starts", [1, 1]),
        ("old_squeezed", "Slice", "ends", [4, 3]),
        ("old_squeezed", "Split", "split", [2, 1]),
    ],
)
def test_numbers_in_attributes_follow(name: str, operator: str, what: str, value: object) -> None:
    _, subject = setting(name)
    units = [[0, 1] if group.units > 2 else [0] for group in subject.groups.groups]
    gone = without(subject, *units)
    shrunk = shrink(subject, settle(subject, values_of(subject.model), gone), gone)
    assert attribute(shrunk.model, operator, what) == value


def test_a_target_joined_from_sizes_gets_another_part() -> None:
    _, subject = setting("computed_attention")
    gone = without(subject, [], [1])
    shrunk = shrink(subject, settle(subject, values_of(subject.model), gone), gone)
    operators = sorted(node.op_type for node in shrunk.model.graph.node)
    assert operators == sorted(node.op_type for node in subject.model.graph.node)
    (joined,) = [node for node in shrunk.model.graph.node if node.op_type == "Concat"]
    assert list(joined.input) == ["n1", "all", "heads_shrunk", "four"]
    assert array(shrunk.model, "heads_shrunk").tolist() == [2]


def test_a_target_made_of_sizes_otherwise_is_changed_by_an_addition() -> None:
    case = CASES["computed_attention"]()
    for place, node in enumerate(case.model.graph.node):
        if node.op_type == "Concat":
            node.output[0] = "before"
            case.model.graph.node.insert(place + 1, op("Identity", "before", "computed"))
            break
    subject = subject_of(case.model, case.feed())
    shrunk = shrunk_like_masked(subject, case.feed, without(subject, [], [1]))
    (added,) = [node for node in shrunk.model.graph.node if node.output[0].endswith("_shape")]
    assert added.op_type == "Add"
    assert array(shrunk.model, added.input[1]).tolist() == [0, 0, -1, 0]


def test_indices_of_a_shuffle_follow() -> None:
    _, subject = setting("picked")
    gone = without(subject, [1])
    shrunk = shrink(subject, settle(subject, values_of(subject.model), gone), gone)
    assert array(shrunk.model, "h2_indices").tolist() == [1, 0, 3, 2, 5, 4]
    assert "order" not in shapes(shrunk.model)


def test_noted_shapes_are_corrected_and_dead_constants_go() -> None:
    _, subject = setting("gated_linear")
    gone = without(subject, [0])
    shrunk = shrink(subject, settle(subject, values_of(subject.model), gone), gone)
    noted = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in shrunk.model.graph.value_info
    }
    # The batch is open and has no number.
    assert noted == {"h1": [0, 14], "a": [0, 7], "b": [0, 7], "s": [0, 7], "h2": [0, 7]}
    assert "sizes" not in shapes(shrunk.model)
    assert array(shrunk.model, "a_sizes").tolist() == [7, 7]


def test_the_list_of_inputs_of_an_old_file_stays() -> None:
    model = perceptron(opset=8, ir=3)
    feed = {"x": np.ones((1, 16), np.float32)}
    subject = subject_of(model, feed)
    shrunk = shrunk_like_masked(subject, lambda seed: feed, halved(subject))
    assert {value.name for value in shrunk.model.graph.input} == {"x", "w1", "b1", "w2", "b2"}
    assert shrunk.model.ir_version == 3


def test_a_constant_that_was_cut_is_no_input_any_more() -> None:
    model = perceptron(opset=8, ir=3)
    model.ir_version = 7
    subject = subject_of(model, {"x": np.ones((1, 16), np.float32)})
    gone = halved(subject)
    changed = settle(subject, values_of(model), gone)
    kept = [value.name for value in shrink(subject, changed, gone).model.graph.input]
    assert kept == ["x", "b2"]
    frozen = shrink(subject, changed, gone, freeze=True)
    assert [value.name for value in frozen.model.graph.input] == ["x"]


def test_half_precision_stays_half_precision() -> None:
    model = half_precision()
    feed = {"x": np.ones((1, 16), np.float16)}
    subject = subject_of(model, {"x": feed["x"].astype(np.float32)})
    gone = halved(subject)
    changed = settle(subject, values_of(model), gone)
    shrunk = shrink(subject, changed, gone)
    assert all(t.data_type == onnx.TensorProto.FLOAT16 for t in shrunk.model.graph.initializer)
    wanted = answers(patch(model, changed, "dense").model, feed)
    assert apart(answers(shrunk.model, feed), wanted, wanted) <= 2e-3


def test_a_name_that_is_taken_is_not_given_again() -> None:
    case = CASES["sigmoid_without_bias"]()
    case.model.graph.node[1].name = "h3_constant"
    subject = subject_of(case.model, case.feed())
    gone = without(subject, [2])
    shrunk = shrunk_like_masked(subject, case.feed, gone)
    assert "h3_constant_2" in shapes(shrunk.model)


def test_a_computed_bias_of_a_recurrent_layer_is_refused() -> None:
    _, subject = setting("lstm_with_states")
    model = ModelProto()
    model.CopyFrom(subject.model)
    model.graph.node.insert(0, op("Add", "b1 b1", "bias"))
    (node,) = [node for node in model.graph.node if node.op_type == "LSTM"]
    node.input[3] = "bias"
    case = Case(model, ())
    subject = subject_of(model, case.feed(batch=2))
    gone = without(subject, [0])
    changed = subject.groups.masked(values_of(model), gone)
    with pytest.raises(ExportError, match=r"LSTM '.*' has a computed bias"):
        shrink(subject, changed, gone)


def test_the_shape_of_an_old_reshape_is_told_anew() -> None:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Reshape", "h1", "h2", shape=[0, 128]),
        op("Gemm", "h2 w2 b", "y"),
    ]
    constants = random(w1=(8, 3, 3, 3), w2=(128, 2), b=(1, 2))
    inputs, outputs = [value("x", 1, 3, 6, 6)], [value("y", 1, 2)]
    model = build(nodes, inputs, outputs, constants, opset=4)
    subject = subject_of(model, Case(model, ()).feed())
    gone = without(subject, [2, 3])
    shrunk = shrink(subject, settle(subject, values_of(model), gone), gone)
    assert attribute(shrunk.model, "Reshape", "shape") == [0, 96]


def test_what_differs_from_step_to_step_stays() -> None:
    nodes = [
        op("MatMul", "x w0", "h0"),
        op("Add", "h0 places", "h1"),
        op("LSTM", "h1 w1 r1", "h2", hidden_size=4),
        op("Squeeze", "h2 one", "h3"),
        op("MatMul", "h3 w2", "y"),
    ]
    constants = random(w0=(3, 6), places=(7, 1, 6), w1=(1, 16, 6), r1=(1, 16, 4), w2=(4, 2))
    case = made(nodes, [6, 4], constants | {"one": np.array([1])}, (7, 2, 3))
    subject = subject_of(case.model, case.feed())
    gone = without(subject, [2])
    weight = values_of(case.model)[key("w0")].copy()
    weight[:, 2] = 0
    shrunk = shrink(subject, {key("w0"): weight}, gone)
    (reason,) = shrunk.stays.values()
    assert reason == "what LSTM 'h2' reads of it is a constant that differs from place to place"


def test_notes_on_constants_stay() -> None:
    case = CASES["gemm"]()
    case.model.graph.initializer[0].doc_string = "kept"
    subject = subject_of(case.model, case.feed())
    gone = without(subject, [2])
    shrunk = shrink(subject, settle(subject, values_of(case.model), gone), gone)
    assert [tensor.doc_string for tensor in shrunk.model.graph.initializer][:1] == ["kept"]


def test_an_unsound_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, subject = setting("gemm")

    def unsound(model: ModelProto) -> None:
        raise onnx.checker.ValidationError("no good\nat all")

    monkeypatch.setattr("onnxpress_exporters.shrink.check", unsound)
    with pytest.raises(ExportError, match=r"the shrunk model is unsound: no good$"):
        shrink(subject, {}, without(subject, [0]))


def test_units_of_two_groups_at_once() -> None:
    case = residual()
    subject = subject_of(case.model, case.feed())
    gone = without(subject, [0, 1, 2], [5])
    shrunk = shrunk_like_masked(subject, case.feed, gone)
    assert shapes(shrunk.model) == {
        "w0": (5, 3, 1, 1),
        "w1": (5, 5, 3, 3),
        "w2": (5, 5, 3, 3),
        "w3": (2, 5, 1, 1),
    }


def test_a_unit_that_stays_keeps_its_neighbours_exact() -> None:
    """Of two units one is even at the border and leaves; the other one stays."""
    nodes = [
        op("Conv", "x w1 b1", "h1"),
        op("PRelu", "h1 slope", "h2"),
        op("Conv", "h2 w2", "y", pads=[1] * 4),
    ]
    constants = random(w1=(8, 3, 1, 1), b1=(8,), slope=(8, 1, 1), w2=(2, 8, 3, 3))
    case = made(nodes, [8], constants, IMAGE)
    subject = subject_of(case.model, case.feed())
    gone = without(subject, [0, 1])
    changed = subject.groups.masked(values_of(case.model), gone)
    changed[key("b1")][1] = 3
    shrunk: Shrunk = shrink(subject, changed, gone)
    assert set(shrunk.stays) == {1}
    assert np.flatnonzero(shrunk.removed).tolist() == [0]
    feed = case.feed()
    wanted = answers(patch(case.model, changed, "dense").model, feed)
    assert apart(answers(shrunk.model, feed), wanted, wanted) <= TIGHT


def test_a_subject_can_take_another_sample() -> None:
    case, subject = setting("conv_norm")
    gone = halved(subject)
    other = replace(subject, inputs=[torch.zeros(2, 3, 6, 6)])
    one, two = (
        shrink(each, settle(each, values_of(case.model), gone), gone) for each in (subject, other)
    )
    assert one.model == two.model
