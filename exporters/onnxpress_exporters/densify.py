"""Any of our files back to a plain one, for tools that lose or refuse sparse tensors."""

from __future__ import annotations

from onnx import ModelProto

from onnxpress_adapters.sparse_tensors import make_dense


def densify(model: ModelProto) -> ModelProto:
    """Make every sparse constant of a model dense.

    Args:
        model: untouched. Bodies and functions count.

    Returns:
        A copy that computes the same bits, with the same names. Dense initializers keep their
        order; formerly sparse ones follow them in theirs, because a file with sparse initializers
        does not say where among the dense ones they stood.

    Raises:
        BrokenModelError: a sparse constant contradicts itself.
    """
    dense = ModelProto()
    dense.CopyFrom(model)
    make_dense(dense)
    return dense
