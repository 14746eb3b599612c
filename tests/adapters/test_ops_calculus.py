"""Converters stay on their device, and can be vectorised and differentiated."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from one_node import Case, Prepared, cases, make, reason

ITEMS = 2000
"""Cases with more numbers than this are left out of gradient checks: they cost seconds."""


def by_operator() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in cases().values():
        if reason(case.name) is None:
            found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


def copies(value: Tensor) -> Tensor:
    """Stack three tensors of one shape: the one given, another, and the one given."""
    if value.dtype.itemsize == 1 or not value.is_floating_point():
        return torch.stack([value, value, value])
    return torch.stack([value, value * 0.9, value])


@pytest.mark.parametrize("operator", sorted(by_operator()))
def test_vmap_over_each_input_is_the_loop(operator: str) -> None:
    for case in by_operator()[operator]:
        prepared = case.prepared(case.sets[0][0])
        for place in prepared.tensors():
            stacked = copies(prepared.arguments[place])

            def one(
                value: Tensor, prepared: Prepared = prepared, place: int = place
            ) -> tuple[Tensor, ...]:
                return prepared.with_({place: value})

            vectorised = torch.vmap(one)(stacked)
            looped = [torch.stack(parts) for parts in zip(*map(one, stacked), strict=True)]
            for fast, slow in zip(vectorised, looped, strict=True):
                if not (fast.is_floating_point() and fast.dtype.itemsize == 1):
                    torch.testing.assert_close(fast, slow, equal_nan=True, rtol=1e-4, atol=1e-5)


def run_on(device: str, case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Run a case on the CPU and on another device."""
    prepared = case.prepared(case.sets[0][0])
    changes = {place: prepared.arguments[place].to(device) for place in prepared.tensors()}
    return list(prepared.with_({})), list(prepared.with_(changes))


@pytest.mark.parametrize("operator", sorted(by_operator()))
def test_a_tensor_without_values_is_enough_for_shape_and_type(operator: str) -> None:
    """Whatever reads a value on the host, or mixes devices, fails on the device ``meta``."""
    for case in by_operator()[operator]:
        for here, there in zip(*run_on("meta", case), strict=True):
            assert (there.shape, there.dtype) == (here.shape, here.dtype)
            assert there.device.type == "meta" or not case.prepared(case.sets[0][0]).tensors()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("operator", sorted(by_operator()))
def test_cuda_answers_as_the_cpu(operator: str) -> None:
    for case in by_operator()[operator]:
        tensors = case.prepared(case.sets[0][0]).tensors()
        for here, there in zip(*run_on("cuda", case), strict=True):
            assert there.device.type == "cuda" or not tensors
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


def floats(prepared: Prepared) -> list[int]:
    chosen = []
    for place in prepared.tensors():
        value = prepared.arguments[place]
        if value.is_floating_point() and value.dtype.itemsize > 1:
            chosen.append(place)
    return chosen


def moved(value: Tensor, seed: int) -> Tensor:
    """Give a float64 tensor just off the given one, and so off its kinks and ties."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
    return value.to(torch.float64) + 0.01 * noise + 0.001


def check_gradient(prepared: Prepared, places: Sequence[int]) -> bool:
    """Compare derivatives with difference quotients; False where no output has one."""
    constants = {
        place: value.to(torch.float64)
        for place, value in enumerate(prepared.arguments)
        if isinstance(value, Tensor) and value.is_floating_point()
    }

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        results = prepared.with_({**constants, **dict(zip(places, values, strict=True))})
        return tuple(r for r in results if r.is_floating_point() and r.requires_grad)

    values = [moved(prepared.arguments[p], p).requires_grad_() for p in places]
    if not outputs(*values):
        return False
    return torch.autograd.gradcheck(outputs, values, fast_mode=True, atol=1e-4)


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
