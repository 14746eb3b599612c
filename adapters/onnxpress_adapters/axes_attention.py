"""Axes through operators that are an attention as a whole: their heads leave, one by one.

The entries of a head are multiplied with each other, and how many there are sets the scale of the
scores; they leave with the head. Masks, positions and caches stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxpress_adapters.axes import WHOLE, Cells, Role
from onnxpress_adapters.axes_moves import spread
from onnxpress_adapters.axes_site import POSITIONS, Rules, Site

MICROSOFT = "com.microsoft"
ADDED = 5
"""Where Microsoft's take what is added to the scores."""

CACHE = "{} hands its keys and values on"
SHARED = "{} shares keys among heads"


def attention(site: Site) -> None:
    """ONNX's own: ``[batch, heads, tokens, entries]``, or heads and entries in one axis."""
    query, key, value = site.node.inputs[:3]
    if any(site.node.inputs[4:]) or any(site.node.outputs[1:]):
        site.keep(CACHE.format(site.node))
        return
    mask = site.input(3)
    _keep_others(site, (query, key, value, site.y, mask))
    if site.rank(query) == 4:
        if site.shape(query)[1] != site.shape(key)[1]:
            site.keep(SHARED.format(site.node))
            return
        for name in (key, value, site.y):
            site.link(query, 1, name, 1)
        for name in (query, key, value, site.y):
            for axis in (0, 2, 3):
                site.keep_axis(name, axis, POSITIONS if axis < 3 else WHOLE)
        _mask(site, mask, site.of(query, 1))
        return
    heads = site.node.get("q_num_heads", 0)
    if heads != site.node.get("kv_num_heads", 0) or heads < 1:
        site.keep(SHARED.format(site.node))
        return
    cells = _headed(site, heads, [site.of(name, 2) for name in (query, key, value, site.y)])
    _mask(site, mask, cells)
    _keep_positions(site, (query, key, value, site.y))


def multi_head_attention(site: Site) -> None:
    """Microsoft's, over queries, keys and values that are made outside; one bias for all three."""
    given = site.node.inputs[:3]
    flat = len(given) == 3 and all(name and site.rank(name) == 3 for name in given)
    if not flat or any(site.node.inputs[6:]) or any(site.node.outputs[1:]):
        site.keep(CACHE.format(site.node))
        return
    rows = [site.of(name, 2) for name in given]
    added = site.input(ADDED)
    _keep_others(site, (*given, site.y, site.input(3), added))
    if site.input(3):
        site.axes.same(site.of(site.input(3), 0), np.concatenate(rows))
        site.mark(site.input(3), Role.SHIFT)
    _mask(site, added, _headed(site, site.node.get("num_heads", 1), [*rows, site.of(site.y, 2)]))
    _keep_positions(site, (*given, site.y))


def projected_attention(site: Site) -> None:
    """Microsoft's, with the weight ``[in, queries + keys + values]`` that makes all three."""
    weight, bias = site.node.inputs[1], site.input(2)
    uneven = site.node.get("qkv_hidden_sizes") is not None
    if uneven or any(site.node.inputs[4:5]) or any(site.node.outputs[1:]):
        site.keep(CACHE.format(site.node))
        return
    added = site.input(ADDED)
    _keep_others(site, (site.x, weight, bias, site.y, added))
    rows = site.of(weight, 1)
    site.link(site.x, 2, weight, 0)
    site.axes.mark(weight, 0, Role.READ)
    site.axes.mark(weight, 1, Role.MADE)
    if bias:
        site.link(bias, 0, weight, 1)
        site.mark(bias, Role.SHIFT)
    parts = np.split(rows, 3)
    _mask(site, added, _headed(site, site.node.get("num_heads", 1), [*parts, site.of(site.y, 2)]))
    _keep_positions(site, (site.x, site.y))


def _headed(site: Site, heads: int, rows: Sequence[Cells]) -> Cells:
    """Cut axes into heads and their entries, and give the cells of the heads."""
    cells = site.axes.fresh(heads)
    for row in rows:
        entries = site.axes.fresh(len(row) // heads)
        site.axes.pin(entries, WHOLE)
        site.axes.product(row, spread([cells, entries]))
    return cells


def _mask(site: Site, mask: str, heads: Cells) -> None:
    """A mask ``[..., heads, queries, keys]`` is one for every head, or has one for each."""
    if not mask:
        return
    own = site.rank(mask) - 3
    for axis, size in enumerate(site.shape(mask)):
        if axis == own and size == len(heads):
            site.axes.same(site.of(mask, axis), heads)
        else:
            site.keep_axis(mask, axis, POSITIONS)


def _keep_positions(site: Site, names: Sequence[str]) -> None:
    for name in names:
        for axis in (0, 1):
            site.keep_axis(name, axis, POSITIONS)


def _keep_others(site: Site, names: Sequence[str]) -> None:
    """Keep what is neither query, key, value, weight, bias nor result."""
    for name in site.node.inputs:
        if name and name not in names:
            site.axes.pin_value(name, POSITIONS)


RULES: Rules = {
    ("", "Attention"): attention,
    (MICROSOFT, "MultiHeadAttention"): multi_head_attention,
    (MICROSOFT, "Attention"): projected_attention,
}
