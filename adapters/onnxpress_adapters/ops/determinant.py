"""Determinants."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.registry import converter


@converter("Det")
def det(node: NodeView, x: Tensor) -> Tensor:
    """Give the determinant of each square matrix in the last two axes."""
    working = torch.promote_types(x.dtype, torch.float32)
    result: Tensor = torch.linalg.det(x.to(working))
    return result.to(x.dtype)
