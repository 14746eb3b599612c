"""d and its gradient: the number every step works on.

A step minimises E over x of sum_k ‖F_k(x) - F'_k(x)‖² / s_k over the judged outputs k. The scale
s_k is the output's variance E‖F_k - EF_k‖² (its power where it does not vary), multiplied by the
output's own tolerance, where it has one, as a share of the general one: so the sum bounds the
relative distance of the worst output. With an absolute tolerance no variance counts.

Source: seeds/sparsification_mathematics.md, "Manifold assumption", the definition of d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onnxpress.cost import Cost
from onnxpress.memory import Batch, accumulate
from onnxpress.problem import Problem
from onnxpress_adapters.errors import StepError
from onnxpress_adapters.weights import WeightKey

KEPT_BYTES = 1 << 29
"""Reference outputs up to this size are kept; larger ones are computed again for each batch."""


@dataclass(frozen=True, eq=False)
class Measured:
    """d on a set of samples.

    Attributes:
        errors: ``[samples, limits]``, float64 on the CPU: ‖F_k - F'_k‖² of each sample and judged
            output; with an absolute tolerance, the outputs it speaks of together are one column.
        scales: ``[limits]``: what a mean error is divided by.
    """

    errors: Tensor
    scales: Tensor

    @property
    def per_output(self) -> Tensor:
        """D of each output, scaled: ``[limits]``."""
        return self.errors.mean(0) / self.scales

    @property
    def value(self) -> float:
        """D of the worst output, scaled; not finite where an output is not."""
        return float(self.per_output.max())

    def upper(self, deviations: float) -> float:
        """A bound on ``value`` so many standard errors above it."""
        count = max(1, len(self.errors))
        spread = self.errors.std(0, correction=min(1, count - 1)) / count**0.5
        return float(((self.errors.mean(0) + deviations * spread) / self.scales).max())


@dataclass(frozen=True, eq=False)
class Objective:
    """The functional distance to the reference network on a problem's samples."""

    problem: Problem
    scales: Tensor  # [judged], float64 on the CPU
    cost: Cost
    targets: tuple[Tensor, ...] | None  # per judged output, [fit samples, *shape]
    chosen: tuple[Tensor, ...] | None  # likewise for the choose set

    @property
    def batch(self) -> Batch:
        """How many samples run together; fewer once memory ran out."""
        return Batch.of(self.problem.memo, self.cost.batch)

    def outputs(
        self, tensors: Mapping[WeightKey, Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """Run the network with ``tensors`` laid over the reference; judged outputs only.

        Where gradients are recorded they go through rounding and signs as well.
        """
        problem = self.problem
        graph = problem.network
        network = graph.with_surrogates() if torch.is_grad_enabled() else graph
        values = network.batched({**problem.reference, **tensors}, inputs)
        return [values[place] for place in problem.judged]

    def on(
        self,
        fit: Sequence[Tensor],
        targets: tuple[Tensor, ...] | None,
        labels: tuple[Tensor, Tensor] | None = None,
    ) -> Objective:
        """Give the same distance, its scales unchanged, on another fit set.

        Args:
            fit: one tensor ``[samples, *feed shape]`` per graph input.
            targets: what the reference network answers, per judged output; None to ask it anew for
                every batch.
            labels: of that set and of the choose set; None where no task is descended on.
        """
        memo: dict[object, object] = {"batch": self.batch}  # memory that ran out has run out
        problem = replace(self.problem, fit=fit, labels=labels, memo=memo)
        memo["objective"] = objective = replace(self, problem=problem, targets=targets)
        return objective

    def reference(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the reference network, batch by batch and without a gradient."""

        def part(start: int, stop: int) -> list[Tensor]:
            with torch.no_grad():
                return self.outputs({}, [value[start:stop] for value in inputs])

        parts = list(self.batch.parts(len(inputs[0]), part))
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def loss(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Mean over the samples of the scaled squared error, summed over the judged outputs."""
        total = found[0].new_zeros(())
        for ours, theirs, scale in zip(found, wanted, self.scales.tolist(), strict=True):
            total = total + (ours - theirs).square().sum() / (len(ours) * scale)
        return total

    def batches(self, size: int | None = None) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Go once through the fit set in order: inputs and reference outputs."""
        fit = self.problem.fit
        step = size or self.batch.size
        for start in range(0, len(fit[0]), step):
            inputs = [value[start : start + step] for value in fit]
            if self.targets is None:
                yield inputs, self.reference(inputs)
            else:
                yield inputs, [value[start : start + step] for value in self.targets]

    def measure(
        self,
        tensors: Mapping[WeightKey, Tensor],
        inputs: Sequence[Tensor],
        wanted: Sequence[Tensor] | None = None,
    ) -> Measured:
        """Measure d on samples, batch by batch in float64, without a gradient.

        Args:
            tensors: laid over the reference weights.
            inputs: one per graph input, ``[samples, *feed shape]``.
            wanted: what the reference network answers, where that is known.
        """

        def errors(start: int, stop: int) -> Tensor:
            part = [value[start:stop] for value in inputs]
            known = wanted and [value[start:stop] for value in wanted]
            with torch.no_grad():
                pairs = zip(self.outputs(tensors, part), known or self.reference(part), strict=True)
                each = [(a.double() - b.double()).square().flatten(1).sum(1) for a, b in pairs]
                return torch.stack(each, 1).cpu()

        rows = list(self.batch.parts(len(inputs[0]), errors))
        return self._limited(torch.cat(rows))

    def _limited(self, errors: Tensor) -> Measured:
        """Lay ``[samples, judged]`` out as the tolerance limits it."""
        problem, scales = self.problem, self.scales
        tolerance = problem.tolerance
        if tolerance is None or not tolerance.absolute:
            return Measured(errors, scales)
        own = {name for name, value in tolerance.outputs if value is not None}
        names = [problem.network.outputs[place].name for place in problem.judged]
        summed = torch.tensor([name not in own for name in names])
        if int(summed.sum()) < 2:
            return Measured(errors, scales)
        together = errors[:, summed].sum(1, keepdim=True)
        return Measured(
            torch.cat([together, errors[:, ~summed]], 1),
            torch.cat([scales.new_ones(1), scales[~summed]]),
        )

    def measure_choose(
        self, tensors: Mapping[WeightKey, Tensor], samples: int | None = None
    ) -> Measured:
        """Measure d on the choose set, or on its first ``samples``."""
        inputs = [value[:samples] for value in self.problem.choose]
        wanted = self.chosen and [value[:samples] for value in self.chosen]
        return self.measure(tensors, inputs, wanted)

    def measure_fit(
        self, tensors: Mapping[WeightKey, Tensor], samples: int | None = None
    ) -> Measured:
        """Measure d on the fit set, or on its first ``samples``."""
        inputs = [value[:samples] for value in self.problem.fit]
        wanted = self.targets and [value[:samples] for value in self.targets]
        return self.measure(tensors, inputs, wanted)

    def gradient(
        self, tensors: Mapping[WeightKey, Tensor], keys: Sequence[WeightKey]
    ) -> tuple[float, dict[WeightKey, Tensor]]:
        """Give d on the whole fit set and its gradient in some of the tensors."""
        leaves = {key: tensors[key].detach().requires_grad_() for key in keys}
        laid = {**tensors, **leaves}
        total = self.push(lambda: laid, list(leaves.values()), self.problem.fit, self.targets)
        return total, {key: _grad(leaf) for key, leaf in leaves.items()}

    def push(
        self,
        laid: Callable[[], Mapping[WeightKey, Tensor]],
        leaves: Sequence[Tensor],
        inputs: Sequence[Tensor],
        wanted: Sequence[Tensor] | None,
        of: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] | None = None,
    ) -> float:
        """Give the loss over samples, and leave its gradient in ``grad`` of the leaves.

        Args:
            laid: makes the tensors to lay over the reference from the leaves; asked once for every
                part of the samples that fits into memory.
            leaves: what they are made of.
            inputs: one per graph input, ``[samples, *feed shape]``.
            wanted: what they should give; None to ask the reference network.
            of: the loss, a mean over the samples it is given; d unless given.
        """
        samples, mean = len(inputs[0]), self.loss if of is None else of

        def loss(start: int, stop: int) -> Tensor:
            part = [value[start:stop] for value in inputs]
            known = wanted and [value[start:stop] for value in wanted]
            answers = known or self.reference(part)
            return mean(self.outputs(laid(), part), answers) * ((stop - start) / samples)

        return accumulate(self.batch, leaves, samples, loss)


def objective_of(problem: Problem) -> Objective:
    """Measure the outputs of the reference network and set the scales.

    Raises:
        StepError: an output of the original model is not finite on the given inputs.
    """
    known = problem.memo.get("objective")
    if isinstance(known, Objective):
        return known
    cost = Cost.of(problem.network, problem.reference, problem.fit, problem.effort)
    ones = torch.ones(len(problem.judged), dtype=torch.float64)
    bare = Objective(problem, ones, cost, None, None)
    scales, targets = _survey(bare)
    answers = bare.reference(problem.choose)
    chosen = tuple(answers) if _bytes(answers) <= KEPT_BYTES else None
    objective = Objective(problem, scales, cost, targets, chosen)
    problem.memo["objective"] = objective
    return objective


def _bytes(values: Sequence[Tensor]) -> int:
    return sum(value.nbytes for value in values)


def _survey(bare: Objective) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Run the reference once over the fit set: variances, and the outputs if they are small."""
    problem = bare.problem
    kept: list[list[Tensor]] | None = [[] for _ in problem.judged]
    sums: list[Tensor] = []
    squares = torch.zeros(len(problem.judged), dtype=torch.float64)
    size_bytes = 0
    for _, wanted in bare.batches():
        size_bytes += _bytes(wanted)
        for place, value in enumerate(wanted):
            if not bool(torch.isfinite(value).all()):
                name = problem.network.outputs[problem.judged[place]].name
                raise StepError(
                    f"output '{name}' of the original model is not finite on some of the inputs; "
                    "leave those inputs out, or judge other outputs with --output"
                )
            summed = value.double().sum(0)
            if len(sums) <= place:
                sums.append(summed)
            else:
                sums[place] += summed
            squares[place] += value.double().square().sum().cpu()
            if kept is not None:
                kept[place].append(value)
        if size_bytes > KEPT_BYTES:
            kept = None
    count = len(problem.fit[0])
    scales = []
    for place, total in enumerate(sums):
        power = float(squares[place]) / count
        variance = power - float((total / count).square().sum())
        scale = variance if variance > 1e-12 * power else power
        scales.append(_scale(problem, place, scale))
    targets = None if kept is None else tuple(torch.cat(parts) for parts in kept)
    return torch.tensor(scales, dtype=torch.float64), targets


def _scale(problem: Problem, place: int, spread: float) -> float:
    """Combine an output's spread with the tolerance it has of its own."""
    tolerance = problem.tolerance
    spread = spread or 1.0
    if tolerance is None:
        return spread
    name = problem.network.outputs[problem.judged[place]].name
    own = dict(tolerance.outputs).get(name)
    share = 1.0 if own is None else own / tolerance.value
    return share if tolerance.absolute else share * spread


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
