"""Heads of attention and hidden units of recurrent layers."""

from __future__ import annotations

import numpy as np
from onnx import helper

from group_case import Case, made, random, whole
from hand_built import op

MICROSOFT = "com.microsoft"


def attention(target: str = "to") -> Case:
    """Three heads of four entries over a residual stream of six."""
    constants = random(wq=(6, 12), wk=(6, 12), wv=(6, 12), bv=(12,), wo=(12, 6), w=(6, 2))
    nodes = [op("MatMul", "x w0", "r")]
    constants |= random(w0=(6, 6))
    if target == "computed":
        nodes += [
            op("Shape", "r", "s"),
            op("Gather", "s first", "n"),
            op("Unsqueeze", "n axis0", "n1"),
            op("Concat", "n1 all heads four", "computed", axis=0),
        ]
        constants |= {
            "first": np.array(0, np.int64),
            "axis0": whole(0),
            "all": whole(-1),
            "heads": whole(3),
            "four": whole(4),
        }
    for name in "qkv":
        nodes += [
            op("MatMul", f"r w{name}", f"{name}1"),
            op("Add", f"{name}1 bv", f"{name}2"),
            op("Reshape", f"{name}2 {target}", f"{name}3"),
        ]
    nodes += [
        op("Transpose", "q3", "q", perm=[0, 2, 1, 3]),
        op("Transpose", "k3", "k", perm=[0, 2, 3, 1]),
        op("Transpose", "v3", "v", perm=[0, 2, 1, 3]),
        op("MatMul", "q k", "scores"),
        op("Div", "scores root", "scaled"),
        op("Softmax", "scaled", "share", axis=-1),
        op("MatMul", "share v", "o1"),
        op("Transpose", "o1", "o2", perm=[0, 2, 1, 3]),
        op("Reshape", "o2 back", "o3"),
        op("MatMul", "o3 wo", "o4"),
        op("Add", "o4 r", "r2"),
        op("MatMul", "r2 w", "y"),
    ]
    constants |= {
        "to": whole(0, 0, 3, 4),
        "back": whole(0, 0, 12),
        "root": np.array(2, np.float32),
    }
    kept = {name for node in nodes for name in node.input}
    return made(nodes, [6, 3], {n: a for n, a in constants.items() if n in kept}, ("N", 5, 6))


def computed_attention() -> Case:
    return attention("computed")


def attention_operator() -> Case:
    """Three heads of four entries, in one axis, under a mask that depends on the input."""
    nodes = [
        *(op("MatMul", f"x w{name}", name) for name in "qkv"),
        op("Transpose", "x", "t", perm=[0, 2, 1]),
        op("MatMul", "x t", "alike"),
        op("Unsqueeze", "alike one", "mask"),
        op("Attention", "q k v mask", "o", "attend", q_num_heads=3, kv_num_heads=3),
        op("MatMul", "o w", "y"),
    ]
    constants = random(wq=(6, 12), wk=(6, 12), wv=(6, 12), w=(12, 2)) | {"one": whole(1)}
    return made(nodes, [3], constants, ("N", 5, 6), opset=23, ir=11)


def attention_operator_by_heads() -> Case:
    nodes = []
    for name in "qkv":
        nodes += [
            op("MatMul", f"x w{name}", f"{name}1"),
            op("Reshape", f"{name}1 to", f"{name}2"),
            op("Transpose", f"{name}2", name, perm=[0, 2, 1, 3]),
        ]
    nodes += [
        op("Attention", "q k v", "o1", is_causal=1),
        op("Transpose", "o1", "o2", perm=[0, 2, 1, 3]),
        op("Reshape", "o2 back", "o3"),
        op("MatMul", "o3 w", "y"),
    ]
    constants = random(wq=(6, 12), wk=(6, 12), wv=(6, 12), w=(12, 2)) | {
        "to": whole(0, 0, 3, 4),
        "back": whole(0, 0, 12),
    }
    return made(nodes, [3], constants, ("N", 5, 6), opset=23, ir=11)


def microsoft_attention() -> Case:
    """The weight makes queries, keys and values side by side."""
    nodes = [
        op("MatMul", "x w0", "h"),
        helper.make_node("Attention", ["h", "w1", "b1"], ["o"], domain=MICROSOFT, num_heads=3),
        op("MatMul", "o w2", "y"),
    ]
    constants = random(w0=(6, 8), w1=(8, 36), b1=(36,), w2=(12, 2))
    return made(nodes, [8, 3], constants, ("N", 5, 6), noted={"o": ("N", 5, 12)})


def multi_head_attention() -> Case:
    nodes = [op("MatMul", f"x w{name}", name) for name in "qkv"]
    nodes += [
        helper.make_node(
            "MultiHeadAttention", ["q", "k", "v", "b"], ["o"], domain=MICROSOFT, num_heads=3
        ),
        op("MatMul", "o w", "y"),
    ]
    constants = random(wq=(6, 12), wk=(6, 12), wv=(6, 12), b=(36,), w=(12, 2))
    return made(nodes, [3], constants, ("N", 5, 6), noted={"o": ("N", 5, 12)})


def gates(operator: str, times: int, directions: int) -> Case:
    way = "bidirectional" if directions == 2 else "forward"
    nodes = [
        op(operator, "x w1 r1 b1", "h1", hidden_size=4, direction=way),
        op("Transpose", "h1", "h2", perm=[0, 2, 1, 3]),
        op("Reshape", "h2 to", "h3"),
        op(operator, "h3 w2 r2", "h4", hidden_size=5),
        op("Squeeze", "h4 one", "h5"),
        op("MatMul", "h5 w", "y"),
    ]
    wide = 4 * directions
    constants = random(
        w1=(directions, 4 * times, 3),
        r1=(directions, 4 * times, 4),
        b1=(directions, 8 * times),
        w2=(1, 5 * times, wide),
        r2=(1, 5 * times, 5),
        w=(5, 2),
    ) | {"to": whole(0, 0, wide), "one": whole(1)}
    return made(nodes, [4, 5], constants, (7, 2, 3))


def lstm() -> Case:
    return gates("LSTM", 4, 2)


def gru() -> Case:
    return gates("GRU", 3, 2)


def rnn() -> Case:
    return gates("RNN", 1, 1)


def lstm_with_states() -> Case:
    """States of zeros made from sizes, peepholes, and a sigmoid in front that is one half."""
    nodes = [
        op("MatMul", "x w0", "h0"),
        op("Sigmoid", "h0", "s0"),
        op("Shape", "x", "s"),
        op("Slice", "s one two", "n"),
        op("Concat", "one n four", "size", axis=0),
        op("ConstantOfShape", "size", "zeros"),
        op("LSTM", "s0 w1 r1 b1 _ zeros zeros p1", "h1 last c", hidden_size=4),
        op("Squeeze", "h1 one", "h2"),
        op("Add", "h2 c", "h3"),
        op("MatMul", "h3 w2", "y"),
    ]
    constants = random(
        w0=(3, 6), w1=(1, 16, 6), r1=(1, 16, 4), b1=(1, 32), p1=(1, 12), w2=(4, 2)
    ) | {"one": whole(1), "two": whole(2), "four": whole(4)}
    return made(nodes, [6, 4], constants, (7, "N", 3))
