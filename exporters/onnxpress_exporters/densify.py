"""Any of our files back to a plain one, for tools that lose or refuse sparse or packed tensors."""

from __future__ import annotations

from onnx import ModelProto

from onnxpress_adapters.packed_tensors import make_plain
from onnxpress_adapters.sparse_tensors import make_dense


def densify(model: ModelProto) -> ModelProto:
    """Make every sparse or packed constant of a model dense.

    Args:
        model: untouched. Bodies and functions count.

    Returns:
        A copy that computes the same bits, with the same names. Dense initializers keep their
        order; formerly packed and sparse ones follow them in theirs, because a file does not say
        where among the dense ones they stood.

    Raises:
        BrokenModelError: a sparse or packed constant contradicts itself.
    """
    dense = ModelProto()
    dense.CopyFrom(model)
    make_plain(dense)
    make_dense(dense)
    return dense
