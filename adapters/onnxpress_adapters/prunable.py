"""Which constants of a model are prunable weights: the one definition.

A prunable weight is a constant of two or more dimensions that reaches the weight slot of an
operator in ``SLOTS``, directly or through operators that only move or scale entries (``MOVES``),
subgraphs included. Biases, norms and Gather tables are not. Every sparsity anywhere in onnxpress is
the share of zeros over these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnxpress_adapters import walk
from onnxpress_adapters.weights import WeightKey

SLOTS: Mapping[str, tuple[int, ...]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "FusedConv": (1,),
    "FusedMatMul": (0, 1),
    "FusedGemm": (0, 1),
    "Attention": (1,),
}
"""Operator to the places of its inputs that hold weights."""

MOVES = frozenset(
    [
        "Transpose",
        "Identity",
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Concat",
        "DequantizeLinear",
        "Split",
    ]
)
"""Operators a weight may pass on its way; all but Concat pass their first input on."""

FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
)


@dataclass(frozen=True, eq=False)
class Use:
    """One weight slot a constant reaches.

    Attributes:
        node: the node with the slot.
        path: of the graph that holds the node.
        place: of the node in its graph.
        slot: the place of the weight among the node's inputs.
        via: the operators passed on the way, from the node back to the constant.
    """

    node: NodeProto
    path: tuple[str, ...]
    place: int
    slot: int
    via: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Prunable:
    """A prunable weight.

    Attributes:
        key: where the constant stands.
        tensor: the constant itself, as it is in the file.
        uses: every weight slot it reaches, in the order of the graph.
    """

    key: WeightKey
    tensor: TensorProto
    uses: tuple[Use, ...]

    @property
    def is_float(self) -> bool:
        """Whether its entries are floating-point numbers, which steps can change."""
        return self.tensor.data_type in FLOATS

    @property
    def elements(self) -> int:
        """How many entries it has."""
        count = 1
        for size in self.tensor.dims:
            count *= size
        return count


def prunable(model: ModelProto) -> tuple[Prunable, ...]:
    """List the prunable weights of a model, in the order the graph first uses them.

    Args:
        model: without sparse initializers and local functions, as ``read_model`` gives it.
    """
    finder = _Finder()
    finder.visit(model.graph, (), ())
    return tuple(
        Prunable(key, finder.constants[key], tuple(uses)) for key, uses in finder.uses.items()
    )


def count_zeros(model: ModelProto) -> tuple[int, int]:
    """Count the zeros and the entries over the prunable weights of a dense model."""
    zeros = elements = 0
    for weight in prunable(model):
        values = numpy_helper.to_array(weight.tensor)
        zeros += int((values == 0).sum())
        elements += values.size
    return zeros, elements


@dataclass(frozen=True, eq=False)
class _Scope:
    path: tuple[str, ...]
    constants: Mapping[str, TensorProto]
    makers: Mapping[str, NodeProto]


@dataclass(eq=False)
class _Finder:
    uses: dict[WeightKey, list[Use]] = field(default_factory=dict)
    constants: dict[WeightKey, TensorProto] = field(default_factory=dict)

    def visit(self, graph: GraphProto, path: tuple[str, ...], outer: tuple[_Scope, ...]) -> None:
        makers = {name: node for node in graph.node for name in node.output if name}
        scopes = (_Scope(path, dict(walk.constants(graph)), makers), *outer)
        for place, node in enumerate(graph.node):
            for slot in SLOTS.get(node.op_type, ()):
                if slot < len(node.input) and node.input[slot]:
                    for key, tensor, via in _sources(node.input[slot], scopes):
                        self.uses.setdefault(key, []).append(Use(node, path, place, slot, via))
                        self.constants.setdefault(key, tensor)
            for entry, body in walk.bodies(node, place):
                self.visit(body, (*path, entry), scopes)


def _sources(
    name: str, scopes: tuple[_Scope, ...]
) -> Iterator[tuple[WeightKey, TensorProto, tuple[str, ...]]]:
    """Follow a name back to the constants it is made of, inner scopes first; each is given once."""
    waiting: list[tuple[str, tuple[_Scope, ...], tuple[str, ...]]] = [(name, scopes, ())]
    # A chain of Concats that read the same name twice has more ways through it than atoms exist.
    seen: set[tuple[str, tuple[str, ...], bool]] = set()
    while waiting:
        name, scopes, via = waiting.pop()
        holds = (s for s in enumerate(scopes) if name in s[1].constants or name in s[1].makers)
        depth, scope = next(holds, (0, None))
        dequantized = "DequantizeLinear" in via
        if scope is None or (name, scope.path, dequantized) in seen:
            continue
        seen.add((name, scope.path, dequantized))
        if name in scope.constants:
            tensor = scope.constants[name]
            if (tensor.data_type in FLOATS or dequantized) and len(tensor.dims) >= 2:
                yield WeightKey(scope.path, name), tensor, via
            continue
        node = scope.makers[name]
        if node.op_type in MOVES:
            passed = node.input if node.op_type == "Concat" else node.input[:1]
            further = (*via, node.op_type)
            waiting.extend((source, scopes[depth:], further) for source in reversed(passed))
