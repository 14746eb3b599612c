"""The way from a constant to its slot: walked by running the model, and walked back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto

from hand_built import Array, build, draw, normal, op
from onnxpress_adapters.layers import Layer, layer_of
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import prunable, quantised
from onnxpress_adapters.weights import WeightKey
from small_models import value

WAYS: dict[str, tuple[tuple[int, ...], list[NodeProto], dict[str, Any]]] = {
    "directly": ((4, 6), [op("Identity", "w", "v")], {}),
    "Transpose": ((6, 4), [op("Transpose", "w", "v")], {}),
    "Transpose twice": (
        (4, 6),
        [op("Transpose", "w", "a"), op("Transpose", "a", "v", perm=[1, 0])],
        {},
    ),
    "Reshape": ((2, 2, 6), [op("Reshape", "w to", "v")], {"to": np.array([4, 6])}),
    "Squeeze and Transpose": (
        (6, 1, 4),
        [op("Squeeze", "w one", "a"), op("Transpose", "a", "v", perm=[1, 0])],
        {"one": np.array([1])},
    ),
    "Slices put together again": (
        (4, 6),
        [
            op("Slice", "w zero two one", "a"),
            op("Slice", "w two far one", "b"),
            op("Concat", "b a", "v", axis=1),
        ],
        {"zero": np.array([0]), "two": np.array([2]), "far": np.array([9]), "one": np.array([1])},
    ),
    "Split and Concat": (
        (6, 6),
        [
            op("Split", "w sizes", "a b", axis=0),
            op("Concat", "b a", "c", axis=0),
            op("Reshape", "c to", "v"),
        ],
        {"sizes": np.array([1, 5]), "to": np.array([4, 9])},
    ),
    "Cast to double": ((4, 6), [op("Cast", "w", "v", to=11)], {}),
}
"""Shape of the constant, the nodes from ``w`` to ``v``, and further constants."""


def made(way: str) -> Any:
    shape, nodes, arrays = WAYS[way]
    size = 9 if way == "Split and Concat" else 6
    kind = 11 if way == "Cast to double" else 1
    product = op("MatMul", "x v", "y", "product")
    weights = {"w": normal(*shape), **arrays}
    inputs, outputs = [value("x", 3, 4, kind=kind)], [value("y", 3, size, kind=kind)]
    return build([*nodes, product], inputs, outputs, weights)


def layer(model: Any) -> Layer:
    (weight,) = prunable(model)
    found = layer_of(weight)
    assert isinstance(found, Layer)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_the_matrix_is_what_arrives_in_the_slot(way: str) -> None:
    model = made(way)
    network, weights = import_network(model)
    found = layer(model)
    weight = weights[found.key]
    x = draw(3, 4).to(torch.float64 if way == "Cast to double" else torch.float32)
    (y,) = network(weights, x)
    matrix = found.matrix(weight)
    assert matrix.shape == (1, found.rows, found.columns)
    torch.testing.assert_close(matrix[0].to(x.dtype) @ x.T, y.T)
    assert torch.equal(found.weight(matrix), weight)
    assert torch.equal(found.entries(matrix), weight)
    support = weight > 0
    assert torch.equal(found.matrix(support), matrix > 0)


def test_what_loses_or_doubles_entries_is_no_way() -> None:
    twice = [op("Concat", "w w", "v", axis=0)]
    beside = [op("Concat", "w u", "v", axis=0)]
    for nodes in (twice, beside):
        arrays = {"w": normal(2, 3), "u": normal(2, 3, seed=1)}
        used = {"w": arrays["w"]} if nodes is twice else arrays
        product = op("MatMul", "x v", "y")
        model = build([*nodes, product], [value("x", 1, 4)], [value("y", 1, 3)], used)
        for weight in prunable(model):
            assert layer_of(weight) == (
                "on its way through Concat entries are lost, doubled or joined"
            )


def test_a_shape_that_is_computed_is_no_way() -> None:
    nodes = [
        op("Shape", "x", "s"),
        op("Reshape", "w s", "v"),
        op("MatMul", "x v", "y"),
    ]
    model = build(nodes, [value("x", 2, 2)], [value("y", 2, 2)], {"w": normal(4, 1)})
    (weight,) = prunable(model)
    assert isinstance(layer_of(weight), str)


def quantised_model(scale: Array, axis: int = 1, zero: Array | None = None) -> Any:
    names = "q s" if zero is None else "q s z"
    nodes = [
        op("DequantizeLinear", names, "v", axis=axis),
        op("Transpose", "v", "t"),
        op("MatMul", "x t", "y"),
    ]
    arrays: dict[str, Any] = {
        "q": np.random.default_rng(0).integers(-9, 9, (6, 4)).astype(np.int8),
        "s": scale,
    }
    if zero is not None:
        arrays["z"] = zero
    return build(nodes, [value("x", 3, 4)], [value("y", 3, 6)], arrays)


@pytest.mark.parametrize(
    ("scale", "axis"),
    [
        (np.array(0.1, np.float32), 1),
        (np.linspace(0.1, 0.6, 6, dtype=np.float32), 0),
        (np.linspace(0.1, 0.4, 4, dtype=np.float32), 1),
    ],
    ids=["per tensor", "per row", "per column"],
)
def test_a_scale_belongs_to_the_matrix(scale: Array, axis: int) -> None:
    model = quantised_model(scale, axis)
    found = layer(model)
    assert quantised(model) == {found.key}
    network, weights = import_network(model)
    whole = weights[found.key]
    assert whole.dtype == torch.float32
    x = draw(3, 4)
    matrix = found.matrix(whole)
    torch.testing.assert_close(matrix[0] @ x.T, network(weights, x)[0].T)
    torch.testing.assert_close(found.weight(matrix), whole)
    assert torch.equal(
        found.entries(found.moves.forward(torch.ones(6, 4))[None].mT != 0), whole == whole
    )
    leaf = whole.clone().requires_grad_()
    (found_gradient,) = torch.autograd.grad(
        network({**weights, found.key: leaf}, x)[0].sum(), [leaf]
    )
    steps = torch.as_tensor(scale).reshape((-1, 1) if axis == 0 else (1, -1) if scale.ndim else ())
    torch.testing.assert_close(found_gradient, x.sum(0).expand(6, 4) * steps)


def test_a_zero_point_of_zeros_changes_nothing() -> None:
    scale = np.linspace(0.1, 0.6, 6, dtype=np.float32)
    assert quantised(quantised_model(scale, 0, np.zeros(6, np.int8)))
    assert not quantised(quantised_model(scale, 0, np.ones(6, np.int8)))


def test_whole_numbers_another_operator_reads_stay() -> None:
    model = quantised_model(np.array(0.1, np.float32))
    model.graph.node.append(op("MatMulInteger", "i q", "z"))
    model.graph.input.append(value("i", 1, 6, kind=3))
    model.graph.output.append(value("z", 1, 4, kind=6))
    (weight,) = prunable(model)
    assert weight.fixed == "MatMulInteger reads its whole numbers"
    assert weight.key == WeightKey((), "q")
