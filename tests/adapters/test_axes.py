"""Facts about cells, and the classes that follow from them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress_adapters.axes import ALONE, FREE, TOGETHER, WHOLE, Axes, Classes, Role
from onnxpress_adapters.axes_moves import spread
from onnxpress_adapters.axes_numbers import blocks, factors


def axes_of(**shapes: tuple[int, ...]) -> Axes:
    axes = Axes()
    for name, shape in shapes.items():
        axes.add(name, shape)
    return axes


def freely(axes: Axes, classes: Classes, name: str, axis: int = 0) -> list[bool]:
    """Say which cells of an axis can leave."""
    found = classes.reason[classes.of_cell[axes.of(name, axis)]]
    return [bool(reason == FREE) for reason in found]


def alike(axes: Axes, classes: Classes, one: str, other: str) -> bool:
    found = classes.of_cell
    return bool((found[axes.of(one, 0)] == found[axes.of(other, 0)]).all())


def test_cells_that_are_the_same_leave_together() -> None:
    axes = axes_of(a=(3,), b=(3,), c=(3,))
    axes.same(axes.of("a", 0), axes.of("b", -1))
    classes = axes.solve()
    assert alike(axes, classes, "a", "b")
    assert not alike(axes, classes, "a", "c")
    assert freely(axes, classes, "a") == [True] * 3


def test_a_pinned_cell_keeps_those_that_are_the_same() -> None:
    axes = axes_of(a=(3,), b=(3,))
    axes.same(axes.of("a", 0), axes.of("b", 0))
    axes.pin(axes.of("a", 0)[1:2], "it is needed")
    classes = axes.solve()
    assert freely(axes, classes, "b") == [True, False, True]
    assert classes.why(axes.of("b", 0)[1:2]) == "it is needed"
    assert classes.why(axes.of("b", 0)) == ""


def test_a_merged_axis_follows_the_one_part_that_can_leave() -> None:
    axes = axes_of(image=(2, 3), flat=(6,))
    axes.pin_axis("image", 1, "positions")
    axes.product(axes.of("flat", 0), spread([axes.of("image", 0), axes.of("image", 1)]))
    classes = axes.solve()
    found = classes.of_cell
    assert found[axes.of("flat", 0)].tolist() == np.repeat(found[axes.of("image", 0)], 3).tolist()


def test_a_pinned_whole_keeps_its_parts_and_pinned_parts_keep_the_whole() -> None:
    axes = axes_of(image=(2, 3), flat=(6,))
    axes.product(axes.of("flat", 0), spread([axes.of("image", 0), axes.of("image", 1)]))
    axes.pin(axes.of("flat", 0)[:1], "kept")
    classes = axes.solve()
    # Entry 0 is made of row 0 and place 0; the rest leaves with its row or its place.
    assert freely(axes, classes, "image", 0) == [False, True]
    assert not freely(axes, classes, "flat")[0]

    axes = axes_of(image=(2, 3), flat=(6,))
    axes.product(axes.of("flat", 0), spread([axes.of("image", 0), axes.of("image", 1)]))
    axes.pin_value("image", "kept")
    assert freely(axes, axes.solve(), "flat") == [False] * 6


def test_of_several_parts_the_outermost_leaves() -> None:
    axes = axes_of(heads=(2, 3), flat=(6,))
    axes.product(axes.of("flat", 0), spread([axes.of("heads", 0), axes.of("heads", 1)]))
    classes = axes.solve()
    assert freely(axes, classes, "heads", 0) == [True, True]
    assert freely(axes, classes, "heads", 1) == [False] * 3
    assert classes.why(axes.of("heads", 1)) == WHOLE


def test_facts_found_late_reach_what_was_solved_early() -> None:
    axes = axes_of(a=(2, 2), flat=(4,), b=(2, 2))
    axes.product(axes.of("flat", 0), spread([axes.of("a", 0), axes.of("a", 1)]))
    axes.product(axes.of("flat", 0), spread([axes.of("b", 0), axes.of("b", 1)]))
    axes.pin_axis("b", 1, "positions")
    axes.pin_axis("a", 1, "positions")
    classes = axes.solve()
    assert alike(axes, classes, "a", "b")
    assert freely(axes, classes, "flat") == [True] * 4


def test_an_axis_never_becomes_empty() -> None:
    axes = axes_of(one=(1,), pair=(2,), more=(2,))
    axes.same(axes.of("pair", 0)[:1], axes.of("pair", 0)[1:])
    classes = axes.solve()
    assert classes.why(axes.of("one", 0)) == ALONE
    assert classes.why(axes.of("pair", 0)) == TOGETHER
    assert freely(axes, classes, "more") == [True, True]


def test_what_no_fact_speaks_of_stays() -> None:
    axes = axes_of(a=(4,), b=(4,), c=(4, 2))
    axes.same(axes.of("a", 0), axes.of("b", 0))
    facts = axes.facts()
    axes.same(axes.of("a", 0)[:2], axes.of("c", 0)[:2])
    axes.product(axes.of("c", 0)[2:3], [axes.of("a", 0)[2:3]])
    axes.pin(axes.of("b", 0)[:1], "known")
    axes.pin_unnamed(axes.of("c", 0), facts, "unknown")
    axes.pin_unnamed(axes.of("a", 0), facts, "unknown")
    axes.pin_unnamed(axes.of("c", 1), axes.facts(), "nothing is said")
    classes = axes.solve()
    # Entry 0 was pinned, entry 3 was named only before.
    assert freely(axes, classes, "a") == [False, True, True, False]
    assert freely(axes, classes, "c") == [False, True, True, False]
    assert classes.why(axes.of("c", 0)[3:]) == "unknown"
    assert classes.why(axes.of("c", 1)) == "nothing is said"


def test_roles_go_back_through_what_moves_constants_only() -> None:
    axes = axes_of(file=(2, 3), slot=(3, 2), made=(3,))
    axes.wired = True
    axes.same(axes.of("file", 0), axes.of("slot", 1))
    axes.same(axes.of("file", 1), axes.of("slot", 0))
    axes.wired = False
    axes.same(axes.of("slot", 0), axes.of("made", 0))
    axes.mark("slot", 0, Role.MADE)
    axes.mark("slot", 1, Role.READ)
    roles = axes.solve().roles
    assert set(roles[axes.of("file", 1)]) == {Role.MADE}
    assert set(roles[axes.of("file", 0)]) == {Role.READ}
    assert set(roles[axes.of("made", 0)]) == {Role.OTHER}


def test_roles_go_back_through_a_reshape() -> None:
    axes = axes_of(file=(2, 3), slot=(6,))
    axes.wired = True
    axes.product(axes.of("slot", 0), spread([axes.of("file", 0), axes.of("file", 1)]))
    axes.mark("slot", 0, Role.READ)
    roles = axes.solve().roles
    assert set(roles[axes.of("file", 0)]) == {Role.READ}
    assert set(roles[axes.of("file", 1)]) == {Role.OTHER}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 3), (2, 3), [([0], [0]), ([1], [1])]),
        ((1, 8, 1, 1), (8,), [([1], [0])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((2, 3, 4), (24,), [([0, 1, 2], [0])]),
        ((24,), (2, 3, 4), [([0], [0, 1, 2])]),
    ],
)
def test_a_reshape_falls_into_blocks(
    before: tuple[int, ...], after: tuple[int, ...], expected: list[tuple[list[int], list[int]]]
) -> None:
    assert blocks(before, after) == expected


def test_blocks_without_common_factors() -> None:
    assert factors([4, 6], [6, 4]) is None
    assert factors([2, 3, 4], [24]) == [2, 3, 4]
