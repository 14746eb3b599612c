"""The imported graph, run in torch with its weights passed in at call time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters import batching, ops
from onnxpress_adapters.errors import AdapterError, MisuseError
from onnxpress_adapters.graph import Body, Instruction, Program, compile_graph
from onnxpress_adapters.layers import Layer, layers_of
from onnxpress_adapters.specs import InputSpec, OutputSpec, specs
from onnxpress_adapters.trace import Array, Site, Trace, Value
from onnxpress_adapters.weights import WeightKey

if TYPE_CHECKING:
    from onnx import ModelProto

PLANS = 32
"""How many input signatures keep their shape arithmetic."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the host lane computed for one input signature, and device copies of what it lends."""

    values: dict[str, Array] = field(default_factory=dict)
    tensors: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Network:
    """A graph that runs in torch: immutable, without weights, on any device.

    Floating-point inputs and weights are computed with in float32 (float64 stays float64), also
    where the model says float16. Every operation is differentiable in the weights as far as the
    operator is. The plans are a memo of the shape arithmetic, which inputs of the same shapes share.

    Attributes:
        program: the compiled graph.
        layers: the prunable weights that can be seen as matrices, in the order of the graph.
        inputs: the graph's inputs, initializers left out.
        outputs: the graph's outputs.
        batching: how ``batched`` runs many samples; ``proven`` finds the fastest sound way.
    """

    program: Program
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    layers: tuple[Layer, ...]
    batching: batching.Batching = batching.LOOP
    plans: dict[Any, Plan] = field(default_factory=dict, repr=False)

    def __call__(self, weights: Mapping[WeightKey, Tensor], *inputs: Value) -> tuple[Tensor, ...]:
        """Run the graph once.

        Args:
            weights: every key of ``program.constants``, all on one device.
            inputs: one per graph input, in order, of the shapes the model takes; a tensor, or a
                numpy array where the values decide shapes or branches.

        Returns:
            One tensor per graph output, on the device of the weights.
        """
        return self.run(weights, inputs).outputs

    def run(
        self,
        weights: Mapping[WeightKey, Tensor],
        inputs: Sequence[Value],
        *,
        watch: Sequence[Site] = (),
        rebatched: int = 1,
    ) -> Trace:
        """Run the graph once and keep what some nodes were given.

        Args:
            weights: as for a call.
            inputs: as for a call.
            watch: inputs of nodes to keep, main graph and bodies alike.
            rebatched: how many samples stand in a dimension the model hardwires as 1.

        Returns:
            The outputs, and the watched values in the order of ``watch``; None for a node that did
            not run (in a branch not taken).
        """
        if len(inputs) != len(self.inputs):
            raise MisuseError(f"the model takes {len(self.inputs)} inputs, not {len(inputs)}")
        signature = (rebatched, *(_signature(value) for value in inputs))
        plan = self.plans.get(signature)
        if plan is None:
            if len(self.plans) >= PLANS:
                self.plans.clear()
            plan = self.plans[signature] = Plan()
        device = next(iter(weights.values())).device if weights else torch.device("cpu")
        run = _Run(weights, device, plan, frozenset(watch), rebatched)
        main = self.program.main
        given = {n: _working(v) for n, v in zip(main.inputs, inputs, strict=True)}
        outputs = run.body(main, given, {})
        return Trace(
            tuple(run.tensor(value) for value in outputs),
            tuple(run.seen.get(site) for site in watch),
            run.sizes,
        )

    def batched(
        self, weights: Mapping[WeightKey, Tensor], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Run the graph on many samples; equal to the loop over them.

        Args:
            weights: as for a call.
            inputs: one per graph input, ``[samples, *shape of one feed]``.

        Returns:
            One per graph output, ``[samples, *shape of the output for one feed]``.
        """
        return self.batching.run(self, weights, inputs).outputs

    def proven(self, weights: Mapping[WeightKey, Tensor], probes: Sequence[Tensor]) -> Network:
        """Choose the fastest way to run many samples that agrees with the loop on probes.

        Args:
            weights: the reference weights.
            probes: one per graph input, ``[samples, *shape of one feed]``; three or more samples
                that differ make a good proof.
        """
        return replace(self, batching=batching.choose(self, weights, probes))


def import_network(model: ModelProto) -> tuple[Network, dict[WeightKey, Tensor]]:
    """Compile a checked model into a network and its reference weights.

    Args:
        model: as ``read_model`` gives it.

    Returns:
        The network, and the values of its floating-point constants as CPU tensors in the type they
        are computed with.

    Raises:
        UnsupportedOperatorError: operators without a converter, all listed with node names.
    """
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    program = compile_graph(model.graph, opsets, ops.load())
    inputs, outputs = specs(model)
    weights = {key: _from_numpy(value) for key, value in program.constants.items()}
    return Network(program, inputs, outputs, layers_of(model)), weights


@dataclass(eq=False)
class _Run:
    """One execution: the state the instructions share."""

    weights: Mapping[WeightKey, Tensor]
    device: torch.device
    plan: Plan
    watch: frozenset[Site]
    rebatched: int
    seen: dict[Site, Tensor] = field(default_factory=dict)
    sizes: dict[tuple[tuple[str, ...], int], int] = field(default_factory=dict)

    def body(
        self, body: Body, given: Mapping[str, Value], outer: Mapping[str, Value]
    ) -> list[Value]:
        """Run a body's instructions in order."""
        values: dict[str, Value] = {**outer, **body.host, **given}
        values.update({name: self.weights[key] for name, key in body.device.items()})
        planned = self.plan.values if not body.path else None
        for instruction in body.instructions:
            self.step(body, instruction, values, planned)
            for name in instruction.release:
                values.pop(name, None)
        return [values[name] for name in body.outputs]

    def step(
        self,
        body: Body,
        instruction: Instruction,
        values: dict[str, Value],
        planned: dict[str, Array] | None,
    ) -> None:
        """Run one instruction, from the plan where the host lane already did."""
        names = [name for name in instruction.node.outputs if name]
        if planned is not None and names and all(name in planned for name in names):
            values.update({name: planned[name] for name in names})
            return
        node = instruction.node
        inputs = [values[name] if name else None for name in node.inputs]
        for place, value in enumerate(inputs):
            if (body.path, instruction.place, place) in self.watch and value is not None:
                self.seen[(body.path, instruction.place, place)] = self.tensor(value)
        results = self.results(instruction, inputs, values)
        if results and isinstance(results[0], Tensor):
            self.sizes[(body.path, instruction.place)] = results[0].numel()
        for name, result in zip(node.outputs, results, strict=False):
            if name and result is not None:
                values[name] = result
                if planned is not None and isinstance(result, np.ndarray):
                    planned[name] = result

    def results(
        self, instruction: Instruction, inputs: list[Value | None], values: dict[str, Value]
    ) -> Sequence[Value | None]:
        """Compute one node in the lane its inputs stand in."""
        node = instruction.node
        if instruction.entry is None:
            return self.built_in(instruction, inputs, values)
        on_host = all(value is None or isinstance(value, np.ndarray) for value in inputs)
        arguments: list[Any] = []
        for place, value in enumerate(inputs):
            if value is None:
                arguments.append(None)
            elif place in instruction.host:
                arguments.append(self.hosted(instruction, place, value, inputs))
            elif isinstance(value, np.ndarray):
                name = node.inputs[place]
                arguments.append(_from_numpy(value) if on_host else self.lent(name, value))
            else:
                arguments.append(value)
        try:
            result = instruction.entry.convert(node, *arguments)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AdapterError(f"{node} cannot run on these inputs: {reason}") from error
        results = result if isinstance(result, (tuple, list)) else (result,)
        if on_host:
            return [None if r is None else r.numpy() for r in results]
        return [None if r is None else _working(r) for r in results]

    def hosted(
        self, instruction: Instruction, place: int, value: Value, inputs: list[Value | None]
    ) -> Array:
        """Give an input as a numpy array, with the batch in place of a hardwired leading 1."""
        array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
        reshapes = instruction.node.operator in ("Reshape", "Expand") and place == 1
        if self.rebatched > 1 and reshapes and array.size and array.flat[0] == 1:
            first = inputs[0]
            if first is not None and first.ndim and first.shape[0] == self.rebatched:
                array = array.copy()
                array.flat[0] = self.rebatched
        return array

    def lent(self, name: str, value: Array) -> Tensor:
        """Give a host value to the device lane, copied to the device once per plan."""
        key = (name, self.device)
        if value.nbytes > 1 << 20 or self.plan.values.get(name) is not value:
            return _working(_from_numpy(value).to(self.device))
        if key not in self.plan.tensors:
            self.plan.tensors[key] = _working(_from_numpy(value).to(self.device))
        return self.plan.tensors[key]

    def tensor(self, value: Value) -> Tensor:
        """Give any value as a tensor on the run's device."""
        if isinstance(value, np.ndarray):
            return _working(_from_numpy(value).to(self.device))
        return value

    def built_in(
        self, instruction: Instruction, inputs: list[Value | None], values: dict[str, Value]
    ) -> Sequence[Value]:
        """Run an operator that concerns lanes or bodies."""
        node = instruction.node
        first = inputs[0]
        if first is None:
            raise AdapterError(f"{node} has no input")
        match node.operator:
            case "Identity":
                return [first]
            case "Shape":
                dims = list(first.shape)[node.get("start", 0) : node.get("end")]
                return [np.array(dims, np.int64)]
            case "Size":
                return [np.array(int(np.prod(first.shape, dtype=np.int64)), np.int64)]
            case _:
                taken = "then_branch" if bool(first) else "else_branch"
                return self.body(instruction.bodies[taken], {}, values)


def _signature(value: Value) -> Any:
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, value.tobytes())
    return (tuple(value.shape), value.dtype)


def _from_numpy(value: Array) -> Tensor:
    """Copy an array into a CPU tensor of the type it is computed with."""
    if value.dtype.name in ("float16", "bfloat16"):
        value = value.astype(np.float32)
    # Arrays from a protobuf are read-only, and 0-d ones lose their shape in ascontiguousarray.
    return torch.from_numpy(np.array(value, order="C"))


def _working(value: Value) -> Value:
    """Widen half precision, rounded as the model asked, to float32."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
