"""A layer's matrix times its columns is what the node computes, bias aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor

from hand_built import Array, asked, build, draw, graph, key, normal, op
from onnxpress_adapters.layers import Layer, layers_of
from onnxpress_adapters.network import import_network
from small_models import branching, constant, model, perceptron, value


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


def recurrent(operator: str, **attributes: Any) -> ModelProto:
    """One recurrent layer on ``x [5, 2, 3]`` (time, batch, features) with first states."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[operator]
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    first = attributes.get("layout", 0)
    states = (2, ways, 4) if first else (ways, 2, 4)
    arrays = {
        "w": normal(ways, gates * 4, 3),
        "r": normal(ways, gates * 4, 4, seed=1),
        "b": normal(ways, gates * 8, seed=2),
        "h": normal(*states, seed=3),
        "lengths": np.array([5, 3], np.int32),
    }
    node = op(operator, "x w r b lengths h", "y", hidden_size=4, **attributes)
    shape = (2, 5, 3) if first else (5, 2, 3)
    return build([node], [value("x", *shape)], [value("y", *"abcd")], arrays)


RECURRENT = [
    ("RNN", {}),
    ("RNN", {"direction": "reverse"}),
    ("LSTM", {"direction": "bidirectional"}),
    ("LSTM", {"direction": "reverse", "layout": 1}),
    ("GRU", {"direction": "bidirectional"}),
    ("GRU", {"direction": "bidirectional", "linear_before_reset": 1}),
    ("GRU", {"layout": 1}),
]


def step_by_step(made: ModelProto, x: Tensor) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Run a layer one step at a time and give the columns each direction's weights met.

    The states come from onnxruntime-checked outputs of the whole layer, so only which state stands
    before which step, and the reset of a GRU, is worked out here.
    """
    network, weights = import_network(made)
    node = made.graph.node[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    first = attributes.get("layout", 0)
    (y,) = network(weights, x)
    history = y.permute(1, 2, 0, 3) if first else y
    inputs = x.transpose(0, 1) if first else x
    start = weights[key("h")]
    start = start.transpose(0, 1) if first else start
    direction = attributes.get("direction", b"forward").decode()
    reverses = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[node.op_type]
    resets = node.op_type == "GRU" and not attributes.get("linear_before_reset", 0)
    seen, met = [], []
    for place, backwards in enumerate(reverses):
        seen.append([row for step in inputs for row in step])
        own: list[list[Tensor]] = [[] for _ in range(3 if resets else 1)]
        w, r = weights[key("w")][place], weights[key("r")][place]
        wb, rb = weights[key("b")][place].chunk(2)
        for sample, length in enumerate((5, 3)):
            order = range(length - 1, -1, -1) if backwards else range(length)
            before = start[place, sample]
            for time in order:
                own[0].append(before)
                if resets:
                    gate = inputs[time, sample] @ w.T + wb + before @ r.T + rb
                    own[1].append(before)
                    own[2].append(torch.sigmoid(gate.reshape(gates, 4)[1]) * before)
                before = history[time, place, sample]
        met += own
    return seen, met


@pytest.mark.parametrize(("operator", "attributes"), RECURRENT, ids=str)
def test_recurrent_weights_meet_inputs_and_states(
    operator: str, attributes: dict[str, Any]
) -> None:
    made = recurrent(operator, **attributes)
    network, weights = import_network(made)
    of_input, of_state = network.layers
    assert [str(layer.key) for layer in (of_input, of_state)] == ["w", "r"]
    x = draw(2, 5, 3) if attributes.get("layout") else draw(5, 2, 3)
    trace = network.run(weights, [x], watch=[*of_input.sites, *of_state.sites])
    (given,), (states,) = trace.watched
    seen, met = step_by_step(made, x)
    for layer, value_met, wanted in ((of_input, given, seen), (of_state, states, met)):
        columns = layer.columns_of(value_met)
        assert columns.shape[0] == layer.groups == len(wanted)
        for group, rows in zip(columns, wanted, strict=True):
            alone = torch.stack(rows)
            torch.testing.assert_close(group.T @ group, alone.T @ alone)
        matrix = layer.matrix(weights[layer.key])
        assert matrix.shape == (layer.groups, layer.rows, layer.columns)
        assert torch.equal(layer.weight(matrix), weights[layer.key])


@pytest.mark.parametrize(("operator", "attributes"), RECURRENT, ids=str)
def test_samples_in_front_of_a_recurrent_layer(operator: str, attributes: dict[str, Any]) -> None:
    network, weights = import_network(recurrent(operator, **attributes))
    x = draw(3, 2, 5, 3) if attributes.get("layout") else draw(3, 5, 2, 3)
    for layer in network.layers:
        ((together,),) = network.batching.run(network, weights, [x], layer.sites).watched
        alone = []
        for sample in x:
            ((one,),) = network.run(weights, [sample], watch=layer.sites).watched
            alone.append(moment(layer.columns_of(one)))
        torch.testing.assert_close(moment(layer.columns_of(together)), torch.stack(alone).sum(0))


def test_merged_projections_of_an_attention_are_a_matrix() -> None:
    node = helper.make_node(
        "Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=2
    )
    made = model(
        graph(
            [node],
            [value("x", 2, 3, 4)],
            [value("y", 2, 3, 4)],
            {"w": normal(4, 12), "b": normal(12)},
        )
    )
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    network, weights = import_network(made)
    (layer,) = network.layers
    assert (layer.groups, layer.rows, layer.columns) == (1, 12, 4)
    x = draw(2, 3, 4)
    ((seen,),) = network.run(weights, [x], watch=layer.sites).watched
    assert torch.equal(layer.columns_of(seen)[0], x.reshape(6, 4))


def test_a_table_is_a_layer_on_request_with_how_often_each_row_is_looked_up() -> None:
    nodes = [op("Gather", "table i", "e"), op("MatMul", "e w", "y")]
    arrays = {"table": normal(5, 3), "w": normal(3, 2)}
    made = build(nodes, [value("i", 4, kind=7)], [value("y", 4, 2)], arrays)
    assert [str(layer.key) for layer in layers_of(made)] == ["w"]
    network, weights = import_network(made, tables=True)
    table, _ = network.layers
    assert (str(table.key), table.groups, table.rows, table.columns) == ("table", 5, 3, 1)
    places = torch.tensor([0, 4, -1, 2])
    ((seen,),) = network.run(weights, [places], watch=table.sites).watched
    columns = table.columns_of(seen)
    counts = torch.tensor([1.0, 0.0, 1.0, 0.0, 2.0])
    torch.testing.assert_close(moment(columns).flatten(), counts)
    assert torch.equal(table.weight(table.matrix(weights[table.key])), weights[table.key])


def test_convolutions_that_share_a_weight_may_differ_in_stride() -> None:
    nodes = [op("Conv", "x w", "a"), op("Conv", "x w", "b", strides=[2, 2])]
    outputs = [value("a", *"abcd"), value("b", *"efgh")]
    made = build(nodes, [value("x", 1, 2, 5, 5)], outputs, {"w": normal(3, 2, 2, 2)})
    network, weights = import_network(made)
    (layer,) = network.layers
    x = draw(1, 2, 5, 5)
    trace = network.run(weights, [x], watch=layer.sites)
    found = [
        layer.columns_of(seen, node=node)
        for (seen,), node in zip(trace.watched, layer.nodes, strict=True)
    ]
    assert [part.shape[1] for part in found] == [16, 4]
    for part, output in zip(found, network(weights, x), strict=True):
        product = layer.matrix(weights[layer.key])[0] @ part[0].T
        torch.testing.assert_close(product, output.reshape(3, -1))
