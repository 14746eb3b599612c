"""The imported graph, run in torch with its weights passed in at call time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters import batching, ops
from onnxpress_adapters.compile import compile_model
from onnxpress_adapters.errors import AdapterError, MisuseError
from onnxpress_adapters.graph import Program
from onnxpress_adapters.layers import Layer, layers_of
from onnxpress_adapters.ops.dtypes import to_tensor
from onnxpress_adapters.prunable import quantised
from onnxpress_adapters.run import Plan, Run, from_numpy, working
from onnxpress_adapters.specs import InputSpec, OutputSpec, specs
from onnxpress_adapters.surrogates import SLOPES
from onnxpress_adapters.trace import Site, Trace, Value, stacked
from onnxpress_adapters.weights import WeightKey

if TYPE_CHECKING:
    from onnx import ModelProto

PLANS = 32
"""How many input signatures keep their shape arithmetic."""


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
        surrogates: whether gradients go through rounding, signs and quantisation, which have none
            of their own (``surrogates.py``). Results are the same.
    """

    program: Program
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    layers: tuple[Layer, ...]
    batching: batching.Batching = batching.LOOP
    surrogates: bool = False
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
            watch: the slots of weights to keep what was met there, in the main graph and in bodies.
            rebatched: how many samples stand in a dimension the model hardwires as 1.

        Returns:
            The outputs, and what was met in the order of ``watch``, as ``meets.met`` gives it.
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
        slots: dict[tuple[tuple[str, ...], int], tuple[int, ...]] = {}
        for path, place, slot in dict.fromkeys(watch):
            slots[(path, place)] = (*slots.get((path, place), ()), slot)
        run = Run(weights, device, plan, self.loans, slots, rebatched, self.surrogates)
        main = self.program.main
        given = {
            name: working(value) if isinstance(value, Tensor) else value
            for name, value in zip(main.inputs, inputs, strict=True)
        }
        outputs = run.body(main, given, {})
        return Trace(
            tuple(run.tensor(value) for value in outputs),
            tuple(stacked(run.seen.get(site, ())) for site in watch),
            run.sizes,
            run.steps,
        )

    def batched(
        self, weights: Mapping[WeightKey, Tensor], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Run the graph on many samples; equal to the loop over them.

        Args:
            weights: as for a call.
            inputs: one per graph input, ``[samples, *shape of one feed]``.

        Returns:
            One per graph output, ``[samples, *shape of the output for one feed]``; for an output
            that is no tensor of numbers a list with one value per sample.
        """
        return self.batching.run(self, weights, inputs).outputs

    @property
    def needs_surrogates(self) -> bool:
        """Whether some operator, in a body or not, has no gradient but a surrogate's."""
        operators = {
            instruction.node.operator
            for body in self.program.main.walk()
            for instruction in body.instructions
        }
        return not operators.isdisjoint(SLOPES)

    def with_surrogates(self) -> Network:
        """Give the same network for a descent: gradients also go through what is rounded."""
        return replace(self, surrogates=True)

    def proven(self, weights: Mapping[WeightKey, Tensor], probes: Sequence[Tensor]) -> Network:
        """Choose the fastest way to run many samples that agrees with the loop on probes.

        Args:
            weights: the reference weights.
            probes: one per graph input, ``[samples, *shape of one feed]``; three or more samples
                that differ make a good proof.
        """
        return replace(self, batching=batching.choose(self, weights, probes))


def import_network(
    model: ModelProto, *, reference: bool = True, tables: bool = False
) -> tuple[Network, dict[WeightKey, Tensor]]:
    """Compile a checked model into a network and its reference weights.

    Args:
        model: as ``read_model`` gives it.
        reference: whether onnx's reference implementation may run operators without a converter,
            on the host and without a gradient; ``program.fallbacks`` lists where it does.
        tables: whether the tables of Gather count as prunable.

    Returns:
        The network, and the values of its weights as CPU tensors in the type they are computed
        with; those of a quantised weight are its whole numbers, as float32.

    Raises:
        UnsupportedOperatorError: nothing runs some of the operators; all are listed with node
            names.
        AdapterError: a constant has a type torch does not know.
    """
    whole = quantised(model, tables=tables)
    program = compile_model(model, ops.load(), pressed=whole, reference=reference)
    inputs, outputs = specs(model)
    for body in program.main.walk():
        for name, value in body.host.items():
            if value.dtype.kind not in "OUST":
                try:
                    to_tensor(value.reshape(-1)[:0])
                except AdapterError as error:
                    raise AdapterError(f"constant '{name}': {error}") from error
    weights = {key: from_numpy(value) for key, value in program.constants.items()}
    weights.update({key: weights[key].float() for key in whole if key in weights})
    # A weight that only feeds shapes, or nothing, is a constant of the host lane.
    layers = tuple(layer for layer in layers_of(model, tables=tables) if layer.key in weights)
    return Network(program, inputs, outputs, layers), weights


def _signature(value: Value) -> Any:
    if isinstance(value, np.ndarray):
        held = tuple(value.flat) if value.dtype.kind in "OT" else value.tobytes()
        return (value.shape, value.dtype.str, held)
    if isinstance(value, list):
        return tuple(_signature(entry) for entry in value)
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None
