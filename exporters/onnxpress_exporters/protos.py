"""Small things one does to protos of ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import FunctionProto

from onnxpress_adapters.walk import holders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto


def free_prefix(model: ModelProto, sign: str = "~") -> str:
    """Give a prefix no name in a model begins with.

    Args:
        model: any.
        sign: what the prefix is made of. Of two prefixes in one model neither may begin with the
            other, so each kind of name has a sign of its own.
    """
    names: set[str] = set()
    for _, holder in holders(model):
        for node in holder.node:
            names.update((*node.input, *node.output, node.name))
        if isinstance(holder, FunctionProto):
            continue
        for named in (holder.input, holder.output, holder.initializer, holder.value_info):
            names.update(one.name for one in named)
        names.update(one.values.name for one in holder.sparse_initializer)
    prefix = sign
    while any(name.startswith(prefix) for name in names):
        prefix += sign
    return prefix


def replace_all(field: Any, content: Sequence[Any]) -> None:
    """Give a repeated field of a message other content, some of which may be its own."""
    copies = []
    for one in content:
        copy = type(one)()
        copy.CopyFrom(one)
        copies.append(copy)
    del field[:]
    field.extend(copies)
