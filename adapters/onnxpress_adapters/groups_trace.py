"""Every value of one run of the main graph, looked at before it is let go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onnxpress_adapters.run import Plan, Run, working

if TYPE_CHECKING:
    from onnxpress_adapters.graph import Body, Instruction
    from onnxpress_adapters.network import Network
    from onnxpress_adapters.trace import Array, Value
    from onnxpress_adapters.weights import WeightKey

Look = Callable[["Observed", "Instruction", Mapping[str, "Value | None"]], None]
"""Called after each node of the main graph, with the run and the values known by then."""


@dataclass(eq=False)
class Observed(Run):
    """A run that shows its values after each node of the main graph."""

    look: Look = lambda run, instruction, values: None

    def step(
        self,
        body: Body,
        instruction: Instruction,
        values: dict[str, Value | None],
        planned: dict[str, Array] | None,
    ) -> None:
        """Run one instruction and show what is known."""
        super().step(body, instruction, values, planned)
        if not body.path:
            self.look(self, instruction, values)


def observe(
    network: Network, weights: Mapping[WeightKey, Tensor], inputs: Sequence[Value], look: Look
) -> None:
    """Run a network once and show its values.

    Args:
        network: any.
        weights: as for a call of the network.
        inputs: likewise; those of one sample.
        look: is shown the values after each node of the main graph.
    """
    main = network.program.main
    device = next(iter(weights.values())).device if weights else torch.device("cpu")
    given = {
        name: working(value) if isinstance(value, Tensor) else value
        for name, value in zip(main.inputs, inputs, strict=True)
    }
    run = Observed(weights, device, Plan(), {}, {}, 1, look=look)
    with torch.no_grad():
        run.body(main, given, {})
