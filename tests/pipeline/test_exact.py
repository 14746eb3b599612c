"""The short ways to the distance of every neighbour give what the whole network gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import Tensor

from models import MODELS, Case, case_of, graph_model, key, linear_model, normal, two_headed_model
from onnxpress import ways as module
from onnxpress.exact import exact_macs, exact_rises, precise_of, ways_of
from onnxpress.neighbours import rises
from onnxpress.objective import objective_of
from onnxpress.state import State
from onnxpress.steps.magnitude import Magnitude
from onnxpress_adapters.batching import LOOP
from onnxpress_adapters.weights import WeightKey
from small_models import perceptron
from trained import image_case, perceptron_case


def node(operator: str, reads: str, makes: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, reads.split(), makes.split(), **attributes)


def gated_model() -> ModelProto:
    """x sigmoid(x) behind a product with alpha, sequences of five, a norm, a product behind."""
    constants = normal(11, w=(8, 7), b=(7,), v=(7, 5), u=(5, 3))
    nodes = [
        node("MatMul", "x w", "h1"), node("Add", "h1 b", "h2"), node("Sigmoid", "h2", "h3"),
        node("Mul", "h2 h3", "h4"), node("MatMul", "h4 v", "h5"), node("Tanh", "h5", "h6"),
        node("MatMul", "h6 u", "h7"), node("ReduceMean", "h7", "y", axes=[1], keepdims=0),
    ]  # fmt: skip
    return graph_model(nodes, constants, ("N", 5, 8))


def skipping_model() -> ModelProto:
    """Residual blocks, Gemm with alpha and transB, outputs of which one is read as well."""
    constants = normal(12, w=(8, 8), v=(8, 8), b=(8,), u=(4, 8))
    constants["end"] = np.array([-1], np.int64)
    nodes = [
        node("Gemm", "x w", "h1", alpha=0.5), node("Relu", "h1", "h2"), node("Add", "h2 x", "h3"),
        node("Gemm", "h3 v b", "h4", transB=1, alpha=2.0), node("Elu", "h4", "h5"),
        node("Shape", "x", "s", start=0, end=1), node("Concat", "s end", "sizes", axis=0),
        node("Reshape", "h5 sizes", "a"), node("Gemm", "a u", "y", transB=1, alpha=1.5),
    ]  # fmt: skip
    return graph_model(nodes, constants, ("N", 8), ("y", "a"))


def image_model() -> ModelProto:
    """A grouped convolution with a norm, one with strides, one that is transposed; a batch of 1."""
    constants = normal(13, c=(6, 2, 3, 3), d=(5, 6, 2, 2), e=(5, 3, 2, 2), f=(3,))
    constants |= {name: np.abs(v) + 0.5 for name, v in normal(14, p=(6,), r=(6,)).items()}
    constants |= normal(15, q=(6,), m=(6,))
    nodes = [
        node("Conv", "x c", "h1", group=2, pads=[1, 1, 1, 1]),
        node("BatchNormalization", "h1 p q m r", "h2"), node("LeakyRelu", "h2", "h3"),
        node("Conv", "h3 d", "h4", strides=[2, 2]), node("Relu", "h4", "h5"),
        node("ConvTranspose", "h5 e f", "h6"), node("Sigmoid", "h6", "y"),
    ]  # fmt: skip
    return graph_model(nodes, constants, (1, 4, 6, 6))


def narrow_model() -> ModelProto:
    """A Cast to float32 in the middle, which float64 cannot pass."""
    nodes = [
        node("MatMul", "x w", "h1"), node("Cast", "h1", "h2", to=TensorProto.FLOAT),
        node("MatMul", "h2 v", "y"),
    ]  # fmt: skip
    return graph_model(nodes, normal(16, w=(8, 6), v=(6, 2)))


@dataclass(frozen=True)
class Expected:
    """How each weight is expected to be measured: (product behind, sums to the output) or None."""

    case: Callable[[], Case]
    ways: dict[str, tuple[bool, bool] | None]


def of(make: Callable[[], ModelProto]) -> Callable[[], Case]:
    return lambda: case_of(make())


CASES: dict[str, Expected] = {
    "mlp": Expected(of(perceptron), {"w1": (True, True), "w2": (False, True)}),
    "deeper": Expected(
        perceptron_case, {"w1": (True, False), "w2": (True, True), "w3": (False, True)}
    ),
    "cnn": Expected(
        of(MODELS["cnn"]), {"c1": (False, False), "c2": (False, False), "w": (False, True)}
    ),
    "images": Expected(
        image_case, {"c1": (False, False), "c2": (False, False), "w": (False, True)}
    ),
    "two outputs": Expected(
        of(two_headed_model), {"w": (False, False), "wa": (False, True), "wb": (False, True)}
    ),
    "shared": Expected(of(MODELS["shared weight"]), {"w": None, "v": (False, True)}),
    "gated": Expected(
        of(gated_model), {"w": (True, False), "v": (True, False), "u": (False, False)}
    ),
    "skipping": Expected(
        of(skipping_model), {"w": (False, False), "v": (False, False), "u": (False, True)}
    ),
    "grouped": Expected(of(image_model), {"c": (False, False), "d": (False, False), "e": None}),
}


def states(case: Case) -> list[State]:
    """Give the original, where d is zero, a pruned network, and one with little left."""
    return [case.state, *(Magnitude(s)(case.state, case.problem) for s in (0.3, 0.9))]


def compare(case: Case, state: State, keys: list[WeightKey]) -> None:
    """Hold the short ways against the whole network, in float64, neighbour by neighbour."""
    objective = objective_of(case.problem)
    precise = precise_of(objective)
    assert precise is not None
    tensors = {name: value.double() for name, value in state.tensors.items()}
    found = exact_rises(objective, state.tensors, keys)
    truth = rises(precise, tensors, keys)
    level = float(precise.measure_fit(tensors).per_output.sum())
    for name in keys:
        assert found[name].dtype == torch.float64
        assert not found[name][state.weights[name].values == 0].any()
        there = level + truth[name]
        assert ((found[name] - truth[name]).abs() <= 1e-9 * there.abs() + 1e-25).all(), name


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_whole_network_gives(name: str) -> None:
    case = CASES[name].case()
    objective = objective_of(case.problem)
    precise = precise_of(objective)
    assert precise is not None
    free = sorted(case.state.free)
    doubles = {key: value.double() for key, value in case.state.tensors.items()}
    ways = ways_of(precise, doubles, free)
    shapes = {k.name: (w.product is not None, w.output is not None) for k, w in ways.items()}
    assert {k.name: shapes.get(k.name) for k in free} == CASES[name].ways
    for state in states(case):
        compare(case, state, free)


@pytest.mark.parametrize("chunk", [64, 1 << 12])
@pytest.mark.parametrize("full", [0.0, 2.0])
def test_chunks_and_blocks_do_not_matter(
    chunk: int, full: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "CHANGES", chunk)
    monkeypatch.setattr(module, "FULL", full)
    for name in ("gated", "skipping"):
        case = CASES[name].case()
        few = [value[:9] for value in case.problem.fit]
        case = replace(case, problem=replace(case.problem, fit=few, memo={}))
        compare(case, Magnitude(0.3)(case.state, case.problem), sorted(case.state.free))


def test_a_last_layer_by_hand() -> None:
    inputs = torch.randn(40, 1, 5, generator=torch.Generator().manual_seed(0))
    weight = np.random.default_rng(0).normal(size=(5, 3))
    case = case_of(linear_model(weight), [inputs])
    objective = objective_of(case.problem)
    cut = case.state.weights[key("w")].values.clone()
    cut[1, 2] = cut[4, 0] = 0.0
    found = exact_rises(objective, {key("w"): cut}, [key("w")])[key("w")]
    x, w = inputs[:, 0].double(), cut.double()
    residual = x @ (w - torch.from_numpy(weight.astype(np.float32)).double())
    # d - 2 w E[R_k a_j] + w² E[a_j²], divided by the spread of the outputs
    wanted = -2 * w * (x.T @ residual / 40) + w.square() * x.square().mean(0)[:, None]
    torch.testing.assert_close(found, wanted / objective.scales, rtol=1e-12, atol=1e-15)


def test_what_cannot_be_run_in_double_is_measured_as_it_is() -> None:
    case = case_of(narrow_model())
    objective, free = objective_of(case.problem), sorted(case.state.free)
    assert precise_of(objective) is None
    found = exact_rises(objective, case.state.tensors, free)
    assert_equal(found, rises(objective, case.state.tensors, free))
    assert set(exact_macs(objective, case.state.tensors, free)) == set(free)


def test_a_loop_is_measured_as_it_is() -> None:
    case = case_of(two_headed_model())
    network = replace(case.problem.network, batching=LOOP)
    fit = [value[:10] for value in case.problem.fit]
    problem = replace(case.problem, network=network, fit=fit, memo={})
    compare(replace(case, problem=problem), case.state, sorted(case.state.free))


def test_a_setting_that_is_not_the_same_in_all_samples_is_seen() -> None:
    constants = normal(17, w=(8, 6), v=(6, 2))
    nodes = [
        node("MatMul", "x w", "h1"), node("Relu", "h1", "h2"), node("Cast", "rate", "r", to=11),
        node("Cast", "r", "f", to=1), node("Mul", "h2 f", "h3"), node("MatMul", "h3 v", "y"),
    ]  # fmt: skip
    made = graph_model([*nodes[:2], node("MatMul", "h2 v", "y")], constants, ("N", 8))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.INT64, [1]))
    x = torch.randn(40, 1, 8, generator=torch.Generator().manual_seed(0))
    rate = torch.ones(40, 1, dtype=torch.int64)
    for last, ways in ((1, True), (3, False)):
        rate[20:] = last
        case = case_of(made, [x, rate])
        compare(case, case.state, sorted(case.state.free))
        known = case.problem.memo["ways"]
        assert isinstance(known, dict)
        assert [way is not None for way in known.values()] == [ways] * 2


def test_what_no_judged_output_sees_has_no_rise() -> None:
    case = case_of(two_headed_model(), judged=[0])
    objective = objective_of(case.problem)
    found = exact_rises(objective, case.state.tensors, [key("wb"), key("wa")])
    assert not found[key("wb")].any()
    assert found[key("wa")].all()


def test_a_way_that_does_not_hold_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.Way.rises
    monkeypatch.setattr(module.Way, "rises", lambda way, met: 1.001 * right(way, met))
    case = case_of(two_headed_model())
    compare(case, case.state, sorted(case.state.free))
    known = case.problem.memo["ways"]
    assert isinstance(known, dict)
    assert list(known.values()) == [None] * 3


def test_what_is_shorter_costs_less() -> None:
    case = perceptron_case()
    objective = objective_of(case.problem)
    macs = exact_macs(objective, case.state.tensors, sorted(case.state.free))
    assert macs[key("w3")] <= macs[key("w2")] < macs[key("w1")] < objective.cost.macs * 2


def assert_equal(found: dict[WeightKey, Tensor], wanted: dict[WeightKey, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)
