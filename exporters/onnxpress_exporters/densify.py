"""Any of our files back to a plain one, for tools that lose or refuse what is not dense."""

from __future__ import annotations

from onnx import ModelProto

from onnxpress_adapters.gathered_tensors import make_whole
from onnxpress_adapters.packed_tensors import make_plain
from onnxpress_adapters.sparse_tensors import make_dense


def densify(model: ModelProto) -> ModelProto:
    """Make every sparse, packed or gathered constant of a model dense.

    Args:
        model: untouched. Bodies and functions count.

    Returns:
        A copy that computes the same bits, with the same names. Dense initializers keep their
        order; the others follow them in theirs, because a file does not say where among the dense
        ones they stood.

    Raises:
        BrokenModelError: a sparse or packed constant contradicts itself.
    """
    dense = ModelProto()
    dense.CopyFrom(model)
    make_plain(dense)
    make_dense(dense)
    make_whole(dense)
    return dense
