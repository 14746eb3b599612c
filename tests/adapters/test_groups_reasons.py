"""Units that cannot leave, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from group_case import Case, made, random, whole
from hand_built import Array, build, key, op
from hand_built import graph as body
from onnxpress_adapters.groups import Groups
from shrinking import subject_of
from small_models import value


def groups_of(case: Case) -> Groups:
    return subject_of(case.model, case.feed()).groups


def reason(case: Case, weight: str = "w1") -> str:
    groups = groups_of(case)
    assert groups.groups == ()
    return groups.reasons[key(weight)]


def through(*middle: str, **constants: object) -> Case:
    """Put an operator between two matrix products over ``[N, 4, 6]``."""
    operator, reads = middle[0], " ".join(("h1", *middle[1:]))
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    attributes = {n: a for n, a in constants.items() if n == "axis"}
    for name in attributes:
        arrays.pop(name)
    nodes = [
        op("MatMul", "x w1", "h1"),
        op(operator, reads, "h2", "the_one", **attributes),
        op("MatMul", "h2 w2", "y"),
    ]
    return made(nodes, [], random(w1=(6, 8), w2=(8, 2)) | arrays, ("N", 4, 6))


ONES = np.ones(8, np.float32)


@pytest.mark.parametrize(
    "case",
    [
        lambda: through("Softmax", axis=-1),
        lambda: through("LayerNormalization", "one", "one", one=ONES, axis=-1),
        lambda: through("CumSum", "two", two=whole(2)),
        lambda: through("LpNormalization", axis=2),
    ],
    ids=["softmax", "layer_norm", "cumsum", "lp_norm"],
)
def test_what_mixes_units_keeps_them(case: object) -> None:
    assert callable(case)
    found = case()
    operator = found.model.graph.node[1].op_type
    assert reason(found) == f"{operator} 'the_one' computes with all of them at once"


def test_group_norm_keeps_its_channels() -> None:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("GroupNormalization", "h1 one one", "h2", "the_one", num_groups=2),
        op("Conv", "h2 w2", "y"),
    ]
    constants = random(w1=(8, 3, 1, 1), w2=(2, 8, 1, 1)) | {"one": ONES}
    model = build(nodes, [value("x", 1, 3, 6, 6)], [value("y", 1, 2, 6, 6)], constants, opset=21)
    groups = subject_of(model, {"x": np.zeros((1, 3, 6, 6), np.float32)}).groups
    assert groups.groups == ()
    assert groups.reasons[key("w1")] == (
        "GroupNormalization 'the_one' computes with all of them at once"
    )


def test_an_output_is_promised_as_it_is() -> None:
    nodes = [op("MatMul", "x w1", "h1"), op("Relu", "h1", "y")]
    assert reason(made(nodes, [], random(w1=(6, 8)))) == (
        "the model's output 'y' is promised as it is"
    )


def test_an_input_is_what_it_is() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Add", "h1 x", "h2"),
        op("MatMul", "h2 w2", "y"),
    ]
    case = made(nodes, [], random(w1=(6, 6), w2=(6, 2)))
    assert reason(case) == "the model's input 'x' is what it is"


def test_a_reduction_over_units_keeps_them() -> None:
    nodes = [op("MatMul", "x w1", "h1"), op("ReduceMax", "h1", "y", "top", axes=[1])]
    assert reason(made(nodes, [], random(w1=(6, 8)))) == (
        "ReduceMax 'top' computes with all of them at once"
    )


def test_an_operator_without_a_rule_keeps_all_it_touches() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Trilu", "h1", "h2", "corner"),
        op("MatMul", "h2 w2", "y"),
    ]
    assert reason(made(nodes, [], random(w1=(6, 8), w2=(8, 2)))) == (
        "Trilu 'corner' is not followed"
    )


def test_a_body_keeps_what_it_reads() -> None:
    branch = [
        body([op("MatMul", "h1 w", "o")], [], [value("o", "N", 2)], random(seed, w=(8, 2)))
        for seed in (2, 3)
    ]
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("If", "c", "y", "choose", then_branch=branch[0], else_branch=branch[1]),
    ]
    inputs = [value("x", "N", 6), value("c", kind=TensorProto.BOOL)]
    model = build(nodes, inputs, [value("y", "N", 2)], random(w1=(6, 8)))
    feed = {"x": np.zeros((1, 6), np.float32), "c": np.array(True)}
    groups = subject_of(model, feed).groups
    assert groups.groups == ()
    assert groups.reasons[key("w1")] == "a graph inside If 'choose' reads them"
    inside = [text for weight, text in groups.reasons.items() if weight.path]
    assert inside == ["it stands in a graph inside another, or in a function"] * 2


def test_a_function_keeps_what_it_is_called_with() -> None:
    function = helper.make_function(
        "my", "Twice", ["a"], ["b"], [op("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    nodes = [
        op("MatMul", "x w1", "h1"),
        helper.make_node("Twice", ["h1"], ["h2"], name="call", domain="my"),
        op("MatMul", "h2 w2", "y"),
    ]
    inputs, outputs = [value("x", "N", 6)], [value("y", "N", 2)]
    model = helper.make_model(
        body(nodes, inputs, outputs, random(w1=(6, 8), w2=(8, 2))),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("my", 1)],
        functions=[function],
        ir_version=8,
    )
    groups = subject_of(model, {"x": np.zeros((1, 6), np.float32)}).groups
    assert groups.reasons[key("w1")] == "Twice 'call' has graphs of its own"


def test_heads_that_share_keys_stay() -> None:
    nodes = [
        op("MatMul", "x w1", "q"),
        op("MatMul", "x wk", "k"),
        op("MatMul", "x wv", "v"),
        op("Attention", "q k v", "o", "attend", q_num_heads=4, kv_num_heads=2),
        op("MatMul", "o w", "y"),
    ]
    constants = random(w1=(6, 16), wk=(6, 8), wv=(6, 8), w=(16, 2))
    case = made(nodes, [], constants, ("N", 5, 6), opset=23, ir=11)
    assert reason(case) == "Attention 'attend' shares keys among heads"


def test_heads_whose_keys_are_handed_on_stay() -> None:
    node = helper.make_node(
        "MultiHeadAttention", ["q", "k", "v"], ["o", "pk", "pv"], "attend",
        domain="com.microsoft", num_heads=3,
    )  # fmt: skip
    nodes = [*(op("MatMul", f"x w{name}", name) for name in "qkv"), node, op("MatMul", "o w", "y")]
    constants = random(wq=(6, 12), wk=(6, 12), wv=(6, 12), w=(12, 2))
    shapes = {"o": ("N", 5, 12), "pk": ("N", 3, 5, 4), "pv": ("N", 3, 5, 4)}
    case = made(nodes, [], constants, ("N", 5, 6), noted=shapes, outputs=("y",))
    assert reason(case, "wv") == "MultiHeadAttention 'attend' hands its keys and values on"


def computed(operator: str, reads: str) -> Case:
    """An operator told by numbers made of the input, between two products."""
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Cast", "x", "whole", to=TensorProto.INT64),
        op("ReduceMin", "whole", "least", axes=[0, 1]),
        op("Mul", "least none", "zero"),
        op("Reshape", "zero one", "zeros"),
        op(operator, reads, "h2", "the_one"),
        op("MatMul", "h2 w2", "y"),
    ]
    constants = random(w1=(6, 8), w2=(8, 2)) | {"none": np.array(0, np.int64), "one": whole(1)}
    inputs, outputs = [value("x", 4, 6)], [value("y", "a", "b")]
    return Case(build(nodes, inputs, outputs, constants), ())


@pytest.mark.parametrize(
    ("operator", "reads", "expected"),
    [
        ("ReduceSum", "h1 zeros", "ReduceSum 'the_one' reduces axes that are computed"),
        ("CumSum", "h1 zero", "CumSum 'the_one' sums along an axis that is computed"),
        ("Squeeze", "h1", "Squeeze 'the_one' drops every axis of one entry"),
    ],
)
def test_what_is_told_by_computed_numbers_stays(operator: str, reads: str, expected: str) -> None:
    assert reason(computed(operator, reads)) == expected


def test_a_border_that_is_computed_keeps_all() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Cast", "x", "whole", to=TensorProto.INT64),
        op("ReduceMin", "whole", "least", keepdims=0),
        op("Mul", "least none", "pads"),
        op("Pad", "h1 pads", "h2", "the_one"),
        op("MatMul", "h2 w2", "y"),
    ]
    constants = random(w1=(6, 8), w2=(8, 2)) | {"none": whole(0, 0, 0, 0)}
    case = made(nodes, [], constants, (4, 6))
    assert reason(case) == "Pad 'the_one' is told its borders by something computed"


def test_a_split_that_drops_a_part_keeps_all() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        helper.make_node("Split", ["h1", "sizes"], ["a", ""], name="half", axis=1),
        op("MatMul", "a w2", "y"),
    ]
    constants = random(w1=(6, 8), w2=(4, 2)) | {"sizes": whole(4, 4)}
    inputs, outputs = [value("x", "N", 6)], [value("y", "N", 2)]
    case = Case(build(nodes, inputs, outputs, constants), ())
    assert reason(case) == "Split 'half' drops a part"


def test_a_resize_that_crops_keeps_all() -> None:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Resize", "h1 roi _ sizes", "h2", "crop", mode="nearest",
           coordinate_transformation_mode="tf_crop_and_resize"),
        op("Conv", "h2 w2", "y"),
    ]  # fmt: skip
    constants = random(w1=(8, 3, 1, 1), w2=(2, 8, 1, 1)) | {
        "roi": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
        "sizes": whole(2, 8, 6, 6),
    }
    case = made(nodes, [], constants, (2, 3, 6, 6))
    assert reason(case) == "Resize 'crop' takes a part of its input"


def test_a_size_told_for_another_axis_keeps_both() -> None:
    """Eight columns become two by four, and four is the size of something else."""
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("MatMul", "x w3", "h3"),
        op("Shape", "h3", "s"),
        op("Slice", "s one two", "four"),
        op("Concat", "all four", "to", axis=0),
        op("Reshape", "h1 to", "h2", "cut"),
        op("MatMul", "h2 w2", "y1"),
        op("MatMul", "h3 w2", "y2"),
        op("Concat", "y1 y2", "y", axis=0),
    ]
    constants = random(w1=(6, 8), w2=(4, 2), w3=(6, 4)) | {
        "one": whole(1),
        "two": whole(2),
        "all": whole(-1),
    }
    groups = groups_of(made(nodes, [4], constants))
    (group,) = groups.groups
    # Column k of either half leaves with unit k of the other product: both are told one size.
    assert [m.key.name for m in group.members] == ["w1", "w3", "w2"]
    np.testing.assert_array_equal(group.members[0].units, np.tile(np.arange(4), 2))


def test_the_shape_of_an_old_reshape_is_an_attribute() -> None:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Reshape", "h1", "h2", shape=[0, 128]),
        op("Gemm", "h2 w2 b", "y"),
    ]
    constants = random(w1=(8, 3, 3, 3), w2=(128, 2), b=(1, 2))
    inputs, outputs = [value("x", 1, 3, 6, 6)], [value("y", 1, 2)]
    case = Case(build(nodes, inputs, outputs, constants, opset=4), ())
    (group,) = groups_of(case).groups
    assert group.units == 8


def test_sizes_that_arithmetic_uses_keep_their_axis() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Shape", "h1", "s"),
        op("Mul", "s two", "t"),
        op("Sub", "t s", "to", "less"),
        op("Reshape", "h1 to", "h2"),
        op("MatMul", "h2 w2", "y"),
    ]
    case = made(nodes, [], random(w1=(6, 8), w2=(8, 2)) | {"two": whole(2)})
    assert reason(case) == "Mul 't' computes with its size"


def test_a_weight_that_cannot_change_keeps_its_units() -> None:
    constants: dict[str, Array] = {
        "q1": np.ones((6, 8), np.uint8),
        "s1": np.array(0.1, np.float32),
        "z1": np.array(3, np.uint8),
    }
    nodes = [
        op("DequantizeLinear", "q1 s1 z1", "w1"),
        op("MatMul", "x w1", "h1"),
        op("MatMul", "h1 w2", "y"),
    ]
    case = made(nodes, [], constants | random(w2=(8, 2)))
    assert reason(case, "q1") == (
        "a weight cannot change: its zero point is not 0, so a stored 0 is not a zero"
    )


def test_a_size_that_is_an_output_stays() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Shape", "h1", "s"),
        op("Cast", "s", "size", to=TensorProto.FLOAT),
        op("MatMul", "h1 w2", "y"),
    ]
    case = made(nodes, [], random(w1=(6, 8), w2=(8, 2)), outputs=("y", "size"))
    assert reason(case) == "a size is an output of the model"


def test_bounds_that_are_computed_keep_their_axis() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Cast", "x", "i", to=TensorProto.INT64),
        op("ReduceMin", "i", "start", keepdims=0),
        op("Mul", "start zero", "none"),
        op("Slice", "h1 none all one", "h2", "cut"),
        op("MatMul", "h2 w2", "y"),
    ]
    constants = random(w1=(6, 8), w2=(8, 2)) | {
        "zero": whole(0),
        "all": whole(8),
        "one": whole(1),
    }
    case = made(nodes, [], constants)
    assert reason(case) == "where Slice 'cut' cuts is computed from sizes"


def test_a_slice_with_steps_keeps_its_axis() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Slice", "h1 zero all one two", "h2", "every_other"),
        op("MatMul", "h2 w2", "y"),
    ]
    constants = random(w1=(6, 8), w2=(4, 2)) | {
        "zero": whole(0),
        "one": whole(1),
        "two": whole(2),
        "all": whole(8),
    }
    assert reason(made(nodes, [], constants)) == ("Slice 'every_other' does not take them in a row")


def test_one_entry_that_is_looked_up_keeps_its_axis() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Gather", "h1 third", "h2", "look", axis=1),
        op("Unsqueeze", "h2 one", "y"),
    ]
    constants = random(w1=(6, 8)) | {"third": np.array(3, np.int64), "one": whole(1)}
    assert reason(made(nodes, [], constants)) == (
        "Gather 'look' looks up single entries along this axis"
    )


def test_rows_cut_into_rows_of_another_length_stay() -> None:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Reshape", "h1 to", "h2", "cut"),
        op("MatMul", "h2 w2", "y"),
    ]
    constants = random(w1=(6, 8), w2=(6, 2)) | {"to": whole(4, 6)}
    assert reason(made(nodes, [], constants, (3, 6))) == (
        "Reshape 'cut' cuts rows of entries into rows of another length"
    )


def test_units_on_different_axes_of_some_value_are_different_groups() -> None:
    """All rows of the weight are read by the same one, but no part of the Split may be empty."""
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Split", "h1 sizes", "a b c", axis=1),
        op("Relu", "a", "d"),
        op("Concat", "d b c", "h2", axis=1),
        op("MatMul", "h2 w2", "y"),
    ]
    constants = random(w1=(6, 8), w2=(8, 2)) | {"sizes": whole(4, 3, 1)}
    case = made(nodes, [], constants)
    assert [group.units for group in groups_of(case).groups] == [4, 3]


def test_one_of_a_kind_stays() -> None:
    nodes = [op("MatMul", "x w1", "h1"), op("MatMul", "h1 w2", "y")]
    assert reason(made(nodes, [], random(w1=(6, 1), w2=(1, 2)))) == (
        "it is the only one of its axis"
    )


def test_units_that_would_all_leave_stay() -> None:
    """A shift by one, added to itself, ties every channel to the next one."""
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Gather", "h1 next", "h2", axis=1),
        op("Add", "h1 h2", "h3"),
        op("MatMul", "h3 w2", "y"),
    ]
    constants = random(w1=(6, 4), w2=(4, 2)) | {"next": whole(1, 2, 3, 0)}
    assert reason(made(nodes, [], constants)) == "all units would have to leave at once"


def test_a_model_that_hands_its_input_through() -> None:
    model: ModelProto = build(
        [op("Identity", "x", "y")], [value("x", 1, 3)], [value("y", 1, 3)], {}
    )
    groups = subject_of(model, {"x": np.zeros((1, 3), np.float32)}).groups
    assert (groups.groups, groups.reasons, groups.units) == ((), {}, 0)
    assert groups.gone([]).shape == (0,)
