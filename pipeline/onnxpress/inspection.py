"""What can be pressed in a model, what cannot and why, and a compress line to copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, numpy_helper

from onnxpress.domain import call_line
from onnxpress.provenance import Provenance
from onnxpress.report import aligned
from onnxpress.sizes import file_bytes
from onnxpress.verdict import percent
from onnxpress.weight_bytes import WeightBytes, table, weight_bytes
from onnxpress_adapters import walk
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.functions import functions_of, key_of
from onnxpress_adapters.graph import Program
from onnxpress_adapters.layers import Layer, layer_of
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import FLOATS, Prunable, prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.scopes import constant, places
from onnxpress_adapters.specs import InputSpec, OutputSpec, ValueSpec, check_plain, specs
from onnxpress_adapters.weights import WeightKey

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
class Constant:
    """One constant that is left alone.

    Attributes:
        name: its key.
        shape: in the file.
        elements: how many entries it has.
        reason: what it is.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    reason: str


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
        constants: all other constants, in the order of the file.
        fallbacks: the nodes that run in onnx's reference implementation, on the host.
        missing: which operators have no converter, with their nodes; empty where all have one.
        provenance: what made it, where onnxpress did.
        changed: whether its weights are others than it was written with.
        weight_bytes: what the prunable weights take in every form.
        line: a call of ``onnxpress compress`` to copy.
    """

    path: Path
    size_bytes: int
    opsets: tuple[tuple[str, int], ...]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    weights: tuple[WeightRow, ...]
    constants: tuple[Constant, ...]
    fallbacks: tuple[str, ...]
    missing: str
    weight_bytes: WeightBytes
    line: str
    provenance: Provenance | None = None
    changed: bool = False

    @property
    def pressable(self) -> bool:
        """Whether ``compress`` can work on it."""
        return not self.missing and any(row.trained for row in self.weights)

    @property
    def rest(self) -> tuple[Rest, ...]:
        """The other constants, sorted by what they are, the most entries first."""
        counts: Counter[str] = Counter()
        elements: Counter[str] = Counter()
        for one in self.constants:
            counts[one.reason] += 1
            elements[one.reason] += one.elements
        found = [Rest(what, counts[what], elements[what]) for what in counts]
        return tuple(sorted(found, key=lambda rest: (-rest.elements, rest.reason)))

    def text(self, *, every: bool = False) -> str:
        """Write it for people, in plain text; ``every`` names each constant that is left alone."""
        opsets = ", ".join(f"{domain} {version}" for domain, version in self.opsets)
        lines = [f"{self.path}: {self.size_bytes:,} bytes, {opsets}", ""]
        if self.provenance is not None:
            since = "; its weights have changed since" if self.changed else ""
            lines += [f"  {self.provenance}{since}", ""]
        lines += [f"  takes  {spec.describe()}" for spec in self.inputs]
        lines += [f"  gives  {spec.describe()}" for spec in self.outputs]
        lines += ["", *self._weights(), ""]
        if self.constants:
            lines.append("Left alone:")
            lines += [
                f"  {rest.constants:,} x {rest.reason}, {rest.elements:,} entries"
                for rest in self.rest
            ]
            lines.append("")
        if every and self.constants:
            head = ["constant", "shape", "left alone because it is"]
            cells = [
                [one.name, "x".join(map(str, one.shape)) or "one number", one.reason]
                for one in self.constants
            ]
            lines += [*aligned([head, *cells]), ""]
        if self.fallbacks:
            lines.append("Run on the host by onnx's reference implementation, without a gradient:")
            lines += [f"  {node}" for node in self.fallbacks]
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
        return [
            f"{found}, {percent(zeros / max(1, elements), 3)} zero",
            *aligned([head, *cells]),
            "",
            *self._bytes(),
        ]

    def _bytes(self) -> list[str]:
        return aligned(table([("as it is", self.weight_bytes)]))

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
            "constants": [{**vars(one), "shape": list(one.shape)} for one in self.constants],
            "fallbacks": list(self.fallbacks),
            "pressable": self.pressable,
            "missing": self.missing,
            "batching": None,  # found out with the data
            "weight_bytes": self.weight_bytes.json(),
            "compress": self.line,
            "provenance": self.provenance and {**self.provenance.json(), "changed": self.changed},
        }


def inspect_model(path: Path, *, tables: bool = False) -> Inspection:
    """Look at a model without running it.

    Args:
        path: the ONNX file.
        tables: whether the tables of Gather count as prunable.

    Raises:
        AdapterError: it cannot be read. Operators without a converter are no error here.
    """
    model = read_model(path)
    inputs, outputs = specs(model)
    missing = ""
    program: Program | None = None
    try:
        program = import_network(model, tables=tables)[0].program
        check_plain(inputs, outputs)
    except AdapterError as error:
        missing = str(error)
    weights = prunable(model, tables=tables)
    provenance = Provenance.read(model)
    return Inspection(
        path=path,
        size_bytes=file_bytes(path),
        opsets=tuple((o.domain or "ai.onnx", o.version) for o in model.opset_import),
        inputs=inputs,
        outputs=outputs,
        weights=tuple(_row(weight, program) for weight in weights),
        constants=_constants(model, {weight.key for weight in weights}),
        fallbacks=program.fallbacks if program else (),
        missing=missing,
        weight_bytes=weight_bytes(model, tables=tables),
        line=call_line(inputs, str(path)),
        provenance=provenance,
        changed=provenance is not None and provenance.changed(model),
    )


def _row(weight: Prunable, program: Program | None) -> WeightRow:
    """Describe a weight; ``program`` is None where the model could not be imported."""
    layer = layer_of(weight)
    reason = layer if isinstance(layer, str) else ""
    works = not weight.fixed
    if works and program is not None:
        if weight.key not in program.constants:
            works, reason = False, "only shape arithmetic uses it"
        elif weight.key in program.blocked:
            works = False
            reason = (
                f"not optimisable, its gradient would have to pass through "
                f"{program.blocked[weight.key]}, which torch does not run"
            )
    return WeightRow(
        name=str(weight.key),
        operator=weight.uses[0].node.op_type,
        shape=tuple(weight.tensor.dims),
        elements=weight.elements,
        zeros=int((numpy_helper.to_array(weight.tensor) == 0).sum()),
        via=weight.uses[0].via,
        layered=works and isinstance(layer, Layer),
        trained=works,
        reason=reason,
    )


def _constants(model: ModelProto, weights: set[WeightKey]) -> tuple[Constant, ...]:
    """List all other constants with what they are, in the order of the file."""
    functions = functions_of(model)
    users: dict[WeightKey, tuple[str, int]] = {}
    for place in places(model):
        if key_of(place.node) in functions:
            continue  # what a function does with its inputs is seen inside it
        for slot, name in enumerate(place.node.input):
            known = constant(name, place.scopes) if name else None
            if known is not None:
                users.setdefault(known[0], (place.node.op_type, slot))
    found = []
    for path, graph in chain(walk.graphs(model), walk.functions(model)):
        for name, tensor in walk.constants(graph):
            key = WeightKey(path, name)
            if key not in weights:
                what = _what(tensor, users.get(key))
                found.append(Constant(str(key), tuple(tensor.dims), prod(tensor.dims), what))
    return tuple(found)


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
