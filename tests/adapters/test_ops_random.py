"""Random numbers repeat, follow the reference where it has a seed, and are what they should be."""

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto

from beside_reference import reference
from beside_runtime import prepared, row
from calculus import check_meta, check_vmap
from one_node import Array, make

rng = np.random.default_rng(0)


def run(operator: str, *inputs: Array, **attributes: Any) -> Array:
    _, node = make(operator, inputs, attributes, version=22)
    (result,) = node.run()
    assert result is not None
    return result.numpy()


CHANCES = rng.random((3, 40)).astype(np.float32)
ROWS = [
    row("RandomNormal", 22, shape=[2, 3], seed=7.0, mean=3.0, scale=2.0),
    row("RandomNormal", 22, shape=[5], seed=-1.5, dtype=TensorProto.DOUBLE),
    row("RandomNormalLike", 22, np.zeros((2, 3), np.float32), seed=7.0, mean=3.0, scale=2.0),
    row("RandomNormalLike", 22, np.zeros(4), seed=0.0, dtype=TensorProto.FLOAT),
    row("RandomUniform", 22, shape=[2, 3], seed=7.0, low=-3.0, high=2.0),
    row("RandomUniformLike", 22, np.zeros((2, 3), np.float32), seed=7.0, high=9.0),
    row("Bernoulli", 22, CHANCES, seed=5.0),
    row("Bernoulli", 22, CHANCES, seed=5.0, dtype=TensorProto.BOOL),
]


@pytest.mark.parametrize("chosen", [r for r in ROWS if r.attributes["seed"] >= 0], ids=str)
def test_a_seed_draws_what_the_reference_draws(chosen: Any) -> None:
    (result,), (expected,) = prepared(chosen).run(), reference(chosen)
    assert result is not None
    assert result.numpy().dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chosen", ROWS, ids=str)
def test_numbers_repeat_and_need_no_values(chosen: Any) -> None:
    node = prepared(chosen)
    (first,), (second,) = node.run(), node.run()
    assert first is not None
    assert second is not None
    assert first.tolist() == second.tolist()
    check_vmap(node)
    check_meta(node)


def test_without_a_seed_the_name_decides() -> None:
    first = run("RandomNormal", shape=[8])
    assert first.tolist() == run("RandomNormal", shape=[8]).tolist()
    assert first.tolist() != run("RandomNormal", shape=[8], seed=1.0).tolist()


def test_certain_outcomes_are_certain() -> None:
    chances = np.array([0, 1] * 200, np.float32)
    assert run("Bernoulli", chances).tolist() == chances.tolist()
    sure = np.where(np.eye(4) > 0, 0, -np.inf).astype(np.float32)
    assert run("Multinomial", sure, sample_size=3).tolist() == [[i] * 3 for i in range(4)]


def test_classes_come_as_often_as_their_probabilities_say() -> None:
    chances = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]], np.float32)
    with np.errstate(divide="ignore"):
        logs = np.log(chances) + np.array([[3.0], [-2.0]], np.float32)
    result = run("Multinomial", logs, sample_size=4000, dtype=TensorProto.INT64)
    assert result.dtype == np.int64
    shares = np.stack([np.bincount(line, minlength=3) / 4000 for line in result])
    np.testing.assert_allclose(shares, chances, atol=0.03)
    assert run("Multinomial", logs).dtype == np.int32


def test_chances_are_drawn_as_often_as_they_say() -> None:
    chances = np.repeat(np.array([[0.1], [0.5], [0.8]], np.float32), 4000, 1)
    np.testing.assert_allclose(run("Bernoulli", chances).mean(1), chances[:, 0], atol=0.03)


def test_classes_are_drawn_without_values() -> None:
    node = prepared(row("Multinomial", 7, CHANCES, sample_size=4))
    check_vmap(node)
    check_meta(node)
    assert torch.vmap(lambda x: node.with_({0: x})[0])(torch.zeros(2, 3, 40)).shape == (2, 3, 4)
