"""A graph made ready to run: nodes bound to converters, constants sorted by lane.

Two lanes run side by side. The *host* lane holds what decides shapes: integer and boolean
constants, the results of Shape, and everything computed from these alone. Its values are numpy
arrays and depend only on the shapes of the inputs, so they are computed once per input signature.
The *device* lane holds tensors: the inputs, the weights, and whatever is computed from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnxpress_adapters.control import Control
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.registry import Entry
from onnxpress_adapters.trace import Array
from onnxpress_adapters.weights import WeightKey


@dataclass(frozen=True, eq=False)
class Instruction:
    """One node, bound.

    Attributes:
        node: the node, decoded.
        place: its index in its graph, Constant nodes counted.
        entry: the converter, or None for an operator with bodies.
        control: what runs an operator with bodies, or None.
        falls_back: whether the entry is onnx's reference implementation.
        host: input places that arrive as numpy arrays.
        varies: whether the first input depends on what the graph's inputs hold, not only on shapes.
        bodies: attribute name to compiled body; that of a function is ``control.CALLED``.
        release: names whose values nobody reads afterwards.
    """

    node: NodeView
    place: int
    entry: Entry | None
    control: Control | None
    falls_back: bool
    host: frozenset[int]
    varies: bool
    bodies: Mapping[str, Body]
    release: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Body:
    """A graph, subgraph or called function, compiled.

    Attributes:
        path: where it stands: that of a ``WeightKey``, with an entry per call of a function.
        inputs: names of its inputs, initializers left out.
        outputs: names of its outputs.
        empty: for each output an array without entries, of the shape and type one result has
            behind a leading 0: what a loop that never runs gives.
        instructions: its nodes in order, without Constant nodes.
        host: constants of the host lane by name, those of the graphs around it included.
        device: its constants of the device lane: name to key.
    """

    path: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    empty: tuple[Array, ...]
    instructions: tuple[Instruction, ...]
    host: Mapping[str, Array]
    device: Mapping[str, WeightKey]

    def walk(self) -> Iterator[Body]:
        """Give this body and the bodies inside it, outermost first."""
        yield self
        for instruction in self.instructions:
            for body in instruction.bodies.values():
                yield from body.walk()


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled main graph and the values of its device constants.

    Attributes:
        main: the graph.
        constants: the values of the device lane's constants, in their original types.
        fallbacks: the nodes that run in onnx's reference implementation, as messages name them.
        blocked: weights whose gradient would have to pass through such a node, and which.
    """

    main: Body
    constants: Mapping[WeightKey, Array]
    fallbacks: tuple[str, ...] = ()
    blocked: Mapping[WeightKey, str] = field(default_factory=dict)
