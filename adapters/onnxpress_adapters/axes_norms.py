"""Axes through norms, pooling, reductions and what else computes along an axis.

LayerNormalization, GroupNormalization and Softmax divide by what all entries along an axis have
together: without one of them the others would change, so none of them can leave.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxpress_adapters.axes import Role
from onnxpress_adapters.axes_site import POSITIONS, Rules, Site

REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
POOLS = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
)  # fmt: skip


def batch_norm(site: Site) -> None:
    """Scale, shift, mean and variance belong to the channels, axis 1."""
    statistics = any(site.node.outputs[1:])
    if site.node.get("training_mode", 0) or not site.node.get("spatial", 1) or statistics:
        site.keep(f"{site.node} is not in its form for inference")
        return
    site.link_all(site.x, site.y)
    channels = 1 if site.rank(site.x) > 1 else 0
    for slot, name in enumerate(site.node.inputs[1:5], start=1):
        site.link(name, 0, site.x, channels)
        if slot < 3:
            site.mark(name, Role.SHIFT)


def instance_norm(site: Site) -> None:
    """Channels stand for themselves; what is normalised over are positions."""
    site.link_all(site.x, site.y)
    for axis in range(2, site.rank(site.x)):
        site.keep_axis(site.x, axis, POSITIONS)
    for name in site.node.inputs[1:3]:
        site.link(name, 0, site.x, 1)
        site.mark(name, Role.SHIFT)


def pool(site: Site) -> None:
    """Samples and channels stand for themselves."""
    if any(site.node.outputs[1:]):
        site.keep(f"{site.node} gives places among all entries")
        return
    for axis in range(site.rank(site.x)):
        if axis < 2:
            site.link(site.x, axis, site.y, axis)
        else:
            site.keep_axis(site.x, axis, POSITIONS)
            site.keep_axis(site.y, axis, POSITIONS)


def reduction(site: Site) -> None:
    """The axes that are reduced stay; the others pass on."""
    rank = site.rank(site.x)
    if site.given("axes", 1):
        found = site.numbers("axes", 1)
        if found is None:
            site.keep(f"{site.node} reduces axes that are computed")
            return
        reduced = [int(axis) % rank for axis in found]
    else:
        reduced = [] if site.node.get("noop_with_empty_axes", 0) else list(range(rank))
    _reduce(site, reduced or ([] if site.node.get("noop_with_empty_axes", 0) else range(rank)))


def arg_reduction(site: Site) -> None:
    """ArgMax and ArgMin give places along one axis, which stay."""
    _reduce(site, [site.node.get("axis", 0) % max(1, site.rank(site.x))])


def _reduce(site: Site, reduced: Sequence[int]) -> None:
    kept = bool(site.node.get("keepdims", 1))
    to = 0
    for axis in range(site.rank(site.x)):
        if axis in reduced:
            site.keep_axis(site.x, axis, site.mixes())
            to += kept
        else:
            site.link(site.x, axis, site.y, to)
            to += 1


def softmax(site: Site) -> None:
    """One axis is mixed; before opset 13 all axes from there on."""
    rank = site.rank(site.x)
    old = site.node.version < 13
    axis = site.node.get("axis", 1 if old else -1) % max(1, rank)
    _mix(site, range(axis, rank) if old else [axis])


def along_axis(site: Site) -> None:
    """One axis is mixed."""
    defaults = {"LpNormalization": -1}
    axis = site.node.get("axis", defaults.get(site.node.operator, 0))
    if site.node.operator == "CumSum":
        found = site.numbers("", 1)
        if found is None:
            site.keep(f"{site.node} sums along an axis that is computed")
            return
        axis = int(found[0])
    _mix(site, [axis % max(1, site.rank(site.x))])


def layer_norm(site: Site) -> None:
    """All axes from one on are mixed."""
    rank = site.rank(site.x)
    axis = site.node.get("axis", -1) % max(1, rank)
    _mix(site, range(axis, rank))
    for name in site.node.inputs[1:]:
        site.axes.pin_value(name, site.mixes())
    for name in site.node.outputs[1:]:
        if name:  # mean and deviation, with one entry where axes are mixed
            site.link_all(name, site.x)


def channel_mix(site: Site) -> None:
    """Channels are mixed with each other: GroupNormalization, LRN."""
    _mix(site, range(1, site.rank(site.x)))
    for name in site.node.inputs[1:]:
        site.axes.pin_value(name, site.mixes())


def mean_variance(site: Site) -> None:
    """The axes that are normalised over stay."""
    _mix(site, [axis % site.rank(site.x) for axis in site.node.get("axes", [0, 2, 3])])


def _mix(site: Site, mixed: Sequence[int]) -> None:
    """Link all axes of the first input and output, and keep those that are mixed."""
    site.link_all(site.x, site.y)
    for axis in mixed:
        site.keep_axis(site.x, axis, site.mixes())
        site.keep_axis(site.y, axis, site.mixes())


RULES: Rules = {
    ("", "BatchNormalization"): batch_norm,
    ("", "InstanceNormalization"): instance_norm,
    **{("", operator): pool for operator in POOLS},
    **{("", operator): reduction for operator in REDUCTIONS},
    ("", "ArgMax"): arg_reduction,
    ("", "ArgMin"): arg_reduction,
    ("", "Softmax"): softmax,
    ("", "LogSoftmax"): softmax,
    ("", "Hardmax"): softmax,
    ("", "CumSum"): along_axis,
    ("", "LpNormalization"): along_axis,
    ("", "LayerNormalization"): layer_norm,
    ("", "SimplifiedLayerNormalization"): layer_norm,
    ("", "RMSNormalization"): layer_norm,
    ("", "GroupNormalization"): channel_mix,
    ("", "LRN"): channel_mix,
    ("", "MeanVarianceNormalization"): mean_variance,
}
