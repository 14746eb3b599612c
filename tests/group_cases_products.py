"""Units that matrix products make and read."""

from __future__ import annotations

import numpy as np
from onnx import helper

from group_case import Case, made, random, whole
from hand_built import Array, op
from small_models import constant


def gemm() -> Case:
    nodes = [
        op("Gemm", "x w1 b1", "h1", transB=1),
        op("Relu", "h1", "h2"),
        op("Gemm", "h2 w2 b2", "y", transB=1, alpha=0.5, beta=2.0),
    ]
    return made(nodes, [8], random(w1=(8, 6), b1=(8,), w2=(3, 8), b2=(3,)))


def sigmoid_between_matmuls() -> Case:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Add", "h1 b1", "h2"),
        op("Sigmoid", "h2", "h3"),
        op("MatMul", "h3 w2", "h4"),
        op("Add", "h4 b2", "y"),
    ]
    return made(nodes, [8], random(w1=(6, 8), b1=(8,), w2=(8, 3), b2=(3,)))


def sigmoid_without_bias() -> Case:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Sigmoid", "h1", "h2"),
        op("MatMul", "h2 w2", "h3"),
        op("Tanh", "h3", "y"),
    ]
    return made(nodes, [8], random(w1=(6, 8), w2=(8, 3)))


def sigmoid_before_gemm() -> Case:
    nodes = [
        op("Gemm", "x w1", "h1"),
        op("Sigmoid", "h1", "h2"),
        op("Gemm", "h2 w2 b2", "h3", transB=1, beta=0.5, alpha=2.0),
        op("Sigmoid", "h3", "h4"),
        op("Gemm", "h4 w3", "y"),
    ]
    return made(nodes, [8, 5], random(w1=(6, 8), w2=(5, 8), b2=(5,), w3=(5, 3)))


def weight_on_the_left() -> Case:
    nodes = [
        op("MatMul", "w1 x", "h1"),
        op("Sigmoid", "h1", "h2"),
        op("MatMul", "w2 h2", "h3"),
        op("Relu", "h3", "h4"),
        op("Gemm", "w3 h4 b3", "y"),
    ]
    return made(nodes, [8, 5], random(w1=(8, 6), w2=(5, 8), w3=(3, 5), b3=(3, 1)), (6, 4))


def vector() -> Case:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Add", "h1 b1", "h2"),
        op("Relu", "h2", "h3"),
        op("MatMul", "h3 w2", "y"),
    ]
    return made(nodes, [8], random(w1=(6, 8), b1=(8,), w2=(8, 3)), (6,))


def many_matrices() -> Case:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Relu", "h1", "h2"),
        op("MatMul", "h2 w2", "y"),
    ]
    return made(nodes, [8], random(w1=(3, 5, 8), w2=(1, 8, 2)), ("N", 3, 4, 5))


def einsum() -> Case:
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Sigmoid", "h1", "h2"),
        op("Einsum", "h2 w2", "y", equation="no,ok->nk"),
    ]
    return made(nodes, [8], random(w1=(6, 8), w2=(8, 3)))


def moved_weights() -> Case:
    nodes = [
        op("Transpose", "w1", "t1", perm=[1, 0]),
        op("Identity", "t1", "i1"),
        op("MatMul", "x i1", "h1"),
        op("Relu", "h1", "h2"),
        op("Reshape", "w2 to", "t2"),
        op("MatMul", "h2 t2", "y"),
    ]
    # Two rows of the second weight lie together in the file and leave together.
    constants = random(w1=(8, 6), w2=(4, 2, 3)) | {"to": whole(8, 3)}
    return made(nodes, [4], constants)


def split_weight() -> Case:
    """The reshaped weight is (4, 2) by 3 and both of its axes could leave; the outer one does."""
    nodes = [
        op("MatMul", "x w1", "h1"),
        op("Relu", "h1", "h2"),
        op("MatMul", "h2 w2", "h3"),
        op("Reshape", "h3 to", "h4"),
        op("MatMul", "h4 w3", "y"),
    ]
    constants = random(w1=(6, 8), w2=(8, 12), w3=(3, 2)) | {"to": whole(0, -1, 3)}
    return made(nodes, [8, 3], constants)


def constant_nodes() -> Case:
    arrays = random(w1=(6, 8), b1=(8,), w2=(8, 3))
    nodes = [
        *(constant(name, array) for name, array in arrays.items()),
        op("MatMul", "x w1", "h1"),
        op("Add", "h1 b1", "h2"),
        op("Sigmoid", "h2", "h3"),
        op("MatMul", "h3 w2", "y"),
    ]
    return made(nodes, [8], {})


def shared_weight() -> Case:
    nodes = [
        op("Split", "x", "x1 x2", axis=1),
        op("MatMul", "x1 w", "h1"),
        op("MatMul", "x2 w", "h2"),
        op("Relu", "h1", "h3"),
        op("Tanh", "h2", "h4"),
        op("MatMul", "h3 w1", "y1"),
        op("MatMul", "h4 w2", "y2"),
        op("Add", "y1 y2", "y"),
    ]
    return made(nodes, [8], random(w=(3, 8), w1=(8, 2), w2=(8, 2)))


def shared_bias() -> Case:
    nodes = [
        op("Gemm", "x w1 b", "h1"),
        op("Sigmoid", "h1", "h2"),
        op("Gemm", "h2 w2 c", "y1"),
        op("Gemm", "x w3 c", "y2"),
        op("Add", "y1 y2", "y"),
    ]
    return made(nodes, [8], random(w1=(6, 8), b=(8,), w2=(8, 3), c=(3,), w3=(6, 3)))


def quantised() -> Case:
    rng = np.random.default_rng(0)
    constants: dict[str, Array] = {
        "q1": rng.integers(-90, 90, (6, 8)).astype(np.int8),
        "s1": np.linspace(0.01, 0.02, 8).astype(np.float32),
        "q2": rng.integers(-90, 90, (8, 3)).astype(np.int8),
        "s2": np.array(0.02, np.float32),
    }
    nodes = [
        op("DequantizeLinear", "q1 s1", "w1", axis=1),
        op("MatMul", "x w1", "h1"),
        op("Relu", "h1", "h2"),
        op("DequantizeLinear", "q2 s2", "w2"),
        op("MatMul", "h2 w2", "y"),
    ]
    return made(nodes, [8], constants)


def fused_gemm() -> Case:
    nodes = [
        op("Gemm", "x w1", "h1"),
        op("Sigmoid", "h1", "h2"),
        helper.make_node(
            "FusedGemm", ["h2", "w2", "b2"], ["h3"], domain="com.microsoft", activation="Relu"
        ),
        op("Gemm", "h3 w3", "y"),
    ]
    constants = random(w1=(6, 8), w2=(8, 5), b2=(5,), w3=(5, 2))
    return made(nodes, [8, 5], constants, noted={"h3": ("N", 5)})
