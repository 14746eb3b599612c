"""The rest of a graph: from one value of the main graph on, for other rows than were run.

Where only one value changes, only what is made of it has to be computed again. A *row* is a sample
laid along the first axis; a rest runs any rows in any number, each beside the values its own sample
makes elsewhere in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.run import Plan, Run, working
from onnxpress_adapters.trace import Value

if TYPE_CHECKING:
    from onnxpress_adapters.graph import Body, Instruction
    from onnxpress_adapters.network import Network
    from onnxpress_adapters.weights import WeightKey

Values = Mapping[str, Value | None]


@dataclass(frozen=True, eq=False)
class Whole:
    """A run of the main graph that kept every value.

    Attributes:
        network: the graph.
        weights: what it ran with.
        values: every value of the main graph by name.
        rows: samples, all of them along the first axis of what depends on them.
        varying: names of the values that depend on the inputs, but for settings that all samples
            share.
    """

    network: Network
    weights: Mapping[WeightKey, Tensor]
    values: Values
    rows: int
    varying: frozenset[str]

    @classmethod
    def of(
        cls, network: Network, weights: Mapping[WeightKey, Tensor], inputs: Sequence[Tensor]
    ) -> Whole | None:
        """Run samples and keep everything.

        Args:
            network: proven; with a batching that lays samples along the first axis.
            weights: as for a call of the network.
            inputs: one per graph input, ``[samples, *shape of one feed]``.

        Returns:
            The run; None where samples do not lie along the first axis of the inputs.
        """
        batching, main = network.batching, network.program.main
        along_the_first = not any(batching.input_axes) and not any(batching.output_axes)
        if batching.mode not in ("batch", "rebatched") or not along_the_first:
            return None
        if not batching.shares(inputs):
            return None
        rows = len(inputs[0])
        given: dict[str, Value | None] = {}
        for name, axis, value in zip(
            main.inputs, batching.input_axes, batching.given(inputs), strict=True
        ):
            if axis is not None and len(value) != rows:
                return None  # a feed holds several samples of its own
            given[name] = working(value) if isinstance(value, Tensor) else value
        run = _run(network, weights, rows)
        laid = [
            name
            for name, axis in zip(main.inputs, batching.input_axes, strict=True)
            if axis is not None
        ]
        return cls._ran(run, network, weights, given, rows, laid)

    @classmethod
    def alone(
        cls, network: Network, weights: Mapping[WeightKey, Tensor], feed: Sequence[Value]
    ) -> Whole:
        """Run one feed, as a call of the network does, and keep everything.

        Args:
            network: any.
            weights: as for a call.
            feed: as for a call.
        """
        run = _run(network, weights, 1)
        given = {
            name: working(value) if isinstance(value, Tensor) else value
            for name, value in zip(network.program.main.inputs, feed, strict=True)
        }
        return cls._ran(run, network, weights, given, 1, network.program.main.inputs)

    @classmethod
    def _ran(
        cls,
        run: Run,
        network: Network,
        weights: Mapping[WeightKey, Tensor],
        given: Values,
        rows: int,
        laid: Sequence[str],
    ) -> Whole:
        main = network.program.main
        values = {**_constants(main, weights), **given}
        for instruction in main.instructions:
            run.step(main, instruction, values, None)
        return cls(network, weights, values, rows, _downstream(main, laid))

    def tensor(self, name: str) -> Tensor | None:
        """Give a value that has a row for every sample, None for any other."""
        value = self.values.get(name)
        if name not in self.varying or not isinstance(value, Tensor) or not value.ndim:
            return None
        return value if len(value) == self.rows else None


@dataclass(frozen=True, eq=False)
class Rest:
    """What has to run again where one value changes.

    Attributes:
        start: the value.
        instructions: what depends on it, and what makes shapes for that, in order.
        sides: tensors that depend on the inputs and are read beside it.
        outputs: places of the graph's outputs that depend on it.
    """

    start: str
    instructions: tuple[Instruction, ...]
    sides: tuple[str, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, whole: Whole, start: str) -> Rest:
        """Find it.

        Args:
            whole: a run of the graph; what stands in which lane is read from it.
            start: a value of the main graph.
        """
        main = whole.network.program.main
        changed = _downstream(main, (start,))
        taken = [
            place
            for place, instruction in enumerate(main.instructions)
            if any(name in changed and name != start for name in instruction.node.outputs)
        ]
        made = {name for place in taken for name in main.instructions[place].node.outputs}
        chosen, sides = set(taken), set()
        waiting = [name for place in taken for name in reads(main.instructions[place])]
        makers = {
            name: place
            for place, instruction in enumerate(main.instructions)
            for name in instruction.node.outputs
        }
        while waiting:
            name = waiting.pop()
            if name == start or name in made or name not in whole.varying:
                continue
            if isinstance(whole.values.get(name), Tensor) or name not in makers:
                sides.add(name)
                continue
            # A shape that counts samples: it has to be made anew for other rows.
            chosen.add(makers[name])
            made |= set(main.instructions[makers[name]].node.outputs)
            waiting += reads(main.instructions[makers[name]])
        ends = [p for p, name in enumerate(main.outputs) if name in made or name == start]
        return cls(
            start,
            tuple(main.instructions[place] for place in sorted(chosen)),
            tuple(sorted(sides)),
            tuple(ends),
        )

    def run(self, whole: Whole, changed: Tensor, places: Tensor) -> Values:
        """Run it.

        Args:
            whole: the run to take everything else from.
            changed: ``[rows, *shape of a row]``, in the place of ``start``.
            places: int64 ``[rows]``: which sample of the run each row belongs to.

        Returns:
            Names to values; those of ``outputs`` have a row for each given one.
        """
        main = whole.network.program.main
        values: dict[str, Value | None] = {**whole.values, self.start: changed}
        for name in self.sides:
            value = whole.tensor(name)
            if value is None:
                raise AdapterError(f"'{name}' does not hold a row for every sample")
            values[name] = value.index_select(0, places)
        run = _run(whole.network, whole.weights, len(changed))
        for instruction in self.instructions:
            run.step(main, instruction, values, None)
        return values

    def results(self, whole: Whole, changed: Tensor, places: Tensor) -> dict[int, Tensor]:
        """Run it and give the outputs it changes: place to ``[rows, *shape]``."""
        values = self.run(whole, changed, places)
        main = whole.network.program.main
        found: dict[int, Tensor] = {}
        for place in self.outputs:
            value = values[main.outputs[place]]
            if not isinstance(value, Tensor) or value.shape[:1] != places.shape:
                raise AdapterError(f"'{main.outputs[place]}' does not hold a row for every sample")
            found[place] = value
        return found


def reads(instruction: Instruction) -> list[str]:
    """Name the values a node reads, its bodies included."""
    names = [name for name in instruction.node.inputs if name]
    for body in instruction.bodies.values():
        for inner in body.walk():
            names += inner.outputs
            names += [name for each in inner.instructions for name in each.node.inputs if name]
    return names


def readers(body: Body, name: str) -> list[Instruction]:
    """List the nodes that read a value."""
    return [instruction for instruction in body.instructions if name in reads(instruction)]


def _downstream(body: Body, names: Sequence[str]) -> frozenset[str]:
    """Name what depends on some values, themselves included."""
    found = set(names)
    for instruction in body.instructions:
        if not found.isdisjoint(reads(instruction)):
            found |= {name for name in instruction.node.outputs if name}
    return frozenset(found)


def _constants(body: Body, weights: Mapping[WeightKey, Tensor]) -> dict[str, Value | None]:
    return {**body.host, **{name: weights[key] for name, key in body.device.items()}}


def _run(network: Network, weights: Mapping[WeightKey, Tensor], rows: int) -> Run:
    """Begin a run; its plan is its own, since rows come in ever other numbers."""
    device = next(iter(weights.values())).device
    rebatched = rows if network.batching.mode == "rebatched" else 1
    return Run(weights, device, Plan(), network.loans, {}, rebatched)
