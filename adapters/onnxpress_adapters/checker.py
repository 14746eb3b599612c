"""The ONNX checker, for files that onnxruntime wrote as well.

Its optimizer puts some operators into ONNX's own domain that ONNX does not have there, or not at
the opset of the file: layer normalisation had been fused for years before opset 17 knew it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from onnxpress_adapters.walk import STANDARD_DOMAINS, graphs

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

NEVER = 1 << 30
KNOWN_SINCE = {"LayerNormalization": 17, "SimplifiedLayerNormalization": NEVER}
"""Operators onnxruntime writes at any opset, and the first one at which ONNX has them."""

ELSEWHERE = "com.microsoft"
"""A domain whose operators the checker leaves alone."""


def check(model: ModelProto) -> None:
    """Run the ONNX checker, and let pass what onnxruntime writes.

    The model comes back as it was.

    Args:
        model: all data inline.

    Raises:
        onnx.checker.ValidationError: it is unsound.
    """
    foreign = _foreign(model)
    if not foreign:
        onnx.checker.check_model(model, full_check=False)
        return
    before = [node.domain if node.HasField("domain") else None for node in foreign]
    missing = all(entry.domain != ELSEWHERE for entry in model.opset_import)
    if missing:
        model.opset_import.add(domain=ELSEWHERE, version=1)
    for node in foreign:
        node.domain = ELSEWHERE
    try:
        onnx.checker.check_model(model, full_check=False)
    finally:
        for node, domain in zip(foreign, before, strict=True):
            node.ClearField("domain")
            if domain is not None:
                node.domain = domain
        if missing:
            del model.opset_import[-1]


def _foreign(model: ModelProto) -> list[NodeProto]:
    """Give the nodes that ONNX does not know, though they stand in its domain."""
    versions = [o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS]
    opset = max(versions, default=1)
    return [
        node
        for _, graph in graphs(model)
        for node in graph.node
        if node.domain in STANDARD_DOMAINS and opset < KNOWN_SINCE.get(node.op_type, 0)
    ]
