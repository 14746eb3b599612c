"""Short ways from a weight to the outputs: what a removed entry changes, and nothing else.

Setting W[r, c] to zero changes what its layer gives in unit r alone, by -W[r, c] X[c]. What follows
entry by entry (a bias, an activation) keeps the change in that unit, so that one pass of it serves
every unit, each without its weight of the same column. A matrix product behind that sees a change
of rank one; only what comes after runs as a whole, for the samples where something changed. Where
sums alone lead on to the output, nothing runs and the rise is a quadratic in second moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxpress.cost import ELEMENT_MACS
from onnxpress.objective import Objective
from onnxpress_adapters.graph import Instruction
from onnxpress_adapters.layers import Layer
from onnxpress_adapters.rest import Rest, Whole, readers, reads
from onnxpress_adapters.weights import WeightKey

POINTWISE = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Clip"),
        *("Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Mish", "Softplus", "Softsign"),
        *("Erf", "Abs", "Neg", "Exp", "Sqrt", "Identity", "Add", "Sub", "Mul", "Div", "Max", "Min"),
        *("Pow", "BatchNormalization"),
    }
)
"""Operators that make every entry of the same entry of their varying inputs."""

RESHAPES = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that pass entries on as they are and in their order."""

PRODUCTS = frozenset({"MatMul", "Gemm"})

CHUNK, DEVICE_CHUNK = 1 << 17, 1 << 25
"""Entries of intermediate results at a time, on a CPU, in whose cache they stay, and on a GPU."""

CHANGES = 1 << 22
"""Entries of the changes of units at a time."""

SELF = 4
"""Passes over the changes of a unit beside those of what follows entry by entry."""

FULL = 0.4
"""Share of a block of columns and units from which on it runs whole: nothing has to be gathered."""


@dataclass(frozen=True, eq=False)
class Met:
    """What short ways start from: a run of the network, and how far off its outputs are.

    Attributes:
        whole: the run, in float64.
        tensors: the weights it ran with.
        residuals: by judged output: F' - F, ``[samples, *shape]``.
        shares: by judged output: what a squared error there adds to d.
    """

    whole: Whole
    tensors: Mapping[WeightKey, Tensor]
    residuals: Mapping[int, Tensor]
    shares: Mapping[int, float]

    @classmethod
    def of(
        cls,
        objective: Objective,
        tensors: Mapping[WeightKey, Tensor],
        inputs: Sequence[Tensor],
        wanted: Sequence[Tensor],
        samples: int,
    ) -> Met | None:
        """Run the network on inputs; None where its samples do not lie along the first axis.

        Args:
            objective: computed in float64.
            tensors: laid over the reference.
            inputs: one per graph input, ``[samples, *feed shape]``.
            wanted: what the reference answers.
            samples: how many d is a mean over.
        """
        problem = objective.problem
        whole = Whole.of(problem.network, {**problem.reference, **tensors}, inputs)
        if whole is None:
            return None
        residuals, shares = {}, {}
        for place, scale, theirs in zip(
            problem.judged, objective.scales.tolist(), wanted, strict=True
        ):
            ours = whole.tensor(problem.network.program.main.outputs[place])
            if ours is None:
                return None
            residuals[place] = ours - theirs.reshape(ours.shape)
            shares[place] = 1 / (samples * scale)
        return cls(whole, whole.weights, residuals, shares)


@dataclass(frozen=True, eq=False)
class Way:
    """The short way of one layer.

    Attributes:
        layer: the matrix view of the weight.
        region: what follows entry by entry.
        name: of the value behind that, which changes in one unit.
        product: the matrix product that reads it, where nothing else does.
        rest: what runs as a whole, from the product's result or else from ``name`` on.
        output: the graph output that sums alone lead to from there, if one.
        macs: multiply-adds for one weight and sample, intermediate entries in the same currency.
    """

    layer: Layer
    region: Rest
    name: str
    product: Instruction | None
    rest: Rest
    output: int | None
    macs: float

    @classmethod
    def of(cls, whole: Whole, layer: Layer) -> Way | None:
        """Find it; None where the weight is used in another way than is followed here."""
        node, main = layer.node, whole.network.program.main
        is_product = node.operator in PRODUCTS and layer.slot == 1 and len(layer.shape) == 2
        if len(layer.sites) != 1 or layer.sites[0][0] or node.get("transA", 0):
            return None
        result, met = whole.tensor(node.outputs[0]), whole.tensor(node.inputs[0])
        if not (is_product or node.operator == "Conv") or result is None or met is None:
            return None
        if node.inputs[layer.slot] in whole.varying or result.ndim < 2:
            return None
        region, name = _region(whole, node.outputs[0])
        if _led_to(whole, node.outputs[0]) is not None:  # sums are no region: they change nothing
            region, name = Rest(node.outputs[0], (), (), ()), node.outputs[0]
        product = None
        following = readers(main, name)
        if is_product and len(following) == 1 and name not in main.outputs:
            product = following[0] if _takes(whole, following[0], name) else None
        rest = Rest.of(whole, name if product is None else product.node.outputs[0])
        output = _led_to(whole, rest.start)
        positions = result.numel() // (whole.rows * layer.groups * layer.rows)
        macs = float(ELEMENT_MACS * positions * (SELF + len(region.instructions)))
        macs += _macs(whole, rest) if output is None else 0.0
        return cls(layer, region, name, product, rest, output, macs)

    def rises(self, met: Met) -> Tensor:
        """Give what some samples add to the rise of d: float64, of the weight's shape."""
        matrix = self.layer.matrix(met.tensors[self.layer.key])
        groups, rows, columns = matrix.shape
        found = torch.zeros(groups * rows, columns, dtype=torch.float64, device=matrix.device)
        reached = self.rest.outputs if self.output is None else (self.output,)
        if not met.residuals.keys().isdisjoint(reached):
            if self.output is not None and self.product is None and not self.region.instructions:
                found = self._of_the_last(met, matrix)
            else:
                for some, changes in self._changes(met, matrix):
                    found[:, some] = self._added(met, changes)
        return self.layer.entries(found.reshape(groups, rows, columns)).contiguous()

    def _columns(self, met: Met) -> Tensor:
        """Give what the layer meets: ``[groups, samples * positions, columns]``."""
        value = met.whole.tensor(self.layer.node.inputs[0])
        assert value is not None
        return self.layer.columns_of(value)

    def _units_last(self, value: Tensor, rows: int) -> Tensor:
        """See ``[rows, *shape]`` of a layer's result as ``[rows, positions, units]``."""
        units = self.layer.groups * self.layer.rows
        if self.layer.node.operator == "Conv":
            return value.reshape(rows, units, -1).transpose(1, 2)
        return value.reshape(rows, -1, units)

    def _of_the_last(self, met: Met, matrix: Tensor) -> Tensor:
        """w² E[X_c²] - 2 w E[R_r X_c], for a layer that only sums follow: ``[units, columns]``."""
        assert self.output is not None
        columns = self._columns(met)
        groups, rows = matrix.shape[:2]
        shape = self._result(met).shape
        residual = self._units_last(met.residuals[self.output].reshape(shape), met.whole.rows)
        split = residual.reshape(-1, groups, rows).permute(1, 2, 0)
        power = columns.square().sum(1)[:, None]
        rise = matrix * (matrix * power - 2 * (split @ columns))
        return rise.reshape(-1, matrix.shape[2]) * met.shares[self.output]

    def _result(self, met: Met) -> Tensor:
        value = met.whole.tensor(self.layer.node.outputs[0])
        assert value is not None
        return value

    def _changes(self, met: Met, matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Give what each unit changes by behind the region without its weight of a column.

        Yields:
            Some columns, and ``[columns, samples, positions, units]``.
        """
        columns, result, samples = self._columns(met), self._result(met), met.whole.rows
        before = met.whole.tensor(self.name)
        assert before is not None
        groups, rows, count = matrix.shape
        size = max(1, CHANGES // max(1, result.numel()))
        order = torch.arange(samples, device=matrix.device)
        met_by = columns.permute(2, 1, 0).contiguous()  # [columns, samples * positions, groups]
        removed = -matrix.permute(2, 0, 1).contiguous()  # [columns, groups, rows]
        for start in range(0, count, size):
            some = slice(start, min(count, start + size))
            moved = met_by[some, :, :, None] * removed[some, None]
            moved = moved.view(len(moved), samples, -1, groups * rows)
            if self.region.instructions:
                still = moved.eq(0)  # also where another batch rounds the same entry otherwise
                laid = moved.flatten(0, 1)
                if self.layer.node.operator == "Conv":
                    laid = laid.transpose(1, 2)
                laid = laid.reshape(-1, *result.shape[1:])
                laid += result.repeat(len(moved), *(1,) * (result.ndim - 1))
                there = self.region.run(met.whole, laid, order.repeat(len(moved)))[self.name]
                assert isinstance(there, Tensor)
                change = there.unflatten(0, (-1, samples)) - before
                moved = self._units_last(change.flatten(0, 1), len(there)).reshape(moved.shape)
                moved = moved.masked_fill(still, 0.0)
            yield some, moved

    def _added(self, met: Met, changes: Tensor) -> Tensor:
        """Turn changes ``[columns, samples, positions, units]`` into rises ``[units, columns]``."""
        if self.output is None:
            return self._run(met, changes)
        share, samples = met.shares[self.output], met.whole.rows
        residual = met.residuals[self.output]
        if self.product is None:
            there = residual.reshape(self._result(met).shape)
            wide = self._units_last(there, samples)
            return (changes * (changes + 2 * wide)).sum((1, 2)).T * share
        rays = _rays(met.whole, self.product)
        along = residual.reshape(samples, -1, rays.shape[1]) @ rays.T
        power = rays.square().sum(1)
        return (changes * (changes * power + 2 * along)).sum((1, 2)).T * share

    def _run(self, met: Met, changes: Tensor) -> Tensor:
        """Run the rest for every change that is not zero: ``[units, columns]``."""
        touched = changes.ne(0).any(2)  # [columns, samples, units]
        found = changes.new_zeros(changes.shape[3], len(changes))
        if self.product is None:
            self._run_each(met, changes, touched, found)
            return found
        columns, units = touched.any(2), touched.any(0)  # [columns, samples], [samples, units]
        if int(touched.sum()) < FULL * int((columns.sum(0) * units.sum(1)).sum()):
            self._run_each(met, changes, touched, found)
            return found
        start = self._start(met)
        alike = max(1, _chunk(changes) // (changes.shape[3] * self._each(met)))
        for place in range(0, met.whole.rows, alike):
            some = slice(place, place + alike)
            column = columns[:, some].any(1).nonzero().reshape(-1)
            unit = units[some].any(0).nonzero().reshape(-1)
            if len(column) and len(unit):
                self._run_block(met, changes[:, some], start[some], place, column, unit, found)
        return found

    def _run_each(self, met: Met, changes: Tensor, touched: Tensor, found: Tensor) -> None:
        """Run the rest for single columns, samples and units, a chunk at a time."""
        columns, samples, units = (x.contiguous() for x in touched.nonzero(as_tuple=True))
        start = self._start(met)
        size = max(1, _chunk(changes) // self._each(met))
        rays = None if self.product is None else _rays(met.whole, self.product)
        for place in range(0, len(columns), size):
            some = slice(place, place + size)
            column, sample, unit = columns[some], samples[some], units[some]
            change = changes[column, sample, :, unit]  # [changes, positions]
            rows = start.index_select(0, sample)
            if rays is not None:
                wide = rows.view(len(rows), change.shape[1], -1)
                wide.addcmul_(change[:, :, None], rays.index_select(0, unit)[:, None])
            else:
                order = torch.arange(len(rows), device=rows.device)
                self._units_last(rows, len(rows))[order, :, unit] += change
            found.view(-1).index_add_(
                0, unit * found.shape[1] + column, self._rise(met, rows, sample)
            )

    def _run_block(
        self,
        met: Met,
        changes: Tensor,
        start: Tensor,
        first: int,
        columns: Tensor,
        units: Tensor,
        found: Tensor,
    ) -> None:
        """Run the rest for all pairs of some columns and units, of a few samples in a row.

        Args:
            met: the run.
            changes: ``[columns, samples, positions, units]``, of those samples.
            start: the value the rest starts from, ``[samples, *shape]``.
            first: place of the first of the samples.
            columns: places of columns.
            units: places of units.
            found: ``[units, columns]``, to add to.
        """
        assert self.product is not None
        rays = _rays(met.whole, self.product).index_select(0, units)
        samples, positions = changes.shape[1:3]
        base = start.reshape(1, samples, 1, positions, -1)
        size = max(1, _chunk(changes) // (samples * len(units) * self._each(met)))
        order = torch.arange(first, first + samples, device=units.device)
        for column in columns.split(size):
            change = changes.index_select(0, column).index_select(3, units)
            change = change.transpose(2, 3).contiguous()
            rows = torch.addcmul(base, change[..., None], rays[:, None])
            sample = order[None, :, None].expand(change.shape[:3]).reshape(-1)
            rise = self._rise(met, rows.view(-1, *start.shape[1:]), sample)
            rise = rise.view(change.shape[:3]).masked_fill(~change.any(3), 0.0)
            found[units[:, None], column] += rise.sum(1).T

    def _rise(self, met: Met, rows: Tensor, samples: Tensor) -> Tensor:
        """Run the rest and give what each row adds to d."""
        whole = met.whole
        main = whole.network.program.main
        total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for output, there in self.rest.results(whole, rows, samples).items():
            here = whole.tensor(main.outputs[output])
            if output in met.residuals and here is not None:
                off = met.residuals[output].flatten(1)
                change = there.flatten(1) - here.flatten(1).index_select(0, samples)
                twice = torch.add(change, off.index_select(0, samples), alpha=2)
                total += torch.linalg.vecdot(change, twice) * met.shares[output]
        return total

    def _start(self, met: Met) -> Tensor:
        value = met.whole.tensor(self.rest.start)
        assert value is not None
        return value

    def _each(self, met: Met) -> int:
        """Count the entries that one row makes."""
        entries = self._start(met).numel() // met.whole.rows
        return max(1, entries + _elements(met.whole, self.rest.instructions))


def _region(whole: Whole, start: str) -> tuple[Rest, str]:
    """Find what follows a value entry by entry and ends in a single value."""
    main = whole.network.program.main
    shape = getattr(whole.values[start], "shape", None)
    names, taken = {start}, []
    best: tuple[tuple[Instruction, ...], str] = ((), start)
    for instruction in main.instructions:
        varying = {name for name in reads(instruction) if name in whole.varying}
        made = [name for name in instruction.node.outputs if name]
        fits = varying and varying <= names and instruction.node.operator in POINTWISE
        if not fits or instruction.entry is None or instruction.falls_back or len(made) > 1:
            continue
        if getattr(whole.values[made[0]], "shape", None) != shape:
            continue
        taken.append(instruction)
        names.add(made[0])
        others = [each for each in main.instructions if each not in taken]
        asked = {name for each in others for name in reads(each)} | set(main.outputs)
        if len(names & asked) == 1:
            best = tuple(taken), next(iter(names & asked))
    return Rest(start, best[0], (), ()), best[1]


def _takes(whole: Whole, instruction: Instruction, name: str) -> bool:
    """Say whether a node multiplies a value from the right by a constant matrix, and adds one."""
    node = instruction.node
    if node.operator not in PRODUCTS or node.inputs[0] != name or node.get("transA", 0):
        return False
    matrix = whole.values.get(node.inputs[1])
    constant = not any(other in whole.varying for other in node.inputs[1:])
    return constant and isinstance(matrix, Tensor) and matrix.ndim == 2


def _rays(whole: Whole, product: Instruction) -> Tensor:
    """Give what a product makes of one in each unit: ``[units, outputs]``."""
    node = product.node
    matrix = whole.values[node.inputs[1]]
    assert isinstance(matrix, Tensor)
    matrix = matrix.T if node.get("transB", 0) else matrix
    alpha: float = node.get("alpha", 1.0)
    return matrix * alpha


def _led_to(whole: Whole, name: str) -> int | None:
    """Give the graph output that a value reaches unchanged but for constants added to it."""
    main = whole.network.program.main
    size = getattr(whole.values[name], "shape", torch.Size()).numel()
    while True:
        following = readers(main, name)
        if name in main.outputs:
            alone = not following and main.outputs.count(name) == 1
            return main.outputs.index(name) if alone else None
        if len(following) != 1:
            return None
        node = following[0].node
        varying = [other for other in reads(following[0]) if other in whole.varying]
        is_reshape = node.operator in RESHAPES and node.inputs[0] == name
        is_shift = node.operator == "Add" and varying == [name]
        value = whole.tensor(node.outputs[0])
        if not (is_reshape or is_shift) or value is None or value.numel() != size:
            return None
        name = node.outputs[0]


def _elements(whole: Whole, instructions: Sequence[Instruction]) -> int:
    """Count the entries some nodes make for a sample."""
    made = [whole.values.get(n) for each in instructions for n in each.node.outputs if n]
    return sum(value.numel() for value in made if isinstance(value, Tensor)) // whole.rows


def _macs(whole: Whole, rest: Rest) -> float:
    """Count what running a rest costs for one changed sample, in multiply-adds."""
    columns = {
        place: layer.columns
        for layer in whole.network.layers
        for path, place, _ in layer.sites
        if not path
    }
    start = whole.tensor(rest.start)
    total = float(ELEMENT_MACS * (0 if start is None else start.numel() // whole.rows))
    for instruction in rest.instructions:
        entries = _elements(whole, [instruction])
        total += entries * (ELEMENT_MACS + columns.get(instruction.place, 0))
    return total


def _chunk(value: Tensor) -> int:
    return CHUNK if value.device.type == "cpu" else DEVICE_CHUNK
