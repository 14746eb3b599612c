"""Gradients through operators that have none of their own; results stay theirs."""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto
from torch import Tensor

from hand_built import Array, build, draw, key, normal, op, same_as_runtime
from onnxpress_adapters.network import import_network
from onnxpress_adapters.surrogates import SIGN_REACH
from small_models import value

W = key("w")
SCALE = np.array(0.25, np.float32)


def elementwise(*nodes: NodeProto, opset: int = 19, **constants: Array) -> ModelProto:
    """Give the model y = nodes(w x), entry by entry; the first node reads ``h``."""
    arrays = {"w": np.ones((1, 5), np.float32), **constants}
    made = [op("Mul", "x w", "h"), *nodes]
    return build(made, [value("x", 1, 5)], [value("y", 1, 5)], arrays, opset=opset, ir=10)


def slope(made: ModelProto, x: Tensor) -> tuple[Tensor, Tensor]:
    """Give the output, and the derivative of its sum in each entry of ``h``."""
    network, weights = import_network(made)
    leaf = weights[W].clone().requires_grad_()
    (found,) = network.with_surrogates()({**weights, W: leaf}, x)
    (plain,) = network(weights, x)
    assert torch.equal(found.detach(), plain)
    (grad,) = torch.autograd.grad(found.sum(), [leaf])
    return found.detach(), grad / x


@pytest.mark.parametrize("operator", ["Round", "Floor", "Ceil"])
def test_what_is_rounded_passes_the_gradient_on(operator: str) -> None:
    assert torch.equal(slope(elementwise(op(operator, "h", "y")), draw(1, 5))[1], torch.ones(1, 5))


def test_a_sign_passes_it_on_near_zero_in_units_of_the_tensor() -> None:
    x = torch.tensor([[-4.0, -0.5, 0.25, 1.0, 3.0]])
    size = float(x.square().mean().sqrt())
    _, found = slope(elementwise(op("Sign", "h", "y")), x)
    assert torch.allclose(found, (x.abs() <= SIGN_REACH * size) / size)
    assert found[0].tolist().count(0.0) == 1


@pytest.mark.parametrize(
    ("operator", "needed"), [("Sign", True), ("Round", True), ("Relu", False), ("Tanh", False)]
)
def test_a_network_says_whether_it_needs_them(operator: str, needed: bool) -> None:
    network, _ = import_network(elementwise(op(operator, "h", "y")))
    assert network.needs_surrogates == needed


def test_a_sign_of_zeros_passes_nothing() -> None:
    network, weights = import_network(elementwise(op("Sign", "h", "y")))
    leaf = torch.zeros(1, 5, requires_grad=True)
    (found,) = network.with_surrogates()({**weights, W: leaf}, draw(1, 5))
    assert torch.equal(torch.autograd.grad(found.sum(), [leaf])[0], torch.zeros(1, 5))


@pytest.mark.parametrize("zero", [np.array(3, np.int8), np.array(0, np.uint8)])
def test_quantisation_passes_it_on_within_its_range(zero: Array) -> None:
    nodes = [op("QuantizeLinear", "h s z", "q"), op("DequantizeLinear", "q s z", "y")]
    made = elementwise(*nodes, s=SCALE, z=zero)
    x = torch.tensor([[-100.0, -1.0, 0.3, 20.0, 100.0]])
    low, high = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
    place = x / 0.25 + float(zero)
    inside = (place > low - 0.5) & (place < high + 0.5)
    assert 0 < int(inside.sum()) < 5
    assert torch.equal(slope(made, x)[1], inside.float())


def test_channels_have_their_own_scales() -> None:
    nodes = [op("QuantizeLinear", "h s z", "q"), op("DequantizeLinear", "q s z", "y")]
    scales = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    made = elementwise(*nodes, s=scales, z=np.zeros(5, np.int8))
    assert torch.allclose(slope(made, draw(1, 5))[1], torch.ones(1, 5))


def test_narrow_integers_have_a_narrow_range() -> None:
    nodes = [op("QuantizeLinear", "h s z", "q"), op("DequantizeLinear", "q s z", "y")]
    made = elementwise(*nodes, s=SCALE, z=np.array(0, ml_dtypes.int4), opset=21)
    _, found = slope(made, torch.tensor([[-3.0, -2.0, 1.0, 1.7, 2.0]]))
    assert found[0].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


READERS = {
    "QLinearMatMul": [
        op("QLinearMatMul", "q s z b s z s z", "r"),
        op("DequantizeLinear", "r s z", "y"),
    ],
    "MatMulInteger": [op("MatMulInteger", "q b z", "r"), op("Cast", "r", "y", to=1)],
    "Div": [op("Div", "q two", "r"), op("Cast", "r", "y", to=1)],
    "Transpose": [op("Transpose", "q", "r", perm=[1, 0]), op("DequantizeLinear", "r s z", "y")],
}


@pytest.mark.parametrize("reader", READERS)
def test_whole_numbers_stay_whole_for_their_readers(reader: str) -> None:
    arrays: dict[str, Array] = {
        "w": normal(4, 4),
        "b": np.random.default_rng(0).integers(-100, 100, (4, 4)).astype(np.int8),
        "s": np.array(0.05, np.float32),
        "z": np.array(3, np.int8),
        "two": np.array(2, np.int8),
    }
    nodes = [op("MatMul", "x w", "h"), op("QuantizeLinear", "h s z", "q"), *READERS[reader]]
    read = {name for node in nodes for name in node.input}
    made = build(
        nodes,
        [value("x", 4, 4)],
        [value("y", 4, 4)],
        {name: array for name, array in arrays.items() if name in read},
        opset=19,
        ir=9,
    )
    network, weights = import_network(made)
    x = draw(4, 4)
    assert torch.equal(network.with_surrogates()(weights, x)[0], network(weights, x)[0])
    same_as_runtime(made, normal(4, 4), network=network.with_surrogates(), atol=0.051)


def test_samples_side_by_side_give_the_gradient_of_each() -> None:
    nodes = [op("MatMul", "x w", "h"), op("Sign", "h", "y")]
    network, weights = import_network(
        build(nodes, [value("x", 1, 6)], [value("y", 1, 6)], {"w": normal(6, 6)})
    )
    samples, grads = draw(5, 1, 6, seed=2), []
    for many in (torch.vmap, lambda run: lambda xs: torch.stack([run(x) for x in xs])):
        leaf = weights[W].clone().requires_grad_()
        run = partial(network.with_surrogates(), {W: leaf})
        answers = many(lambda x, run=run: run(x)[0])(samples)
        grads.append(torch.autograd.grad(answers.square().sum() + answers.sum(), [leaf])[0])
    assert bool(grads[0].any())
    side_by_side, one_by_one = grads
    assert torch.allclose(side_by_side, one_by_one, atol=1e-6)


def test_without_surrogates_nothing_passes() -> None:
    network, weights = import_network(elementwise(op("Round", "h", "y")))
    leaf = weights[W].clone().requires_grad_()
    (found,) = network({**weights, W: leaf}, draw(1, 5))
    assert torch.equal(torch.autograd.grad(found.sum(), [leaf])[0], torch.zeros(1, 5))


def test_infinities_stay_what_they_are() -> None:
    network, weights = import_network(elementwise(op("Round", "h", "y")))
    x = torch.tensor([[float("inf"), -float("inf"), float("nan"), 2.5, -0.4]])
    (found,) = network.with_surrogates()(weights, x)
    assert found.isnan().tolist() == [[False, False, True, False, False]]
    assert found[0, :2].tolist() == x[0, :2].tolist()


def test_many_samples_at_once_give_what_each_gives() -> None:
    nodes = [op("MatMul", "x w", "h"), op("Sign", "h", "s"), op("MatMul", "s v", "y")]
    arrays = {"w": normal(6, 6), "v": normal(6, 2, seed=1)}
    made = build(nodes, [value("x", 1, 6)], [value("y", 1, 2)], arrays)
    network, weights = import_network(made)
    samples = draw(7, 1, 6, seed=2)
    descending = network.proven(weights, [samples]).with_surrogates()
    leaf = weights[W].clone().requires_grad_()
    (found,) = descending.batched({**weights, W: leaf}, [samples])
    (wanted,) = network.batched(weights, [samples])
    assert torch.allclose(found, wanted)
    assert bool(torch.autograd.grad(found.square().sum(), [leaf])[0].any())


def test_a_root_of_zero_leaves_the_other_gradients_whole() -> None:
    nodes = [op("Mul", "h h", "q"), op("Sqrt", "q", "y")]
    network, weights = import_network(elementwise(*nodes))
    leaf = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.0]], requires_grad=True)
    (found,) = network({**weights, W: leaf}, torch.ones(1, 5))
    (grad,) = torch.autograd.grad(found.sum(), [leaf])
    assert grad.tolist() == [[0.0, 1.0, 1.0, -1.0, 0.0]]
    assert found.tolist() == [[0.0, 1.0, 2.0, 1.0, 0.0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_follows_the_same_slopes() -> None:
    nodes = [
        op("QuantizeLinear", "h s z", "q"),
        op("DequantizeLinear", "q s z", "r"),
        op("Sign", "r", "y"),
    ]
    made = elementwise(*nodes, s=SCALE, z=np.array(0, np.int8))
    network, weights = import_network(made)
    grads = []
    for device in ("cpu", "cuda"):
        held = {name: value.to(device) for name, value in weights.items()}
        leaf = held[W].clone().requires_grad_()
        (found,) = network.with_surrogates()({**held, W: leaf}, draw(1, 5).to(device))
        grads.append(torch.autograd.grad(found.sum(), [leaf])[0].cpu())
    here, there = grads
    assert torch.allclose(here, there)
