"""RNN, GRU and LSTM as loops of matrix products over time.

torch's own recurrent kernels can neither be batched by ``torch.vmap`` nor express peepholes, clips
and ONNX's choice of activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import ATTRIBUTES, FUNCTIONS
from onnxpress_adapters.ops.indexing import reversed_places
from onnxpress_adapters.registry import converter

# The numbers for which ONNX states no default and runtimes disagree.
NEEDED = {"Affine": ("alpha", "beta"), "ScaledTanh": ("alpha", "beta")}

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

Activation = Callable[[Tensor], Tensor]
Product = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]


class Cell(Protocol):
    """One step of a recurrent layer in one direction."""

    def __call__(self, projected: Tensor, state: State) -> State:
        """Give the next state, hidden part first.

        Args:
            projected: the input of the step times W, biases added, ``[batch, gates * hidden]``.
            state: hidden part first, each ``[batch, hidden]``.
        """
        ...


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one direction: ``w [gates * hidden, in]``, ``r [gates * hidden, hidden]``.

    ``of_input`` and ``of_state`` are the two halves of the bias, ``[gates * hidden]``, or None.
    """

    w: Tensor
    r: Tensor
    of_input: Tensor | None
    of_state: Tensor | None


def directions(node: NodeView) -> tuple[bool, ...]:
    """Tell for each direction of the layer whether it runs backwards."""
    ways = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    direction = node.get("direction", "forward")
    if direction not in ways:
        raise AdapterError(f"{node} runs in the unknown direction '{direction}'")
    return ways[direction]


def activations(node: NodeView, default: Sequence[str]) -> list[list[Activation]]:
    """Read the activations of each direction, with their numbers.

    ONNX strings the numbers of all activations together, and only those that take one use one up.

    Raises:
        AdapterError: onnxpress does not know an activation, or it lacks a number.
    """
    count = len(directions(node))
    names = node.get("activations") or list(default) * count
    alphas = iter(node.get("activation_alpha") or ())
    betas = iter(node.get("activation_beta") or ())
    known = {name.lower(): name for name in ATTRIBUTES}
    functions: list[Activation] = []
    for name in names:
        if name.lower() not in known:
            raise AdapterError(f"{node} uses the activation '{name}', which onnxpress lacks")
        true_name = known[name.lower()]
        given = {}
        for place, numbers in (("alpha", alphas), ("beta", betas)):
            value = next(numbers, None) if place in ATTRIBUTES[true_name] else None
            if value is not None:
                given[place] = value
            elif place in NEEDED.get(true_name, ()):
                raise AdapterError(
                    f"{node} uses {true_name} without its {place}, for which ONNX has no default"
                )
        functions.append(_with_numbers(FUNCTIONS[true_name], given))
    size = len(default)
    return [functions[start : start + size] for start in range(0, size * count, size)]


def _with_numbers(function: Callable[..., Tensor], given: dict[str, float]) -> Activation:
    return (lambda x: function(x, **given)) if given else function


def clipper(node: NodeView) -> Activation:
    """Give what bounds the input of every activation: nothing, or the attribute ``clip``."""
    bound = node.get("clip")
    return (lambda x: x) if bound is None else (lambda x: torch.clamp(x, -bound, bound))


def weights_of(place: int, w: Tensor, r: Tensor, bias: Tensor | None) -> Weights:
    """Take the weights of one direction out of the stacked ones."""
    if bias is None:
        return Weights(w[place], r[place], None, None)
    of_input, of_state = torch.chunk(bias[place], 2)
    return Weights(w[place], r[place], of_input, of_state)


def unroll(
    node: NodeView,
    x: Tensor,
    lengths: Tensor | None,
    starts: Sequence[Tensor | None],
    hidden: int,
    step: Callable[[int], tuple[Callable[[Tensor], Tensor], Cell]],
) -> tuple[Tensor, ...]:
    """Run a layer over time, in each of its directions.

    Args:
        node: for direction and layout.
        x: ``[time, batch, in]``, or ``[batch, time, in]`` with ``layout=1``.
        lengths: used steps of each sequence ``[batch]``, or None for all of them.
        starts: first states, hidden part first, ``[directions, batch, hidden]``
            (``[batch, directions, hidden]`` with ``layout=1``), or None for zeros.
        hidden: size of a state.
        step: gives, for a direction, the projection of the input and the cell.

    Returns:
        All hidden states ``[time, directions, batch, hidden]``, then the last of each state
        ``[directions, batch, hidden]``; batch first with ``layout=1``.
    """
    batch_first = bool(node.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        starts = [None if start is None else start.transpose(0, 1) for start in starts]
    steps, batch = x.shape[0], x.shape[1]
    time = torch.arange(steps, device=x.device)
    used = None if lengths is None else (time.unsqueeze(1) < lengths.unsqueeze(0)).unsqueeze(2)
    histories, lasts = [], []
    for place, backwards in enumerate(directions(node)):
        project, cell = step(place)
        source = turned(x, lengths) if backwards else x
        state = tuple(
            x.new_zeros(batch, hidden) if start is None else start[place] for start in starts
        )
        history, last = _through_time(project(source), state, cell, used)
        histories.append(turned(history, lengths) if backwards else history)
        lasts.append(last)
    stacked = [torch.stack(parts) for parts in zip(*lasts, strict=True)]
    if batch_first:
        whole = torch.stack(histories, 2).transpose(0, 1)
        return (whole, *(part.transpose(0, 1) for part in stacked))
    return (torch.stack(histories, 1), *stacked)


def _through_time(
    projected: Tensor, state: State, cell: Cell, used: Tensor | None
) -> tuple[Tensor, State]:
    outputs = []
    for time, now in enumerate(projected.unbind(0)):
        new = cell(now, state)
        output = new[0]
        if used is not None:
            # Behind its end a sequence keeps its state and answers zero.
            new = tuple(torch.where(used[time], n, o) for n, o in zip(new, state, strict=True))
            output = torch.where(used[time], output, 0.0)
        state = new
        outputs.append(output)
    return torch.stack(outputs), state


def turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Turn sequences ``[time, batch, features]`` round, each within its own length."""
    if lengths is None:
        return torch.flip(x, (0,))
    places = reversed_places(x.shape[0], lengths)
    return torch.gather(x, 0, places.unsqueeze(2).expand(x.shape))


def projection(w: Tensor, *biases: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Give the map from all inputs to what they add to the gates, for the whole time at once."""

    def run(x: Tensor) -> Tensor:
        result = torch.matmul(x, w.transpose(0, 1))
        for bias in biases:
            if bias is not None:
                result = result + bias
        return result

    return run


@converter("RNN")
def rnn(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """``h' = f(W x + R h + b)``: all hidden states and the last one."""
    functions, clip = activations(node, ("Tanh",)), clipper(node)

    def step(place: int) -> tuple[Callable[[Tensor], Tensor], Cell]:
        own, (f,) = weights_of(place, w, r, bias), functions[place]
        back = own.r.transpose(0, 1)

        def cell(projected: Tensor, state: State) -> State:
            return (f(clip(projected + torch.matmul(state[0], back))),)

        return projection(own.w, own.of_input, own.of_state), cell

    return unroll(node, x, lengths, [start], r.shape[-1], step)


@converter("GRU")
def gru(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gated recurrent unit, gates in the order update, reset, new: all states and the last."""
    functions, clip = activations(node, ("Sigmoid", "Tanh")), clipper(node)
    hidden = r.shape[-1]
    reset_after = bool(node.get("linear_before_reset", 0))

    def step(place: int) -> tuple[Callable[[Tensor], Tensor], Cell]:
        own, (f, g) = weights_of(place, w, r, bias), functions[place]
        back_gates, back_new = (
            own.r[: 2 * hidden].transpose(0, 1),
            own.r[2 * hidden :].transpose(0, 1),
        )
        new_bias = None if own.of_state is None else own.of_state[2 * hidden :]

        def cell(projected: Tensor, state: State) -> State:
            (h,) = state
            gates = projected[:, : 2 * hidden] + torch.matmul(h, back_gates)
            update, reset = torch.chunk(f(clip(gates)), 2, 1)
            recurrent = torch.matmul(h if reset_after else reset * h, back_new)
            if new_bias is not None:
                recurrent = recurrent + new_bias
            recurrent = reset * recurrent if reset_after else recurrent
            new = g(clip(projected[:, 2 * hidden :] + recurrent))
            return ((1 - update) * new + update * h,)

        gate_bias = None
        if own.of_state is not None:
            gate_bias = torch.cat(
                [own.of_state[: 2 * hidden], torch.zeros_like(own.of_state[2 * hidden :])]
            )
        return projection(own.w, own.of_input, gate_bias), cell

    return unroll(node, x, lengths, [start], hidden, step)


@converter("LSTM")
def lstm(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    start: Tensor | None = None,
    start_cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Long short-term memory, gates in the order input, output, forget, cell.

    Returns all hidden states, the last hidden state and the last cell state.
    """

    def products(place: int) -> tuple[Product, Product]:
        return projection(w[place]), projection(r[place])

    starts = [start, start_cell]
    return lstm_layer(node, x, r.shape[-1], products, bias, lengths, starts, peepholes)


def lstm_layer(
    node: NodeView,
    x: Tensor,
    hidden: int,
    products: Callable[[int], tuple[Product, Product]],
    bias: Tensor | None,
    lengths: Tensor | None,
    starts: Sequence[Tensor | None],
    peepholes: Tensor | None,
) -> tuple[Tensor, ...]:
    """Run an LSTM whose weights may be stored in any way.

    Args:
        node: for direction, activations and clip.
        x: as ``unroll`` takes it.
        hidden: size of a state.
        products: gives, for a direction, what multiplies inputs and states with their weights.
        bias: ``[directions, 2 * gates * hidden]``, or None.
        lengths: as ``unroll`` takes them.
        starts: first hidden and first cell state, as ``unroll`` takes them.
        peepholes: ``[directions, 3 * hidden]``, or None.
    """
    functions, clip = activations(node, ("Sigmoid", "Tanh", "Tanh")), clipper(node)
    coupled = bool(node.get("input_forget", 0))

    def step(place: int) -> tuple[Callable[[Tensor], Tensor], Cell]:
        (of_input, of_state), (f, g, last) = products(place), functions[place]
        biases = () if bias is None else torch.chunk(bias[place], 2)
        holes = None if peepholes is None else torch.chunk(peepholes[place], 3)

        def project(inputs: Tensor) -> Tensor:
            result = of_input(inputs)
            for summand in biases:
                result = result + summand
            return result

        def cell(projected: Tensor, state: State) -> State:
            h, c = state
            i, o, forget, new = torch.chunk(projected + of_state(h), 4, 1)
            if holes is not None:
                i, forget = i + holes[0] * c, forget + holes[2] * c
            i = f(clip(i))
            kept = 1 - i if coupled else f(clip(forget))
            c = kept * c + i * g(clip(new))
            if holes is not None:
                o = o + holes[1] * c
            return f(clip(o)) * last(c), c

        return project, cell

    return unroll(node, x, lengths, starts, hidden, step)


def states_met(
    node: NodeView, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
) -> Tensor | None:
    """Give the states the recurrent weights of a layer were multiplied with.

    Args:
        node: an LSTM, a GRU or an RNN.
        inputs: what it was given.
        outputs: what it computed, all hidden states first.

    Returns:
        ``[directions, time, batch, hidden]``; zero behind the end of a sequence. A GRU that resets
        before it multiplies gives ``[directions, gates, time, batch, hidden]``, because its new
        gate meets the reset state and the two others the state itself.
    """
    x, w, r, bias, lengths, start = (*inputs, None, None, None, None, None, None)[:6]
    history = outputs[0]
    if x is None or w is None or r is None or history is None:
        return None
    if node.get("layout", 0):
        x, history = x.transpose(0, 1), history.permute(1, 2, 0, 3)
        start = None if start is None else start.transpose(0, 1)
    steps = x.shape[0]
    time = torch.arange(steps, device=x.device).unsqueeze(1)
    ends = torch.full_like(time[:1], steps) if lengths is None else lengths.long().unsqueeze(0)
    found = []
    for place, backwards in enumerate(directions(node)):
        own = history[:, place]
        first = torch.zeros_like(own[0]) if start is None else start[place]
        if backwards:
            shifted = torch.cat([own[1:], first.unsqueeze(0)])
            begins = time == ends - 1
        else:
            shifted = torch.cat([first.unsqueeze(0), own[:-1]])
            begins = time == 0
        before = torch.where(begins.unsqueeze(2), first, shifted)
        found.append(torch.where((time < ends).unsqueeze(2), before, 0.0))
    states = torch.stack(found)
    if node.operator != "GRU" or node.get("linear_before_reset", 0):
        return states
    resets = [
        _reset(node, place, x, weights_of(place, w, r, bias), states[place])
        for place in range(len(found))
    ]
    return torch.stack([states, states, torch.stack(resets) * states], 1)


def _reset(node: NodeView, place: int, x: Tensor, own: Weights, states: Tensor) -> Tensor:
    """Compute the reset gate of a GRU at every step, ``[time, batch, hidden]``."""
    function, clip = activations(node, ("Sigmoid", "Tanh"))[place][0], clipper(node)
    hidden = own.r.shape[-1]
    rows = slice(hidden, 2 * hidden)
    gate = torch.matmul(x, own.w[rows].transpose(0, 1))
    gate = gate + torch.matmul(states, own.r[rows].transpose(0, 1))
    for bias in (own.of_input, own.of_state):
        if bias is not None:
            gate = gate + bias[rows]
    return function(clip(gate))
