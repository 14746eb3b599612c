"""Samples drawn from those that were given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import case_of, two_headed_model
from onnxpress.drawing import Drawing, interpolated, moved, pasted, picture_axes
from onnxpress.objective import objective_of


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_interpolations_lie_between_pairs() -> None:
    inputs = [torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[3], [4]])]
    points, tokens = interpolated(inputs, 50, generator())
    assert points.shape == (50, 2)
    torch.testing.assert_close(points[:, 1], 2 * points[:, 0])
    assert points.min() >= 0
    assert points[:, 0].max() <= 1
    assert len(points[:, 0].unique()) > 10
    assert sorted(tokens.unique().tolist()) == [3, 4]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ([1, 1, 28, 28], (2, 3)),
        ([1, 3, 2, 32, 40], (3, 4)),
        ([1, 48, 48, 3], (1, 2)),
        ([1, 64, 48, 48], None),  # three long axes: which are the picture's?
        ([1, 1, 1, 784], None),
        ([1, 80, 3000], None),
        ([12], None),
    ],
)
def test_pictures_are_known_by_their_axes(shape: list[int], axes: tuple[int, int] | None) -> None:
    assert picture_axes(shape) == axes


def mirror(picture: Tensor) -> Tensor:
    return picture.flip(-1)


def test_pictures_are_shifted_and_mirrored_whole() -> None:
    pictures = torch.arange(200 * 2 * 16 * 24.0).reshape(200, 1, 2, 16, 24)
    (found,) = moved([pictures], generator())
    assert found.shape == pictures.shape
    ways = set()
    for before, after in zip(pictures, found, strict=True):
        for turned in (False, True):
            source = mirror(after) if turned else after
            first = (source[0, 0] == before[0, 0, 0, 0]).nonzero()[0].tolist()
            if torch.equal(source, before.roll(first, (-2, -1))):
                ways.add((turned, *first))
                break
        else:
            raise AssertionError("no shift of the picture")
    rows = {(row + 8) % 16 - 8 for _, row, _ in ways}
    columns = {(column + 12) % 24 - 12 for _, _, column in ways}
    assert (min(rows), max(rows)) == (-2, 2)
    assert (min(columns), max(columns)) == (-3, 3)
    assert {turned for turned, *_ in ways} == {False, True}


def test_all_inputs_of_a_sample_move_alike() -> None:
    picture = torch.rand(20, 1, 3, 16, 16)
    last = picture.movedim(2, -1)
    left, right = moved([picture, last], generator())
    torch.testing.assert_close(left.movedim(2, -1), right)


def test_what_is_no_picture_stays_in_its_place() -> None:
    words, numbers = torch.arange(12).reshape(3, 4), torch.rand(3, 1, 40)
    levels = torch.randint(0, 255, (3, 1, 3, 16, 16), dtype=torch.uint8)
    given = [words, numbers, levels]
    for before, after in zip(given, moved(given, generator()), strict=True):
        assert after is before


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_batch_is_answered_by_the_original(share: float) -> None:
    case = case_of(two_headed_model())
    objective = objective_of(case.problem)
    inputs, wanted = Drawing(share, move=0.5).batch(objective, 16, generator())
    assert [len(value) for value in inputs] == [16]
    known = {row.numpy().tobytes() for row in case.problem.fit[0]}
    assert sum(row.numpy().tobytes() in known for row in inputs[0]) == round(16 * (1 - share))
    for ours, theirs in zip(wanted, objective.reference(inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_share_of_the_points_moves() -> None:
    one = torch.zeros(1, 1, 3, 16, 16)
    one[..., 5, 5] = 1.0
    (points,) = Drawing(1.0, move=0.5).points([one], 40, generator())
    still = (points == one).flatten(1).all(1)
    assert still[20:].all()
    assert 1 <= int((~still[:20]).sum()) <= 20


def test_a_box_of_another_picture_is_put_in_whole() -> None:
    own = torch.zeros(100, 1, 2, 16, 24)
    others = torch.arange(1, 31.0).reshape(30, 1, 1, 1, 1).expand(30, 1, 2, 16, 24)
    (found,) = pasted([own], [others], generator())
    heights, widths, taken = set(), set(), set()
    for picture in found[:, 0]:
        (value,) = picture[picture != 0].unique().tolist()
        taken.add(value)
        rows, columns = (picture[0] != 0).nonzero(as_tuple=True)
        box = picture[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box == value).all()
        assert (picture != 0).sum() == box.numel()
        heights.add(box.shape[1])
        widths.add(box.shape[2])
    assert {4, 12} <= heights <= set(range(3, 14))
    assert {6, 18} <= widths <= set(range(5, 20))
    assert len(taken) > 20


def test_all_inputs_of_a_sample_get_the_same_box() -> None:
    own, others = torch.rand(20, 1, 3, 16, 16), torch.rand(7, 1, 3, 16, 16)
    left, right = pasted([own, own.movedim(2, -1)], [others, others.movedim(2, -1)], generator())
    torch.testing.assert_close(left.movedim(2, -1), right)
    numbers = torch.rand(3, 1, 40)
    assert pasted([numbers], [numbers], generator())[0] is numbers


def test_a_share_of_the_points_gets_a_part_of_another() -> None:
    one = torch.stack([torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)])
    (points,) = Drawing(1.0, move=0.0, paste=0.5).points([one], 40, generator())
    plain = [bool((point == point.reshape(-1)[0]).all()) for point in points]
    assert all(plain[:20])
    assert sum(plain[20:]) < 12  # a quarter begin, end and get the same
