"""Col2Im: blocks of an image, laid out as columns, added up into the image again."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.conv import Window, window
from onnxpress_adapters.ops.dtypes import widened
from onnxpress_adapters.ops.shape import numbers
from onnxpress_adapters.registry import converter


@converter("Col2Im", host=(1, 2))
def col2im(node: NodeView, x: Tensor, image: np.ndarray, block: np.ndarray) -> Tensor:
    """Turn ``[batch, channels x block, blocks]`` into ``[batch, channels, *image]``."""
    sizes = tuple(numbers(image))
    how = window(node, sizes, numbers(block))
    index = torch.as_tensor(_places(sizes, how), device=x.device)
    rows = x.reshape(x.shape[0] * (x.shape[1] // math.prod(how.kernel)), -1)
    # One place more takes what falls into the border.
    add = widened(lambda y: y.new_zeros(y.shape[0], math.prod(sizes) + 1).index_add(1, index, y))
    return add(rows)[:, :-1].reshape(x.shape[0], -1, *sizes)


@lru_cache(maxsize=64)
def _places(sizes: tuple[int, ...], how: Window) -> np.ndarray:
    """Give the flat place in the image of every entry of every block; its size for the border."""
    flat = np.zeros((), np.int64)
    inside = np.ones((), bool)
    rank = len(sizes)
    for axis, size in enumerate(sizes):
        room = size + how.begins[axis] + how.ends[axis] - how.reach[axis]
        starts = np.arange(0, room + 1, how.strides[axis]) - how.begins[axis]
        inner = np.arange(how.kernel[axis]) * how.dilations[axis]
        at = np.add.outer(inner, starts)
        # The axes of the block first, those over the blocks behind.
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = at.shape
        at = at.reshape(shape)
        flat, inside = flat * size + at, inside & (at >= 0) & (at < size)
    return np.asarray(np.where(inside, flat, math.prod(sizes)).reshape(-1))
