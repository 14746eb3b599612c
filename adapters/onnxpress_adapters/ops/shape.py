"""Operators that move entries and never compute with them: reshape, slice, join, pad, fill."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import to_tensor, torch_dtype, widened
from onnxpress_adapters.registry import converter

PAD_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def take(x: Tensor, axis: int, places: Sequence[int] | np.ndarray) -> Tensor:
    """Pick entries along one axis by places known on the host, repeats allowed."""
    index = torch.as_tensor(np.asarray(places, np.int64), device=x.device)
    return widened(lambda y: torch.index_select(y, axis, index))(x)


def numbers(array: np.ndarray) -> list[int]:
    """Give the whole numbers of a host tensor of any shape."""
    return [int(v) for v in array.reshape(-1)]


@converter("Reshape", until=4)
def reshape_old(node: NodeView, x: Tensor) -> Tensor:
    """Give the entries another shape, an attribute."""
    return _reshape(x, node.get("shape"), allow_zero=False)


@converter("Reshape", since=5, host=(1,))
def reshape(node: NodeView, x: Tensor, shape: np.ndarray) -> Tensor:
    """Give the entries another shape; ``0`` keeps a size unless ``allowzero`` is set."""
    return _reshape(x, numbers(shape), bool(node.get("allowzero", 0)))


def _reshape(x: Tensor, shape: Sequence[int], allow_zero: bool) -> Tensor:
    if not allow_zero:
        shape = [x.shape[place] if size == 0 else size for place, size in enumerate(shape)]
    return x.reshape(tuple(shape))


@converter("Flatten")
def flatten(node: NodeView, x: Tensor) -> Tensor:
    """Join the axes before ``axis`` and those from it on: always a matrix."""
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@converter("Transpose")
def transpose(node: NodeView, x: Tensor) -> Tensor:
    """Reorder the axes; without ``perm``, reverse them."""
    return x.permute(tuple(node.get("perm") or range(x.dim() - 1, -1, -1)))


@converter("Squeeze", until=12)
def squeeze_old(node: NodeView, x: Tensor) -> Tensor:
    """Drop axes of size one, named by an attribute."""
    return _squeeze(x, node.get("axes"))


@converter("Squeeze", since=13, host=(1,))
def squeeze(node: NodeView, x: Tensor, axes: np.ndarray | None = None) -> Tensor:
    """Drop axes of size one, named by an input; all of them where none is named."""
    return _squeeze(x, None if axes is None else numbers(axes))


def _squeeze(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
    return torch.squeeze(x, tuple(axes))


@converter("Unsqueeze", until=12)
def unsqueeze_old(node: NodeView, x: Tensor) -> Tensor:
    """Insert axes of size one, named by an attribute."""
    return _unsqueeze(x, node.get("axes"))


@converter("Unsqueeze", since=13, host=(1,))
def unsqueeze(node: NodeView, x: Tensor, axes: np.ndarray) -> Tensor:
    """Insert axes of size one, named by an input as places in the result."""
    return _unsqueeze(x, numbers(axes))


def _unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.dim() + len(axes)
    new = {axis % rank for axis in axes}
    old = iter(x.shape)
    return x.reshape(tuple(1 if place in new else next(old) for place in range(rank)))


@converter("Concat")
def concat(node: NodeView, *xs: Tensor) -> Tensor:
    """Join tensors along an axis."""
    return torch.cat(xs, node.get("axis", 1))


@converter("Split", until=1, host=(1,))
def split_first(node: NodeView, x: Tensor, sizes: np.ndarray | None = None) -> tuple[Tensor, ...]:
    """Cut along an axis into parts of the sizes given as an input or an attribute, or alike."""
    return _split(node, x, node.get("split") if sizes is None else numbers(sizes))


@converter("Split", since=2, until=12)
def split_old(node: NodeView, x: Tensor) -> tuple[Tensor, ...]:
    """Cut along an axis into parts of the sizes given as an attribute, or into equal parts."""
    return _split(node, x, node.get("split"))


@converter("Split", since=13, host=(1,))
def split(node: NodeView, x: Tensor, sizes: np.ndarray | None = None) -> tuple[Tensor, ...]:
    """Cut along an axis into parts of the sizes given as an input, or into equal parts."""
    return _split(node, x, None if sizes is None else numbers(sizes))


def _split(node: NodeView, x: Tensor, sizes: Sequence[int] | None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    if sizes is None:
        # Where it does not come out even, the last part is smaller.
        parts, total = node.get("num_outputs") or len(node.outputs), x.shape[axis]
        size = -(-total // parts)
        sizes = [max(0, min(size, total - place * size)) for place in range(parts)]
    return tuple(torch.split(x, list(sizes), axis))


@converter("Slice", until=9)
def slice_old(node: NodeView, x: Tensor) -> Tensor:
    """Cut a range out of some axes, all given as attributes."""
    return _slice(x, node.get("starts"), node.get("ends"), node.get("axes"), None)


@converter("Slice", since=10, host=(1, 2, 3, 4))
def slice_(
    node: NodeView,
    x: Tensor,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> Tensor:
    """Cut a range out of some axes, forwards or backwards; out-of-range ends are pulled in."""
    return _slice(
        x,
        numbers(starts),
        numbers(ends),
        None if axes is None else numbers(axes),
        None if steps is None else numbers(steps),
    )


def _slice(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Tensor:
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        first, last, stride = slice(start, end, step).indices(size)
        if stride < 0:
            x = take(x, axis, range(first, last, stride))
        elif (first, last, stride) != (0, size, 1):
            x = x[(slice(None),) * (axis % x.dim()) + (slice(first, max(first, last), stride),)]
    return x


@converter("Expand", host=(1,))
def expand(node: NodeView, x: Tensor, shape: np.ndarray) -> Tensor:
    """Broadcast to a shape; axes of size one on either side stretch to the other."""
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(numbers(shape))))


@converter("Tile", until=5, host=(1, 2))
def tile_old(node: NodeView, x: Tensor, tiles: np.ndarray, axis: np.ndarray) -> Tensor:
    """Repeat along one axis."""
    repeats = [1] * x.dim()
    repeats[numbers(axis)[0]] = numbers(tiles)[0]
    return x.repeat(repeats)


@converter("Tile", since=6, host=(1,))
def tile(node: NodeView, x: Tensor, repeats: np.ndarray) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(numbers(repeats))


@converter("Pad", until=10)
def pad_old(node: NodeView, x: Tensor) -> Tensor:
    """Add a border, given as attributes."""
    pads = node.get("pads") or node.get("paddings")
    return _pad(node, x, pads, range(x.dim()), node.get("value", 0.0))


@converter("Pad", since=11, host=(1, 2, 3))
def pad(
    node: NodeView,
    x: Tensor,
    pads: np.ndarray,
    value: np.ndarray | None = None,
    axes: np.ndarray | None = None,
) -> Tensor:
    """Add a border to some axes; a negative width cuts."""
    fill = 0 if value is None or value.size == 0 else value.reshape(-1)[0].item()
    places = range(x.dim()) if axes is None else [axis % x.dim() for axis in numbers(axes)]
    return _pad(node, x, numbers(pads), places, fill)


def _pad(
    node: NodeView, x: Tensor, pads: Sequence[int], axes: Sequence[int], fill: float
) -> Tensor:
    begins, ends = pads[: len(axes)], pads[len(axes) :]
    widths = {a: (b, e) for a, b, e in zip(axes, begins, ends, strict=True)}
    mode = node.get("mode", "constant")
    if mode == "constant":
        # torch counts axes from the last one.
        flat = [w for a in range(x.dim() - 1, -1, -1) for w in widths.get(a, (0, 0))]
        return torch.nn.functional.pad(x, flat, value=fill) if any(flat) else x
    if mode not in PAD_MODES:
        raise AdapterError(f"{node} pads in an unknown mode '{mode}'; it is not an ONNX mode")
    for axis, (begin, end) in widths.items():
        size = x.shape[axis]
        kept = np.arange(max(0, -begin), size - max(0, -end))
        grown = (max(0, begin), max(0, end))
        if len(kept) < size or any(grown):
            x = take(x, axis, np.pad(kept, grown, mode=mode))
    return x


@converter("CenterCropPad", host=(1,))
def center_crop_pad(node: NodeView, x: Tensor, shape: np.ndarray) -> Tensor:
    """Cut or zero-pad both ends of some axes alike, to reach a shape."""
    sizes = numbers(shape)
    flat = [0] * (2 * x.dim())
    for axis, size in zip(node.get("axes") or range(x.dim()), sizes, strict=True):
        missing = size - x.shape[axis]
        before = missing // 2 if missing >= 0 else -((-missing) // 2)
        place = 2 * (x.dim() - 1 - axis % x.dim())
        flat[place : place + 2] = before, missing - before
    return torch.nn.functional.pad(x, flat)


@converter("ConstantOfShape", host=(0,))
def constant_of_shape(node: NodeView, shape: np.ndarray) -> Tensor:
    """Fill a new tensor with one value, float32 zero by default."""
    value = node.get("value")
    filler = torch.zeros(1) if value is None else to_tensor(value)
    return filler.reshape(-1)[0].expand(numbers(shape)).clone()


@converter("Range", host=(-1,))
def range_(node: NodeView, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> Tensor:
    """Count from ``start`` up to ``limit``, which is left out, in steps of ``delta``."""
    first, last, step = start.reshape(-1)[0], limit.reshape(-1)[0], delta.reshape(-1)[0]
    count = max(0, math.ceil((float(last) - float(first)) / float(step)))
    steps = np.arange(count).astype(start.dtype) * step
    return to_tensor((first + steps).astype(start.dtype))


@converter("EyeLike")
def eye_like(node: NodeView, x: Tensor) -> Tensor:
    """Ones on the ``k``-th diagonal of a matrix of the input's shape, zeros elsewhere."""
    dtype = torch_dtype(node.get("dtype")) if node.get("dtype") is not None else x.dtype
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    columns = torch.arange(x.shape[1], device=x.device)
    return torch.eq(columns - rows, node.get("k", 0)).to(dtype)


@converter("Trilu", host=(1,))
def trilu(node: NodeView, x: Tensor, k: np.ndarray | None = None) -> Tensor:
    """Keep the upper or lower triangle of the last two axes."""
    diagonal = 0 if k is None else numbers(k)[0]
    cut = torch.triu if node.get("upper", 1) else torch.tril
    return widened(lambda y: cut(y, diagonal))(x)


@converter("DepthToSpace")
def depth_to_space(node: NodeView, x: Tensor) -> Tensor:
    """Move blocks of channels into the image."""
    block = node.get("blocksize")
    count, channels, height, width = x.shape
    if node.get("mode", "DCR") == "DCR":
        blocks = x.reshape(count, block, block, channels // block**2, height, width)
        mixed = blocks.permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(count, channels // block**2, block, block, height, width)
        mixed = blocks.permute(0, 1, 4, 2, 5, 3)
    return mixed.reshape(count, channels // block**2, height * block, width * block)


@converter("SpaceToDepth")
def space_to_depth(node: NodeView, x: Tensor) -> Tensor:
    """Move blocks of the image into channels."""
    block = node.get("blocksize")
    count, channels, height, width = x.shape
    rows, columns = height // block, width // block
    blocks = x.reshape(count, channels, rows, block, columns, block)
    if node.get("mode", "DCR") == "DCR":
        mixed = blocks.permute(0, 3, 5, 1, 2, 4)
    else:
        mixed = blocks.permute(0, 1, 3, 5, 2, 4)
    return mixed.reshape(count, channels * block**2, rows, columns)
