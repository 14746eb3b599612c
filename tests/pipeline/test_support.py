"""Hard thresholding, by hand."""

from __future__ import annotations

import pytest
import torch

from models import key
from onnxpress.support import cut, keep_largest, keep_largest_each, keep_largest_overall
from onnxpress_adapters.errors import SparsityError


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (0, [False, False, False, False]),
        (1, [False, True, False, False]),
        (2, [False, True, True, False]),
        (3, [True, True, True, False]),
        (4, [True, True, True, True]),
    ],
)
def test_a_tie_goes_to_the_lower_place(count: int, wanted: list[bool]) -> None:
    scores = torch.tensor([2.0, 3.0, 3.0, 2.0])
    assert keep_largest(scores, count).tolist() == wanted
    square = keep_largest(scores.reshape(2, 2), count)
    assert square.flatten().tolist() == wanted
    assert square.shape == (2, 2)


@pytest.mark.parametrize("count", [-1, 5])
def test_a_count_out_of_range(count: int) -> None:
    message = f"cannot keep {count} of 4 entries; a sparsity lies between 0 and 1"
    with pytest.raises(SparsityError, match=message):
        keep_largest(torch.zeros(4), count)
    with pytest.raises(SparsityError, match=message):
        keep_largest_overall({key("a"): torch.zeros(4)}, count)


def test_of_the_two_answers_of_the_paper_it_is_always_the_same() -> None:
    # H_2([1, -3, 1]) is [0, -3, 1] or [1, -3, 0].
    point = torch.tensor([1.0, -3.0, 1.0])
    for _ in range(10):
        assert cut(point, keep_largest(point.abs(), 2)).values.tolist() == [1.0, -3.0, 0.0]
        assert keep_largest_each(point.abs(), 2).tolist() == [True, True, False]


@pytest.mark.parametrize("count", range(6))
def test_every_row_is_kept_by_itself(count: int) -> None:
    scores = torch.randint(0, 3, (4, 7, 5), generator=torch.Generator().manual_seed(1)).double()
    kept = keep_largest_each(scores, count)
    assert kept.shape == scores.shape
    for row, found in zip(scores.reshape(-1, 5), kept.reshape(-1, 5), strict=True):
        assert torch.equal(found, keep_largest(row, count))
    with pytest.raises(SparsityError, match="cannot keep 6 of 5 entries"):
        keep_largest_each(scores, 6)


def test_long_ties_keep_their_order() -> None:
    # Sorts that are not stable differ from a few dozen entries on.
    kept = keep_largest(torch.ones(5000), 1234)
    assert kept[:1234].all()
    assert not kept[1234:].any()


def test_infinite_scores_are_kept_first() -> None:
    scores = torch.tensor([1.0, torch.inf, -torch.inf, 5.0])
    assert keep_largest(scores, 2).tolist() == [False, True, False, True]
    assert keep_largest(scores, 3).tolist() == [True, True, False, True]


def test_over_several_tensors() -> None:
    scores = {key("b"): torch.tensor([[1.0, 4.0]]), key("a"): torch.tensor([4.0, 2.0, 5.0])}
    kept = keep_largest_overall(scores, 2)
    assert list(kept) == list(scores)
    assert kept[key("b")].tolist() == [[False, True]]  # the tie: first tensor first
    assert kept[key("a")].tolist() == [False, False, True]
    assert keep_largest_overall({}, 0) == {}


def test_a_cut_leaves_exact_zeros() -> None:
    values = torch.tensor([-1.0, torch.nan, -torch.inf, 2.0])
    form = cut(values, torch.tensor([False, False, False, True]))
    assert form.values.numpy().tobytes() == torch.tensor([0.0, 0.0, 0.0, 2.0]).numpy().tobytes()
    assert form.nonzeros == 1
