"""A node as its converter sees it: attributes decoded once, at import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx import AttributeProto, NodeProto, numpy_helper

from onnxpress_adapters.errors import BrokenModelError


@dataclass(frozen=True, eq=False)
class NodeView:
    """One node of the graph, without its inputs.

    Attributes:
        operator: the ONNX operator, exact.
        domain: ``""`` for ai.onnx.
        name: the node's name, or its first output where it has none: what messages call it.
        version: the opset version of the node's domain in this model.
        attributes: decoded: int, float, str, lists of these, numpy arrays for tensors; graphs and
            types are left as they are.
        inputs: names; ``""`` for one left out.
        outputs: names; ``""`` for one nobody asked for.
        types: the ONNX element type of each input, 0 where it is not known or not a tensor. Only
            numbers of 2 and 4 bits need it: torch holds them in wider types.
    """

    operator: str
    domain: str
    name: str
    version: int
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[int, ...] = ()

    def type_of(self, place: int) -> int:
        """Give the ONNX element type of an input, 0 where it is not known."""
        return self.types[place] if place < len(self.types) else 0

    def get(self, name: str, default: Any = None) -> Any:
        """Give an attribute, or ``default`` where the node leaves it out."""
        return self.attributes.get(name, default)

    def __str__(self) -> str:
        """Name the node as messages do."""
        return f"{self.operator} '{self.name}'"


def view(node: NodeProto, version: int, types: Mapping[str, int] | None = None) -> NodeView:
    """Decode a node.

    Args:
        node: of any domain.
        version: the opset version its domain has in the model.
        types: ONNX element types of values, by name, as far as they are known.
    """
    known = types or {}
    domain = "" if node.domain == "ai.onnx" else node.domain
    first = next((name for name in node.output if name), "")
    return NodeView(
        operator=node.op_type,
        domain=domain,
        name=node.name or first,
        version=version,
        attributes={a.name: decode(a, node) for a in node.attribute},
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        types=tuple(known.get(name, 0) for name in node.input),
    )


def decode(attribute: AttributeProto, node: NodeProto) -> Any:
    """Turn an attribute into a plain Python value.

    Raises:
        BrokenModelError: its kind cannot stand on a node outside a function.
    """
    kinds = AttributeProto
    match attribute.type:
        case kinds.INT:
            return int(attribute.i)
        case kinds.FLOAT:
            return float(attribute.f)
        case kinds.STRING:
            return attribute.s.decode("utf-8", "replace")
        case kinds.INTS:
            return [int(v) for v in attribute.ints]
        case kinds.FLOATS:
            return [float(v) for v in attribute.floats]
        case kinds.STRINGS:
            return [v.decode("utf-8", "replace") for v in attribute.strings]
        case kinds.TENSOR:
            return numpy_helper.to_array(attribute.t)
        case kinds.GRAPH:
            return attribute.g
        case kinds.GRAPHS:
            return list(attribute.graphs)
        case kinds.TYPE_PROTO:
            return attribute.tp
        case _:
            raise BrokenModelError(
                f"attribute '{attribute.name}' of {node.op_type} '{node.name}' is of a kind "
                f"({kinds.AttributeType.Name(attribute.type)}) onnxpress does not read"
            )
