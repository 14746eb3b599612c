"""Compress, NonZero and Unique, where the node cases do not reach."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from beside_runtime import Row, check, row
from calculus import check_gradient
from one_node import Array, make

dice = random.Random(0)
rng = np.random.default_rng(0)
KINDS = (np.float32, np.float64, np.int8, np.int64)


def whole(rank: int) -> Array:
    shape = [dice.randint(1, 4) for _ in range(rank)]
    return rng.integers(-1, 2, shape).astype(dice.choice(KINDS))


def drawn_unique() -> Row:
    rank = dice.randint(1, 3)
    how: dict[str, Any] = {"sorted": dice.randint(0, 1)}
    if dice.random() < 0.6:
        how["axis"] = dice.randint(-rank, rank - 1)
    return row("Unique", 11, whole(rank), outputs=4, **how)


def drawn_compress() -> Row:
    rank = dice.randint(1, 3)
    x = whole(rank).astype(np.float32)
    if dice.random() < 0.4:
        return row("Compress", 11, x, rng.random(dice.randint(0, x.size)) < 0.5)
    axis = dice.randint(-rank, rank - 1)
    return row("Compress", 11, x, rng.random(dice.randint(0, x.shape[axis])) < 0.5, axis=axis)


def drawn_nonzero() -> Row:
    return row("NonZero", 13, whole(dice.randint(0, 3)).astype(np.float32))


DRAWS = {"compress": drawn_compress, "nonzero": drawn_nonzero, "unique": drawn_unique}


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_answers_as_onnxruntime(kind: str) -> None:
    dice.seed(kind)
    for _ in range(100):
        check(DRAWS[kind](), rtol=0, atol=0)


def outputs(operator: str, *inputs: Array, count: int = 1, **attributes: Any) -> list[torch.Tensor]:
    _, node = make(operator, inputs, attributes, version=13, outputs=count)
    return [value for value in node.run() if value is not None]


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_types_torch_only_stores_are_compared_and_moved(kind: Any) -> None:
    top = int(np.iinfo(kind).max)
    x = np.array([top, 0, top - 1, top], kind)
    entries, first, inverse, counts = outputs("Unique", x, count=4)
    assert entries.tolist() == [0, top - 1, top]
    assert (first.tolist(), counts.tolist()) == ([1, 2, 0], [1, 1, 2])
    assert inverse.tolist() == [2, 0, 1, 2]
    assert outputs("Compress", x, np.array([True]))[0].tolist() == [top]
    assert outputs("NonZero", x)[0].tolist() == [[0, 2, 3]]


def test_large_whole_numbers_differ_by_one() -> None:
    x = np.array([2**60 + 1, 2**60])
    assert outputs("Unique", x, count=4)[0].tolist() == [2**60, 2**60 + 1]


def test_truth_values_and_words_of_16_bits_are_unique() -> None:
    assert outputs("Unique", np.array([True, False, True]), count=4)[0].tolist() == [False, True]
    halves = np.array([[1.5, 2], [1.5, 2]], np.float16)
    entries = outputs("Unique", halves, count=4, axis=0)[0]
    assert entries.dtype == torch.float16
    assert entries.tolist() == [[1.5, 2]]


def test_what_is_picked_keeps_its_gradient() -> None:
    x = np.array([[3.0, 1.0], [2.0, 4.0], [0.0, 9.0]])
    _, node = make("Compress", [x, np.array([True, False, True])], {"axis": 0})
    assert check_gradient(node, [0])
    _, node = make("Unique", [x], {"sorted": 0}, outputs=4)
    assert check_gradient(node, [0])
