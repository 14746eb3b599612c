"""What one sample costs, so that work is planned by counting and not by a clock.

Every loop length follows from these counts and the effort, never from elapsed time: the same seed
does the same work on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from os import cpu_count

import torch
from torch import Tensor

from onnxpress_adapters.batching import LOOP
from onnxpress_adapters.network import Network
from onnxpress_adapters.ops.recurrent import RECURRENT
from onnxpress_adapters.weights import WeightKey

ACTIVATION_BYTES = 1 << 29
"""Activations of one batch stay below this in a forward pass."""

MACS_PER_UNIT = 2.0e10
"""Multiply-adds one plain core does in about a second of forward and backward passes."""

NODE_MACS = 1.5e6
"""What running one node costs beside its arithmetic, in multiply-adds."""

ELEMENT_MACS = 8
"""What writing one intermediate entry costs, in multiply-adds."""

LOOP_NODES = 12
"""Nodes that one place of a recurrent loop counts as."""

FORWARD_SHARE = 1 / 3
"""What a forward pass costs of a step forward and backward."""

LARGEST_BATCH = 256


@contextmanager
def one_thread_spared() -> Iterator[None]:
    """Leave one processor free while torch computes, unless fewer threads were asked for already.

    torch's threads wait for each other by spinning: with as many threads as processors, one other
    busy process made the same work 5 to 16 times slower (two processors, small networks), where
    the second thread had gained a fifth.
    """
    threads, processors = torch.get_num_threads(), cpu_count() or 1
    torch.set_num_threads(max(1, min(threads, processors - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep CUDA from rounding to TF32, so that it agrees with the CPU and with onnxruntime."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = convolution


@dataclass(frozen=True)
class Cost:
    """Counts for one sample.

    Attributes:
        macs: multiply-adds of a forward pass in matrix products and convolutions, and what its
            intermediate results cost in the same currency.
        elements: entries of all intermediate results.
        nodes: nodes that ran, those of recurrent loops once per place.
        batch: samples that fit into memory together.
        effort: scales all work.
    """

    macs: float
    elements: int
    nodes: int
    batch: int
    effort: float

    @classmethod
    def of(
        cls,
        network: Network,
        weights: Mapping[WeightKey, Tensor],
        inputs: Sequence[Tensor],
        effort: float,
    ) -> Cost:
        """Run one sample and count."""
        with torch.no_grad():
            trace = LOOP.run(network, weights, [value[:1] for value in inputs])
        elements = max(1, sum(trace.sizes.values()))
        macs = float(ELEMENT_MACS * elements)
        for layer in network.layers:
            # An LSTM multiplies for every gate and gives one state.
            recurrent = layer.node.operator in RECURRENT
            hidden = int(layer.node.get("hidden_size", 1)) if recurrent else 1
            gates = layer.shape[1] // hidden if recurrent else 1
            for path, place, _ in layer.sites:
                macs += trace.sizes.get((path, place), 0) * layer.columns * gates
        nodes = trace.steps
        for body in network.program.main.walk():
            for instruction in body.instructions:
                if instruction.node.operator in RECURRENT:
                    # A loop over time: every place of the sequence computes like some nodes of
                    # its own, with activations of its own to keep for the gradient.
                    hidden = int(instruction.node.get("hidden_size", 1))
                    places = trace.sizes.get((body.path, instruction.place), 0) // hidden
                    nodes += LOOP_NODES * places
                    elements += places * LOOP_NODES * hidden
        batch = int(ACTIVATION_BYTES / (4 * elements))
        return cls(macs, elements, nodes, max(1, min(LARGEST_BATCH, batch)), effort)

    def draw_size(self, samples: int) -> int:
        """Say on how many samples one draw of a random estimate does best, of so many.

        At fixed work the spread of an average of draws, each on s samples, goes like
        (2 + κ/s) (s + o): a draw spreads like a square of a normal number, samples differ by κ,
        and running the graph costs as much as o samples beside its arithmetic. It is least at
        s = sqrt(κ o / 2), with κ about 8 where half of all units are silent.
        """
        beside = 3 * self.nodes * NODE_MACS / (4 * self.macs)
        return max(1, min(self.batch, samples, round(2 * sqrt(beside))))

    def steps(self, units: float, samples: int, beside: float = 0.0) -> int:
        """Count the gradient steps on so many samples each that ``units`` of work pay for.

        A unit is about a second of one plain core at effort 1.

        Args:
            units: of work.
            samples: of a step.
            beside: what a step costs beside them, in multiply-adds.
        """
        runs = -(-samples // self.batch)
        each = 4 * samples * self.macs + 3 * runs * self.nodes * NODE_MACS + beside
        return max(1, int(self.effort * units * MACS_PER_UNIT / each))
