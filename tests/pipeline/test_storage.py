"""A state holds what the file can hold."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from hand_built import build, normal, op
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import checked
from onnxpress.storage import narrow, representable, through
from onnxpress_adapters.network import import_network
from onnxpress_adapters.weights import Dense, WeightKey
from small_models import value

WEIGHT = WeightKey((), "w")


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_halves_are_rounded_as_numpy_does(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    values = torch.tensor([1.0001, -3.14159, 1e-9])
    wanted = values.numpy().astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(representable(values, dtype).numpy(), wanted)


def test_whole_numbers_are_rounded_to_even_and_kept_in_range() -> None:
    values = torch.tensor([0.5, 1.5, -300.0, 300.0])
    assert representable(values, np.dtype("int8")).tolist() == [0.0, 2.0, -128.0, 127.0]
    assert representable(values, np.dtype("uint8")).tolist() == [0.0, 2.0, 0.0, 255.0]


def test_what_holds_everything_is_handed_back() -> None:
    values = torch.tensor([1.0 / 3])
    assert representable(values, np.dtype("float32")) is values


def test_the_gradient_goes_through_the_rounding() -> None:
    values = torch.tensor([0.3, 1.7], requires_grad=True)
    rounded = through(values, np.dtype("int8"))
    assert rounded.tolist() == [0.0, 2.0]
    (gradient,) = torch.autograd.grad((rounded * torch.tensor([2.0, 5.0])).sum(), [values])
    assert gradient.tolist() == [2.0, 5.0]


def problem(weight: np.ndarray) -> tuple[Problem, State]:
    nodes = [op("Cast", "w", "wide", to=1), op("MatMul", "x wide", "y")]
    made = build(nodes, [value("x", "n", 3)], [value("y", "n", 2)], {"w": weight})
    network, weights = import_network(made)
    x = [torch.from_numpy(normal(8, 1, 3))]
    found = Problem(network, weights, x, x, (0,), None, torch.device("cpu"), 0)
    form = Dense(weights[WEIGHT], torch.ones(3, 2, dtype=torch.bool))
    return found, State({WEIGHT: form}, {}, frozenset({WEIGHT}))


def nudge(state: State, problem: Problem, /) -> State:
    form = state.weights[WEIGHT]
    return state.with_weights({WEIGHT: Dense(form.values + 1e-5, form.support)})


def test_a_step_is_rounded_to_the_type_in_the_file() -> None:
    half, before = problem(normal(3, 2).astype(np.float16))
    assert narrow(half) == {WEIGHT: np.dtype("float16")}
    after = checked(nudge, before, half).weights[WEIGHT].values
    assert torch.equal(after, after.half().float())
    single, before = problem(normal(3, 2))
    assert narrow(single) == {}
    after = checked(nudge, before, single).weights[WEIGHT].values
    assert torch.equal(after, before.weights[WEIGHT].values + 1e-5)


def test_what_a_step_leaves_alone_stays_the_object_it_was() -> None:
    half, before = problem(normal(3, 2).astype(np.float16))
    after = checked(lambda state, problem: replace(state), before, half)
    assert after.weights[WEIGHT] is before.weights[WEIGHT]
