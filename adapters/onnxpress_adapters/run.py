"""One execution of a compiled graph: two lanes of values, a plan for what shapes alone decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.control import call
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.meets import met
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import to_tensor
from onnxpress_adapters.ops.sequence import SEQUENCES
from onnxpress_adapters.surrogates import followed
from onnxpress_adapters.trace import Array, Site, Value

if TYPE_CHECKING:
    from onnxpress_adapters.graph import Body, Instruction
    from onnxpress_adapters.weights import WeightKey

LARGEST_LOAN = 1 << 20
"""Bytes up to which a plan keeps a device copy of what it computed."""

SHAPED_BY_DATA = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique", "If"})
"""Operators whose results have a shape that depends on what their inputs hold."""

ALWAYS_LOOSE = frozenset({"Loop", "Scan", "SequenceMap"}) | SEQUENCES
"""Operators whose results are never planned."""

TARGETS = {"Reshape": 1, "Expand": 1, "Resize": 3}
"""Operators told the shape of their result, with the place of the input that tells it."""

REFUSALS = (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError)
"""What torch and numpy raise when a node does not fit its inputs."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the host lane computed for one input signature, and device copies of what it lends."""

    values: dict[str, Array] = field(default_factory=dict)
    tensors: dict[Any, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class Run:
    """One execution: the state the instructions share.

    ``loose`` are the names whose shape depends on what the inputs hold; nothing made of them may
    enter a plan. ``watch`` maps the place of a node to the slots wanted there. ``surrogates`` says
    whether gradients go through operators without one of their own; ``carriers`` are what carries
    them past a name that holds whole numbers.
    """

    weights: Mapping[WeightKey, Tensor]
    device: torch.device
    plan: Plan
    loans: dict[Any, Tensor]
    watch: Mapping[tuple[tuple[str, ...], int], tuple[int, ...]]
    rebatched: int
    surrogates: bool = False
    carriers: dict[tuple[tuple[str, ...], str], Tensor] = field(default_factory=dict)
    seen: dict[Site, list[Tensor]] = field(default_factory=dict)
    sizes: dict[tuple[tuple[str, ...], int], int] = field(default_factory=dict)
    steps: int = 0
    loose: set[str] = field(default_factory=set)

    def body(
        self, body: Body, given: Mapping[str, Value | None], around: Mapping[str, Value | None]
    ) -> list[Value | None]:
        """Run a body's instructions in order.

        Args:
            body: the main graph, or a body or function in it.
            given: its inputs by name; None for one left out.
            around: the values of the graphs around it that it may read.
        """
        values: dict[str, Value | None] = {**around, **body.host, **given}
        values.update({name: self.weights[key] for name, key in body.device.items()})
        planned = self.plan.values if not body.path else None
        for instruction in body.instructions:
            self.step(body, instruction, values, planned)
            for name in instruction.release:
                values.pop(name, None)
                self.carriers.pop((body.path, name), None)
        return [_read(values, name, "the graph") for name in body.outputs]

    def step(
        self,
        body: Body,
        instruction: Instruction,
        values: dict[str, Value | None],
        planned: dict[str, Array] | None,
    ) -> None:
        """Run one instruction, from the plan where the host lane already did."""
        node = instruction.node
        names = [name for name in node.outputs if name]
        if planned is not None and names and all(name in planned for name in names):
            values.update({name: planned[name] for name in names})
            return
        inputs = [_read(values, name, node) if name else None for name in node.inputs]
        results = self.results(body, instruction, inputs, values)
        if self.is_loose(instruction, inputs):
            self.loose.update(names)
            planned = None
        at = (body.path, instruction.place)
        if results and isinstance(results[0], Tensor):
            self.sizes[at] = self.sizes.get(at, 0) + results[0].numel()
            self.steps += 1
        for slot in self.watch.get(at, ()):
            self.note((*at, slot), node, inputs, results)
        for name, result in zip(node.outputs, results, strict=False):
            if name:
                if result is None and instruction.entry is not None and not instruction.entry.raw:
                    continue  # an output the converter does not make; reading it is an error
                values[name] = result
                if planned is not None and isinstance(result, np.ndarray):
                    planned[name] = result

    def note(
        self,
        site: Site,
        node: NodeView,
        inputs: Sequence[Value | None],
        results: Sequence[Value | None],
    ) -> None:
        """Keep what the weight in a watched slot met."""
        tensors = [None if v is None else self.tensor(v) for v in inputs]
        made = [value if isinstance(value, Tensor) else None for value in results]
        value = met(node, site[2], tensors, made)
        if value is not None:
            self.seen.setdefault(site, []).append(value)

    def is_loose(self, instruction: Instruction, inputs: Sequence[Value | None]) -> bool:
        """Say whether inputs of the same shapes can give a node's results another shape.

        They can where a tensor decides the shape or the branch, and where an input is loose itself.
        """
        node = instruction.node
        if node.operator in ALWAYS_LOOSE or any(name in self.loose for name in node.inputs):
            return True
        if any(name in self.loose for body in instruction.bodies.values() for name in body.outputs):
            return True
        deciding = instruction.host
        if node.operator in SHAPED_BY_DATA or instruction.falls_back:
            deciding = frozenset(range(len(inputs)))
        return any(isinstance(inputs[p], Tensor) for p in deciding if p < len(inputs))

    def results(
        self,
        body: Body,
        instruction: Instruction,
        inputs: list[Value | None],
        values: Mapping[str, Value | None],
    ) -> Sequence[Value | None]:
        """Compute one node in the lane its inputs stand in."""
        node, entry = instruction.node, instruction.entry
        if entry is None:
            control = instruction.control or call
            return control(self, instruction, inputs, values)
        on_host = all(value is None or isinstance(value, np.ndarray) for value in inputs)
        arguments: list[Any] = []
        for place, value in enumerate(inputs):
            if value is None or entry.raw:
                arguments.append(value)
            elif place in instruction.host:
                arguments.append(self.hosted(instruction, place, value, inputs))
            elif isinstance(value, np.ndarray):
                name = node.inputs[place]
                arguments.append(from_numpy(value) if on_host else self.lent(body, name, value))
            else:
                arguments.append(value)
        try:
            if self.surrogates and node.operator == "DequantizeLinear":
                arguments[0] = self.carriers.get((body.path, node.inputs[0]), arguments[0])
            result = entry.convert(node, *arguments)
            if self.surrogates and not on_host and not entry.raw:
                result = self.descended(body, node, arguments, result)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AdapterError(f"{node} cannot run on these inputs: {reason}") from error
        results = result if isinstance(result, tuple) else (result,)
        if entry.raw:
            return results
        if on_host:
            return [None if r is None else working(r).numpy() for r in results]
        # A shape read from a tensor gives a result (of ConstantOfShape, say) made on the CPU.
        return [None if r is None else working(r).to(self.device) for r in results]

    def descended(self, body: Body, node: NodeView, arguments: Sequence[Any], result: Any) -> Any:
        """Give a result with a gradient where its operator has none.

        What was quantised stays a whole number for every reader; real numbers of the same values
        are kept beside it, for the DequantizeLinear that makes real ones of it anyway.
        """
        real = followed(node, arguments, result)
        if node.operator != "QuantizeLinear":
            return real
        self.carriers[(body.path, node.outputs[0])] = real
        return result

    def hosted(
        self, instruction: Instruction, place: int, value: Value, inputs: Sequence[Value | None]
    ) -> Array:
        """Give an input as a numpy array, with the batch in place of a hardwired leading 1."""
        node, first = instruction.node, inputs[0]
        if not isinstance(value, Tensor | np.ndarray):
            raise AdapterError(f"{node} needs a tensor as input {place}, not a sequence")
        array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
        # What is made of constants alone keeps its shape, whatever the number of samples.
        if self.rebatched == 1 or not instruction.varies or TARGETS.get(node.operator) != place:
            return array
        led = isinstance(first, Tensor | np.ndarray) and first.shape[:1] == (self.rebatched,)
        names_first_axis = (node.get("axes") or [0])[0] == 0
        if led and names_first_axis and array.size and array.flat[0] == 1:
            array = array.copy()
            array.flat[0] = self.rebatched
        return array

    def lent(self, body: Body, name: str, value: Array) -> Tensor:
        """Give a host value to the device lane; copies of constants and small results are kept."""
        memo: dict[Any, Tensor] = {}
        if body.host.get(name) is value:
            memo = self.loans
        elif self.plan.values.get(name) is value and value.nbytes <= LARGEST_LOAN:
            memo = self.plan.tensors
        key = (body.path, name, self.device)
        if key not in memo:
            memo[key] = from_numpy(value).to(self.device)
        return memo[key]

    def tensor(self, value: Any) -> Any:
        """Give any value on the run's device; strings stay the array they are."""
        if isinstance(value, list):
            return [self.tensor(entry) for entry in value]
        if isinstance(value, np.ndarray) and value.dtype.kind not in "OUST":
            return from_numpy(value).to(self.device)
        return value


def from_numpy(value: Array) -> Tensor:
    """Copy an array into a CPU tensor of the type it is computed with."""
    return working(to_tensor(value))


def working(value: Tensor) -> Tensor:
    """Widen half precision, rounded as the model asked, to float32."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _read(values: Mapping[str, Value | None], name: str, reader: object) -> Value | None:
    """Look a value up.

    Raises:
        AdapterError: the converter that should make it does not (a rare optional output).
    """
    if name not in values:
        raise AdapterError(f"{reader} needs '{name}', an output onnxpress does not compute")
    return values[name]
