"""Dropout: a copy in inference; in training, entries drawn from the seed and the shape alone."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.registry import converter


@converter("Dropout", until=11)
def dropout_old(node: NodeView, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pass the input on, as inference does; the mask keeps everything."""
    dtype = torch.bool if node.version >= 10 else x.dtype
    return x, torch.ones_like(x, dtype=dtype)


@converter("Dropout", since=12, host=(1, 2))
def dropout(
    node: NodeView,
    x: Tensor,
    ratio: np.ndarray | None = None,
    training: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """Pass the input on, or zero a share of it in training mode and scale up the rest.

    The draw is that of ``numpy.random.RandomState``, as in onnx's reference. A node without a seed
    draws from its name, so that a model gives the same outputs every time.
    """
    share = 0.5 if ratio is None else float(ratio.reshape(-1)[0])
    if training is None or not training.reshape(-1)[0] or share == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    seed = node.get("seed")
    if seed is None:
        seed = zlib.crc32(node.name.encode())
    # RandomState takes 32 bits, the attribute has 64.
    draw = np.random.RandomState(seed % 2**32).uniform(0, 1, tuple(x.shape))
    mask = torch.from_numpy(np.asarray(draw >= share)).to(x.device)
    return torch.where(mask, x / (1 - share), 0.0), mask
