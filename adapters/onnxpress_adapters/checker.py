"""The ONNX checker, for files that onnxruntime wrote as well.

Its optimizer puts some operators into ONNX's own domain that ONNX does not have there, or not at
the opset of the file: layer normalisation had been fused for years before opset 17 knew it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from onnxpress_adapters.light import inline_bytes, lightened, message_bytes
from onnxpress_adapters.sparse_tensors import sparse_constants
from onnxpress_adapters.tensors import every_tensor
from onnxpress_adapters.walk import STANDARD_DOMAINS, graphs

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

NEVER = 1 << 30
KNOWN_SINCE = {"LayerNormalization": 17, "SimplifiedLayerNormalization": NEVER}
"""Operators onnxruntime writes at any opset, and the first one at which ONNX has them."""

ELSEWHERE = "com.microsoft"
"""A domain whose operators the checker leaves alone."""

WHOLE_BYTES = 1 << 26
"""The largest model the checker sees with all its data: it wants a copy of them."""

LARGE_BYTES = 1 << 16
"""The smallest tensor it does not see the data of, in a model above that."""


def check(model: ModelProto, whole_bytes: int = WHOLE_BYTES) -> None:
    """Run the ONNX checker, and let pass what onnxruntime writes.

    The model comes back as it was.

    Args:
        model: all data inline.
        whole_bytes: above which the checker does not see the data of large tensors.

    Raises:
        onnx.checker.ValidationError: it is unsound.
    """
    if message_bytes(model) > whole_bytes:
        model = _empty(model)
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


def _empty(model: ModelProto) -> ModelProto:
    """Copy a model with large tensors that have no entries.

    Of a sparse one neither values nor indices have any, so whether they fit is not seen; whoever
    makes or reads them looks at that.
    """

    def leave(tensor: TensorProto) -> bool:
        return inline_bytes(tensor) >= LARGE_BYTES and tensor.HasField("raw_data")

    light = lightened(model, leave)
    for (_, old), (_, new) in zip(every_tensor(model), every_tensor(light), strict=True):
        if leave(old) and not new.HasField("raw_data"):
            new.dims[:] = [0]
    for sparse in sparse_constants(light):
        parts = (sparse.values, sparse.indices)
        if any(list(part.dims) == [0] for part in parts):
            for part in parts:
                part.CopyFrom(TensorProto(name=part.name, data_type=part.data_type, dims=[0]))
    return light


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
