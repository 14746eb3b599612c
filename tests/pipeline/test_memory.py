"""When memory runs out the batch is halved, and the result is what it would have been."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from models import Case, case_of, convolutional_model, key, linear_model, two_headed_model
from onnxpress.curvature import gauss_newton, layer_hessians
from onnxpress.memory import Batch, accumulate, ran_out
from onnxpress.objective import Objective, objective_of
from onnxpress.step import Chain, checked
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress_adapters.batching import Batching
from onnxpress_adapters.errors import AdapterError, StepError
from onnxpress_adapters.trace import Trace

FITS = 30
"""Samples that fit, where memory is made scarce: 192 are 128 + 64 at first, 24 at a time then."""

ON_THE_CPU = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you"


def wrapped() -> AdapterError:
    """Give the error as it comes out of a node of the graph."""
    error = AdapterError("Conv 'c' cannot run on these inputs")
    error.__cause__ = RuntimeError(ON_THE_CPU)
    return error


SHORTAGES: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError(ON_THE_CPU),
    "numpy": lambda: MemoryError("Unable to allocate 2.00 GiB"),
    "in a node": wrapped,
}


@contextmanager
def scarce(shortage: Callable[[], Exception], fits: int = FITS) -> Iterator[None]:
    """Let the network run on at most so many samples."""
    run = Batching.run

    def refuse(self: Batching, *args: Any, **named: Any) -> Trace:
        inputs: Sequence[Tensor] = args[2]
        if len(inputs[0]) > fits:
            raise shortage()
        return run(self, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batching, "run", refuse)
        yield


def facts(case: Case) -> list[Tensor]:
    """Give everything that goes over samples, in one list."""
    objective = objective_of(case.problem)
    tensors = {k: 0.7 * v for k, v in case.state.tensors.items()}
    keys = sorted(case.state.free)
    level, gradient = objective.gradient(tensors, keys)
    generator = torch.Generator().manual_seed(3)
    diagonal = gauss_newton(objective, tensors, keys, 4, generator)
    hessians = layer_hessians(objective, tensors, case.problem.network.layers)
    return [
        torch.tensor(level),
        objective.scales,
        objective.measure_fit(tensors).errors,
        objective.measure_choose(tensors).errors,
        *objective.reference(case.problem.choose),
        *(gradient[k] for k in keys),
        *(diagonal[k] for k in keys),
        *(hessians[k] for k in keys),
    ]


@pytest.mark.parametrize("shortage", sorted(SHORTAGES))
def test_every_fact_is_the_same_in_halves(shortage: str) -> None:
    wanted = facts(case_of(convolutional_model()))
    case = case_of(convolutional_model())
    with scarce(SHORTAGES[shortage]):
        found = facts(case)
    for one, other in zip(wanted, found, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()
    batch = objective_of(case.problem).batch
    assert batch.size <= FITS
    assert batch.note == f"memory ran out with {batch.planned} samples at a time; {batch.size} fit"


def test_a_step_goes_on_and_says_so() -> None:
    step = Greedy(sparsity=0.5, layerwise=1.0)
    plain = case_of(two_headed_model())
    wanted = checked(step, plain.state, plain.problem)
    case = case_of(two_headed_model())
    with scarce(SHORTAGES["cuda"]):
        found = checked(step, case.state, case.problem)
    again = checked(step, found, case.problem)
    lines = [line for line in again.log if "memory ran out" in line]
    assert lines == [objective_of(case.problem).batch.note]
    assert not any("memory" in line for line in wanted.log)
    for name, form in wanted.weights.items():
        assert torch.equal(form.support, found.weights[name].support)
        torch.testing.assert_close(form.values, found.weights[name].values, rtol=1e-4, atol=1e-6)


def test_a_batch_stays_small() -> None:
    batch = Batch(16, 16)
    seen: list[tuple[int, int]] = []

    def work(start: int, stop: int) -> int:
        if stop - start > 5:
            raise MemoryError
        seen.append((start, stop))
        return stop - start

    assert list(batch.parts(10, work)) == [5, 5]
    assert batch.note == "memory ran out with 16 samples at a time; 5 fit"
    assert list(batch.parts(7, work)) == [5, 2]
    assert seen == [(0, 5), (5, 10), (0, 5), (5, 7)]
    assert Batch(16, 16).note is None


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    case = case_of(linear_model(torch.ones(4, 2).numpy()))
    objective = objective_of(case.problem)
    with (
        scarce(SHORTAGES["cpu"], fits=0),
        pytest.raises(StepError, match="memory ran out with a single sample") as caught,
    ):
        objective.measure_fit(case.state.tensors)
    assert ran_out(caught.value)


def test_other_errors_are_not_swallowed() -> None:
    batch = Batch(8, 8)

    def work(start: int, stop: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(batch.parts(8, work))
    assert batch.size == 8
    assert not ran_out(AdapterError("an operator is missing"))


def test_half_a_gradient_counts_for_nothing() -> None:
    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            if len(slope) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return slope

    x = torch.arange(10.0)
    first, second, unused = (torch.tensor(v, requires_grad=True) for v in (2.0, 3.0, 1.0))
    second.grad = torch.tensor(100.0)  # of an earlier step

    def loss(start: int, stop: int) -> Tensor:
        # The gradient of the first leaf is finished when that of the second one fails.
        part = x[start:stop]
        refusing: Tensor = Refusing.apply(second * part)  # type: ignore[no-untyped-call]  # torch's
        return (first * part).sum() + refusing.sum()

    batch = Batch(10, 10)
    assert accumulate(batch, [first, second, unused], 10, loss) == 45 * 5.0
    assert first.grad == second.grad == 45
    assert unused.grad is None
    assert batch.size == 2
    assert accumulate(batch, [unused], 10, lambda start, stop: x[start:stop].sum()) == 45
    assert unused.grad is None


def test_gradients_lie_as_optimisers_take_them() -> None:
    """Gradients behind a Transpose and an Expand: some of their strides swapped, some zero."""
    turned, spread = torch.ones(3, 4, requires_grad=True), torch.ones(5, requires_grad=True)

    def loss(start: int, stop: int) -> Tensor:
        return ((turned.T @ torch.ones(3, 2)).sum() + spread.sum()) * ((stop - start) / 10)

    for size in (10, 5):
        accumulate(Batch(size, size), [turned, spread], 10, loss)
        for leaf in (turned, spread):
            assert leaf.grad is not None
            assert leaf.grad.is_contiguous()
            assert leaf.grad.view(-1).tolist() == [2.0 if leaf is turned else 1.0] * leaf.numel()


def test_the_batch_is_one_for_the_whole_problem() -> None:
    inputs = torch.randn(9, 1, 8, generator=torch.Generator().manual_seed(0))
    case = case_of(two_headed_model(), [inputs])
    objective = objective_of(case.problem)
    objective.batch.size = 4
    assert Objective(case.problem, objective.scales, objective.cost, None, None).batch.size == 4
    sizes = [len(inputs[0]) for inputs, _ in objective.batches()]
    assert sizes == [4, 4, 1]
    # Sums over other batches are rounded otherwise.
    assert objective.gradient(case.state.tensors, [key("w")])[0] < 1e-12


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_a_repair_goes_on_in_halves(method: Literal["adam", "lbfgs"]) -> None:
    steps = Chain((Magnitude(sparsity=0.5), Repair(method=method)))
    plain = case_of(two_headed_model())
    wanted = steps(plain.state, plain.problem)
    case = case_of(two_headed_model())
    with scarce(SHORTAGES["cuda"]):
        found = steps(case.state, case.problem)
    assert objective_of(case.problem).batch.size <= FITS
    objective = objective_of(plain.problem)
    distances = [objective.measure_choose(after.tensors).value for after in (wanted, found)]
    assert (
        distances[0]
        < objective.measure_choose(Magnitude(0.5)(plain.state, plain.problem).tensors).value
    )
    assert distances[1] == pytest.approx(distances[0], rel=1e-4)
