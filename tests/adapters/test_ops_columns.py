"""Columns added up into images, and determinants."""

import random
from typing import Any

import numpy as np
import torch

from beside_reference import reference
from beside_runtime import Row, check, prepared, row
from calculus import check_gradient
from one_node import Array, make

dice = random.Random(0)
rng = np.random.default_rng(0)


def drawn_col2im(rank: int) -> Row:
    image = [dice.randint(3, 6) for _ in range(rank)]
    block = [dice.randint(1, 3) for _ in range(rank)]
    strides = [dice.randint(1, 2) for _ in range(rank)]
    pads = [dice.randint(0, 1) for _ in range(2 * rank)]
    fits = [2 * (size - 1) + 1 <= whole for size, whole in zip(block, image, strict=True)]
    dilations = [dice.randint(1, 2) if fit else 1 for fit in fits]
    counts = [
        (image[a] + pads[a] + pads[a + rank] - (block[a] - 1) * dilations[a] - 1) // strides[a] + 1
        for a in range(rank)
    ]
    shape = (2, 3 * int(np.prod(block)), int(np.prod(counts)))
    x = rng.standard_normal(shape).astype(np.float32)
    how: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads": pads}
    return row("Col2Im", 18, x, np.array(image), np.array(block), **how)


def test_columns_of_images_answer_as_onnxruntime() -> None:
    dice.seed(0)
    for _ in range(50):
        check(drawn_col2im(2))


def test_columns_of_any_number_of_axes_add_up() -> None:
    """Against the reference: beside images onnxruntime loses entries of dilated blocks."""
    dice.seed(0)
    for rank in (1, 2, 3) * 10:
        chosen = drawn_col2im(rank)
        (result,), (expected,) = prepared(chosen).run(), reference(chosen)
        assert result is not None
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5, err_msg=str(chosen))


def test_whole_numbers_add_up_exactly() -> None:
    x = np.array([[[2**53, 1], [1, 5]]])
    _, node = make("Col2Im", [x, np.array([3]), np.array([2])], version=18)
    (result,) = node.run()
    assert result is not None
    assert result.tolist() == [[[2**53, 2, 5]]]


def check_determinant(x: Array) -> None:
    check(row("Det", 11, x))


def test_determinants_answer_as_onnxruntime() -> None:
    for shape in [(1, 1), (3, 3), (2, 4, 4), (2, 3, 5, 5)]:
        check_determinant(rng.standard_normal(shape).astype(np.float32))
    check_determinant(np.zeros((2, 3, 3), np.float32))


def test_determinants_of_half_precision_are_computed_in_float32() -> None:
    x = rng.standard_normal((3, 4, 4)).astype(np.float16)
    _, node = make("Det", [x], version=22)
    (result,) = node.run()
    assert result is not None
    assert result.dtype == torch.float16
    np.testing.assert_allclose(result.float(), np.linalg.det(x.astype(float)), rtol=1e-3)


def test_determinants_have_a_gradient() -> None:
    _, node = make("Det", [rng.standard_normal((2, 3, 3))], version=11)
    assert check_gradient(node, [0])
