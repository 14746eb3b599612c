"""Operators that hold graphs of their own: If, Loop, Scan, SequenceMap, and calls of functions.

Each takes the run it belongs to, the instruction, what its node was given and the names around it,
and gives the node's outputs. Trip counts and conditions are read from the values, so a run under
``torch.vmap`` whose samples decide them stops here with torch's own complaint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.sequence import joined
from onnxpress_adapters.trace import Array, Value

if TYPE_CHECKING:
    from onnxpress_adapters.graph import Instruction
    from onnxpress_adapters.run import Run

CALLED = "called"
"""What the body of a function is called among the bodies of an instruction."""

Given = Sequence[Value | None]
Around = Mapping[str, Value | None]
Control = Callable[["Run", "Instruction", Given, Around], list[Value | None]]


def branch(run: Run, instruction: Instruction, inputs: Given, around: Around) -> list[Value | None]:
    """Run one of two branches (If)."""
    node = instruction.node
    taken = "then_branch" if _truth(node, inputs[0]) else "else_branch"
    return run.body(instruction.bodies[taken], {}, around)


def loop(run: Run, instruction: Instruction, inputs: Given, around: Around) -> list[Value | None]:
    """Repeat a body up to a count and while a condition holds (Loop).

    What the body carries goes round; what it gives beyond that is stacked.
    """
    node, body = instruction.node, instruction.bodies["body"]
    most = None if inputs[0] is None else int(_one(node, inputs[0]))
    going = len(inputs) < 2 or inputs[1] is None or _truth(node, inputs[1])
    carried = list(inputs[2:])
    scanned: list[list[Any]] = [[] for _ in body.outputs[1 + len(carried) :]]
    trip = 0
    while going and (most is None or trip < most):
        given = dict(zip(body.inputs, (np.array(trip), np.array(going), *carried), strict=True))
        condition, *results = run.body(body, given, around)
        going = _truth(node, condition)
        carried = results[: len(carried)]
        for values, value in zip(scanned, results[len(carried) :], strict=True):
            values.append(value)
        trip += 1
    empty = body.empty[1 + len(carried) :]
    stacks = [_stack(run, v, 0, e) for v, e in zip(scanned, empty, strict=True)]
    return [*carried, *stacks]


def scan(run: Run, instruction: Instruction, inputs: Given, around: Around) -> list[Value | None]:
    """Walk along tensors with a state, and stack what the body gives (Scan)."""
    if instruction.node.version < 9:
        return _scan_batch(run, instruction, inputs, around)
    return _scan_one(run, instruction, inputs, around)


def _scan_one(
    run: Run, instruction: Instruction, inputs: Given, around: Around
) -> list[Value | None]:
    node, body = instruction.node, instruction.bodies["body"]
    count = int(node.get("num_scan_inputs"))
    states, sources = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
    axes = node.get("scan_input_axes") or [0] * count
    backwards = node.get("scan_input_directions") or [0] * count
    pieces = [
        _slices(node, source, axis, bool(turned))
        for source, axis, turned in zip(sources, axes, backwards, strict=True)
    ]
    if len({len(piece) for piece in pieces}) != 1:
        raise AdapterError(f"{node} walks along tensors of different lengths")
    given_back = len(body.outputs) - len(states)
    scanned: list[list[Any]] = [[] for _ in range(given_back)]
    for step in zip(*pieces, strict=True):
        results = run.body(body, dict(zip(body.inputs, (*states, *step), strict=True)), around)
        states = results[: len(states)]
        for values, value in zip(scanned, results[len(states) :], strict=True):
            values.append(value)
    out_axes = node.get("scan_output_axes") or [0] * given_back
    turns = node.get("scan_output_directions") or [0] * given_back
    empty = body.empty[len(states) :]
    stacks = [
        _stack(run, values[::-1] if turn else values, axis, hollow)
        for values, axis, turn, hollow in zip(scanned, out_axes, turns, empty, strict=True)
    ]
    return [*states, *stacks]


def _scan_batch(
    run: Run, instruction: Instruction, inputs: Given, around: Around
) -> list[Value | None]:
    """Walk sequence by sequence, as opset 8 has it: ``[batch, time, ...]``, each with a length."""
    node, body = instruction.node, instruction.bodies["body"]
    count = int(node.get("num_scan_inputs"))
    backwards = node.get("directions") or [0] * count
    rest: list[Any] = [run.tensor(value) for value in inputs[1:] if value is not None]
    states, sources = rest[: len(rest) - count], rest[len(rest) - count :]
    samples, longest = sources[0].shape[:2]
    lengths = [longest] * samples if inputs[0] is None else [int(v) for v in _flat(inputs[0])]
    ends: list[list[Tensor]] = []
    scans: list[list[Tensor]] = []
    for sample, length in enumerate(lengths):
        carried = [state[sample] for state in states]
        pieces = [
            _slices(node, source[sample, :length], 0, bool(turned))
            for source, turned in zip(sources, backwards, strict=True)
        ]
        made: list[list[Tensor]] = []
        for step in zip(*pieces, strict=True):
            given = dict(zip(body.inputs, (*carried, *step), strict=True))
            results = [run.tensor(value) for value in run.body(body, given, around)]
            carried = results[: len(carried)]
            made.append(results[len(carried) :])
        ends.append(carried)
        scans.append([_padded(list(parts), longest) for parts in zip(*made, strict=True)])
    return [torch.stack(list(p)) for group in (ends, scans) for p in zip(*group, strict=True)]


def _padded(parts: list[Tensor], longest: int) -> Tensor:
    whole = torch.stack(parts)
    missing = whole.new_zeros(longest - len(parts), *whole.shape[1:])
    return torch.cat([whole, missing])


def sequence_map(
    run: Run, instruction: Instruction, inputs: Given, around: Around
) -> list[Value | None]:
    """Run a body for every element of a sequence (SequenceMap)."""
    node, body = instruction.node, instruction.bodies["body"]
    first = inputs[0]
    if not isinstance(first, list):
        raise AdapterError(f"{node} needs a sequence as its first input")
    made: list[list[Any]] = [[] for _ in body.outputs]
    for place in range(len(first)):
        given = [value[place] if isinstance(value, list) else value for value in inputs]
        results = run.body(body, dict(zip(body.inputs, given, strict=True)), around)
        for values, value in zip(made, results, strict=True):
            values.append(value)
    return [*made]


def call(run: Run, instruction: Instruction, inputs: Given, around: Around) -> list[Value | None]:
    """Run the body of a function; it sees its inputs and nothing else."""
    body = instruction.bodies[CALLED]
    missing = [None] * (len(body.inputs) - len(inputs))
    return run.body(body, dict(zip(body.inputs, (*inputs, *missing), strict=True)), {})


CONTROL: Mapping[str, Control] = {
    "If": branch,
    "Loop": loop,
    "Scan": scan,
    "SequenceMap": sequence_map,
}
"""Operators of ai.onnx that the interpreter runs itself, because they hold graphs."""


def _one(node: NodeView, value: Value | None) -> Any:
    if not isinstance(value, Tensor | np.ndarray) or tuple(value.shape) not in ((), (1,)):
        shape = list(value.shape) if isinstance(value, Tensor | np.ndarray) else value
        raise AdapterError(f"{node} cannot decide by a value of shape {shape}; it takes one")
    return value.reshape(())


def _truth(node: NodeView, value: Value | None) -> bool:
    return bool(_one(node, value))


def _flat(value: Value) -> Any:
    return value.reshape(-1)  # type: ignore[union-attr]


def _slices(node: NodeView, source: Value | None, axis: int, backwards: bool) -> list[Any]:
    """Cut a tensor into its slices along an axis."""
    if not isinstance(source, Tensor | np.ndarray):
        raise AdapterError(f"{node} can walk along tensors only")
    before: tuple[Any, ...] = (slice(None),) * (axis % source.ndim)
    places = range(source.shape[axis])
    return [source[(*before, place)] for place in (reversed(places) if backwards else places)]


def _stack(run: Run, values: list[Any], axis: int, empty: Array) -> Value:
    if not values:
        return joined([run.tensor(empty).movedim(0, axis)], axis, stack=False)
    return joined(values, axis, stack=True)
