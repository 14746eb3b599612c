"""Units whose entries are moved, cut, joined and repeated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto

from group_case import IMAGE, Case, made, random, whole
from hand_built import op
from small_models import constant


def flattened(target: Callable[[], NodeProto] | None = None) -> Case:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Relu", "h1", "h2"),
        (target or (lambda: op("Flatten", "h2", "h3")))(),
        op("Gemm", "h3 w2", "y"),
    ]
    constants = random(w1=(8, 3, 3, 3), w2=(128, 2)) | {"to": whole(1, 128)}
    return made(nodes, [8], constants, (1, 3, 6, 6))


def reshaped() -> Case:
    return flattened(lambda: op("Reshape", "h2 to", "h3"))


def reshaped_by_sizes() -> Case:
    """As an exporter writes ``h.view(h.shape[0], 8, -1)``."""
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Shape", "h1", "s"),
        op("Gather", "s zero", "n"),
        op("Unsqueeze", "n axes", "n1"),
        op("Concat", "n1 eight all", "to", axis=0),
        op("Reshape", "h1 to", "h2"),
        op("Transpose", "h2", "h3", perm=[0, 2, 1]),
        op("MatMul", "h3 w2", "y"),
    ]
    constants = random(w1=(8, 3, 3, 3), w2=(8, 2)) | {
        "zero": np.array(0, np.int64),
        "axes": whole(0),
        "eight": whole(8),
        "all": whole(-1),
    }
    return made(nodes, [8], constants, IMAGE)


def shape_of_itself() -> Case:
    """The channels of a target are read from the value itself."""
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Shape", "h1", "s"),
        op("Slice", "s zero two", "s1"),
        op("Concat", "s1 all", "to", axis=0),
        op("Reshape", "h1 to", "h2"),
        op("Transpose", "h2", "h3", perm=[2, 0, 1]),
        op("Expand", "bias to2", "b"),
        op("Add", "h3 b", "h4"),
        op("MatMul", "h4 w2", "y"),
    ]
    constants = random(w1=(8, 3, 3, 3), w2=(8, 2), bias=(1, 8)) | {
        "zero": whole(0),
        "two": whole(2),
        "all": whole(-1),
        "to2": whole(1, 1, 8),
    }
    return made(nodes, [8], constants, IMAGE)


def squeezed() -> Case:
    nodes = [
        op("Unsqueeze", "x axes", "x1"),
        op("Conv", "x1 w1", "h1"),
        op("Squeeze", "h1 axes", "h2"),
        op("ReduceMean", "h2", "h3", axes=[2], keepdims=0),
        op("MatMul", "h3 w2", "y"),
    ]
    constants = random(w1=(8, 3, 3, 1), w2=(8, 2)) | {"axes": whole(3)}
    return made(nodes, [8], constants, ("N", 3, 6))


def old_squeezed() -> Case:
    nodes = [
        op("Unsqueeze", "x", "x1", axes=[3]),
        op("Conv", "x1 w1", "h1"),
        op("Squeeze", "h1", "h2", axes=[3]),
        op("Slice", "h2", "h3", starts=[2, 1], ends=[8, 3], axes=[1, 2]),
        op("Split", "h3", "h4 h5", axis=1, split=[4, 2]),
        op("Split", "h4", "h6 h7", axis=1),
        op("Mul", "h6 h7", "h8"),
        op("Add", "h5 h8", "h9"),
        op("Transpose", "h9", "h10", perm=[0, 2, 1]),
        op("MatMul", "h10 w2", "y"),
    ]
    # Channels 2 to 7 make two units; 0 and 1 are read by nobody.
    return made(nodes, [2, 2], random(w1=(8, 3, 3, 1), w2=(2, 2)), ("N", 3, 6), opset=9)


def gated_linear() -> Case:
    nodes = [
        op("Gemm", "x w1 b1", "h1"),
        op("Split", "h1 sizes", "a b", axis=1),
        op("Sigmoid", "b", "s"),
        op("Mul", "a s", "h2"),
        op("Gemm", "h2 w2", "y"),
    ]
    constants = random(w1=(6, 16), b1=(16,), w2=(8, 3)) | {"sizes": whole(8, 8)}
    return made(nodes, [8], constants)


def gated_by_slices() -> Case:
    nodes = [
        op("Gemm", "x w1 b1", "h1"),
        op("Slice", "h1 zero eight one", "a"),
        op("Slice", "h1 eight many one", "b"),
        op("Tanh", "b", "s"),
        op("Mul", "a s", "h2"),
        op("Gemm", "h2 w2", "y"),
    ]
    constants = random(w1=(6, 16), b1=(16,), w2=(8, 3)) | {
        "zero": whole(0),
        "one": whole(1),
        "eight": whole(8),
        "many": whole(1 << 40),
    }
    return made(nodes, [8], constants)


def picked() -> Case:
    """A Gather that shuffles channels."""
    nodes = [
        op("Gemm", "x w1 b1", "h1"),
        op("Gather", "h1 order", "h2", axis=1),
        op("Add", "h1 h2", "h3"),
        op("Relu", "h3", "h4"),
        op("Gemm", "h4 w2", "y"),
    ]
    constants = random(w1=(6, 8), b1=(8,), w2=(8, 3)) | {"order": whole(1, 0, 3, 2, -3, -4, 7, 6)}
    return made(nodes, [4], constants)


def shuffled() -> Case:
    """Two blocks of channels, interleaved; then each of two channels is read by every group."""
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Reshape", "h1 apart", "h2"),
        op("Transpose", "h2", "h3", perm=[0, 2, 1, 3, 4]),
        op("Reshape", "h3 together", "h4"),
        op("Conv", "h4 w2", "y", group=4),
    ]
    constants = random(w1=(8, 3, 1, 1), w2=(4, 2, 1, 1)) | {
        "apart": whole(0, 2, 4, 6, 6),
        "together": whole(0, 8, 6, 6),
    }
    return made(nodes, [2], constants, IMAGE)


def shuffled_inside() -> Case:
    nodes = [*shuffled().model.graph.node[:-1], op("Conv", "h4 w2", "y")]
    constants = random(w1=(8, 3, 1, 1), w2=(4, 8, 1, 1)) | {
        "apart": whole(0, 2, 4, 6, 6),
        "together": whole(0, 8, 6, 6),
    }
    return made(nodes, [2], constants, IMAGE)


def embedded() -> Case:
    nodes = [
        op("Gather", "table x", "h1"),
        op("Add", "h1 places", "h2"),
        op("MatMul", "h2 w1", "h3"),
        op("Relu", "h3", "h4"),
        op("MatMul", "h4 w2", "y"),
    ]
    constants = random(table=(10, 6), places=(5, 6), w1=(6, 8), w2=(8, 2))
    return made(nodes, [8], constants, ("N", 5), kind=TensorProto.INT64)


def repeated() -> Case:
    nodes = [
        op("Gemm", "x w1", "h1"),
        op("Tile", "h1 times", "h2"),
        op("Pad", "h2 border", "h3"),
        op("Relu", "h3", "h4"),
        op("Gemm", "h4 w2", "y"),
    ]
    constants = random(w1=(6, 8), w2=(8, 3)) | {
        "times": whole(2, 1),
        "border": whole(1, 0, 0, 0),
    }
    return made(nodes, [8], constants)


def halves() -> Case:
    """Parts whose sizes nothing tells."""
    nodes = [
        op("Gemm", "x w1", "h1"),
        op("Split", "h1", "a b", axis=1),
        op("Mul", "a b", "h2"),
        op("Gemm", "h2 w2", "y"),
    ]
    return made(nodes, [8], random(w1=(6, 16), w2=(8, 3)))


def halves_by_number() -> Case:
    nodes = [
        op("Gemm", "x w1", "h1"),
        op("Split", "h1", "a b", axis=1, num_outputs=2),
        op("Mul", "a b", "h2"),
        op("Gemm", "h2 w2", "y"),
    ]
    return made(nodes, [8], random(w1=(6, 16), w2=(8, 3)), opset=18)


def short_bounds() -> Case:
    """Bounds in 32 bits, in Constant nodes."""
    bounds = {"zero": 0, "one": 1, "five": 5, "eight": 8}
    nodes = [
        *(constant(name, np.array([number], np.int32)) for name, number in bounds.items()),
        op("Gemm", "x w1", "h1"),
        op("Slice", "h1 zero five one", "a"),
        op("Slice", "h1 five eight one", "b"),
        op("Relu", "a", "c"),
        op("Concat", "b c", "h2", axis=1),
        op("Gemm", "h2 w2", "y"),
    ]
    return made(nodes, [5, 3], random(w1=(6, 8), w2=(8, 3)))


def computed_of_constants() -> Case:
    """Arithmetic on numbers of the file alone can be followed."""
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Mul", "two four", "eight"),
        op("Concat", "same eight all", "to", axis=0),
        op("Reshape", "h1 to", "h2"),
        op("Transpose", "h2", "h3", perm=[0, 2, 1]),
        op("MatMul", "h3 w2", "y"),
    ]
    constants = random(w1=(8, 3, 3, 3), w2=(8, 2)) | {
        "two": whole(2),
        "four": whole(4),
        "same": whole(0),
        "all": whole(-1),
    }
    return made(nodes, [8], constants, IMAGE)
