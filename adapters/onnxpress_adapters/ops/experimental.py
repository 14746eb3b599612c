"""Operators that ONNX tried and dropped; onnxruntime still runs them, in models from Core ML."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.shape import slice_
from onnxpress_adapters.registry import converter


@converter("Crop", until=9)
def crop(node: NodeView, x: Tensor) -> Tensor:
    """Cut a border off images: left, top, right, bottom; or keep a size from its corner on."""
    left, top, right, bottom = node.get("border")
    height, width = x.shape[2:]
    end = height - bottom, width - right
    if node.get("scale"):
        end = top + node.get("scale")[0], left + node.get("scale")[1]
    return x[:, :, top : end[0], left : end[1]]


@converter("DynamicSlice", until=9, host=(1, 2, 3))
def dynamic_slice(
    node: NodeView,
    x: Tensor,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
) -> Tensor:
    """Cut a part out of a tensor."""
    result: Tensor = slice_(node, x, starts, ends, axes)
    return result


@converter("ImageScaler", until=9)
def image_scaler(node: NodeView, x: Tensor) -> Tensor:
    """Scale an image, and shift each of its channels."""
    shift = torch.tensor(node.get("bias"), dtype=x.dtype, device=x.device)
    result: Tensor = x * node.get("scale", 1.0) + shift.reshape(-1, 1, 1)
    return result


@converter("ParametricSoftplus", until=9)
def parametric_softplus(node: NodeView, x: Tensor) -> Tensor:
    """``alpha log(1 + exp(beta x))``."""
    inner = node.get("beta", 1.0) * x
    result: Tensor = node.get("alpha", 1.0) * torch.logaddexp(inner, torch.zeros_like(inner))
    return result


@converter("Scale", until=9)
def scale(node: NodeView, x: Tensor) -> Tensor:
    """``scale x``."""
    result: Tensor = x * node.get("scale", 1.0)
    return result
