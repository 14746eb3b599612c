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
from onnxpress.storage import has_grid, narrow, representable, rounding, through
from onnxpress_adapters.errors import StepError
from onnxpress_adapters.network import import_network
from onnxpress_adapters.weights import Dense, WeightKey
from onnxpress_exporters.values import Half, Palette, Plain, Scaled, Storage, rounded
from small_models import value

WEIGHT = WeightKey((), "w")
CPU = torch.device("cpu")
STORAGES: dict[str, Storage] = {
    "plain": Plain(),
    "half": Half(),
    "one scale": Scaled(np.array(0.013, np.float32)),
    "a scale per row": Scaled(np.linspace(0.01, 0.03, 6)[:, None].astype(np.float16)),
    "palette": Palette(np.linspace(-2, 2.3, 16).astype(np.float32)),
    "neighbours": Palette(np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.6], "f")),
}


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
    found = through(values, rounding(Scaled(np.array(0.5, np.float32)), CPU))
    assert found.tolist() == [0.5, 1.5]
    (gradient,) = torch.autograd.grad((found * torch.tensor([2.0, 5.0])).sum(), [values])
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", STORAGES)
def test_tensors_are_rounded_to_the_bits_of_the_file(name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    drawn = np.where(rng.random((6, 50)) < 0.3, 0.0, rng.normal(size=(6, 50)))
    values: np.ndarray = drawn.astype(dtype)
    values[0, :5] = 1e-9, -1e-9, 1e9, -1e9, -0.0
    values[1, :5] = 0.019, -0.0325, 0.0065, 0.15, 0.55  # at and about the borders
    storage = STORAGES[name]
    found = rounding(storage, CPU)(torch.tensor(values)).numpy()
    assert found.dtype == dtype
    assert found.tobytes() == rounded(values, storage).tobytes()


def test_a_step_that_rounds_to_what_was_there_changed_nothing() -> None:
    single, before = problem(normal(3, 2))
    coarse = checked(nudge, before.stored_as({WEIGHT: Scaled(np.array(0.25, "f"))}), single)
    assert checked(nudge, coarse, single).weights[WEIGHT] is coarse.weights[WEIGHT]


def test_a_step_is_rounded_to_how_its_weight_is_stored() -> None:
    single, before = problem(normal(3, 2))
    coarse = before.stored_as({WEIGHT: Scaled(np.array(0.25, np.float16))})
    after = checked(nudge, coarse, single)
    assert after.storage == coarse.storage
    found = after.weights[WEIGHT].values
    assert torch.equal(found, (4 * before.weights[WEIGHT].values).round() / 4)
    again = checked(nudge, after.stored_as({WEIGHT: Plain()}), single).weights[WEIGHT].values
    assert torch.equal(again, found + 1e-5)


def test_only_steps_of_a_size_make_a_grid() -> None:
    single, before = problem(normal(3, 2))
    grids = {name: has_grid(before.stored_as({WEIGHT: s}), single) for name, s in STORAGES.items()}
    assert [name for name, found in grids.items() if not found] == ["plain", "half"]


def test_only_free_weights_are_stored_in_another_way() -> None:
    _, before = problem(normal(3, 2))
    with pytest.raises(StepError, match="'w' is not free: a step may not say how it is stored"):
        replace(before, free=frozenset()).stored_as({WEIGHT: Half()})
