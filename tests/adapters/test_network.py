"""Running a graph: lanes, bodies, half precision, plans, and what is refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from onnx.numpy_helper import from_array
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hand_built import Array, asked, build, draw, graph, key, normal, op, same_as_runtime
from onnxpress_adapters import ops
from onnxpress_adapters.errors import AdapterError, MisuseError
from onnxpress_adapters.network import PLANS, import_network
from onnxpress_adapters.registry import LATEST, REGISTRY, Entry, Registry
from small_models import branching, constant, perceptron, value

INT64, BOOL, HALF = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16


def flattening() -> ModelProto:
    """``[N, A, B] -> [N, A * B]``, with the target put together from the shape of the input."""
    nodes = [
        op("Shape", "x", "s"),
        op("Gather", "s zero", "n"),
        op("Unsqueeze", "n axes", "n1"),
        op("Concat", "n1 rest", "target", axis=0),
        op("Reshape", "x target", "y"),
    ]
    arrays = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    return build(nodes, [value("x", "N", "A", "B")], [value("y", "N", "C")], arrays)


def test_shape_arithmetic_follows_the_input_and_is_planned_once_per_shape() -> None:
    made = flattening()
    network, weights = import_network(made)
    assert weights == {}
    for shape in [(2, 3, 4), (5, 1, 2), (2, 3, 4)]:
        same_as_runtime(made, normal(*shape), network=network)
    assert len(network.plans) == 2
    plan = network.plans[(1, ((2, 3, 4), torch.float32))]
    assert plan.values["target"].tolist() == [2, -1]


def test_plans_stay_few() -> None:
    network, weights = import_network(flattening())
    for size in range(1, PLANS + 3):
        network(weights, torch.zeros(1, size, 1))
    assert len(network.plans) == 2


def test_shapes_read_from_values_are_not_planned() -> None:
    nodes = [
        op("Reshape", "x target", "h"),
        op("Shape", "h", "s"),
        op("ConstantOfShape", "s", "o", value=from_array(np.ones(1, np.float32))),
        op("Add", "h o", "y"),
    ]
    inputs = [value("x", 6), value("target", 2, kind=INT64)]
    network, weights = import_network(build(nodes, inputs, [value("y", "a", "b")]))
    x = draw(6)
    for target in ([2, 3], [3, 2], [6, 1]):
        for given in (torch.tensor(target), np.array(target)):
            assert torch.equal(network(weights, x, given)[0], x.reshape(target) + 1)


def test_host_values_that_depend_on_a_branch_are_not_planned() -> None:
    def branch(name: str, target: list[int]) -> Any:
        outputs = [value(name, 2, kind=INT64)]
        return graph([constant(name, np.array(target))], [], outputs)

    node = op("If", "c", "t", then_branch=branch("a", [2, 3]), else_branch=branch("b", [3, 2]))
    nodes = [node, op("Reshape", "x t", "y")]
    inputs = [value("x", 6), value("c", kind=BOOL)]
    network, weights = import_network(build(nodes, inputs, [value("y", "a", "b")]))
    for flag, shape in [(True, (2, 3)), (False, (3, 2)), (True, (2, 3))]:
        for given in (torch.tensor(flag), np.array(flag)):
            assert network(weights, draw(6), given)[0].shape == shape


def test_an_array_as_input_decides_shapes() -> None:
    nodes = [op("Reshape", "n one", "m"), op("Tile", "x m", "y")]
    made = build(
        nodes, [value("x", 2), value("n", kind=INT64)], [value("y", "k")], {"one": np.array([1])}
    )
    network, _ = import_network(made)
    for count in (3, 1, 3):
        same_as_runtime(made, normal(2), np.array(count), network=network)


@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("flag", [False, True])
def test_branches_run_with_their_own_weights(as_node: bool, flag: bool) -> None:
    made = branching(normal(16, 4), as_node)
    same_as_runtime(made, normal(1, 16), np.array(flag))
    network, weights = import_network(made)
    for weight in weights.values():
        weight.requires_grad_()
    network(weights, draw(1, 16), np.array(flag))[0].sum().backward()
    taken, other = "choose[0].then_branch", "choose[0].else_branch"
    if not flag:
        taken, other = other, taken
    assert weights[key(taken, "w")].grad is not None
    assert weights[key(other, "w")].grad is None


def test_bodies_see_names_from_outside() -> None:
    inner = graph([op("Add", "h b", "p")], [], [value("p", 1, 3)])
    deeper = graph([op("Mul", "h i", "q")], [], [value("q", 1, 3)], {"i": normal(3)})
    nested = op("If", "c", "n", then_branch=inner, else_branch=deeper)
    outer = graph([nested, op("Neg", "n", "o")], [], [value("o", 1, 3)])
    passed = graph([op("Identity", "h", "e")], [], [value("e", 1, 3)])
    nodes = [op("MatMul", "x w", "h"), op("If", "d", "y", then_branch=outer, else_branch=passed)]
    inputs = [value("x", 1, 2), value("c", kind=BOOL), value("d", kind=BOOL)]
    arrays = {"w": normal(2, 3), "b": normal(3, seed=1)}
    made = build(nodes, inputs, [value("y", 1, 3)], arrays)
    for c, d in [(True, True), (False, True), (True, False)]:
        same_as_runtime(made, normal(1, 2), np.array(c), np.array(d))


def test_a_condition_of_many_values_is_refused() -> None:
    made = branching(normal(16, 4), as_node=False)
    network, weights = import_network(made)
    with pytest.raises(AdapterError, match=r"If 'choose' cannot decide by a value of shape \[2\]"):
        network(weights, draw(1, 16), torch.tensor([True, False]))


class Alive(TorchFunctionMode):
    """Counts how many results of torch's functions exist at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.neg:
            self.made.append(weakref.ref(result))
            self.most = max(self.most, sum(made() is not None for made in self.made))
        return result


def test_dead_values_are_released_while_the_graph_runs() -> None:
    names = ["x", *(f"h{place}" for place in range(20)), "y"]
    nodes = [op("Neg", a, b) for a, b in pairwise(names)]
    network, weights = import_network(build(nodes, [value("x", 3)], [value("y", 3)]))
    with Alive() as alive:
        network(weights, draw(3))
    assert len(alive.made) == 21
    assert alive.most == 2


def test_a_shared_weight_is_one_weight() -> None:
    nodes = [op("MatMul", "x w", "h"), op("Relu", "h", "r"), op("MatMul", "r w", "y")]
    made = build(nodes, [value("x", 2, 3)], [value("y", 2, 3)], {"w": normal(3, 3)})
    same_as_runtime(made, normal(2, 3))
    network, weights = import_network(made)
    assert list(weights) == [key("w")]
    (layer,) = network.layers
    assert layer.sites == (((), 0, 1), ((), 2, 1))
    x, w = draw(2, 3), weights[key("w")].requires_grad_()
    (found,) = torch.autograd.grad(network(weights, x)[0].sum(), [w])
    (wanted,) = torch.autograd.grad(((x @ w).relu() @ w).sum(), [w])
    assert torch.allclose(found, wanted)


def test_initializers_that_are_graph_inputs_need_not_be_fed() -> None:
    network, weights = import_network(perceptron(opset=8, ir=3))
    assert [spec.name for spec in network.inputs] == ["x"]
    same, more = import_network(perceptron())
    assert torch.equal(network(weights, draw(2, 16))[0], same(more, draw(2, 16))[0])


def test_half_precision_is_computed_in_single() -> None:
    nodes = [op("MatMul", "x w", "h"), op("Mul", "h k", "y")]
    arrays = {"w": normal(32, 8).astype(np.float16), "k": np.array(3, np.float16)}
    made = build(nodes, [value("x", 4, 32, kind=HALF)], [value("y", 4, 8, kind=HALF)], arrays)
    network, weights = import_network(made)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    x = normal(4, 32).astype(np.float16)
    wanted = 3 * (x.astype(np.float32) @ arrays["w"].astype(np.float32))
    for given in (torch.from_numpy(x), x, torch.from_numpy(x).float()):
        (y,) = network(weights, given)
        assert y.dtype == torch.float32
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    (theirs,) = asked(made, x)
    np.testing.assert_allclose(wanted, theirs, atol=1e-3 * np.abs(theirs).max())


def test_a_cast_to_half_precision_rounds() -> None:
    nodes = [op("Cast", "x", "h", to=HALF), op("Cast", "h", "y", to=1)]
    made = build(nodes, [value("x", 5)], [value("y", 5)])
    same_as_runtime(made, normal(5), atol=0)
    network, weights = import_network(made)
    assert not torch.equal(network(weights, draw(5))[0], draw(5))


@pytest.mark.parametrize("small", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_constants_of_small_types_keep_their_values(small: str) -> None:
    array = normal(3, 2).astype(getattr(ml_dtypes, small, np.float16))
    nodes = [op("Cast", "w", "wide", to=1), op("MatMul", "x wide", "y")]
    made = build(nodes, [value("x", 1, 3)], [value("y", 1, 2)], {"w": array}, opset=19, ir=9)
    network, weights = import_network(made)
    x = draw(1, 3)
    wanted = x @ torch.from_numpy(array.astype(np.float32))
    assert torch.allclose(network(weights, x)[0], wanted)


def test_integer_constants_are_copied_to_the_device_once() -> None:
    large = np.random.default_rng(0).integers(-128, 127, (1100, 1000)).astype(np.int8)
    taken = graph([op("Cast", "q", "v", to=1)], [], [value("v", 1100, 1000)])
    other = graph([op("Neg", "w", "u")], [], [value("u", 1100, 1000)])
    nodes = [
        op("DequantizeLinear", "q scale", "w"),
        op("If", "c", "k", then_branch=taken, else_branch=other),
        op("Gather", "w i", "row"),
        op("MatMul", "x k", "h"),
        op("Add", "h row", "y"),
    ]
    inputs = [value("x", 1, 1100), value("c", kind=BOOL)]
    arrays: dict[str, Array] = {"q": large, "scale": np.array(0.01, np.float32), "i": np.array(3)}
    made = build(nodes, inputs, [value("y", 1, 1000)], arrays)
    network, weights = import_network(made)
    network(weights, draw(1, 1100), np.array(True))
    copies = {name: (tensor, tensor.clone()) for name, tensor in network.loans.items()}
    assert {name for _, name, _ in copies} == {"q", "i"}
    network(weights, draw(1, 1100), np.array(True))
    assert network.loans.keys() == copies.keys()
    for name, (tensor, before) in copies.items():
        assert network.loans[name] is tensor
        assert torch.equal(tensor, before)
    same_as_runtime(made, normal(1, 1100), np.array(True), network=network, atol=0.1)


def test_a_watched_slot_gives_what_the_weight_met() -> None:
    network, weights = import_network(perceptron())
    x = draw(3, 16)
    trace = network.run(weights, [x], watch=[((), 0, 1), ((), 3, 1)])
    (first,), (hidden,) = trace.watched
    assert first is x
    assert torch.equal(hidden, (x @ weights[key("w1")] + weights[key("b1")]).relu())
    assert trace.sizes[((), 0)] == 3 * 32
    assert trace.steps == 5


def test_a_slot_in_a_branch_not_taken_gives_nothing() -> None:
    network, weights = import_network(branching(normal(16, 4), as_node=True))
    sites = [(("choose[0].then_branch",), 1, 1), (("choose[0].else_branch",), 1, 1)]
    x = draw(1, 16)
    (seen,), unseen = network.run(weights, [x, np.array(True)], watch=sites).watched
    assert seen is x
    assert unseen == ()


@pytest.mark.parametrize(
    ("reads", "shape", "stored", "met"),
    [
        ("w x", (3,), (2, 3), (3, 1)),
        ("x w", (3,), (3, 2), (1, 3)),
        ("x w", (4, 3), (5, 3, 2), (1, 4, 3)),
        ("w x", (3,), (5, 2, 3), (1, 3, 1)),
        ("x w", (6, 4, 3), (3, 2), (6, 4, 3)),
    ],
)
def test_what_a_matmul_is_given_comes_with_its_dimensions_in_the_product(
    reads: str, shape: tuple[int, ...], stored: tuple[int, ...], met: tuple[int, ...]
) -> None:
    w, x = normal(*stored), draw(*shape)
    rank = (w @ x.numpy() if reads == "w x" else x.numpy() @ w).ndim
    outputs = [value("y", *"abcd"[:rank])]
    made = build([op("MatMul", reads, "y")], [value("x", *shape)], outputs, {"w": w})
    network, weights = import_network(made)
    (site,) = network.layers[0].sites
    ((seen,),) = network.run(weights, [x], watch=[site]).watched
    assert tuple(seen.shape) == met
    assert torch.equal(seen.reshape(-1), x.reshape(-1))


def test_a_weight_that_feeds_nothing_but_shapes_is_no_layer() -> None:
    nodes = [
        op("MatMul", "a b", "f"),
        op("Cast", "f", "t", to=INT64),
        op("Reshape", "x t", "h"),
        op("MatMul", "h w", "y"),
    ]
    arrays = {
        "a": np.eye(2, dtype=np.float32),
        "b": np.array([2, 3], np.float32),
        "w": normal(3, 1),
    }
    network, weights = import_network(build(nodes, [value("x", 6)], [value("y", "a", "b")], arrays))
    assert [str(layer.key) for layer in network.layers] == ["w"]
    assert list(weights) == [key("w")]
    assert network(weights, draw(6))[0].shape == (2, 1)


def test_a_model_without_inputs_runs_and_takes_no_samples() -> None:
    made = build([op("Relu", "w", "y")], [], [value("y", 2)], {"w": normal(2)})
    network, weights = import_network(made)
    assert torch.equal(network(weights)[0], draw(2).relu())
    assert network.proven(weights, []).batching.mode == "loop"
    with pytest.raises(MisuseError, match="takes no inputs"):
        network.batched(weights, [])


def test_another_number_of_inputs_is_refused() -> None:
    network, weights = import_network(perceptron())
    with pytest.raises(MisuseError, match="the model takes 1 inputs, not 2"):
        network(weights, draw(1, 16), draw(1, 16))


def test_a_node_that_does_not_fit_its_inputs_is_named() -> None:
    network, weights = import_network(perceptron())
    with pytest.raises(AdapterError, match=r"MatMul 'first' cannot run on these inputs: .*shapes"):
        network(weights, draw(1, 15))


def test_an_output_may_be_a_sequence() -> None:
    made = perceptron()
    made.graph.output.append(helper.make_tensor_sequence_value_info("list", 1, None))
    made.graph.node.append(op("SequenceConstruct", "y y", "list"))
    network, weights = import_network(made)
    y, several = network(weights, draw(1, 16))
    assert isinstance(several, list)
    assert all(part is y for part in several)


def test_an_output_nobody_computes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [op("TopK", "x k", "top places"), op("Neg", "top", "y")]
    arrays = {"k": np.array([1])}
    made = build(nodes, [value("x", 1, 2)], [value("y", 1, 1)], arrays)
    poor = Registry(dict(REGISTRY.rows))
    poor.rows[("", "TopK")] = [Entry(lambda node, x, k: (None, x), 1, LATEST, (1,))]
    monkeypatch.setattr(ops, "load", lambda: poor)
    network, weights = import_network(made)
    with pytest.raises(AdapterError, match="Neg 'y' needs 'top', an output onnxpress does not"):
        network(weights, draw(1, 2))
