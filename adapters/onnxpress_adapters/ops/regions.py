"""Regions of an image: cutting them out to one size, and choosing among overlapping ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.registry import converter


@dataclass(frozen=True, eq=False)
class Lines:
    """Where regions are sampled along one axis of an image.

    Attributes:
        at: positions ``[regions, samples]``, pulled into the image.
        bins: which bin each sample belongs to, ``[regions, samples]``.
        counts: whether the sample lies in the region and in the image, bool.
        each: how many samples every bin of a region has, ``[regions]``.
    """

    at: Tensor
    bins: Tensor
    counts: Tensor
    each: Tensor


def lines(start: Tensor, length: Tensor, size: int, bins: int, ratio: int) -> Lines:
    """Place samples evenly in the bins of regions.

    With a ``ratio`` each bin has as many; without one, as many as its length rounded up. Then the
    number differs from region to region, but samples are more than half an entry apart (or one to
    a bin), so at most ``2 size + 3`` of them lie in the image: these are listed, whatever the
    regions are, and no size is read from a tensor.

    Args:
        start: of each region, in entries, ``[regions]``.
        length: of each region.
        size: of the image.
        bins: how many a region has.
        ratio: samples per bin, or 0.
    """
    step = length / bins
    if ratio > 0:
        each = torch.full_like(step, ratio)
        order = torch.arange(bins * ratio, dtype=step.dtype, device=step.device)
        order = order.expand(*step.shape, -1)
    else:
        each = torch.ceil(step).clamp(min=0)
        gap = step / each.clamp(min=1)
        first = torch.floor((-1 - start) / torch.where(gap > 0, gap, 1.0) - 1).clamp(min=0)
        steps = torch.arange(max(2 * size + 6, bins), dtype=step.dtype, device=step.device)
        order = first.detach().unsqueeze(-1) + steps
    rows = each.detach().clamp(min=1).unsqueeze(-1)
    places = torch.floor(order / rows)
    inner = (order - places * rows + 0.5) / rows
    at = start.unsqueeze(-1) + places * step.unsqueeze(-1) + inner * step.unsqueeze(-1)
    counts = (order < each.unsqueeze(-1) * bins) & (at >= -1) & (at <= size)
    return Lines(at.clamp(0, size - 1), places.to(torch.int64), counts, each.detach())


@converter("RoiAlign", until=15)
def roi_align_old(node: NodeView, x: Tensor, regions: Tensor, batch: Tensor) -> Tensor:
    """Cut regions out by interpolation, counting from the corners of entries."""
    return _roi_align(node, x, regions, batch, half_pixel=False)


@converter("RoiAlign", since=16)
def roi_align(node: NodeView, x: Tensor, regions: Tensor, batch: Tensor) -> Tensor:
    """Cut regions out by interpolation, counting as the node's coordinate mode says."""
    mode = node.get("coordinate_transformation_mode", "half_pixel")
    return _roi_align(node, x, regions, batch, half_pixel=mode == "half_pixel")


def _roi_align(
    node: NodeView, x: Tensor, regions: Tensor, batch: Tensor, half_pixel: bool
) -> Tensor:
    mode, ratio = node.get("mode", "avg"), node.get("sampling_ratio", 0)
    wide = regions.to(torch.promote_types(regions.dtype, torch.float32))
    corners = wide * node.get("spatial_scale", 1.0) - (0.5 if half_pixel else 0.0)
    left, top, right, bottom = corners.unbind(-1)
    height, width = bottom - top, right - left
    if not half_pixel:
        height, width = height.clamp(min=1), width.clamp(min=1)
    rows = lines(top, height, x.shape[2], node.get("output_height", 1), ratio)
    columns = lines(left, width, x.shape[3], node.get("output_width", 1), ratio)
    sizes = node.get("output_height", 1), node.get("output_width", 1)
    if mode == "avg":
        return _averaged(x, batch, rows, columns, sizes)
    if mode == "max":
        return _highest(x, batch, rows, columns, sizes)
    raise AdapterError(f"{node} pools regions by '{mode}'; ONNX knows 'avg' and 'max'")


def _shares(line: Lines, size: int, bins: int, dtype: torch.dtype) -> Tensor:
    """Give the weight of every entry in the mean of every bin, ``[regions, bins, size]``."""
    entries = torch.arange(size, device=line.at.device)
    linear = (1 - torch.abs(line.at.unsqueeze(-1) - entries)).clamp(min=0)
    weights = torch.where(line.counts.unsqueeze(-1), linear, 0.0)
    chosen = line.bins.unsqueeze(-2) == torch.arange(bins, device=line.at.device).unsqueeze(-1)
    total = torch.matmul(chosen.to(weights.dtype), weights)
    return (total / line.each.clamp(min=1).reshape(-1, 1, 1)).to(dtype)


def _averaged(
    x: Tensor, batch: Tensor, rows: Lines, columns: Lines, sizes: Sequence[int]
) -> Tensor:
    """Average the samples of every bin, one axis after the other, by matrix products."""
    images, channels, height, width = x.shape
    down = _shares(rows, height, sizes[0], x.dtype)
    across = _shares(columns, width, sizes[1], x.dtype)
    own = batch.unsqueeze(-1) == torch.arange(images, device=batch.device)
    # [regions, bins, images, height]: a region reads its own image alone.
    left = down.unsqueeze(2) * own.to(x.dtype).unsqueeze(1).unsqueeze(-1)
    flat = x.permute(0, 2, 1, 3).reshape(images * height, channels * width)
    lines_cut = torch.matmul(left.reshape(-1, images * height), flat)
    cut = torch.matmul(lines_cut.reshape(-1, sizes[0] * channels, width), across.transpose(1, 2))
    return cut.reshape(-1, sizes[0], channels, sizes[1]).transpose(1, 2)


def _highest(x: Tensor, batch: Tensor, rows: Lines, columns: Lines, sizes: Sequence[int]) -> Tensor:
    """Take the largest weighted corner among the samples of every bin.

    Not the largest sample: onnxruntime and the reference weigh the four entries around a sample
    and compare the products, without adding them up. A sample outside the image counts zero.
    """
    images, channels, height, width = x.shape
    flat = x.transpose(0, 1).reshape(channels, images * height * width)
    corners = []
    for (down, upper), (across, left) in itertools.product(
        _ends(rows, height), _ends(columns, width)
    ):
        line = (batch.unsqueeze(-1) * height + down) * width
        weight = upper.unsqueeze(2) * left.unsqueeze(1)
        corners.append(flat[:, line.unsqueeze(2) + across.unsqueeze(1)] * weight.to(x.dtype))
    products = reduce(torch.maximum, corners)
    narrow = [
        torch.amax(torch.where(mine.unsqueeze(1), products, -torch.inf), -1)
        for mine in _members(columns, sizes[1])
    ]
    wide = torch.stack(narrow, -1)
    low = [
        torch.amax(torch.where(mine.unsqueeze(2), wide, -torch.inf), -2)
        for mine in _members(rows, sizes[0])
    ]
    best = torch.stack(low, -2)
    found = [
        torch.stack([mine.sum(-1) for mine in _members(line, bins)], -1)
        for line, bins in zip((rows, columns), sizes, strict=True)
    ]
    inside = found[0].unsqueeze(2) * found[1].unsqueeze(1)
    whole = (inside > 0) & (inside == (rows.each * columns.each).reshape(-1, 1, 1))
    return torch.where(whole, best, best.clamp(min=0)).transpose(0, 1)


def _ends(line: Lines, size: int) -> list[tuple[Tensor, Tensor]]:
    """Give the two entries around every sample, and their weights."""
    low = torch.floor(line.at)
    part = line.at - low
    places = low.to(torch.int64)
    return [(places, 1 - part), ((places + 1).clamp(max=size - 1), part)]


def _members(line: Lines, bins: int) -> list[Tensor]:
    """Mark the samples of each bin, ``[regions, samples]`` each."""
    return [line.counts & (line.bins == place) for place in range(bins)]


@converter("MaxRoiPool")
def max_roi_pool(node: NodeView, x: Tensor, regions: Tensor) -> Tensor:
    """Take the largest entry of every bin of regions ``[image, left, top, right, bottom]``.

    Corners are rounded to entries, halves away from zero; a bin without entries gives zero.
    """
    batch = regions[:, 0].to(torch.int64)
    scaled = regions[:, 1:] * node.get("spatial_scale", 1.0)
    whole = torch.sign(scaled) * torch.floor(torch.abs(scaled) + 0.5)
    left, top, right, bottom = whole.detach().unbind(-1)
    rows, columns = node.get("pooled_shape")
    images = torch.index_select(x, 0, batch)
    low = [
        torch.amax(torch.where(mine.reshape(mine.shape[0], 1, -1, 1), images, -torch.inf), 2)
        for mine in _bins(top, bottom, x.shape[2], rows)
    ]
    lines_cut = torch.stack(low, 2)
    narrow = [
        torch.amax(torch.where(mine.reshape(mine.shape[0], 1, 1, -1), lines_cut, -torch.inf), 3)
        for mine in _bins(left, right, x.shape[3], columns)
    ]
    best = torch.stack(narrow, 3)
    return torch.where(best == -torch.inf, 0.0, best)


def _bins(first: Tensor, last: Tensor, size: int, count: int) -> list[Tensor]:
    """Mark the entries in each bin of regions along one axis, ``[regions, size]`` each."""
    step = (last - first + 1).clamp(min=1) / count
    entries = torch.arange(size, device=first.device)
    marks = []
    for place in range(count):
        begin = (torch.floor(place * step) + first).unsqueeze(-1)
        end = (torch.ceil((place + 1) * step) + first).unsqueeze(-1)
        marks.append((entries >= begin) & (entries < end))
    return marks


@converter("NonMaxSuppression", host=(2, 3, 4))
def non_max_suppression(
    node: NodeView,
    boxes: Tensor,
    scores: Tensor,
    most: np.ndarray | None = None,
    overlap: np.ndarray | None = None,
    lowest: np.ndarray | None = None,
) -> Tensor:
    """Choose boxes by score, leaving out those that overlap a chosen one of their class too much.

    Returns:
        ``[chosen, 3]``: batch, class and place of each, in the order they are chosen.
    """
    count = 0 if most is None else int(most.reshape(-1)[0])
    limit = 0.0 if overlap is None else float(overlap.reshape(-1)[0])
    corners = _corners(boxes.detach(), bool(node.get("center_point_box", 0))).cpu()
    areas = (corners[..., 2:] - corners[..., :2]).prod(-1)
    chosen: list[tuple[int, int, int]] = []
    for batch, classes in enumerate(scores.detach().cpu()):
        for kind, points in enumerate(classes):
            order = torch.sort(points, descending=True, stable=True).indices
            if lowest is not None:
                order = order[points[order] > float(lowest.reshape(-1)[0])]
            places = _chosen(corners[batch], areas[batch], order, count, limit)
            chosen.extend((batch, kind, place) for place in places)
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, centred: bool) -> Tensor:
    """Give two opposite corners of boxes, the lower one first."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centred:
        return torch.cat([first - second / 2, first + second / 2], -1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _chosen(corners: Tensor, areas: Tensor, order: Tensor, count: int, limit: float) -> list[int]:
    """Choose boxes of one class, best first, from those that are left."""
    places: list[int] = []
    while len(places) < count and len(order):
        best, order = order[0], order[1:]
        places.append(int(best))
        near = torch.maximum(corners[best, :2], corners[order, :2])
        far = torch.minimum(corners[best, 2:], corners[order, 2:])
        shared = (far - near).clamp(min=0).prod(-1)
        union = areas[best] + areas[order] - shared
        # A box without area shares none, and neither hides nor is hidden.
        order = order[~((shared > 0) & (union > 0) & (shared / union > limit))]
    return places
