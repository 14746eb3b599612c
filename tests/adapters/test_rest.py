"""The rest of a graph: other rows from one value on, beside what their own samples make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor

from models import MODELS, graph_model, normal
from onnxpress_adapters.batching import LOOP
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.network import import_network
from onnxpress_adapters.rest import Rest, Whole, readers


def skipping_model() -> ModelProto:
    """A product whose result passes a Relu and joins it again, and a Reshape that counts rows."""
    constants = normal(9, w=(6, 6), v=(6, 4))
    constants["end"] = np.array([-1], np.int64)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h1"], name="first"),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Add", ["h2", "x"], ["h3"]),
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Concat", ["shape", "end"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["h3", "sizes"], ["h4"]),
        helper.make_node("MatMul", ["h4", "v"], ["y"], name="second"),
        helper.make_node("Sigmoid", ["x"], ["z"]),
    ]
    return graph_model(nodes, constants, ("N", 6), ("y", "z"))


def whole_of(made: ModelProto, samples: int = 7) -> tuple[Whole, Tensor]:
    network, weights = import_network(made)
    shape = [dim.dim_value or 1 for dim in made.graph.input[0].type.tensor_type.shape.dim]
    inputs = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))
    network = network.proven(weights, [inputs])
    whole = Whole.of(network, weights, [inputs])
    assert whole is not None
    return whole, inputs


@pytest.mark.parametrize(
    ("name", "starts"), [("mlp", ["h1", "h3"]), ("cnn", ["h1", "h5", "h7"]), ("skip", ["h1", "h2"])]
)
def test_chosen_rows_answer_what_their_samples_do(name: str, starts: list[str]) -> None:
    whole, _ = whole_of(skipping_model() if name == "skip" else MODELS[name]())
    places = torch.tensor([3, 0, 3, 6, 5, 5, 1, 2, 4, 0, 3])
    for start in starts:
        rest = Rest.of(whole, start)
        value = whole.tensor(start)
        assert value is not None
        found = rest.results(whole, value[places], places)
        assert list(found) == [0]  # the other output does not depend on it
        wanted = whole.tensor("y")
        assert wanted is not None
        torch.testing.assert_close(found[0], wanted[places])


def test_only_what_depends_on_the_start_runs_again() -> None:
    whole, inputs = whole_of(skipping_model())
    rest = Rest.of(whole, "h2")
    ran = [instruction.node.operator for instruction in rest.instructions]
    assert ran == ["Add", "Shape", "Concat", "Reshape", "MatMul"]  # shapes: they count rows
    assert rest.sides == ("x",)
    changed = torch.zeros(3, 6)
    places = torch.tensor([2, 2, 0])
    found = rest.results(whole, changed, places)[0]
    v = whole.weights[next(key for key in whole.weights if key.name == "v")]
    torch.testing.assert_close(found, inputs[places, 0] @ v)
    assert [r.node.operator for r in readers(whole.network.program.main, "x")] == [
        "MatMul",
        "Add",
        "Shape",
        "Sigmoid",
    ]


def test_there_is_none_where_rows_are_no_samples() -> None:
    network, weights = import_network(skipping_model())
    inputs = [torch.randn(4, 1, 6)]
    proven = network.proven(weights, inputs)
    assert proven.batching.mode == "batch"
    assert Whole.of(proven, weights, inputs) is not None
    assert Whole.of(replace(network, batching=LOOP), weights, inputs) is None
    assert Whole.of(proven, weights, [torch.randn(4, 2, 6)]) is None  # two samples to a feed


def test_a_side_without_rows_is_refused() -> None:
    whole, _ = whole_of(skipping_model())
    rest = replace(Rest.of(whole, "h2"), sides=("shape",))
    with pytest.raises(AdapterError, match="'shape' does not hold a row for every sample"):
        rest.run(whole, torch.zeros(2, 6), torch.tensor([0, 1]))
    wrong = Rest.of(whole, "h4")
    with pytest.raises(AdapterError, match="'y' does not hold a row for every sample"):
        wrong.results(whole, torch.zeros(3, 6), torch.tensor([0, 1]))
