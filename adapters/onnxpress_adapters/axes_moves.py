"""Axes through operators that move, cut, join and repeat entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxpress_adapters.axes import Cells
from onnxpress_adapters.axes_numbers import TARGETS, blocks, factors
from onnxpress_adapters.axes_site import POSITIONS, Rules, Site

COMPUTED = "where {} cuts is computed from sizes"


def transpose(site: Site) -> None:
    """Axes change places."""
    rank = site.rank(site.x)
    for to, axis in enumerate(site.node.get("perm") or range(rank - 1, -1, -1)):
        site.link(site.x, axis, site.y, to)


def reshape(site: Site) -> None:
    """Axes are split and merged: a channel becomes a block of columns."""
    _regroup(site)
    if site.node.operator == "Reshape" and site.node.get("shape") is None:
        _target(site, site.node.inputs[1])


def _regroup(site: Site) -> None:
    before, after = site.shape(site.x), site.shape(site.y)
    if 0 in before:
        site.keep(f"{site.node} moves nothing")
        return
    for old, new in blocks(before, after):
        if len(old) == len(new) == 1:
            site.link(site.x, old[0], site.y, new[0])
            continue
        sizes = factors([before[a] for a in old], [after[a] for a in new])
        if sizes is None:
            reason = f"{site.node} cuts rows of entries into rows of another length"
            for axis in old:
                site.keep_axis(site.x, axis, reason)
            for axis in new:
                site.keep_axis(site.y, axis, reason)
            continue
        # A factor that is a whole axis keeps the cells of that axis.
        shared: list[Cells | None] = [None] * len(sizes)
        for name, axes in ((site.x, old), (site.y, new)):
            for axis, (begin, end) in _runs(site, name, axes, sizes):
                if end == begin + 1:
                    own, other = site.of(name, axis), shared[begin]
                    if other is not None:
                        site.axes.same(own, other)
                    shared[begin] = own
        parts = [
            cells if cells is not None else site.axes.fresh(size)
            for cells, size in zip(shared, sizes, strict=True)
        ]
        for name, axes in ((site.x, old), (site.y, new)):
            for axis, (begin, end) in _runs(site, name, axes, sizes):
                if end > begin + 1:
                    site.axes.product(site.of(name, axis), spread(parts[begin:end]))


def _runs(
    site: Site, name: str, axes: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Give each axis and which of the factors it is made of, from one to another."""
    begin = 0
    for axis in axes:
        end, size = begin, 1
        while size < site.shape(name)[axis]:
            size *= sizes[end]
            end += 1
        yield axis, (begin, end)
        begin = end


def spread(parts: Sequence[Cells]) -> list[Cells]:
    """Give the cells of several axes for every entry of the axis they are merged into.

    >>> import numpy as np
    >>> [part.tolist() for part in spread([np.array([1, 2]), np.array([7, 8, 9])])]
    [[1, 1, 1, 2, 2, 2], [7, 8, 9, 7, 8, 9]]
    """
    grid = np.meshgrid(*parts, indexing="ij")
    return [part.reshape(-1) for part in grid]


def _target(site: Site, name: str) -> None:
    """Keep axes whose new size nothing would tell the node."""
    found = site.ledger.known.get(name)
    shape = site.shape(site.y)
    behind = len(shape) - (site.shape(name)[0] if site.rank(name) else 1)
    for axis in range(len(shape)):
        place = axis - behind
        if found is None:
            site.keep_axis(site.y, axis, f"{site.node} is told a size that is computed")
        elif place >= 0 and found.axes[place] is not None:
            value, of = found.axes[place] or ("", 0)
            if site.shape(value)[of] == shape[axis]:
                site.axes.same(site.of(value, of), site.of(site.y, axis))
            elif found.values[place] != 1:
                site.keep_axis(value, of, f"{site.node} is told its size for another axis")
                site.keep_axis(site.y, axis, f"{site.node} is told a size that is computed")
        elif place >= 0 and not found.fixed[place]:
            site.keep_axis(site.y, axis, f"{site.node} is told a size that is computed")
        elif (
            place >= 0
            and found.values[place] == 0
            and site.node.operator == "Reshape"
            and not site.node.get("allowzero", 0)
        ):
            site.link(site.x, axis, site.y, axis)


def expand(site: Site) -> None:
    """Axes of one entry are repeated; the others pass on."""
    site.broadcast([site.x], site.y)
    _target(site, site.node.inputs[1])


def constant_of_shape(site: Site) -> None:
    """Every axis is new."""
    _target(site, site.x)


def squeeze(site: Site) -> None:
    """Axes of one entry leave or come."""
    if site.node.operator == "Squeeze" and not site.given("axes", 1):
        site.keep(f"{site.node} drops every axis of one entry")
        return
    # Without axes of size 1 both shapes are the same.
    old = [axis for axis, size in enumerate(site.shape(site.x)) if size != 1]
    new = [axis for axis, size in enumerate(site.shape(site.y)) if size != 1]
    for axis, to in zip(old, new, strict=True):
        site.link(site.x, axis, site.y, to)


def concat(site: Site) -> None:
    """One axis is made of the parts, the others are shared."""
    axis = site.node.get("axis", 1) % site.rank(site.y)
    for name in site.node.inputs:
        site.link_all(name, site.y, but=(axis,))
    if site.axes.shapes[site.y][axis]:
        parts = np.concatenate([site.of(name, axis) for name in site.node.inputs])
        site.axes.same(parts, site.of(site.y, axis))


def split(site: Site) -> None:
    """One axis is cut into parts, the others are shared."""
    axis = site.node.get("axis", 0) % site.rank(site.x)
    results = [name for name in site.node.outputs if name]
    for name in results:
        site.link_all(site.x, name, but=(axis,))
    if len(results) < len(site.node.outputs):
        site.keep(f"{site.node} drops a part")
        return
    site.axes.same(site.of(site.x, axis), np.concatenate([site.of(n, axis) for n in results]))
    if site.given("split", 1) and site.numbers("split", 1) is None:
        site.keep_axis(site.x, axis, COMPUTED.format(site.node))


def cut(site: Site) -> None:
    """A part of some axes is taken; of cells outside it nothing is asked."""
    rank = site.rank(site.x)
    starts, ends = site.numbers("starts", 1), site.numbers("ends", 2)
    axes, steps = site.numbers("axes", 3), site.numbers("steps", 4)
    unknown = starts is None or ends is None or (axes is None and site.given("axes", 3))
    if starts is None or ends is None or unknown:
        named = range(rank) if axes is None else [int(axis) % rank for axis in axes]
        site.link_all(site.x, site.y, but=tuple(named))
        for axis in named:
            site.keep_axis(site.x, axis, COMPUTED.format(site.node))
            site.keep_axis(site.y, axis, COMPUTED.format(site.node))
        return
    named = range(len(starts)) if axes is None else [int(axis) % rank for axis in axes]
    site.link_all(site.x, site.y, but=tuple(named))
    for place, axis in enumerate(named):
        fixed = steps is not None or not site.given("steps", 4)
        step = 1 if steps is None else int(steps[place])
        if step != 1 or not fixed:
            site.keep_axis(site.x, axis, f"{site.node} does not take them in a row")
            site.keep_axis(site.y, axis, f"{site.node} does not take them in a row")
        else:
            taken = site.of(site.x, axis)[int(starts[place]) : int(ends[place])]
            site.axes.same(taken, site.of(site.y, axis))


def gather(site: Site) -> None:
    """Entries along one axis are looked up; the other axes pass on."""
    indices = site.node.inputs[1]
    axis = site.node.get("axis", 0) % site.rank(site.x)
    looked_up = site.rank(indices)
    for other in range(site.rank(site.x)):
        if other != axis:
            site.link(site.x, other, site.y, other if other < axis else other + looked_up - 1)
    found = site.ledger.fixed(indices)
    site.axes.pin_value(indices, POSITIONS)
    if found is not None and looked_up == 1:
        site.axes.same(site.of(site.x, axis)[found], site.of(site.y, axis))
        return
    reason = f"{site.node} looks up single entries along this axis"
    site.keep_axis(site.x, axis, reason)
    for place in range(axis, axis + looked_up):
        site.keep_axis(site.y, place, reason)


def tile(site: Site) -> None:
    """Axes that are repeated stay; the others pass on."""
    for axis in range(site.rank(site.x)):
        if site.shape(site.x)[axis] == site.shape(site.y)[axis]:
            site.link(site.x, axis, site.y, axis)
        else:
            site.keep_axis(site.x, axis, f"{site.node} repeats them")
            site.keep_axis(site.y, axis, f"{site.node} repeats them")


def pad(site: Site) -> None:
    """Axes that get a border stay; the others pass on."""
    pads, axes = site.numbers("pads", 1), site.numbers("axes", 3)
    if pads is None:
        pads = site.node.get("paddings")
    rank = site.rank(site.x)
    if pads is None or (axes is None and site.input(3)):
        site.keep(f"{site.node} is told its borders by something computed")
        return
    named = range(rank) if axes is None else [int(axis) % rank for axis in axes]
    bordered = [
        axis
        for place, axis in enumerate(named)
        if pads[place] or pads[place + len(named)]
    ]  # fmt: skip
    site.link_all(site.x, site.y, but=bordered)
    for axis in bordered:
        site.keep_axis(site.x, axis, f"{site.node} gives them a border")
        site.keep_axis(site.y, axis, f"{site.node} gives them a border")


def resize(site: Site) -> None:
    """Axes that keep their size pass on, as long as they are no positions."""
    if site.node.get("axes") is not None or site.node.get("coordinate_transformation_mode") == (
        "tf_crop_and_resize"
    ):
        site.keep(f"{site.node} takes a part of its input")
        return
    for axis in range(site.rank(site.x)):
        if axis < 2 and site.shape(site.x)[axis] == site.shape(site.y)[axis]:
            site.link(site.x, axis, site.y, axis)
        else:
            site.keep_axis(site.x, axis, POSITIONS)
            site.keep_axis(site.y, axis, POSITIONS)
    place = TARGETS["Resize"]
    if site.node.operator == "Resize" and site.input(place):
        _target(site, site.input(place))


def depth_to_space(site: Site) -> None:
    """A channel becomes a block of positions, or is made of one."""
    few, many = (site.y, site.x) if site.node.operator == "DepthToSpace" else (site.x, site.y)
    block = site.node.get("blocksize", 1) ** 2
    channels = site.of(few, 1)
    inner = site.node.get("mode", "DCR") == "CRD"
    site.axes.same(
        site.of(many, 1), np.repeat(channels, block) if inner else np.tile(channels, block)
    )
    site.link(site.x, 0, site.y, 0)
    for name in (site.x, site.y):
        for axis in (2, 3):
            site.keep_axis(name, axis, POSITIONS)


def shape(site: Site) -> None:
    """Sizes are read; what becomes of them is followed in the ledger."""
    site.axes.pin_value(site.y, "it is a shape")


def count(site: Site) -> None:
    """The number of all entries is read."""
    site.keep(f"{site.node} counts all entries")


RULES: Rules = {
    ("", "Transpose"): transpose,
    ("", "Reshape"): reshape,
    ("", "Flatten"): reshape,
    ("", "Expand"): expand,
    ("", "ConstantOfShape"): constant_of_shape,
    ("", "Squeeze"): squeeze,
    ("", "Unsqueeze"): squeeze,
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): cut,
    ("", "Gather"): gather,
    ("", "Tile"): tile,
    ("", "Pad"): pad,
    ("", "Resize"): resize,
    ("", "Upsample"): resize,
    ("", "DepthToSpace"): depth_to_space,
    ("", "SpaceToDepth"): depth_to_space,
    ("", "Shape"): shape,
    ("", "Size"): count,
}
