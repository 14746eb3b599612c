"""Functions: operators a model defines itself, and operators ONNX defines by simpler ones.

A call is compiled into a body of its own, at the opset versions the function names, with the
attributes of the call put where the function refers to them. Nothing is renamed and nothing copied
into the model, so a constant of a function keeps one key however often the function is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto

from onnxpress_adapters.walk import STANDARD_DOMAINS, bodies, function_path


@dataclass(frozen=True, eq=False)
class Called:
    """A function with the attributes of one call.

    Attributes:
        graph: its inputs, nodes and outputs; the nodes are copies.
        opsets: domain to version, as the function names them.
        keys: the path its constants have in a ``WeightKey``; None where the file holds none of
            them, because the function is one of ONNX's own.
    """

    graph: GraphProto
    opsets: Mapping[str, int]
    keys: tuple[str, ...] | None


FunctionKey = tuple[str, str, str]


def functions_of(model: ModelProto) -> dict[FunctionKey, FunctionProto]:
    """Index the functions of a model by domain, name and overload."""
    return {(plain(f.domain), f.name, f.overload): f for f in model.functions}


def key_of(node: NodeProto) -> FunctionKey:
    """Give what a node calls: domain, name and overload."""
    return plain(node.domain), node.op_type, node.overload


def plain(domain: str) -> str:
    """Give the short name of a domain: ``""`` for ai.onnx."""
    return "" if domain in STANDARD_DOMAINS else domain


def local_call(function: FunctionProto, node: NodeProto) -> Called:
    """Bind a function of the model to one call of it."""
    return Called(_bound(function, node), opsets_of(function), function_path(function))


def schema_call(node: NodeProto, version: int, types: Mapping[str, int]) -> Called | None:
    """Bind the function ONNX defines an operator by, or give None where there is none.

    Args:
        node: of an operator.
        version: the opset version of its domain.
        types: ONNX element types of values by name; some functions depend on them.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, version, plain(node.domain))
    except onnx.defs.SchemaError:
        return None
    function = FunctionProto()
    defaults = [a.default_value for a in schema.attributes.values() if a.default_value.name]
    known: Any = schema  # onnx's own annotations leave its functions out
    if known.has_function:
        function.CopyFrom(known.function_body)
    elif known.has_context_dependent_function:
        given = [_type_of(types.get(name, 0)).SerializeToString() for name in node.input]
        body = known.get_context_dependent_function(node.SerializeToString(), given)
        if not body:
            return None
        function.ParseFromString(body)
    else:
        return None
    named = {a.name for a in function.attribute_proto}
    function.attribute_proto.extend(a for a in defaults if a.name not in named)
    # What the function does not name is at the newest version: ONNX writes functions for that.
    opsets = {"": onnx.defs.onnx_opset_version(), **opsets_of(function)}
    return Called(_bound(function, node), opsets, None)


def opsets_of(holder: FunctionProto | ModelProto) -> dict[str, int]:
    """Give domain to version; ``""`` for ai.onnx."""
    return {plain(entry.domain): entry.version for entry in holder.opset_import}


def _type_of(element_type: int) -> TypeProto:
    kind = TypeProto()
    if element_type:
        kind.tensor_type.elem_type = element_type
    return kind


def _bound(function: FunctionProto, node: NodeProto) -> GraphProto:
    given = {a.name: a for a in function.attribute_proto}
    given.update({a.name: a for a in node.attribute})
    graph = GraphProto(name=function.name)
    for names, values in ((function.input, graph.input), (function.output, graph.output)):
        for name in names:
            values.add().name = name
    graph.node.extend(function.node)
    _substitute(graph.node, given)
    return graph


def _substitute(nodes: Sequence[NodeProto], given: Mapping[str, AttributeProto]) -> None:
    """Put the attributes of a call where nodes refer to them, bodies included."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        kept = []
        for attribute in node.attribute:
            bound = AttributeProto()
            # Where the call leaves an attribute out, the operator's default holds.
            source = given.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if source is not None:
                bound.CopyFrom(source)
                bound.name = attribute.name
                kept.append(bound)
        del node.attribute[:]
        node.attribute.extend(kept)
        for _, body in bodies(node, 0):
            waiting.extend(body.node)
