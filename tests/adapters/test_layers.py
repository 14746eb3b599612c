"""A layer's matrix times its columns is what the node computes, bias aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from hand_built import Array, asked, build, draw, graph, normal, op
from onnxpress_adapters.layers import Layer, layers_of
from onnxpress_adapters.network import import_network
from small_models import branching, constant, perceptron, value


class Row(NamedTuple):
    """A node with a weight."""

    operator: str
    reads: str
    weight: tuple[int, ...]
    given: tuple[int, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        made = f"{self.operator}({self.reads}) {self.weight} {self.given} {dict(self.attributes)}"
        return made.replace(" ", "")


def row(
    operator: str, reads: str, weight: tuple[int, ...], given: tuple[int, ...], **attributes: Any
) -> Row:
    return Row(operator, reads, weight, given, attributes)


PRODUCTS = [
    row("MatMul", "x w", (5, 3), (4, 5)),
    row("MatMul", "x w", (5, 3), (2, 4, 5)),
    row("MatMul", "x w", (5, 3), (5,)),
    row("MatMul", "w x", (3, 5), (5, 4)),
    row("MatMul", "w x", (3, 5), (2, 5, 4)),
    row("MatMul", "w x", (3, 5), (5,)),
    row("MatMul", "x w", (2, 5, 3), (2, 4, 5)),
    row("MatMul", "x w", (2, 5, 3), (4, 5)),
    row("MatMul", "x w", (2, 5, 3), (5,)),
    row("MatMul", "x w", (2, 5, 3), (6, 2, 4, 5)),
    row("MatMul", "x w", (1, 5, 3), (6, 4, 5)),
    row("MatMul", "w x", (2, 3, 5), (2, 5, 4)),
    row("MatMul", "w x", (2, 3, 5), (7, 2, 5, 4)),
    row("MatMul", "w x", (6, 2, 3, 5), (2, 5, 4)),
    row("MatMul", "x w", (2, 1, 5, 3), (2, 6, 4, 5)),
    row("MatMul", "w x", (1, 2, 3, 5), (6, 1, 5, 4)),
    row("MatMul", "w x", (2, 1, 3, 5), (7, 1, 6, 5, 4)),
]

GEMMS = [
    row("Gemm", "x w", (3, 5) if b else (5, 3), (5, 4) if a else (4, 5), transA=a, transB=b)
    for a in (0, 1)
    for b in (0, 1)
] + [
    row("Gemm", "w x", (5, 3) if a else (3, 5), (4, 5) if b else (5, 4), transA=a, transB=b)
    for a in (0, 1)
    for b in (0, 1)
]

CONVOLUTIONS = [
    row("Conv", "x w", (4, 3, 3), (2, 3, 9)),
    row("Conv", "x w", (4, 3, 3), (2, 3, 9), strides=[2], dilations=[2], pads=[1, 3]),
    row("Conv", "x w", (4, 3, 3, 2), (2, 3, 6, 7)),
    row("Conv", "x w", (4, 3, 3, 2), (2, 3, 6, 7), pads=[1, 0, 2, 1], strides=[2, 1]),
    row("Conv", "x w", (4, 3, 3, 2), (2, 3, 9, 7), dilations=[2, 3], strides=[1, 2]),
    row("Conv", "x w", (6, 2, 3, 3), (2, 4, 5, 5), group=2, pads=[1, 1, 1, 1]),
    row("Conv", "x w", (4, 1, 3, 3), (1, 4, 5, 5), group=4),
    row("Conv", "x w", (8, 1, 2, 2), (1, 4, 5, 5), group=4, strides=[2, 2]),
    row("Conv", "x w", (4, 3, 3, 2), (2, 3, 6, 7), auto_pad="SAME_UPPER", strides=[2, 2]),
    row("Conv", "x w", (4, 3, 2, 4), (2, 3, 6, 7), auto_pad="SAME_LOWER", strides=[1, 2]),
    row("Conv", "x w", (4, 3, 3, 2), (2, 3, 6, 7), auto_pad="VALID"),
    row("Conv", "x w", (4, 3, 1, 1), (2, 3, 3, 3)),
    row("Conv", "x w", (4, 2, 2, 2, 3), (1, 4, 4, 3, 5), group=2, pads=[0, 1, 0, 1, 1, 2]),
    row("ConvTranspose", "x w", (3, 4, 3), (2, 3, 5)),
    row("ConvTranspose", "x w", (3, 4, 3), (2, 3, 5), strides=[2], output_padding=[1]),
    row("ConvTranspose", "x w", (3, 4, 3, 2), (2, 3, 4, 5), pads=[1, 0, 2, 1], strides=[2, 3]),
    row("ConvTranspose", "x w", (4, 3, 3, 3), (1, 4, 4, 4), group=2, dilations=[1, 2]),
    row(
        "ConvTranspose",
        "x w",
        (4, 2, 3, 3),
        (2, 4, 3, 4),
        group=4,
        strides=[3, 2],
        pads=[1, 1, 0, 1],
        output_padding=[2, 1],
    ),
    row("ConvTranspose", "x w", (3, 2, 3, 3), (1, 3, 4, 4), strides=[2, 2], auto_pad="SAME_UPPER"),
    row("ConvTranspose", "x w", (3, 2, 3, 3), (1, 3, 4, 4), strides=[2, 2], output_shape=[9, 8]),
    row("ConvTranspose", "x w", (2, 2, 2, 2, 2), (1, 2, 3, 3, 2), strides=[1, 2, 2]),
]


def expected(layer: Layer, made: Tensor) -> Tensor:
    """Bring a node's result to ``[groups, rows, count]``, in the order of the columns."""
    if layer.node.operator in ("Conv", "ConvTranspose"):
        places = made.movedim(1, -1)
        split = places.reshape(-1, layer.groups, layer.rows)
        return split.permute(1, 2, 0)
    flipped = layer.slot == 0
    if layer.node.operator == "MatMul":
        first = made.ndim - len(layer.shape)
        # Where the weight has a 1, one matrix serves all, and the results stand beside each other.
        shared = [axis for axis, size in enumerate(layer.shape[:-2], start=first) if size == 1]
        made = made.movedim(shared, list(range(first, first + len(shared))))
        made = made.reshape(-1, layer.groups, *made.shape[-2:])
    else:
        made = made[None, None]
    made = made if flipped else made.transpose(-1, -2)
    return made.permute(1, 2, 0, 3).flatten(2)


@pytest.mark.parametrize("case", PRODUCTS + GEMMS + CONVOLUTIONS, ids=str)
def test_matrix_times_columns_is_what_the_node_computes(case: Row) -> None:
    node = op(case.operator, case.reads, "y", "layer", **case.attributes)
    w, x = normal(*case.weight), draw(*case.given, seed=1)
    shape = _result(case)
    made = build([node], [value("x", *case.given)], [value("y", *shape)], {"w": w})
    network, weights = import_network(made)
    (layer,) = network.layers
    trace = network.run(weights, [x], watch=layer.sites)
    ((seen,),) = trace.watched
    matrix, found = layer.matrix(weights[layer.key]), layer.columns_of(seen)
    assert matrix.shape == (layer.groups, layer.rows, layer.columns)
    assert found.shape == (layer.groups, found.shape[1], layer.columns)
    assert torch.equal(layer.weight(matrix), weights[layer.key])
    (theirs,) = asked(made, x.numpy())
    result = torch.from_numpy(theirs)
    if min(len(case.weight), len(case.given)) == 1:  # a vector is a row or a column
        result = result.unsqueeze(-1 if case.reads == "w x" else -2)
    wanted = expected(layer, result)
    torch.testing.assert_close(matrix @ found.transpose(1, 2), wanted, rtol=1e-4, atol=1e-4)


def _result(case: Row) -> list[str]:
    """Give as many open dimensions as the result has."""
    if case.operator != "MatMul":
        return [f"d{place}" for place in range(len(case.given))]
    vector = len(case.given) == 1
    rank = max(len(case.weight), len(case.given)) - vector
    return [f"d{place}" for place in range(rank)]


@pytest.mark.parametrize("case", PRODUCTS + GEMMS + CONVOLUTIONS, ids=str)
def test_samples_in_front_make_the_columns_of_all_of_them(case: Row) -> None:
    node = op(case.operator, case.reads, "y", "layer", **case.attributes)
    outputs = [value("y", *_result(case))]
    made = build([node], [value("x", *case.given)], outputs, {"w": normal(*case.weight)})
    network, weights = import_network(made)
    (layer,) = network.layers
    x = draw(3, *case.given, seed=1)
    ((seen,),) = network.batching.run(network, weights, [x], layer.sites).watched
    alone = []
    for sample in x:
        ((one,),) = network.run(weights, [sample], watch=layer.sites).watched
        alone.append(layer.columns_of(one))
    together = layer.columns_of(seen)
    assert together.shape[1] == sum(part.shape[1] for part in alone)
    torch.testing.assert_close(moment(together), sum(moment(part) for part in alone))


def moment(columns: Tensor) -> Tensor:
    return columns.transpose(1, 2) @ columns


def test_alpha_belongs_to_the_columns() -> None:
    node = op("Gemm", "x w c", "y", alpha=0.5, beta=2.0)
    made = build(
        [node], [value("x", 4, 5)], [value("y", 4, 3)], {"w": normal(5, 3), "c": normal(3)}
    )
    network, weights = import_network(made)
    (layer,) = network.layers
    x = draw(4, 5)
    torch.testing.assert_close(layer.columns_of(x), 0.5 * x[None])
    (y,) = network(weights, x)
    product = layer.matrix(weights[layer.key]) @ layer.columns_of(x).transpose(1, 2)
    torch.testing.assert_close(product[0].T + 2 * draw(3), y)


@pytest.mark.parametrize("limit", [1, 2, 7, 23, 24, 25, 1000])
@pytest.mark.parametrize("case", [CONVOLUTIONS[5], PRODUCTS[9], GEMMS[3]], ids=str)
def test_a_limit_keeps_evenly_spread_columns(case: Row, limit: int) -> None:
    node = op(case.operator, case.reads, "y", **case.attributes)
    outputs = [value("y", *_result(case))]
    made = build([node], [value("x", *case.given)], outputs, {"w": normal(*case.weight)})
    (layer,) = layers_of(made)
    every = layer.columns_of(draw(*case.given))
    count = every.shape[1]
    few = layer.columns_of(draw(*case.given), limit)
    assert few.shape == (layer.groups, min(limit, count), layer.columns)
    places = np.linspace(0, count - 1, min(limit, count)).astype(int)
    assert torch.equal(few, every[:, places])


def test_columns_know_nothing_of_the_weights_values_and_keep_the_type() -> None:
    (first, _) = layers_of(perceptron())
    assert first.columns_of(torch.zeros(2, 16, dtype=torch.float64)).dtype == torch.float64


def test_layers_stand_in_the_order_of_the_graph_with_their_sizes() -> None:
    first, second = layers_of(perceptron())
    assert [str(layer.key) for layer in (first, second)] == ["w1", "w2"]
    assert (first.groups, first.rows, first.columns) == (1, 32, 16)
    assert (second.rows, second.columns, second.slot) == (4, 32, 1)
    assert str(second.node) == "MatMul 'second'"
    assert second.sites == (((), 3, 1),)


def test_layers_in_bodies_know_their_path() -> None:
    for as_node in (False, True):
        paths = {
            site[0]
            for layer in layers_of(branching(normal(16, 4), as_node))
            for site in layer.sites
        }
        assert paths == {("choose[0].then_branch",), ("choose[0].else_branch",)}


def test_an_outer_weight_used_in_a_body_is_watched_there() -> None:
    taken = graph([op("MatMul", "x w", "a")], [], [value("a", 1, 2)])
    other = graph([op("Relu", "b", "c")], [], [value("c", 1, 2)])
    nodes = [constant("b", normal(1, 2)), op("If", "f", "y", then_branch=taken, else_branch=other)]
    inputs = [value("x", 1, 3), value("f", kind=9)]
    (layer,) = layers_of(build(nodes, inputs, [value("y", 1, 2)], {"w": normal(3, 2)}))
    assert layer.key.path == ()
    assert layer.sites == ((("If[1].then_branch",), 0, 1),)


def weightless(nodes: list[Any], arrays: Mapping[str, Array]) -> tuple[Layer, ...]:
    made = build(nodes, [value("x", 4, 4)], [value("y", "a", "b")], arrays)
    return layers_of(made)


@pytest.mark.parametrize(
    "nodes",
    [
        [op("Transpose", "w", "t"), op("MatMul", "x t", "h"), op("MatMul", "h w", "y")],
        [op("MatMul", "x w", "h"), op("MatMul", "w h", "y")],
        [op("Gemm", "x w", "h"), op("Gemm", "h w", "y", transB=1)],
        [op("Slice", "w begin end", "v"), op("MatMul", "x v", "y")],
    ],
    ids=["indirect once", "both sides", "transposed once", "in part"],
)
def test_uses_that_differ_have_no_view(nodes: list[Any]) -> None:
    bounds = {"begin": np.array([0]), "end": np.array([2])}
    assert weightless(nodes, {"w": normal(4, 4), **bounds}) == ()


def test_whole_numbers_around_another_zero_have_no_view() -> None:
    nodes = [op("DequantizeLinear", "w s z", "f"), op("MatMul", "x f", "y")]
    arrays: dict[str, Array] = {
        "w": np.ones((4, 4), np.int8),
        "s": np.array(1, np.float32),
        "z": np.array(3, np.int8),
    }
    assert weightless(nodes, arrays) == ()


@pytest.mark.parametrize(
    "attributes",
    [{"group": 0}, {"group": -2}, {"group": 3}, {"kernel_shape": [5, 5]}, {"strides": [1]}],
    ids=str,
)
def test_a_convolution_that_does_not_fit_its_weight_has_no_view(attributes: dict[str, Any]) -> None:
    node = op("Conv", "x w", "y", **attributes)
    outputs = [value("y", *"abcd")]
    made = build([node], [value("x", 1, 4, 6, 6)], outputs, {"w": normal(4, 1, 2, 2)})
    assert layers_of(made) == ()


def test_an_empty_weight_has_no_view() -> None:
    made = build(
        [op("MatMul", "x w", "y")], [value("x", 4, 0)], [value("y", 4, 2)], {"w": normal(0, 2)}
    )
    assert layers_of(made) == ()
