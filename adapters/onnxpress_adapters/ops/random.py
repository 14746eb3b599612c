"""Random numbers that are the same every time a network runs.

The specification lets every run differ. A pressed network must be comparable with its original
though, run by run, so a node draws from its ``seed``, or from its name where it has none; inside a
loop it draws the same in every round. The numbers are those of ``numpy.random.RandomState``, as in
onnx's reference: torch draws none inside ``torch.vmap``, and others on every kind of device.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import torch_dtype
from onnxpress_adapters.registry import converter


def source(node: NodeView) -> np.random.RandomState:
    """Give the random numbers of a node, from the first one on."""
    seed = node.get("seed")
    number = zlib.crc32(node.name.encode()) if seed is None else int(seed)
    return np.random.RandomState(number % 2**32)


def _like(node: NodeView, x: Tensor) -> torch.dtype:
    return torch_dtype(node.get("dtype")) if node.get("dtype") else x.dtype


@converter("RandomUniform")
def random_uniform(node: NodeView) -> Tensor:
    """Draw evenly between ``low`` and ``high``."""
    return _uniform(node, node.get("shape")).to(torch_dtype(node.get("dtype", 1)))


@converter("RandomUniformLike")
def random_uniform_like(node: NodeView, x: Tensor) -> Tensor:
    """Draw evenly between ``low`` and ``high``, in the shape of the input."""
    return _uniform(node, x.shape).to(device=x.device, dtype=_like(node, x))


def _uniform(node: NodeView, shape: tuple[int, ...]) -> Tensor:
    draw = torch.from_numpy(np.asarray(source(node).random_sample(tuple(shape))))
    low, high = float(node.get("low", 0.0)), float(node.get("high", 1.0))
    return draw * (high - low) + low


@converter("RandomNormal")
def random_normal(node: NodeView) -> Tensor:
    """Draw from a normal distribution."""
    return _normal(node, node.get("shape")).to(torch_dtype(node.get("dtype", 1)))


@converter("RandomNormalLike")
def random_normal_like(node: NodeView, x: Tensor) -> Tensor:
    """Draw from a normal distribution, in the shape of the input."""
    return _normal(node, x.shape).to(device=x.device, dtype=_like(node, x))


def _normal(node: NodeView, shape: tuple[int, ...]) -> Tensor:
    draw = torch.from_numpy(np.asarray(source(node).standard_normal(tuple(shape))))
    return draw * float(node.get("scale", 1.0)) + float(node.get("mean", 0.0))


@converter("Bernoulli")
def bernoulli(node: NodeView, x: Tensor) -> Tensor:
    """Draw ones with the probabilities given, zeros otherwise."""
    draw = torch.from_numpy(np.asarray(source(node).random_sample(tuple(x.shape)))).to(x.device)
    wide = x.to(torch.float64)
    # numpy draws the rarer outcome.
    one = torch.where(wide <= 0.5, draw > 1 - wide, draw <= wide)
    return one.to(_like(node, x))


@converter("Multinomial")
def multinomial(node: NodeView, x: Tensor) -> Tensor:
    """Draw classes by their unnormalised log probabilities ``[batch, classes]``."""
    draw = source(node).random_sample((x.shape[0], node.get("sample_size", 1), 1))
    bounds = torch.cumsum(torch.softmax(x.to(torch.float64), -1), -1).unsqueeze(1)
    below = bounds[..., :-1] <= torch.from_numpy(draw).to(x.device)
    return below.sum(-1).to(torch_dtype(node.get("dtype", 6)))
