"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT, fused_activation
from onnxpress_adapters.registry import converter


@converter("MatMul")
def matmul(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices over broadcast leading axes; 1-D sides count as a row and a column."""
    return torch.matmul(a, b)


@converter("Gemm")
def gemm(node: NodeView, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """``alpha A' B' + beta C``, each of A and B transposed or not; C broadcasts."""
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    left = a.transpose(0, 1) if node.get("transA", 0) else a
    if alpha == 1 and beta == 1 and c is not None and c.dim() == 1 and c.shape[0] > 1:
        return functional.linear(left, b if node.get("transB", 0) else b.transpose(0, 1), c)
    product = torch.matmul(left, b.transpose(0, 1) if node.get("transB", 0) else b)
    if alpha != 1:
        product = (alpha * product).to(a.dtype)
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else (beta * c).to(c.dtype))


@converter("Einsum")
def einsum(node: NodeView, *xs: Tensor) -> Tensor:
    """Sum products of entries as the equation says."""
    return torch.einsum(node.get("equation"), *xs)


@converter("FusedMatMul", domain=MICROSOFT)
def fused_matmul(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """``alpha A' B'`` with transposed sides, over the batch axes too where the node says so."""
    left = _turned(a, bool(node.get("transA", 0)), bool(node.get("transBatchA", 0)))
    right = _turned(b, bool(node.get("transB", 0)), bool(node.get("transBatchB", 0)))
    product = torch.matmul(left, right)
    alpha = node.get("alpha", 1.0)
    return product if alpha == 1 else alpha * product


def _turned(x: Tensor, matrix: bool, batch: bool) -> Tensor:
    if x.dim() < 2:
        return x
    if batch:
        # The first axis moves behind the batch axes: [rows, batch..., columns] as it is stored.
        x = torch.movedim(x, 0, -2)
    return x.transpose(-1, -2) if matrix else x


@converter("FusedGemm", domain=MICROSOFT)
def fused_gemm(node: NodeView, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm followed by an activation."""
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [node.get(name) for name in names if node.get(name) is not None]
    return fused_activation(node, gemm(node, a, b, c), parameters)
