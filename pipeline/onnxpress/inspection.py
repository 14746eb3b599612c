"""What can be pressed in a model, what cannot and why, and a compress line to copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto, TensorProto, numpy_helper

from onnxpress.domain import call_line
from onnxpress.report import aligned, file_bytes
from onnxpress.verdict import percent
from onnxpress_adapters import walk
from onnxpress_adapters.errors import UnsupportedOperatorError
from onnxpress_adapters.layers import VIEWED, layers_of
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import FLOATS, Prunable, prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.specs import InputSpec, OutputSpec, ValueSpec, specs
from onnxpress_adapters.weights import WeightKey

if TYPE_CHECKING:
    from onnx import GraphProto

NORMS = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
    }
)
BIAS_SLOTS: Mapping[str, int] = {
    "Conv": 2,
    "ConvTranspose": 2,
    "FusedConv": 2,
    "Gemm": 2,
    "FusedGemm": 2,
    "Attention": 2,
    "LSTM": 3,
    "GRU": 3,
    "RNN": 3,
}
"""Operator to the place of the first input that is added."""


@dataclass(frozen=True)
class WeightRow:
    """One prunable weight.

    Attributes:
        name: the weight's key.
        operator: of the first node that uses it.
        shape: in the file.
        elements: how many entries it has.
        zeros: how many of them are zero already.
        via: operators between the constant and the node, from the node back.
        layered: whether layer-wise methods see it as a matrix.
        trained: whether its values can be optimised by gradient.
        reason: why one of the two is not so; empty where both are.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    elements: int
    zeros: int
    via: tuple[str, ...]
    layered: bool
    trained: bool
    reason: str

    @property
    def how(self) -> str:
        """Say how it is pressed."""
        if not self.trained:
            return f"no: {self.reason}"
        return "layer-wise and by gradient" if self.layered else f"by gradient only: {self.reason}"


@dataclass(frozen=True)
class Rest:
    """Constants that are left alone for one reason.

    Attributes:
        reason: what they are.
        constants: how many.
        elements: how many entries in all.
    """

    reason: str
    constants: int
    elements: int


@dataclass(frozen=True)
class Inspection:
    """What there is to know about a model before pressing it.

    Attributes:
        path: of the model.
        size_bytes: on disk, data files included.
        opsets: domain (``ai.onnx`` for the standard one) and version.
        inputs: what it takes.
        outputs: what it gives.
        weights: the prunable weights, in the order of the graph.
        rest: the other constants, the most entries first.
        missing: which operators have no converter, with their nodes; empty where all have one.
        line: a call of ``onnxpress compress`` to copy.
    """

    path: Path
    size_bytes: int
    opsets: tuple[tuple[str, int], ...]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    weights: tuple[WeightRow, ...]
    rest: tuple[Rest, ...]
    missing: str
    line: str

    @property
    def pressable(self) -> bool:
        """Whether ``compress`` can work on it."""
        return not self.missing and any(row.trained for row in self.weights)

    def text(self) -> str:
        """Write it for people, in plain text."""
        opsets = ", ".join(f"{domain} {version}" for domain, version in self.opsets)
        lines = [f"{self.path}: {self.size_bytes:,} bytes, {opsets}", ""]
        lines += [f"  takes  {spec.describe()}" for spec in self.inputs]
        lines += [f"  gives  {spec.describe()}" for spec in self.outputs]
        lines += ["", *self._weights(), ""]
        if self.rest:
            lines.append("Left alone:")
            lines += [
                f"  {rest.constants:,} x {rest.reason}, {rest.elements:,} entries"
                for rest in self.rest
            ]
            lines.append("")
        if self.missing:
            return "\n".join([*lines, "It cannot be pressed yet:", self.missing])
        if not self.pressable:
            return "\n".join([*lines, "There is nothing to press in it."])
        return "\n".join(
            [
                *lines,
                "Whether samples run together or one by one is found out with the data.",
                "To press it, with inputs of your own (--data FILE) or drawn from a region:",
                f"  {self.line}",
            ]
        )

    def _weights(self) -> list[str]:
        if not self.weights:
            return ["No constant reaches the weight slot of an operator that can be pruned."]
        elements = sum(row.elements for row in self.weights)
        zeros = sum(row.zeros for row in self.weights)
        head = ["weight", "operator", "shape", "zeros", "reached through", "pressed"]
        cells = [
            [
                row.name,
                row.operator,
                "x".join(map(str, row.shape)),
                percent(row.zeros / max(1, row.elements), 3),
                ", ".join(row.via) or "-",
                row.how,
            ]
            for row in self.weights
        ]
        found = f"Prunable weights: {len(self.weights)}, with {elements:,} entries"
        return [f"{found}, {percent(zeros / max(1, elements), 3)} zero", *aligned([head, *cells])]

    def json(self) -> dict[str, Any]:
        """Give it for machines."""
        return {
            "model": str(self.path),
            "size_bytes": self.size_bytes,
            "opsets": dict(self.opsets),
            "inputs": [_spec(spec) for spec in self.inputs],
            "outputs": [_spec(spec) for spec in self.outputs],
            "weights": [
                {**vars(row), "shape": list(row.shape), "via": list(row.via)}
                for row in self.weights
            ],
            "rest": [vars(rest) for rest in self.rest],
            "pressable": self.pressable,
            "missing": self.missing,
            "batching": None,  # found out with the data
            "compress": self.line,
        }


def inspect_model(path: Path) -> Inspection:
    """Look at a model without running it.

    Raises:
        AdapterError: it cannot be read. Operators without a converter are no error here.
    """
    model = read_model(path)
    inputs, outputs = specs(model)
    missing = ""
    trained: frozenset[WeightKey] | None = None
    try:
        network, _ = import_network(model)
        trained = frozenset(network.program.constants)
    except UnsupportedOperatorError as error:
        missing = str(error)
    weights = prunable(model)
    layered = {layer.key for layer in layers_of(model)}
    return Inspection(
        path=path,
        size_bytes=file_bytes(path),
        opsets=tuple((o.domain or "ai.onnx", o.version) for o in model.opset_import),
        inputs=inputs,
        outputs=outputs,
        weights=tuple(_row(weight, layered, trained) for weight in weights),
        rest=_rest(model, {weight.key for weight in weights}),
        missing=missing,
        line=call_line(inputs, str(path)),
    )


def _row(
    weight: Prunable, layered: set[WeightKey], trained: frozenset[WeightKey] | None
) -> WeightRow:
    """Describe a weight; ``trained`` is None where the model could not be imported."""
    reason = ""
    works = weight.is_float and (trained is None or weight.key in trained)
    if not weight.is_float:
        reason = "it holds whole numbers"
    elif not works:
        reason = "only shape arithmetic uses it"
    elif weight.key not in layered:
        reason = _why_not_layered(weight)
    return WeightRow(
        name=str(weight.key),
        operator=weight.uses[0].node.op_type,
        shape=tuple(weight.tensor.dims),
        elements=weight.elements,
        zeros=int((numpy_helper.to_array(weight.tensor) == 0).sum()),
        via=weight.uses[0].via,
        layered=works and weight.key in layered,
        trained=works,
        reason=reason,
    )


def _why_not_layered(weight: Prunable) -> str:
    for use in weight.uses:
        if use.node.op_type not in VIEWED:
            return f"{use.node.op_type} has no matrix view"
        if use.via:
            return f"it is reached through {', '.join(use.via)}"
    return "several nodes use it in different ways"


def _rest(model: ModelProto, weights: set[WeightKey]) -> tuple[Rest, ...]:
    """Sort all other constants by what they are."""
    counts: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    for path, graph in walk.graphs(model):
        users = dict(_users(graph))
        for name, tensor in walk.constants(graph):
            if WeightKey(path, name) not in weights:
                what = _what(tensor, users.get(name))
                counts[what] += 1
                elements[what] += prod(tensor.dims)
    found = [Rest(what, counts[what], elements[what]) for what in counts]
    return tuple(sorted(found, key=lambda rest: (-rest.elements, rest.reason)))


def _users(graph: GraphProto) -> Iterator[tuple[str, tuple[str, int]]]:
    """Give which operator uses a name in which slot, bodies included, the first use last."""
    for place in reversed(range(len(graph.node))):
        node = graph.node[place]
        for _, body in walk.bodies(node, place):
            yield from _users(body)
        for slot in reversed(range(len(node.input))):
            yield node.input[slot], (node.op_type, slot)


def _what(tensor: TensorProto, user: tuple[str, int] | None) -> str:
    if user is None:
        return "unused"
    operator, slot = user
    if tensor.data_type not in FLOATS:
        return "whole numbers (shapes, indices, quantised zero points)"
    if operator in NORMS:
        return "norm"
    if operator in ("Gather", "GatherND", "GatherElements") and slot == 0:
        return "table that is looked up"
    if slot >= BIAS_SLOTS.get(operator, slot + 1) or operator in ("Add", "Sub", "Sum"):
        return "bias"
    if operator in ("Mul", "Div", "PRelu"):
        return "scale"
    if operator in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return "quantisation scale"
    return f"operand of {operator}"


def _spec(spec: ValueSpec) -> dict[str, Any]:
    named = [
        symbol if size is None else size
        for size, symbol in zip(spec.shape, spec.symbols or spec.shape, strict=True)
    ]
    return {
        "name": spec.name,
        "shape": named if spec.ranked else None,
        "type": spec.dtype.name if spec.holds == "tensor" else spec.holds,
    }
