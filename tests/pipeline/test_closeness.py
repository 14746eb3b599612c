"""How far outputs move over the unit ball: what is found never exceeds what is proven."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch.nn import functional

from models import MODELS, Case, case_of, graph_model, key, linear_model, normal, two_headed_model
from onnxpress import spectral
from onnxpress.closeness import Closeness, closeness
from onnxpress.objective import objective_of
from onnxpress.spectral import convolution_norm, spectral_norm
from onnxpress.state import State
from onnxpress.steps.magnitude import Magnitude

NETWORKS = 200
ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "Softplus", "Elu", "Softsign", "HardSigmoid")


def node(operator: str, reads: str, makes: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, reads.split(), makes.split(), **attributes)


def measured(case: Case, state: State) -> Closeness:
    generator = torch.Generator().manual_seed(0)
    return closeness(objective_of(case.problem), state.tensors, generator)


def random_chain(seed: int) -> tuple[ModelProto, int]:
    """One to four layers, 2 to 24 wide, with biases, and activations of one kind."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 25, int(rng.integers(2, 6)))
    activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    constants, nodes, last = {}, [], "x"
    for place, (columns, rows) in enumerate(pairwise(sizes)):
        scale = rng.uniform(0.3, 2) / np.sqrt(columns)
        constants[f"w{place}"] = (scale * rng.normal(size=(columns, rows))).astype(np.float32)
        constants[f"b{place}"] = (0.3 * rng.normal(size=rows)).astype(np.float32)
        nodes.append(node("Gemm", f"{last} w{place} b{place}", f"z{place}"))
        nodes.append(node(activation, f"z{place}", f"a{place}"))
        last = f"a{place}"
    nodes[-1 if rng.random() < 0.5 else -2].output[0] = "y"
    if nodes[-1].output[0] != "y":
        nodes.pop()
    return graph_model(nodes, constants, ("N", int(sizes[0]))), int(sizes[0])


@pytest.mark.parametrize("part", range(4))
def test_from_below_is_never_above(part: int) -> None:
    for seed in range(part * NETWORKS // 4, (part + 1) * NETWORKS // 4):
        made, size = random_chain(seed)
        generator = torch.Generator().manual_seed(seed)
        case = case_of(made, [torch.randn(24, 1, size, generator=generator)], effort=0.02)
        sparsity = float(np.random.default_rng(seed).uniform(0.05, 0.9))
        found = measured(case, Magnitude(sparsity)(case.state, case.problem))
        assert found.lower is not None
        assert found.upper is not None
        assert 0 < found.lower <= found.upper, seed
        same = measured(case, case.state)
        assert same.lower == same.upper == 0.0


def test_a_linear_layer_is_known_exactly() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 4))
    case = case_of(linear_model(weight), effort=1.0)
    after = Magnitude(0.5)(case.state, case.problem)
    away = after.weights[key("w")].values - case.state.weights[key("w")].values
    wanted = float(torch.linalg.matrix_norm(away.double(), 2))
    found = measured(case, after)
    assert found.upper == pytest.approx(wanted, rel=1e-8)
    assert found.lower == pytest.approx(wanted, rel=1e-3)
    assert found.lower is not None
    assert found.lower <= wanted * (1 + 1e-12)


def image_chain() -> ModelProto:
    """Convolutions with groups, strides and a norm, pools, a scale, and what only moves entries."""
    constants = normal(31, c=(4, 1, 3, 3), d=(6, 2, 3, 3), e=(6,), s=(6, 1, 1), w=(6, 3), b=(3,))
    constants |= normal(32, shift=(4,), mean=(4,))
    constants["scale"] = np.array([1.0, 0.5, 2.0, 1.5], np.float32)
    constants["var"] = np.array([1.0, 2.0, 0.5, 1.0], np.float32)
    nodes = [
        node("Conv", "x c", "h1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "h1 scale shift mean var", "h2"),
        node("Tanh", "h2", "h3"),
        node("MaxPool", "h3", "h4", kernel_shape=[3, 3], strides=[2, 2]),
        node("Conv", "h4 d e", "h5", group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Mul", "h5 s", "h6"),
        node("Softplus", "h6", "h7"),
        node("GlobalAveragePool", "h7", "h8"),
        node("Flatten", "h8", "h9"),
        node("Gemm", "h9 w b", "h10", alpha=2.0),
        node("Softmax", "h10", "y"),
    ]
    return graph_model(nodes, constants, ("N", 1, 8, 8))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_images(sparsity: float, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:  # the bounds of what is too large to be written out
        monkeypatch.setattr(spectral, "LARGEST_MAP", 0)
        monkeypatch.setattr(spectral, "LARGEST_SIDE", 0)
    case = case_of(image_chain(), effort=0.02)
    found = measured(case, Magnitude(sparsity)(case.state, case.problem))
    assert found.lower is not None
    assert found.upper is not None
    assert 0 < found.lower <= found.upper
    assert measured(case, case.state).upper == 0.0


def test_moved_biases_count_too() -> None:
    case = case_of(MODELS["mlp"]())
    moved = case.state.with_extras({key("b2"): case.state.extras[key("b2")] + 0.5})
    found = measured(case, moved)
    assert found.lower == pytest.approx(1.0)  # four entries by a half each
    assert found.upper == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(6))
def test_norms_of_convolutions_are_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, size, kernel = int(rng.integers(1, 3)), int(rng.integers(3, 8)), int(rng.integers(1, 4))
    stride, pad = int(rng.integers(1, 3)), int(rng.integers(0, 2))
    weight = torch.from_numpy(rng.normal(size=(2 * groups, 3, kernel, kernel)))
    basis = torch.eye(3 * groups * size * size, dtype=torch.float64)
    images = basis.reshape(-1, 3 * groups, size, size)
    made = functional.conv2d(images, weight, stride=stride, padding=pad, groups=groups)
    truth = float(torch.linalg.matrix_norm(made.flatten(1), 2))
    assert truth <= convolution_norm(weight, groups) * (1 + 1e-12)


def test_norms_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 50)))
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    assert spectral_norm(matrix) == pytest.approx(truth, rel=1e-12)
    assert spectral_norm(torch.zeros(3, 4, dtype=torch.float64)) == 0.0
    monkeypatch.setattr(spectral, "LARGEST_SIDE", 8)
    assert truth <= spectral_norm(matrix) <= 1.15 * truth
    assert truth <= spectral_norm(1e-160 * matrix) * 1e160 <= 1.15 * truth


def refused(nodes: list[NodeProto], constants: dict[str, np.ndarray]) -> str:
    """Give why a model has no upper bound; it has a lower one."""
    case = case_of(graph_model(nodes, constants, ("N", 8)))
    found = measured(case, Magnitude(0.5)(case.state, case.problem))
    assert found.upper is None
    assert found.lower
    assert str(found).endswith(f"; no upper bound: {found.why}")
    return found.why


def test_other_graphs_are_refused_in_words() -> None:
    one = normal(33, w=(8, 8))
    two = normal(34, w=(8, 8), v=(8, 8))
    first, last = node("MatMul", "x w", "h1"), node("MatMul", "h2 v", "y")
    skip = [first, node("Relu", "h1", "h2"), node("Add", "h1 h2", "y")]
    assert refused(skip, one) == "'h1' goes several ways"
    square = [first, node("Mul", "h1 h1", "h2"), last]
    assert refused(square, two) == "Mul 'h2' is no layer of a chain"
    steep = [first, node("Exp", "h1", "h2"), last]
    wanted = "Exp 'h2' is neither an affine layer nor an activation with a bound"
    assert refused(steep, two) == wanted
    left = [first, node("Gemm", "v h1", "y", transB=1)]
    assert refused(left, two) == "Gemm 'y' multiplies from the left"
    wide = {**one, "c": np.ones((3, 8), np.float32)}
    assert (
        refused([first, node("Add", "h1 c", "y")], wide)
        == "Add 'y' makes more entries than it is given"
    )
    narrow = [first, node("Cast", "h1", "h2", to=TensorProto.FLOAT), last]
    assert refused(narrow, two) == "the graph does not run in float64"


def test_what_has_no_unit_ball_is_said() -> None:
    case = case_of(MODELS["shared weight"]())
    found = measured(case, Magnitude(0.5)(case.state, case.problem))
    assert found == Closeness(None, None, "the input 'x' holds no real numbers")
    assert (
        str(found)
        == "closeness over the unit ball is not known: the input 'x' holds no real numbers"
    )


def test_several_outputs_are_one_vector() -> None:
    case = case_of(two_headed_model())
    after = Magnitude(0.5)(case.state, case.problem)
    both = measured(case, after).lower
    assert both is not None
    alone = []
    for place in (0, 1):
        problem = replace(case.problem, judged=(place,), memo={})
        alone.append(measured(replace(case, problem=problem), after))
    assert all(one.upper is None for one in alone)  # the trunk goes two ways
    assert both >= max(one.lower or 0.0 for one in alone) * 0.95
