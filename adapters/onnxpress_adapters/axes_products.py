"""Axes through matrix products, convolutions and recurrent layers.

Here units are made and read: the rows of a weight make them, the columns of the next one read them.
"""

from __future__ import annotations

import numpy as np

from onnxpress_adapters.axes import Role
from onnxpress_adapters.axes_moves import spread
from onnxpress_adapters.axes_site import POSITIONS, Rules, Site

MICROSOFT = "com.microsoft"
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def matmul(site: Site) -> None:
    """``[..., M, K] @ [..., K, N]``; sides of one dimension have no M, or no N."""
    one, other = site.node.inputs[:2]
    if site.node.get("transBatchA", 0) or site.node.get("transBatchB", 0):
        site.keep(f"{site.node} moves its batch axes")
        return
    _product(site, one, other, site.node.get("transA", 0), site.node.get("transB", 0))


def gemm(site: Site) -> None:
    """``alpha A' B' + beta C``."""
    one, other = site.node.inputs[:2]
    _product(site, one, other, site.node.get("transA", 0), site.node.get("transB", 0))
    if site.input(2):
        site.broadcast([site.input(2)], site.y)
        site.mark(site.input(2), Role.SHIFT)


def _product(site: Site, one: str, other: str, transposed: int, other_transposed: int) -> None:
    ranks = site.rank(one), site.rank(other)
    inner = ranks[0] - (2 if transposed and ranks[0] > 1 else 1)
    outer = ranks[1] - (1 if other_transposed or ranks[1] == 1 else 2)
    site.link(one, inner, other, outer)
    site.axes.mark(one, inner, Role.READ)
    site.axes.mark(other, outer, Role.READ)
    last = site.rank(site.y) - 1
    for name, rank, read, to in ((one, ranks[0], inner, last - 1), (other, ranks[1], outer, last)):
        if rank == 1:
            continue
        if name == one and ranks[1] == 1:
            to = last
        made = rank - 1 if read == rank - 2 else rank - 2
        site.link(name, made, site.y, to)
        for axis in range(rank - 2):
            # The batch axes stand before M and N, whichever of the two there are.
            batch = site.rank(site.y) - sum(r > 1 for r in ranks)
            site.link(name, axis, site.y, axis + batch - (rank - 2))
        site.mark(name, Role.MADE, but=(read,))


def conv(site: Site) -> None:
    """Channels in, channels out; of a grouped convolution in as many blocks as it has groups."""
    x, weight = site.node.inputs[:2]
    _positions(site, x, weight)
    groups = site.node.get("group", 1)
    if groups == 1:
        site.link(x, 1, weight, 1)
        site.link(weight, 0, site.y, 1)
    else:
        blocks = site.axes.fresh(groups)
        rows = site.axes.fresh(site.shape(weight)[0] // groups)
        site.axes.product(site.of(x, 1), spread([blocks, site.of(weight, 1)]))
        site.axes.product(site.of(site.y, 1), spread([blocks, rows]))
        site.link(weight, 0, site.y, 1)
    site.axes.mark(weight, 0, Role.MADE)
    site.axes.mark(weight, 1, Role.READ)
    _bias(site)


def conv_transpose(site: Site) -> None:
    """As a convolution, with the weight as ``[channels in, channels out / groups, ...]``."""
    x, weight = site.node.inputs[:2]
    _positions(site, x, weight)
    groups = site.node.get("group", 1)
    site.link(x, 1, weight, 0)
    if groups == 1:
        site.link(weight, 1, site.y, 1)
    else:
        blocks = site.axes.fresh(groups)
        columns = site.axes.fresh(site.shape(x)[1] // groups)
        site.axes.product(site.of(x, 1), spread([blocks, columns]))
        site.axes.product(site.of(site.y, 1), spread([blocks, site.of(weight, 1)]))
        # A group leaves with the rows that make its channels.
        site.axes.mark(weight, 0, Role.MADE)
    site.axes.mark(weight, 0, Role.READ)
    site.axes.mark(weight, 1, Role.MADE)
    _bias(site)


def _positions(site: Site, x: str, weight: str) -> None:
    """Link samples, keep what is no channel."""
    site.link(x, 0, site.y, 0)
    for name in (x, weight, site.y):
        for axis in range(2, site.rank(name)):
            site.keep_axis(name, axis, POSITIONS)


def _bias(site: Site) -> None:
    if site.input(2):
        site.link(site.input(2), 0, site.y, 1)
        site.mark(site.input(2), Role.SHIFT)
    if site.input(3):  # FusedConv adds a further image
        site.broadcast([site.input(3)], site.y)


def recurrent(site: Site) -> None:
    """A hidden unit is a row of every gate, a column of the state, an entry of all states."""
    node = site.node
    gates = GATES[node.operator]
    x, weight, state = node.inputs[:3]
    hidden = site.of(state, 2)
    site.axes.same(site.of(weight, 1), np.tile(hidden, gates))
    site.axes.same(site.of(state, 1), np.tile(hidden, gates))
    site.link(x, 2, weight, 2)
    for name in (weight, state):
        site.keep_axis(name, 0, "every direction has the same hidden units")
        site.axes.mark(name, 1, Role.MADE)
        site.axes.mark(name, 2, Role.READ)
    for axis in (0, 1):
        site.keep_axis(x, axis, POSITIONS)
    bias, lengths = site.input(3), site.input(4)
    if bias:
        site.axes.same(site.of(bias, 1), np.tile(hidden, 2 * gates))
        site.mark(bias, Role.SHIFT)
        site.keep_axis(bias, 0, "every direction has the same hidden units")
    if lengths:
        site.axes.pin_value(lengths, POSITIONS)
    peephole = site.input(7)
    if peephole:
        site.axes.same(site.of(peephole, 1), np.tile(hidden, 3))
        site.keep_axis(peephole, 0, "every direction has the same hidden units")
    for name in (site.input(5), site.input(6), *node.outputs):
        if name:
            last = site.rank(name) - 1
            site.axes.same(hidden, site.of(name, last))
            site.mark(name, Role.SHIFT)
            for axis in range(last):
                site.keep_axis(name, axis, POSITIONS)


def einsum(site: Site) -> None:
    """Axes of one letter leave together."""
    equation = str(site.node.get("equation", "")).replace(" ", "")
    read, arrow, made = equation.partition("->")
    terms = read.split(",")
    odd = [term for term in (*terms, made) if "." in term or len(set(term)) < len(term)]
    lonely = [c for c in read if c not in made and c != "," and read.count(c) == 1]
    if not arrow or odd or lonely:
        site.keep(f"{site.node} is written in a way that is not followed")
        return
    first: dict[str, tuple[str, int]] = {}
    for name, term in zip((*site.node.inputs, site.y), (*terms, made), strict=True):
        for axis, letter in enumerate(term):
            known = first.setdefault(letter, (name, axis))
            site.link(*known, name, axis)
            if name != site.y:
                site.axes.mark(name, axis, Role.MADE if letter in made else Role.READ)


RULES: Rules = {
    ("", "MatMul"): matmul,
    ("", "Gemm"): gemm,
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
    ("", "LSTM"): recurrent,
    ("", "GRU"): recurrent,
    ("", "RNN"): recurrent,
    ("", "Einsum"): einsum,
    (MICROSOFT, "FusedMatMul"): matmul,
    (MICROSOFT, "FusedGemm"): gemm,
    (MICROSOFT, "FusedConv"): conv,
}
