"""Units that leave together, found on hand-built graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from group_case import Case
from group_cases import CASES
from group_cases_images import gate as gate_case
from group_cases_images import old_slopes, residual
from group_cases_moves import flattened
from hand_built import key
from onnxpress_adapters.axes import Role
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.groups import Groups
from shrinking import subject_of, values_of


def groups_of(case: Case) -> Groups:
    return subject_of(case.model, case.feed()).groups


@pytest.mark.parametrize("name", CASES)
def test_groups_of_every_rule(name: str) -> None:
    case = CASES[name]()
    assert tuple(group.units for group in groups_of(case).groups) == case.units


@pytest.mark.parametrize("name", CASES)
def test_groups_are_the_same_whatever_the_batch(name: str) -> None:
    case = CASES[name]()
    one, three = (subject_of(case.model, case.feed(batch=size)).groups for size in (1, 3))
    assert [g.name for g in one.groups] == [g.name for g in three.groups]
    for left, right in zip(one.groups, three.groups, strict=True):
        assert [(m.key, m.axis, m.role) for m in left.members] == [
            (m.key, m.axis, m.role) for m in right.members
        ]
        for here, there in zip(left.members, right.members, strict=True):
            np.testing.assert_array_equal(here.units, there.units)


def test_operators_as_they_broadcast_before_opset_7() -> None:
    (group,) = groups_of(old_slopes()).groups
    assert [m.key.name for m in group.members] == ["w1", "b1", "slope", "shift", "w2"]


def test_members_of_a_residual_stream() -> None:
    stream, inner = groups_of(residual()).groups
    assert [(m.key.name, m.axis, m.role) for m in stream.members] == [
        ("w0", 0, Role.MADE),
        ("w1", 1, Role.READ),
        ("w2", 0, Role.MADE),
        ("w3", 1, Role.READ),
    ]
    assert [(m.key.name, m.axis, m.role) for m in inner.members] == [
        ("w1", 0, Role.MADE),
        ("w2", 1, Role.READ),
    ]
    assert (stream.name, stream.first, inner.first) == ("w0", 0, 8)
    assert all(member.weight for member in stream.members)


def test_members_of_a_gate() -> None:
    channels, _ = groups_of(gate_case()).groups
    assert [(m.key.name, m.axis, m.role, m.weight) for m in channels.members] == [
        ("w1", 0, Role.MADE, True),
        ("w2", 1, Role.READ, True),
        ("w3", 0, Role.MADE, True),
        ("b3", 0, Role.SHIFT, False),
        ("w4", 1, Role.READ, True),
    ]


def test_a_channel_becomes_a_block_of_columns() -> None:
    (group,) = groups_of(flattened()).groups
    reading = group.members[-1]
    assert (reading.key.name, reading.axis) == ("w2", 0)
    np.testing.assert_array_equal(reading.units, np.repeat(np.arange(8), 16))


def test_hidden_units_of_both_directions() -> None:
    first, _ = groups_of(CASES["lstm"]()).groups
    by_axis = {(m.key.name, m.axis): m for m in first.members}
    assert {axis: member.role for axis, member in by_axis.items()} == {
        ("w1", 1): Role.MADE,
        ("r1", 1): Role.MADE,
        ("r1", 2): Role.READ,
        ("b1", 1): Role.SHIFT,
        ("w2", 2): Role.READ,
    }
    np.testing.assert_array_equal(by_axis["w1", 1].units, np.tile(np.arange(4), 4))
    np.testing.assert_array_equal(by_axis["b1", 1].units, np.tile(np.arange(4), 8))
    np.testing.assert_array_equal(by_axis["w2", 2].units, np.tile(np.arange(4), 2))


def test_heads_leave_whole() -> None:
    _, heads = groups_of(CASES["attention"]()).groups
    for member in heads.members:
        np.testing.assert_array_equal(member.units, np.repeat(np.arange(3), 4))
    assert [m.key.name for m in heads.members if m.role & Role.MADE] == ["wq", "wk", "wv"]


def test_scores_are_summed_over_all_that_leaves() -> None:
    (group,) = groups_of(CASES["gemm"]()).groups
    weight = torch.arange(48, dtype=torch.float64).reshape(8, 6)
    reader = torch.ones(3, 8, dtype=torch.float64)
    scores = {key("w1"): weight, key("w2"): reader}
    assert group.sums(scores).tolist() == (weight.sum(1) + 3).tolist()
    assert group.sums(scores, Role.READ).tolist() == [3.0] * 8
    assert group.sums({}).tolist() == [0.0] * 8


def test_scores_of_positions_that_belong_to_no_unit_are_left_out() -> None:
    groups = groups_of(CASES["joined"]())
    first, second = groups.groups
    scores = {key("w3"): torch.ones(2, 13, 3, 3)}
    assert first.sums(scores).tolist() == [18.0] * 4
    assert second.sums(scores).tolist() == [18.0] * 6


def test_removed_units_are_numbered_through() -> None:
    groups = groups_of(residual())
    gone = groups.gone([[True] + [False] * 7, torch.tensor([False] * 5 + [True])])
    assert groups.units == 14
    assert np.flatnonzero(gone).tolist() == [0, 13]
    assert groups.places("x", gone) is None
    places = groups.places("w1", gone)
    assert places is not None
    assert [np.flatnonzero(each).tolist() for each in places] == [[5], [0], [], []]


def test_what_masking_makes_zero() -> None:
    case = CASES["conv_norm"]()
    groups = groups_of(case)
    gone = groups.gone([[False, True] + [False] * 6])
    values = values_of(case.model)
    made_zero = groups.masked(values, gone)
    assert sorted(name.name for name in made_zero) == ["n_scale", "n_shift", "w1"]
    for name, array in made_zero.items():
        assert not array[1].any()
        np.testing.assert_array_equal(np.delete(array, 1, 0), np.delete(values[name], 1, 0))
    unread = groups.masked(values, gone, gone)
    assert sorted(name.name for name in unread) == ["n_scale", "n_shift", "w1", "w2"]
    assert not unread[key("w2")][:, 1].any()


def test_a_wrong_choice_of_units_is_refused() -> None:
    groups = groups_of(CASES["gemm"]())
    with pytest.raises(MisuseError, match="there are 1 groups, and removed units for 0"):
        groups.gone([])
    with pytest.raises(MisuseError, match=r"has 8 units, .* given as \[3\]"):
        groups.gone([[True, False, False]])
    with pytest.raises(MisuseError, match="'w1' would lose all of its 8 units; keep one"):
        groups.gone([[True] * 8])
