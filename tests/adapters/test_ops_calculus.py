"""Converters stay on their device, and can be vectorised and differentiated."""

import numpy as np
import pytest
import torch

from calculus import check_gradient, check_meta, check_vmap, floats, run_on
from one_node import Case, cases, make, reason

ITEMS = 2000
"""Cases with more numbers than this are left out of gradient checks: they cost seconds."""


def by_operator() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in cases().values():
        if reason(case.name) is None:
            found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


# The shape of the result depends on the values, so a converter has to read them.
SHAPED_BY_DATA = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}


@pytest.mark.parametrize("operator", sorted(set(by_operator()) - SHAPED_BY_DATA))
def test_vmap_over_each_input_is_the_loop(operator: str) -> None:
    for case in by_operator()[operator]:
        check_vmap(case.prepared(case.sets[0][0]))


@pytest.mark.parametrize("operator", sorted(set(by_operator()) - SHAPED_BY_DATA))
def test_a_tensor_without_values_is_enough_for_shape_and_type(operator: str) -> None:
    for case in by_operator()[operator]:
        check_meta(case.prepared(case.sets[0][0]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("operator", sorted(by_operator()))
def test_cuda_answers_as_the_cpu(operator: str) -> None:
    for case in by_operator()[operator]:
        prepared = case.prepared(case.sets[0][0])
        for here, there in zip(*run_on("cuda", prepared), strict=True):
            assert there.device.type == "cuda" or not prepared.tensors()
            exact = not here.is_floating_point()
            torch.testing.assert_close(
                there.cpu().to(torch.float64),
                here.to(torch.float64),
                equal_nan=True,
                rtol=0.0 if exact else 1e-3,
                atol=0.0 if exact else 1e-4,
            )


STEPS = "a step: the derivative is zero where it exists, and no difference quotient shows it"
LOSSY = "the result is of another float type, so its rounding drowns the difference quotient"
NO_DERIVATIVE = {
    "Cast": LOSSY,
    "CastLike": LOSSY,
    "Ceil": STEPS,
    "DynamicQuantizeLinear": STEPS,
    "Floor": STEPS,
    "QuantizeLinear": STEPS,
    "Round": STEPS,
    "Sign": STEPS,
}


# Infinities, NaN and powers of negative numbers have no difference quotients, and a softmax asked
# for in float32 drowns those of float64.
UNSMOOTH_CASES = (
    "test_attention_24_qk_matmul_output_mode3_softmax_precision",
    "test_mod_float_edge_cases",
    "test_onehot",
    "test_pow",
)


@pytest.mark.parametrize("operator", sorted(set(by_operator()) - set(NO_DERIVATIVE)))
def test_gradient_is_the_difference_quotient(operator: str) -> None:
    for case in by_operator()[operator]:
        prepared = case.prepared(case.sets[0][0])
        places = floats(prepared)
        count = sum(prepared.arguments[place].numel() for place in places)
        if 0 < count <= ITEMS and not case.name.startswith(UNSMOOTH_CASES):
            check_gradient(prepared, places)


rng = np.random.default_rng(0)
SMOOTH = {
    "Conv": make("Conv", [rng.random((1, 2, 4, 4)), rng.random((3, 2, 2, 2)), rng.random(3)]),
    "ConvTranspose": make("ConvTranspose", [rng.random((1, 2, 3, 3)), rng.random((2, 3, 2, 2))]),
    "Gemm": make("Gemm", [rng.random((2, 3)), rng.random((3, 4)), rng.random(4)]),
    "LSTM": make("LSTM", [rng.random((2, 1, 2)), rng.random((1, 8, 2)), rng.random((1, 8, 2))]),
    "MatMul": make("MatMul", [rng.random((2, 3)), rng.random((3, 4))]),
    "Pow": make("Pow", [rng.random((2, 3)) + 0.5, rng.random(3)]),
}


@pytest.mark.parametrize("operator", sorted(SMOOTH))
def test_gradient_exists_for_weights(operator: str) -> None:
    _, prepared = SMOOTH[operator]
    assert check_gradient(prepared, floats(prepared))


def test_square_of_a_negative_number_leaves_its_exponent_a_number() -> None:
    _, prepared = make("Pow", [np.array([-3.0, 0.0, 2.0]), np.array(2.0)])
    base = torch.tensor([-3.0, 0.0, 2.0], requires_grad=True)
    exponent = torch.tensor(2.0, requires_grad=True)
    (result,) = prepared.with_({0: base, 1: exponent})
    result.sum().backward()
    assert result.tolist() == [9.0, 0.0, 4.0]
    assert base.grad is not None
    assert exponent.grad is not None
    assert base.grad.tolist() == [-6.0, 0.0, 4.0]
    assert exponent.grad.item() == pytest.approx(4 * np.log(2))


def test_pooled_zeros_have_a_zero_gradient() -> None:
    for operator in ("LpPool", "GlobalLpPool"):
        attributes = {"kernel_shape": [2, 2]} if operator == "LpPool" else {}
        _, prepared = make(operator, [np.zeros((1, 1, 2, 2), np.float32)], attributes)
        image = torch.zeros(1, 1, 2, 2, requires_grad=True)
        prepared.with_({0: image})[0].sum().backward()
        assert image.grad is not None
        assert image.grad.tolist() == [[[[0.0, 0.0], [0.0, 0.0]]]]
