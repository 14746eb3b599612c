"""Channels of images: convolutions, norms, gates, pooling."""

from __future__ import annotations

import numpy as np
from onnx import helper

from group_case import IMAGE, Case, made, norm, random, whole
from hand_built import op


def conv_norm() -> Case:
    nodes = [
        op("Conv", "x w1", "h1", pads=[1] * 4),
        op("BatchNormalization", "h1 n_scale n_shift n_mean n_var", "h2"),
        op("Relu", "h2", "h3"),
        op("Conv", "h3 w2 b2", "y", pads=[1] * 4),
    ]
    return made(nodes, [8], random(w1=(8, 3, 3, 3), w2=(4, 8, 3, 3), b2=(4,)) | norm(8), IMAGE)


def sigmoid_before_conv() -> Case:
    """Without a border the constant goes into the bias, which is made for the first one."""
    nodes = [
        op("Conv", "x w1 b1", "h1"),
        op("Sigmoid", "h1", "h2"),
        op("Conv", "h2 w2", "h3"),
        op("HardSigmoid", "h3", "h4"),
        op("Conv", "h4 w3 b3", "y"),
    ]
    constants = random(w1=(8, 3, 3, 3), b1=(8,), w2=(5, 8, 2, 2), w3=(4, 5, 1, 1), b3=(4,))
    return made(nodes, [8, 5], constants, IMAGE)


def sigmoid_before_border() -> Case:
    nodes = [
        op("Conv", "x w1 b1", "h1"),
        op("Sigmoid", "h1", "h2"),
        op("Conv", "h2 w2", "y", pads=[1] * 4),
    ]
    return made(nodes, [8], random(w1=(8, 3, 3, 3), b1=(8,), w2=(5, 8, 3, 3)), IMAGE)


def depthwise() -> Case:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Relu", "h1", "h2"),
        op("Conv", "h2 w2 b2", "h3", group=8, pads=[1] * 4),
        op("Relu", "h3", "h4"),
        op("Conv", "h4 w3", "y"),
    ]
    constants = random(w1=(8, 3, 1, 1), w2=(8, 1, 3, 3), b2=(8,), w3=(4, 8, 1, 1))
    return made(nodes, [8], constants, IMAGE)


def depthwise_twice_as_many() -> Case:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Conv", "h1 w2 b2", "h2", group=4),
        op("Relu", "h2", "h3"),
        op("Conv", "h3 w3", "y"),
    ]
    constants = random(w1=(4, 3, 1, 1), w2=(8, 1, 3, 3), b2=(8,), w3=(4, 8, 1, 1))
    return made(nodes, [4], constants, IMAGE)


def grouped() -> Case:
    """Two blocks of input channels, two of output channels: whole groups leave."""
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Relu", "h1", "h2"),
        op("Conv", "h2 w2 b2", "h3", group=4),
        op("Relu", "h3", "h4"),
        op("Conv", "h4 w3", "y"),
    ]
    constants = random(w1=(8, 3, 1, 1), w2=(12, 2, 3, 3), b2=(12,), w3=(4, 12, 1, 1))
    return made(nodes, [4], constants, IMAGE)


def grouped_at_the_end() -> Case:
    """The output keeps all groups, so an input channel leaves in every group."""
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Relu", "h1", "h2"),
        op("Conv", "h2 w2", "y", group=2),
    ]
    return made(nodes, [4], random(w1=(8, 3, 1, 1), w2=(6, 4, 3, 3)), IMAGE)


def transposed() -> Case:
    nodes = [
        op("ConvTranspose", "x w1 b1", "h1", strides=[2, 2]),
        op("Relu", "h1", "h2"),
        op("ConvTranspose", "h2 w2 b2", "h3", group=8),
        op("Relu", "h3", "h4"),
        op("ConvTranspose", "h4 w3", "h5", group=2),
        op("Relu", "h5", "h6"),
        op("ConvTranspose", "h6 w4", "y"),
    ]
    constants = random(
        w1=(3, 8, 2, 2), b1=(8,), w2=(8, 1, 3, 3), b2=(8,), w3=(8, 3, 2, 2), w4=(6, 2, 1, 1)
    )
    # Neither half of the last but one may leave alone with 8 units in front, so blocks do.
    return made(nodes, [2], constants, IMAGE)


def residual() -> Case:
    nodes = [
        op("Conv", "x w0", "h0"),
        op("Relu", "h0", "r0"),
        op("Conv", "r0 w1", "h1", pads=[1] * 4),
        op("Relu", "h1", "r1"),
        op("Conv", "r1 w2", "h2", pads=[1] * 4),
        op("Add", "h2 r0", "s"),
        op("Relu", "s", "r2"),
        op("Conv", "r2 w3", "y"),
    ]
    constants = random(w0=(8, 3, 1, 1), w1=(6, 8, 3, 3), w2=(8, 6, 3, 3), w3=(2, 8, 1, 1))
    return made(nodes, [8, 6], constants, IMAGE)


def joined() -> Case:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Conv", "x w2 b2", "h2"),
        op("Concat", "h1 h2 x", "c", axis=1),
        op("Sigmoid", "c", "s"),
        op("Conv", "s w3", "y"),
    ]
    constants = random(w1=(4, 3, 1, 1), w2=(6, 3, 1, 1), b2=(6,), w3=(2, 13, 3, 3))
    return made(nodes, [4, 6], constants, IMAGE)


def gate() -> Case:
    """Squeeze and excite: the gate's channels are those it multiplies."""
    nodes = [
        op("Conv", "x w1", "h1"),
        op("Relu", "h1", "h2"),
        op("GlobalAveragePool", "h2", "p"),
        op("Conv", "p w2 b2", "e1"),
        op("Relu", "e1", "e2"),
        op("Conv", "e2 w3 b3", "e3"),
        op("HardSigmoid", "e3", "e4"),
        op("Mul", "h2 e4", "h3"),
        op("Conv", "h3 w4", "y"),
    ]
    constants = random(
        w1=(8, 3, 1, 1), w2=(4, 8, 1, 1), b2=(4,), w3=(8, 4, 1, 1), b3=(8,), w4=(2, 8, 3, 3)
    )
    return made(nodes, [8, 4], constants, IMAGE)


def attention_over_places() -> Case:
    """A sigmoid of zero times something computed is no constant; its readers are masked too."""
    nodes = [
        op("Conv", "x w1 b1", "h1"),
        op("Sigmoid", "h1", "h2"),
        op("Conv", "x w2", "m"),
        op("Mul", "h2 m", "h3"),
        op("Conv", "h3 w3", "y"),
    ]
    constants = random(w1=(8, 3, 1, 1), b1=(8,), w2=(1, 3, 1, 1), w3=(2, 8, 3, 3))
    return made(nodes, [8], constants, IMAGE)


def slopes() -> Case:
    nodes = [
        op("Conv", "x w1 b1", "h1"),
        op("PRelu", "h1 slope", "h2"),
        op("InstanceNormalization", "h2 scale shift", "h3"),
        op("LeakyRelu", "h3", "h4"),
        op("Conv", "h4 w2", "y"),
    ]
    constants = random(
        w1=(8, 3, 3, 3), b1=(8,), slope=(8, 1, 1), scale=(8,), shift=(8,), w2=(2, 8, 1, 1)
    )
    return made(nodes, [8], constants, IMAGE)


def old_slopes() -> Case:
    nodes = [
        op("Conv", "x w1 b1", "h1"),
        op("PRelu", "h1 slope", "h2"),
        op("Add", "h2 shift", "h3", broadcast=1, axis=1),
        op("Conv", "h3 w2", "y"),
    ]
    constants = random(w1=(8, 3, 3, 3), b1=(8,), slope=(8,), shift=(8,), w2=(2, 8, 1, 1))
    return made(nodes, [8], constants, (2, 3, 6, 6), opset=6, ir=3)


def grid() -> Case:
    """Pooling, padding and resizing leave channels alone."""
    nodes = [
        op("Conv", "x w1", "h1"),
        op("MaxPool", "h1", "h2", kernel_shape=[2, 2], strides=[2, 2]),
        op("Pad", "h2 pads", "h3"),
        op("Resize", "h3 _ scales", "h4", mode="nearest"),
        op("AveragePool", "h4", "h5", kernel_shape=[2, 2]),
        op("Clip", "h5 low", "h6"),
        op("Conv", "h6 w2", "y"),
    ]
    constants = random(w1=(8, 3, 1, 1), w2=(2, 8, 1, 1)) | {
        "pads": whole(0, 0, 1, 1, 0, 0, 1, 1),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "low": np.array(-0.5, np.float32),
    }
    return made(nodes, [8], constants, IMAGE)


def resized_to_another() -> Case:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("MaxPool", "h1", "h2", kernel_shape=[2, 2], strides=[2, 2]),
        op("Resize", "h2 _ _ sizes", "h3", mode="nearest"),
        op("Add", "h1 h3", "h4"),
        op("Conv", "h4 w2", "y"),
    ]
    constants = random(w1=(8, 3, 1, 1), w2=(2, 8, 1, 1)) | {"sizes": whole(2, 8, 6, 6)}
    return made(nodes, [8], constants, (2, 3, 6, 6))


def resized_by_size() -> Case:
    """The sizes are read from another image, the channels stand in the file."""
    nodes = [
        op("Conv", "x w1", "h1"),
        op("MaxPool", "h1", "h2", kernel_shape=[2, 2], strides=[2, 2]),
        op("Conv", "h2 w2", "h3"),
        op("Shape", "h1", "s1"),
        op("Slice", "s1 two four zero", "s2"),
        op("Shape", "h3", "s3"),
        op("Slice", "s3 zero one zero", "s4"),
        op("Concat", "s4 five s2", "sizes", axis=0),
        op("Resize", "h3 _ _ sizes", "h4", mode="nearest"),
        op("Concat", "h4 h1", "h5", axis=1),
        op("Conv", "h5 w3", "y"),
    ]
    constants = random(w1=(8, 3, 1, 1), w2=(5, 8, 1, 1), w3=(2, 13, 1, 1)) | {
        name: whole(number)
        for name, number in (("zero", 0), ("one", 1), ("two", 2), ("four", 4), ("five", 5))
    }
    return made(nodes, [8, 5], constants, IMAGE)


def blocks_of_places() -> Case:
    nodes = [
        op("Conv", "x w1", "h1"),
        op("DepthToSpace", "h1", "h2", blocksize=2),
        op("Relu", "h2", "h3"),
        op("SpaceToDepth", "h3", "h4", blocksize=2),
        op("Conv", "h4 w2", "h5"),
        op("DepthToSpace", "h5", "h6", blocksize=2, mode="CRD"),
        op("Conv", "h6 w3", "y"),
    ]
    constants = random(w1=(12, 3, 1, 1), w2=(16, 12, 1, 1), w3=(2, 4, 1, 1))
    return made(nodes, [3, 4], constants, IMAGE)


def fused() -> Case:
    """As onnxruntime writes it: the activation belongs to the convolution."""
    nodes = [
        helper.make_node(
            "FusedConv", ["x", "w1", "b1"], ["h1"], domain="com.microsoft", activation="Sigmoid"
        ),
        helper.make_node(
            "FusedConv", ["h1", "w2", "", "x2"], ["h2"], domain="com.microsoft", activation="Relu"
        ),
        op("Conv", "h2 w3", "y"),
    ]
    nodes.insert(0, op("Conv", "x w0", "x2"))
    constants = random(w0=(5, 3, 1, 1), w1=(8, 3, 1, 1), b1=(8,), w2=(5, 8, 1, 1), w3=(2, 5, 1, 1))
    noted = {"h1": ("N", 8, 6, 6), "h2": ("N", 5, 6, 6)}
    return made(nodes, [5, 8], constants, IMAGE, noted=noted)
