"""Many samples at once: each way is chosen where it is right, and equals the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor

from hand_built import asked, build, draw, graph, key, normal, op
from onnxpress_adapters.batching import LOOP, candidates
from onnxpress_adapters.errors import AdapterError, MisuseError
from onnxpress_adapters.network import import_network
from small_models import perceptron, value

INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


def convolution() -> ModelProto:
    """A batch of 1 is hardwired, in the Reshape too."""
    nodes = [
        op("Conv", "x k b", "h", "conv"),
        op("Relu", "h", "r"),
        op("Reshape", "r flat", "f"),
        op("Gemm", "f w c", "y", "head", transB=1),
    ]
    arrays = {
        "k": normal(2, 1, 2, 2),
        "b": normal(2),
        "flat": np.array([1, 8]),
        "w": normal(3, 8),
        "c": normal(3),
    }
    return build(nodes, [value("x", 1, 1, 3, 3)], [value("y", 1, 3)], arrays)


def columns() -> ModelProto:
    """Inputs are vectors, which stand to the right of the weights."""
    nodes = [op("MatMul", "w x", "h", "in"), op("Tanh", "h", "t"), op("MatMul", "v t", "y", "out")]
    return build(nodes, [value("x", 3)], [value("y", 2)], {"w": normal(4, 3), "v": normal(2, 4)})


def deciding() -> ModelProto:
    """What a sample holds decides which branch it takes."""
    taken = graph([op("MatMul", "x w", "a")], [], [value("a", 1, 2)], {"w": normal(3, 2)})
    other = graph([op("MatMul", "x w", "b")], [], [value("b", 1, 2)], {"w": normal(3, 2, seed=1)})
    nodes = [
        op("ReduceSum", "x", "s", keepdims=0),
        op("Greater", "s zero", "c"),
        op("If", "c", "h", "choose", then_branch=taken, else_branch=other),
        op("Mul", "h scale", "y"),
    ]
    arrays = {"zero": np.array(0, np.float32), "scale": normal(2)}
    return build(nodes, [value("x", 1, 3)], [value("y", 1, 2)], arrays)


WAYS: dict[str, tuple[Callable[[], ModelProto], tuple[int, ...]]] = {
    "batch": (perceptron, (1, 16)),
    "rebatched": (convolution, (1, 1, 3, 3)),
    "vmap": (columns, (3,)),
    "loop": (deciding, (1, 3)),
}


@pytest.mark.parametrize("mode", WAYS)
def test_each_way_is_chosen_where_it_holds_and_equals_the_loop(mode: str) -> None:
    make, shape = WAYS[mode]
    made = make()
    network, weights = import_network(made)
    fast = network.proven(weights, [draw(5, *shape)])
    assert fast.batching.mode == mode
    assert network.batching is LOOP
    for samples in (1, 2, 3, 4, 7, 8):
        x = draw(samples, *shape, seed=samples)
        (found,) = fast.batched(weights, [x])
        (wanted,) = network.batched(weights, [x])
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted)
        (first,) = asked(made, x[0].numpy())
        np.testing.assert_allclose(found[0], first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", WAYS)
def test_every_way_is_differentiable_in_the_weights(mode: str) -> None:
    make, shape = WAYS[mode]
    network, weights = import_network(make())
    network = network.proven(weights, [draw(5, *shape)])
    assert network.batching.mode == mode
    leaves = {name: weight.double().requires_grad_() for name, weight in weights.items()}
    x = draw(4, *shape, seed=9).double()

    def outputs(*tensors: Tensor) -> Tensor:
        return network.batched(dict(zip(leaves, tensors, strict=True)), [x])[0]

    # The threshold of a comparison has a gradient of zero, for torch and for differences alike.
    assert torch.autograd.gradcheck(outputs, tuple(leaves.values()))


@pytest.mark.parametrize("mode", WAYS)
def test_watched_values_hold_all_samples(mode: str) -> None:
    make, shape = WAYS[mode]
    network, weights = import_network(make())
    fast = network.proven(weights, [draw(5, *shape)])
    x = draw(6, *shape, seed=3)
    for layer in network.layers:
        moments = []
        for way in (network, fast):
            trace = way.batching.run(way, weights, [x], layer.sites)
            ((seen,),) = trace.watched
            made = layer.columns_of(seen)
            moments.append(made.transpose(1, 2) @ made)
            assert trace.sizes
        torch.testing.assert_close(moments[0], moments[1])


def test_vectors_make_one_column_a_sample() -> None:
    network, weights = import_network(columns())
    fast = network.proven(weights, [draw(4, 3)])
    # As many samples as a layer has columns, so that the two cannot be told apart by their sizes.
    for samples in (3, 4, 5):
        x = draw(samples, 3, seed=samples)
        for way in (network, fast):
            trace = way.batching.run(way, weights, [x], [layer.sites[0] for layer in way.layers])
            first, second = (
                layer.columns_of(seen)
                for layer, (seen,) in zip(way.layers, trace.watched, strict=True)
            )
            torch.testing.assert_close(first, x[None])
            hidden = torch.tanh(x @ weights[key("w")].T)
            torch.testing.assert_close(second, hidden[None])


@pytest.mark.parametrize(
    "node",
    [
        op("ReduceMean", "h", "y", axes=[0], keepdims=1),
        op("Softmax", "h", "y", axis=0),
        op("LpNormalization", "h", "y", axis=0),
        op("CumSum", "h first", "y"),
    ],
    ids=lambda node: node.op_type,
)
@pytest.mark.parametrize(("batch", "rows"), [("N", 1), ("N", 3), (1, 1)])
def test_a_graph_that_mixes_samples_is_not_laid_along_its_first_dimension(
    node: NodeProto, batch: str | int, rows: int
) -> None:
    nodes = [op("MatMul", "x w", "h"), node]
    arrays = {"w": normal(4, 2), "first": np.array(0)}
    made = build(nodes, [value("x", batch, 4)], [value("y", "M", 2)], arrays)
    network, weights = import_network(made)
    fast = network.proven(weights, [draw(5, rows, 4)])
    assert fast.batching.mode == "vmap"
    x = draw(4, rows, 4, seed=1)
    torch.testing.assert_close(fast.batched(weights, [x]), network.batched(weights, [x]))


def test_rows_that_are_independent_may_be_laid_together() -> None:
    network, weights = import_network(perceptron(batch="rows"))
    fast = network.proven(weights, [draw(5, 3, 16)])
    assert fast.batching.mode == "batch"
    x = draw(4, 3, 16, seed=1)
    (found,) = fast.batched(weights, [x])
    assert found.shape == (4, 3, 4)
    torch.testing.assert_close((found,), network.batched(weights, [x]))


def recurrent() -> ModelProto:
    """A state with the batch in its middle, and a setting all samples share."""
    nodes = [
        op("MatMul", "x w", "h"),
        op("Unsqueeze", "h axes", "u"),
        op("Add", "u state", "next"),
        op("Cast", "rate", "r", to=1),
        op("Mul", "next r", "y"),
    ]
    inputs = [
        value("x", "batch", 3),
        value("state", 2, "batch", 4),
        value("rate", kind=INT64),
    ]
    outputs = [value("y", 2, "batch", 4), value("next", 2, "batch", 4)]
    return build(nodes, inputs, outputs, {"w": normal(3, 4), "axes": np.array([0])})


def test_the_batch_is_found_by_its_name_and_settings_are_shared() -> None:
    network, weights = import_network(recurrent())
    x, state = draw(5, 1, 3), draw(5, 2, 1, 4, seed=1)
    fast = network.proven(weights, [x, state, torch.full((5,), 16)])
    assert fast.batching.mode == "batch"
    assert fast.batching.input_axes == (0, 1, None)
    assert fast.batching.output_axes == (1, 1)
    for rate in (torch.full((5,), 8), torch.tensor([1, 2, 3, 4, 5])):
        found = fast.batched(weights, [x, state, rate])
        wanted = network.batched(weights, [x, state, rate])
        assert found[0].shape == (5, 2, 1, 4)
        torch.testing.assert_close(found, wanted)


def test_sizes_of_a_resize_follow_the_samples() -> None:
    every, some = op("Resize", "x _ _ sizes", "h"), op("Resize", "x _ _ sizes", "h", axes=[2, 3])
    for opset, sizes, node in [(17, [1, 2, 4, 6], every), (18, [4, 6], some)]:
        nodes = [node, op("Mul", "h k", "y")]
        made = build(
            nodes,
            [value("x", 1, 2, 2, 3)],
            [value("y", 1, 2, 4, 6)],
            {"sizes": np.array(sizes), "k": normal(1, 2, 1, 1)},
            opset=opset,
        )
        network, weights = import_network(made)
        fast = network.proven(weights, [draw(5, 1, 2, 2, 3)])
        assert fast.batching.mode == "rebatched"
        x = draw(4, 1, 2, 2, 3, seed=1)
        torch.testing.assert_close(fast.batched(weights, [x]), network.batched(weights, [x]))


def test_a_reshaped_constant_stays_as_it_is_whatever_the_number_of_samples() -> None:
    nodes = [op("Reshape", "b row", "r"), op("Mul", "x r", "h"), op("Reshape", "h row", "y")]
    made = build(
        nodes, [value("x", 1, 6)], [value("y", 1, 6)], {"b": normal(6), "row": np.array([1, -1])}
    )
    network, weights = import_network(made)
    fast = network.proven(weights, [draw(3, 1, 6)])
    assert fast.batching.mode == "rebatched"
    # Six samples, and the constant has six entries: it must not be taken for samples.
    x = draw(6, 1, 6, seed=1)
    torch.testing.assert_close(fast.batched(weights, [x]), network.batched(weights, [x]))


def test_probes_that_are_all_alike_prove_nothing() -> None:
    network, weights = import_network(perceptron())
    alike = draw(1, 1, 16).expand(6, 1, 16)
    assert network.proven(weights, [alike]).batching is LOOP
    assert network.proven(weights, [draw(1, 1, 16)]).batching is LOOP
    other = alike.clone()
    other[3, 0, 2] = 7
    assert network.proven(weights, [other]).batching.mode == "batch"


def test_every_candidate_names_an_axis_for_each_input_and_output() -> None:
    network, _ = import_network(recurrent())
    assert [way.mode for way in candidates(network)] == ["batch", "rebatched", "vmap"]
    for way in candidates(network)[:2]:
        assert (len(way.input_axes), len(way.output_axes)) == (3, 2)


def test_inputs_with_another_number_of_samples_are_refused() -> None:
    network, weights = import_network(recurrent())
    inputs = [draw(5, 1, 3), draw(4, 2, 1, 4), torch.full((5,), 16)]
    with pytest.raises(MisuseError, match="same number of samples, at least one, not 5, 4, 5"):
        network.batched(weights, inputs)
    with pytest.raises(MisuseError, match="not 0, 0, 0"):
        network.batched(weights, [part[:0] for part in inputs])


def test_outputs_of_another_shape_for_another_sample_are_refused() -> None:
    nodes = [op("Range", "zero n one", "r"), op("Cast", "r", "f", to=1), op("Mul", "f x", "y")]
    arrays = {"zero": np.array(0), "one": np.array(1)}
    inputs = [value("x", 1), value("n", kind=INT64)]
    network, weights = import_network(build(nodes, inputs, [value("y", "k")], arrays))
    with pytest.raises(AdapterError, match=r"'y' has another shape for another sample"):
        network.batched(weights, [draw(2, 1), torch.tensor([2, 3])])


def test_a_way_that_does_not_hold_for_all_samples_says_so() -> None:
    network, weights = import_network(perceptron())
    fast = network.proven(weights, [draw(5, 1, 16)])
    wrong = replace(fast, batching=replace(fast.batching, output_axes=(1,)))
    with pytest.raises(AdapterError, match=r"an output of shape \[5, 4\] does not hold 5 samples"):
        wrong.batched(weights, [draw(5, 1, 16)])
