"""A model compiled: every node bound to what runs it, every constant in its lane.

A node is run by the first of these that there is: the interpreter itself (operators with bodies), a
converter for its operator at its version, the function the model or ONNX defines it by, and onnx's
reference implementation. Operators are taken at the version the model, or the function they stand
in, names for their domain; nothing is converted to another version, so nothing is renamed or moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnxpress_adapters import walk
from onnxpress_adapters.control import CALLED, CONTROL, call
from onnxpress_adapters.element_types import element_types, odd_types
from onnxpress_adapters.errors import UnsupportedOperatorError
from onnxpress_adapters.fallback import reference_entry
from onnxpress_adapters.functions import (
    Called,
    functions_of,
    key_of,
    local_call,
    opsets_of,
    plain,
    schema_call,
)
from onnxpress_adapters.graph import Body, Instruction, Program
from onnxpress_adapters.lanes import (
    Draft,
    DraftNode,
    host_places,
    last_reads,
    sort_lanes,
    upstream,
)
from onnxpress_adapters.node import NodeView, view
from onnxpress_adapters.registry import Registry
from onnxpress_adapters.trace import Array
from onnxpress_adapters.weights import WeightKey

FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
)
STRING = TensorProto.STRING
BLOCKED_LAYOUT = "com.microsoft.nchwc"
"""Where onnxruntime puts convolutions whose weights it has cut into blocks."""


def compile_model(
    model: ModelProto,
    registry: Registry,
    *,
    pressed: frozenset[WeightKey] = frozenset(),
    reference: bool = True,
) -> Program:
    """Bind a model's graphs and functions.

    Args:
        model: checked, without sparse initializers.
        registry: the converters.
        pressed: constants of whole numbers that are weights.
        reference: whether onnx's reference implementation may run what has no converter.

    Raises:
        UnsupportedOperatorError: nothing runs some of the operators; all are listed with their
            nodes.
    """
    compiler = _Compiler(model, registry, reference)
    draft = compiler.draft(model.graph, (), (), opsets_of(model))
    if compiler.missing:
        raise UnsupportedOperatorError(_missing_message(compiler.missing))
    varying = sort_lanes(draft, pressed)
    constants: dict[WeightKey, Array] = {}
    main = _finish(draft, varying, constants)
    fallbacks = [item.node for body in draft.walk() for item in body.nodes if item.falls_back]
    return Program(
        main,
        constants,
        tuple(str(node) for node in fallbacks),
        _blocked(draft, fallbacks, compiler.known_types() if fallbacks else {}),
    )


def _missing_message(missing: Mapping[str, list[str]]) -> str:
    lines = []
    for operator, nodes in sorted(missing.items()):
        shown = ", ".join(f"'{name}'" for name in nodes[:8])
        more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
        lines.append(f"  {operator}: {shown}{more}")
    if any(label.startswith(f"{BLOCKED_LAYOUT}::") for label in missing):
        lines.append(
            f"{BLOCKED_LAYOUT} is written for one kind of processor; save the model again at the "
            "optimisation level extended or below"
        )
    return "\n".join(
        [f"no converter for {len(missing)} operator(s) of this model (with their nodes):", *lines]
    )


class _Compiler:
    """Compiles one model; holds what its graphs share."""

    def __init__(self, model: ModelProto, registry: Registry, reference: bool) -> None:
        self.model = model
        self.registry = registry
        self.reference = reference
        self.functions = functions_of(model)
        self.types: dict[str, int] | None = None
        self.odd = odd_types(model)
        self.missing: dict[str, list[str]] = {}

    def known_types(self) -> dict[str, int]:
        """Infer the element types of the model's values, once."""
        if self.types is None:
            self.types = element_types(self.model)
        return self.types

    def draft(
        self,
        graph: GraphProto,
        path: tuple[str, ...],
        keys: tuple[str, ...],
        opsets: Mapping[str, int],
    ) -> Draft:
        """Decode nodes and constants of a graph and its bodies."""
        constants = {name: numpy_helper.to_array(t) for name, t in walk.constants(graph)}
        constants.update(walk.strings(graph))
        draft = Draft(path, keys, graph, constants)
        types = self.known_types() if self.odd else {}
        for place, proto in enumerate(graph.node):
            if walk.is_constant(proto) and proto.output[0] in constants:
                continue
            node = view(proto, opsets.get(plain(proto.domain), 1), types)
            draft.nodes.append(self.bind(proto, node, place, draft, opsets))
        return draft

    def bind(
        self,
        proto: NodeProto,
        node: NodeView,
        place: int,
        around: Draft,
        opsets: Mapping[str, int],
    ) -> DraftNode:
        """Find what runs a node."""
        function = self.functions.get(key_of(proto))
        if function is not None:
            return self.called(proto, node, place, around, local_call(function, proto))
        entry = self.registry.find(node.domain, node.operator, node.version)
        graphs = any(True for _ in walk.bodies(proto, place))
        if entry is not None and not graphs and (entry.raw or not _on_text(node)):
            return DraftNode(place, node, entry, None, False, {})
        if node.domain == "" and node.operator in CONTROL:
            bodies = {
                step.rpartition(".")[2]: self.draft(
                    body, (*around.path, step), (*around.keys, step), opsets
                )
                for step, body in walk.bodies(proto, place)
            }
            return DraftNode(place, node, None, CONTROL[node.operator], False, bodies)
        if entry is None or graphs:
            defined = self.defined(proto, node, place, around)
            if defined is not None:
                return defined
        fallback = reference_entry(proto, opsets) if self.reference else None
        if fallback is None:
            label = f"{node.domain or 'ai.onnx'}::{node.operator} (opset {node.version})"
            self.missing.setdefault(label, []).append(node.name)
        else:
            node = view(proto, node.version, self.known_types())
        return DraftNode(place, node, fallback, None, fallback is not None, {})

    def called(
        self, proto: NodeProto, node: NodeView, place: int, around: Draft, called: Called
    ) -> DraftNode:
        """Compile the body of a function for one call."""
        step = f"{proto.name or proto.op_type}[{place}]"
        path = (*around.path, step)
        keys = called.keys if called.keys is not None else path
        body = self.draft(called.graph, path, keys, called.opsets)
        return DraftNode(place, node, None, call, False, {CALLED: body})

    def defined(
        self, proto: NodeProto, node: NodeView, place: int, around: Draft
    ) -> DraftNode | None:
        """Compile the function ONNX defines an operator by, if all of it can be run."""
        called = schema_call(proto, node.version, self.known_types())
        if called is None:
            return None
        before = {label: list(nodes) for label, nodes in self.missing.items()}
        found = self.called(proto, node, place, around, called)
        if self.missing != before:
            self.missing = before
            return None
        return found


def _on_text(node: NodeView) -> bool:
    """Say whether a node works on text, which torch does not have."""
    return STRING in node.types or (node.operator == "Cast" and node.get("to") == STRING)


def _blocked(
    draft: Draft, fallbacks: list[NodeView], types: Mapping[str, int]
) -> dict[WeightKey, str]:
    """Find the weights whose gradient would have to pass through the reference implementation."""
    blocked: dict[WeightKey, str] = {}
    for node in fallbacks:
        # Whole numbers and truth values pass no gradient on anyway.
        if not any(types.get(name, 1) in FLOATS for name in node.outputs if name):
            continue
        names = upstream(draft, {name for name in node.inputs if name})
        for body in draft.walk():
            for name in sorted(body.on_device & names):
                blocked.setdefault(WeightKey(body.keys, name), node.operator)
    return blocked


def _finish(
    draft: Draft,
    varying: set[str],
    constants: dict[WeightKey, Array],
    around: Mapping[str, Array] = MappingProxyType({}),
) -> Body:
    """Turn a draft whose constants have a lane into a body.

    Args:
        draft: with its lanes sorted.
        varying: names that depend on what the graph's inputs hold.
        constants: where the constants of the device lane are put.
        around: the host constants of the graphs around this one that it may read.
    """
    last = last_reads(draft)
    device = {name: WeightKey(draft.keys, name) for name in draft.constants}
    device = {name: key for name, key in device.items() if name in draft.on_device}
    constants.update({key: draft.constants[name] for name, key in device.items()})
    host = {**around, **{n: v for n, v in draft.constants.items() if n not in device}}
    instructions = []
    for order, item in enumerate(draft.nodes):
        node = item.node
        seen = {} if CALLED in item.bodies else host
        instructions.append(
            Instruction(
                node=node,
                place=item.place,
                entry=item.entry,
                control=item.control,
                falls_back=item.falls_back,
                host=host_places(item.entry, len(node.inputs)),
                varies=bool(node.inputs) and node.inputs[0] in varying,
                bodies={n: _finish(b, varying, constants, seen) for n, b in item.bodies.items()},
                release=tuple(sorted(last.get(order, ()))),
            )
        )
    return Body(
        path=draft.path,
        inputs=tuple(draft.inputs),
        outputs=tuple(draft.outputs),
        empty=tuple(_empty(value) for value in draft.graph.output),
        instructions=tuple(instructions),
        host=host,
        device=device,
    )


def _empty(value: ValueInfoProto) -> Array:
    kind = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type or 1)
    return np.zeros((0, *(max(0, dim.dim_value) for dim in kind.shape.dim)), dtype)
