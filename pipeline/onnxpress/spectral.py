"""How far a network can be from another over the unit ball, at most: a bound layer by layer.

Of the two networks that share a graph, four things are carried along a chain: bounds on the norms
of their activations, on the norm of the difference, and the same for every entry. Norms go through
spectral norms, entries through absolute values; each is cut down to what the other allows.

Source: FACTS section 5, D_l ≤ |V_l| D_{l-1} + |W_l - V_l| Y_{l-1} + |b_l - c_l|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite, prod, sqrt

import torch
from torch import Tensor

from onnxpress_adapters.graph import Instruction
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.rest import Whole, readers, reads

LARGEST_SIDE = 1024
"""Smaller side of a matrix up to which its spectral norm is computed; above it is bounded."""

LARGEST_MAP = 1 << 22
"""Entries up to which a convolution is written out as a matrix."""

DOUBLINGS = 4
"""How often a Gram matrix is squared for the bound: the trace of G^16 is less than 16th power of
the norm times the rank."""

ROUNDING = 1 + 1e-9
"""What float64 may have lost on the way."""

MOVES = frozenset({"Identity", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})
MEANS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})

STEEPEST: dict[str, Callable[[NodeView], float]] = {
    "Relu": lambda node: 1.0,
    "LeakyRelu": lambda node: max(1.0, abs(node.get("alpha", 0.01))),
    "Elu": lambda node: max(1.0, abs(node.get("alpha", 1.0))),
    "Sigmoid": lambda node: 0.25,
    "HardSigmoid": lambda node: abs(node.get("alpha", 0.2)),
    "Tanh": lambda node: 1.0,
    "Softplus": lambda node: 1.0,
    "Softsign": lambda node: 1.0,
    "Abs": lambda node: 1.0,
    "Neg": lambda node: 1.0,
}
"""Lipschitz constants of activations that work entry by entry."""

BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Softsign", "Softmax"})
"""Activations between -1 and 1."""


class NoBoundError(Exception):
    """A graph, or a node of it, that no bound is known for; the message says which."""


@dataclass(frozen=True, eq=False)
class Reach:
    """How large a value can get in two networks over the unit ball, and how far apart.

    Attributes:
        sizes: bounds on its norm in the first and in the second network.
        apart: a bound on the norm of the difference.
        entries: bounds on its entries, first and second, in its shape.
        entries_apart: bounds on how much each entry differs.
    """

    sizes: tuple[float, float]
    apart: float
    entries: tuple[Tensor, Tensor]
    entries_apart: Tensor

    @classmethod
    def of_the_ball(cls, value: Tensor) -> Reach:
        """Begin with an input of norm 1 or less, the same in both."""
        ones = torch.ones_like(value)
        return cls((1.0, 1.0), 0.0, (ones, ones), torch.zeros_like(value))

    def tightened(self) -> Reach:
        """Hold norms to entries, entries to norms, and differences to sums."""
        sizes = [min(s, _norm(e)) for s, e in zip(self.sizes, self.entries, strict=True)]
        entries = [e.clamp_max(s) for s, e in zip(sizes, self.entries, strict=True)]
        between = torch.minimum(self.entries_apart, entries[0] + entries[1])
        apart = min(self.apart, _norm(between), sizes[0] + sizes[1])
        return Reach(
            (sizes[0], sizes[1]), apart, (entries[0], entries[1]), between.clamp_max(apart)
        )


@dataclass(frozen=True)
class Map:
    """A linear map that a weight makes, as far as bounds need it.

    Attributes:
        norm: of the map, by weight; an upper bound.
        rows: norms of what makes each entry of the result, by weight; broadcast to its shape.
        applied: the map of entries that are no less than zero, by a weight likewise.
    """

    norm: Callable[[Tensor], float]
    rows: Callable[[Tensor], Tensor]
    applied: Callable[[Tensor, Tensor], Tensor]

    def reach(self, before: Reach, first: Tensor, second: Tensor) -> Reach:
        """Give the reach behind the map with one weight in each network."""
        weights, away = (first, second), first - second
        norms, far = [self.norm(weight) for weight in weights], self.norm(away)
        sizes = [norm * size for norm, size in zip(norms, before.sizes, strict=True)]
        entries = [
            self._entries(weight, size, entry)
            for weight, size, entry in zip(weights, before.sizes, before.entries, strict=True)
        ]
        # f and F differ by V (y' - y) + (V - W) y, and by W (y' - y) + (V - W) y'.
        apart, between = [], []
        for keeps, moves in ((1, 0), (0, 1)):
            apart.append(norms[keeps] * before.apart + far * before.sizes[moves])
            between.append(
                self._entries(weights[keeps], before.apart, before.entries_apart)
                + self._entries(away, before.sizes[moves], before.entries[moves])
            )
        return Reach(
            (sizes[0], sizes[1]),
            min(apart),
            (entries[0], entries[1]),
            torch.minimum(between[0], between[1]),
        )

    def _entries(self, weight: Tensor, size: float, entries: Tensor) -> Tensor:
        applied = self.applied(weight.abs(), entries)
        return torch.minimum(applied, (self.rows(weight) * size).expand_as(applied))


def largest_apart(first: Whole, second: Whole, judged: Sequence[int]) -> float:
    """Bound sup ‖f(x) - F(x)‖ over ‖x‖ ≤ 1, for a chain of affine layers and activations.

    Args:
        first: one feed run in float64 in the first network, of any values.
        second: the same in the second.
        judged: places of the outputs that count; one.

    Returns:
        A valid bound; 0 where the two are the same.

    Raises:
        NoBoundError: the graph is no such chain; says where.
    """
    main = first.network.program.main
    if len(main.inputs) != 1 or len(judged) != 1:
        raise NoBoundError("a chain has one input and one output that counts")
    name, end = main.inputs[0], main.outputs[judged[0]]
    begin = first.values[name]
    if not isinstance(begin, Tensor) or not begin.is_floating_point():
        raise NoBoundError(f"the input '{name}' holds no real numbers")
    reach = Reach.of_the_ball(begin)
    while name != end:
        following = readers(main, name)
        if len(following) != 1:
            raise NoBoundError(f"'{name}' goes several ways")
        reach = _behind(following[0], reach, first, second, name).tightened()
        name = following[0].node.outputs[0]
    if not isfinite(reach.apart):
        raise NoBoundError("the bound is not finite")
    return reach.apart * ROUNDING


def _behind(
    instruction: Instruction, reach: Reach, first: Whole, second: Whole, name: str
) -> Reach:
    """Give the reach of a node's result from that of the one value it reads."""
    node, operator = instruction.node, instruction.node.operator
    varying = [other for other in reads(instruction) if other in first.varying]
    if varying != [name] or instruction.entry is None or instruction.falls_back:
        raise NoBoundError(f"{node} is no layer of a chain")
    slot = node.inputs.index(name)
    constants = [
        tuple(None if not other or other == name else run.values[other] for other in node.inputs)
        for run in (first, second)
    ]
    if operator in ("MatMul", "Gemm", "Conv"):
        return _affine(instruction, slot, reach, constants)
    if operator in ("Add", "Sub"):
        shifts = [_tensor(values[1 - slot], node) for values in constants]
        return _shifted(reach, shifts[0], shifts[1], node)
    if operator == "Mul" or (operator == "Div" and slot == 0):
        scales = [_tensor(values[1 - slot], node) for values in constants]
        if operator == "Div":
            scales = [1 / scale for scale in scales]
        return _scaled(reach, scales[0], scales[1], node)
    if operator == "BatchNormalization":
        return _normed(node, reach, constants)

    def run(value: Tensor) -> Tensor:
        arguments = [value if p == slot else v for p, v in enumerate(constants[0])]
        entry = instruction.entry
        assert entry is not None
        result = entry.convert(node, *arguments)
        made: Tensor = result[0] if isinstance(result, tuple) else result
        return made

    return _passed(node, reach, run)


def _passed(node: NodeView, reach: Reach, run: Callable[[Tensor], Tensor]) -> Reach:
    """Go through a node without weights."""
    operator = node.operator
    first, second = reach.entries
    if operator in MOVES:
        return replace(
            reach, entries=(run(first), run(second)), entries_apart=run(reach.entries_apart)
        )
    if operator in MEANS or operator == "MaxPool":
        # Neither gets larger, or further apart, than its largest entries; norms follow from them.
        factor = float("inf")
        if operator == "MaxPool" and all(d == 1 for d in node.get("dilations") or [1]):
            kernel = node.get("kernel_shape")
            strides = node.get("strides") or [1] * len(kernel)
            factor = sqrt(prod(ceil(k / s) for k, s in zip(kernel, strides, strict=True)))
        return Reach(
            (_times(factor, reach.sizes[0]), _times(factor, reach.sizes[1])),
            _times(factor, reach.apart),
            (run(first).clamp_min(0), run(second).clamp_min(0)),
            run(reach.entries_apart).clamp_min(0),
        )
    if operator == "Softmax":
        ones = torch.ones_like(first)
        apart = ones.clamp_max(reach.apart)
        return Reach((_norm(ones), _norm(ones)), reach.apart, (ones, ones), apart)
    if operator not in STEEPEST:
        raise NoBoundError(f"{node} is neither an affine layer nor an activation with a bound")
    steep, still = STEEPEST[operator](node), run(torch.zeros_like(first)).abs()
    entries = [still + steep * entry for entry in reach.entries]
    if operator in BOUNDED:
        entries = [entry.clamp_max(1.0) for entry in entries]
    sizes = [_norm(still) + steep * size for size in reach.sizes]
    return Reach(
        (sizes[0], sizes[1]),
        steep * reach.apart,
        (entries[0], entries[1]),
        steep * reach.entries_apart,
    )


def _affine(
    instruction: Instruction,
    slot: int,
    reach: Reach,
    constants: Sequence[tuple[object, ...]],
) -> Reach:
    """Go through a matrix product or a convolution and what it adds."""
    node = instruction.node
    weights = [_tensor(values[1 - slot], node) for values in constants]
    shifts = [values[2] if len(values) > 2 else None for values in constants]
    value = reach.entries_apart
    if node.operator == "Conv":
        if slot != 0 or len(value) != 1:
            raise NoBoundError(f"{node} takes no single image with a constant kernel")
        behind = _convolved(instruction, value).reach(reach, weights[0], weights[1])
    else:
        if any(weight.ndim != 2 for weight in weights):
            raise NoBoundError(f"{node} multiplies by something else than one matrix")
        if node.operator == "Gemm":
            if slot != 0 or node.get("transA", 0):
                raise NoBoundError(f"{node} multiplies from the left")
            alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
            weights = [alpha * (w.T if node.get("transB", 0) else w) for w in weights]
            shifts = [None if shift is None else beta * _tensor(shift, node) for shift in shifts]
        product = Map(
            spectral_norm,
            lambda w: w.norm(dim=0) if slot == 0 else w.norm(dim=1)[:, None],
            lambda w, v: v @ w if slot == 0 else w @ v,
        )
        if slot == 1 and value.ndim < 2:
            raise NoBoundError(f"{node} multiplies a vector from the left")
        behind = product.reach(reach, weights[0], weights[1])
    if shifts[0] is None or shifts[1] is None:
        return behind
    laid = [_tensor(shift, node) for shift in shifts]
    if node.operator == "Conv":
        laid = [shift.reshape(-1, *(1,) * (value.ndim - 2)) for shift in laid]
    return _shifted(behind, laid[0], laid[1], node)


def _convolved(instruction: Instruction, value: Tensor) -> Map:
    """Give the map of a convolution over values of one shape."""
    node, entry = instruction.node, instruction.entry
    assert entry is not None
    groups = node.get("group", 1)

    def applied(weight: Tensor, entries: Tensor) -> Tensor:
        result: Tensor = entry.convert(node, entries, weight, None)
        return result

    def norm(weight: Tensor) -> float:
        made = applied(weight, value)
        if value.numel() * made.numel() <= LARGEST_MAP:
            basis = torch.eye(value.numel()).to(value).reshape(-1, *value.shape[1:])
            return spectral_norm(applied(weight, basis).flatten(1))
        return convolution_norm(weight, groups)

    def rows(weight: Tensor) -> Tensor:
        norms: Tensor = weight.flatten(1).norm(dim=1)
        return norms.reshape(-1, *(1,) * (weight.ndim - 2))

    return Map(norm, rows, applied)


def spectral_norm(matrix: Tensor) -> float:
    """Give the largest singular value of a matrix, or a bound on it where the matrix is large.

    >>> spectral_norm(torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64))
    4.0
    """
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if not largest:
        return 0.0
    # Scaled, here and below, so that powers neither overflow nor vanish.
    matrix = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T) / largest
    gram = matrix @ matrix.T
    if len(gram) <= LARGEST_SIDE:
        return largest * sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))
    scale = float(gram.norm())
    power = gram / scale
    for _ in range(DOUBLINGS):
        power = power @ power
    by_trace = sqrt(scale * float(power.trace()) ** (1 / 2**DOUBLINGS))
    size = matrix.abs()
    return largest * min(by_trace, sqrt(float(size.sum(0).max() * size.sum(1).max())))


def convolution_norm(weight: Tensor, groups: int) -> float:
    """Bound the spectral norm of a convolution, whatever its strides, pads and input size.

    It is no more than the root of the largest sums of magnitudes over what makes one output and
    over what one input makes; nor than the norm of the kernel as a matrix over windows, in which an
    input stands once for each place of the kernel at most.

    Args:
        weight: ``[outputs, inputs / groups, *kernel]``, float64.
        groups: how many parts it consists of.
    """
    split = weight.reshape(groups, -1, *weight.shape[1:]).flatten(3)
    size = split.abs()
    sums = sqrt(float(size.sum((2, 3)).max() * size.sum((1, 3)).max()))
    windows = max(spectral_norm(part.flatten(1)) for part in split)
    return min(sums, sqrt(split.shape[3]) * windows)


def _shifted(reach: Reach, first: Tensor, second: Tensor, node: NodeView) -> Reach:
    """Add a constant to the value."""
    laid = [_laid(shift, reach.entries_apart, node) for shift in (first, second)]
    sizes = [size + _norm(shift) for size, shift in zip(reach.sizes, laid, strict=True)]
    entries = [entry + shift.abs() for entry, shift in zip(reach.entries, laid, strict=True)]
    away = laid[0] - laid[1]
    return Reach(
        (sizes[0], sizes[1]),
        reach.apart + _norm(away),
        (entries[0], entries[1]),
        reach.entries_apart + away.abs(),
    )


def _scaled(reach: Reach, first: Tensor, second: Tensor, node: NodeView) -> Reach:
    """Multiply the value by a constant, entry by entry."""
    laid = [_laid(scale, reach.entries_apart, node) for scale in (first, second)]
    diagonal = Map(
        lambda scale: float(scale.abs().max()),
        lambda scale: scale.abs(),
        lambda scale, v: scale * v,
    )
    return diagonal.reach(reach, laid[0], laid[1])


def _normed(node: NodeView, reach: Reach, constants: Sequence[tuple[object, ...]]) -> Reach:
    """Go through a norm with fixed statistics: a scale and a shift for each channel."""
    if len([name for name in node.outputs if name]) > 1 or node.get("training_mode", 0):
        raise NoBoundError(f"{node} takes its statistics from what it is given")
    wide = (-1, *(1,) * (reach.entries_apart.ndim - 2))
    scales, shifts = [], []
    for values in constants:
        scale, shift, mean, variance = (_tensor(value, node) for value in values[1:5])
        scale = scale / (variance + node.get("epsilon", 1e-5)).sqrt()
        scales.append(scale.reshape(wide))
        shifts.append((shift - mean * scale).reshape(wide))
    return _shifted(_scaled(reach, scales[0], scales[1], node), shifts[0], shifts[1], node)


def _laid(constant: Tensor, value: Tensor, node: NodeView) -> Tensor:
    """Broadcast a constant to a value, which must keep its shape."""
    try:
        return constant.expand(value.shape)
    except RuntimeError:
        raise NoBoundError(f"{node} makes more entries than it is given") from None


def _tensor(value: object, node: NodeView) -> Tensor:
    if not isinstance(value, Tensor):
        raise NoBoundError(f"{node} has no constant tensor beside what it is given")
    return value.double()


def _norm(value: Tensor) -> float:
    return float(value.norm())


def _times(factor: float, size: float) -> float:
    return factor * size if size else 0.0
