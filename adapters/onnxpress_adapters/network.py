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
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import to_tensor
from onnxpress_adapters.specs import InputSpec, OutputSpec, specs
from onnxpress_adapters.trace import Array, Site, Trace, Value
from onnxpress_adapters.weights import WeightKey

if TYPE_CHECKING:
    from onnx import ModelProto

PLANS = 32
"""How many input signatures keep their shape arithmetic."""

LARGEST_LOAN = 1 << 20
"""Bytes up to which a plan keeps a device copy of what it computed."""

SHAPED_BY_DATA = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose results have a shape that depends on what their inputs hold."""

TARGETS = {"Reshape": 1, "Expand": 1, "Resize": 3}
"""Operators told the shape of their result, with the place of the input that tells it."""

REFUSALS = (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError)
"""What torch and numpy raise when a node does not fit its inputs."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the host lane computed for one input signature, and device copies of what it lends."""

    values: dict[str, Array] = field(default_factory=dict)
    tensors: dict[Any, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Network:
    """A graph that runs in torch: immutable, without weights, on any device.

    Floating-point inputs and weights are computed with in float32 (float64 stays float64), also
    where the model says float16. Every operation is differentiable in the weights as far as the
    operator is. Plans and loans are memos: of the shape arithmetic, which inputs of the same shapes
    share, and of the device copies of integer constants.

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
    loans: dict[Any, Tensor] = field(default_factory=dict, repr=False)

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
            not run (in a branch not taken). What a MatMul is given comes with all the dimensions
            the product gives it: a vector as the row or column it stands for, and as many leading
            ones as the other side has.
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
        run = _Run(weights, device, plan, self.loans, frozenset(watch), rebatched)
        main = self.program.main
        given = {
            name: _working(value) if isinstance(value, Tensor) else value
            for name, value in zip(main.inputs, inputs, strict=True)
        }
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
        AdapterError: an output is no tensor, or a constant has a type torch does not know.
    """
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    program = compile_graph(model.graph, opsets, ops.load())
    inputs, outputs = specs(model)
    odd = [f"'{spec.name}' is a {spec.holds}" for spec in outputs if spec.holds != "tensor"]
    if odd:
        raise AdapterError(
            f"output {', '.join(odd)}; onnxpress works with models whose outputs are plain "
            "tensors, so export the model without it"
        )
    for body in program.main.walk():
        for name, value in body.host.items():
            try:
                to_tensor(value.reshape(-1)[:0])
            except AdapterError as error:
                raise AdapterError(f"constant '{name}': {error}") from error
    weights = {key: _from_numpy(value) for key, value in program.constants.items()}
    # A weight that only feeds shapes, or nothing, is a constant of the host lane.
    layers = tuple(layer for layer in layers_of(model) if layer.key in weights)
    return Network(program, inputs, outputs, layers), weights


@dataclass(eq=False)
class _Run:
    """One execution: the state the instructions share.

    ``loose`` are the names whose shape depends on what the inputs hold; nothing made of them may
    enter a plan.
    """

    weights: Mapping[WeightKey, Tensor]
    device: torch.device
    plan: Plan
    loans: dict[Any, Tensor]
    watch: frozenset[Site]
    rebatched: int
    seen: dict[Site, Tensor] = field(default_factory=dict)
    sizes: dict[tuple[tuple[str, ...], int], int] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)

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
        return [_read(values, name, "the graph") for name in body.outputs]

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
        inputs = [_read(values, name, node) if name else None for name in node.inputs]
        for place, value in enumerate(inputs):
            site = (body.path, instruction.place, place)
            if site in self.watch and value is not None:
                self.seen[site] = _as_met(node, place, self.tensor(value), inputs)
        results = self.results(body, instruction, inputs, values)
        if self.is_loose(instruction, inputs):
            self.loose.update(names)
            planned = None
        if results and isinstance(results[0], Tensor):
            self.sizes[(body.path, instruction.place)] = results[0].numel()
        for name, result in zip(node.outputs, results, strict=False):
            if name and result is not None:
                values[name] = result
                if planned is not None and isinstance(result, np.ndarray):
                    planned[name] = result

    def is_loose(self, instruction: Instruction, inputs: Sequence[Value | None]) -> bool:
        """Say whether inputs of the same shapes can give a node's results another shape.

        They can where a tensor decides the shape or the branch, and where an input is loose itself.
        """
        node = instruction.node
        if any(name in self.loose for name in node.inputs):
            return True
        if any(name in self.loose for body in instruction.bodies.values() for name in body.outputs):
            return True
        deciding = instruction.host
        if node.operator in SHAPED_BY_DATA or node.operator == "If":
            deciding = frozenset(range(len(inputs)))
        return any(isinstance(inputs[p], Tensor) for p in deciding if p < len(inputs))

    def results(
        self,
        body: Body,
        instruction: Instruction,
        inputs: list[Value | None],
        values: dict[str, Value],
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
                arguments.append(_from_numpy(value) if on_host else self.lent(body, name, value))
            else:
                arguments.append(value)
        try:
            result = instruction.entry.convert(node, *arguments)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AdapterError(f"{node} cannot run on these inputs: {reason}") from error
        results = result if isinstance(result, (tuple, list)) else (result,)
        if on_host:
            return [None if r is None else _working(r).numpy() for r in results]
        # A shape read from a tensor gives a result (of ConstantOfShape, say) made on the CPU.
        return [None if r is None else _working(r).to(self.device) for r in results]

    def hosted(
        self, instruction: Instruction, place: int, value: Value, inputs: list[Value | None]
    ) -> Array:
        """Give an input as a numpy array, with the batch in place of a hardwired leading 1."""
        array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
        node, first = instruction.node, inputs[0]
        # What is made of constants alone keeps its shape, whatever the number of samples.
        if self.rebatched == 1 or not instruction.varies or TARGETS.get(node.operator) != place:
            return array
        led = first is not None and first.ndim and first.shape[0] == self.rebatched
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
            memo[key] = self.tensor(value)
        return memo[key]

    def tensor(self, value: Value) -> Tensor:
        """Give any value as a tensor on the run's device."""
        return _from_numpy(value).to(self.device) if isinstance(value, np.ndarray) else value

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
                if first.shape not in ((), (1,)):
                    raise AdapterError(
                        f"{node} cannot branch on {list(first.shape)} truth values; it takes one"
                    )
                taken = "then_branch" if bool(first) else "else_branch"
                return self.body(instruction.bodies[taken], {}, values)


def _signature(value: Value) -> Any:
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, value.tobytes())
    return (tuple(value.shape), value.dtype)


def _from_numpy(value: Array) -> Tensor:
    """Copy an array into a CPU tensor of the type it is computed with."""
    return _working(to_tensor(value))


def _working(value: Tensor) -> Tensor:
    """Widen half precision, rounded as the model asked, to float32."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _read(values: Mapping[str, Value], name: str, reader: object) -> Value:
    """Look a value up.

    Raises:
        AdapterError: the converter that should make it does not (a rare optional output).
    """
    if name not in values:
        raise AdapterError(f"{reader} needs '{name}', an output onnxpress does not compute")
    return values[name]


def _as_met(node: NodeView, place: int, value: Tensor, inputs: Sequence[Value | None]) -> Tensor:
    """Give what a MatMul reads the dimensions it has in the product; leave all else as it is."""
    other = inputs[1 - place] if node.operator == "MatMul" else None
    if other is None:
        return value
    if value.ndim == 1:
        value = value.unsqueeze(place)
    missing = other.ndim - value.ndim
    return value[(None,) * missing] if missing > 0 else value
