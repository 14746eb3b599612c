"""What com.microsoft had before ONNX did: shapes, distances, inverses, Fourier transforms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT
from onnxpress_adapters.ops.indexing import gather_nd
from onnxpress_adapters.ops.pool import root
from onnxpress_adapters.ops.select import unique
from onnxpress_adapters.ops.shape import range_, trilu
from onnxpress_adapters.registry import converter

converter("GatherND", domain=MICROSOFT)(gather_nd)
converter("Trilu", domain=MICROSOFT, host=(1,))(trilu)


@converter("ExpandDims", domain=MICROSOFT, host=(1,))
def expand_dims(node: NodeView, x: Tensor, axis: np.ndarray) -> Tensor:
    """Put an axis of size one in."""
    return x.unsqueeze(int(axis.reshape(-1)[0]))


@converter("Range", domain=MICROSOFT, host=(-1,))
def range_by_one(
    node: NodeView, start: np.ndarray, limit: np.ndarray, delta: np.ndarray | None = None
) -> Tensor:
    """Count from ``start`` up to ``limit``, which is left out, by ones if not told otherwise."""
    step = np.ones((), start.dtype) if delta is None else delta
    result: Tensor = range_(node, start, limit, step)
    return result


@converter("SampleOp", domain=MICROSOFT)
def sample(node: NodeView, x: Tensor) -> Tensor:
    """Hand the input on."""
    return x


@converter("UnfoldTensor", domain=MICROSOFT)
def unfold_tensor(node: NodeView, x: Tensor) -> Tensor:
    """Cut an axis into slices that may overlap; what a slice holds is a new last axis."""
    return x.unfold(node.get("dim", -1), node.get("size"), node.get("step", 1))


@converter("Unique", domain=MICROSOFT)
def unique_in_order(node: NodeView, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give different entries once each, in the order they come.

    Also give, for every entry, the place of its like among these, and how often each comes.
    """
    in_order = replace(node, attributes={"sorted": 0})
    entries, _, inverse, counts = unique(in_order, x)
    return entries, inverse, counts


@converter("Inverse", domain=MICROSOFT)
def inverse(node: NodeView, x: Tensor) -> Tensor:
    """Invert matrices."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # `inv` would look at the values to see whether it succeeded.
    result: Tensor = torch.linalg.inv_ex(wide).inverse
    return result.to(x.dtype)


@converter("CDist", domain=MICROSOFT)
def cdist(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """Distances of every row of ``a`` from every row of ``b``.

    Raises:
        AdapterError: the distance is one onnxruntime does not compute either.
    """
    metric = node.get("metric", "sqeuclidean")
    if metric not in ("euclidean", "sqeuclidean"):
        raise AdapterError(
            f"{node} measures by '{metric}'; onnxruntime knows euclidean and sqeuclidean only"
        )
    # The product of all pairs needs no tensor of three axes, which can be huge.
    squares = torch.sum(a * a, 1, keepdim=True) + torch.sum(b * b, 1)
    total = torch.clamp(squares - 2 * torch.matmul(a, b.transpose(0, 1)), min=0.0)
    return total if metric == "sqeuclidean" else root(total, 2.0)


def of_signal(node: NodeView) -> tuple[int, ...]:
    """Give the axes a Fourier transform runs over, counted from the last one.

    Raises:
        AdapterError: the node asks for what its definition leaves out.
    """
    if node.get("normalized", 0) or not node.get("onesided", 1):
        raise AdapterError(
            f"{node} is normalized or two-sided, which its definition does not provide for"
        )
    return tuple(range(-node.get("signal_ndim", 1), 0))


@converter("Rfft", domain=MICROSOFT)
def rfft(node: NodeView, x: Tensor) -> Tensor:
    """Transform a real signal; real and imaginary parts are a new last axis."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.view_as_real(torch.fft.rfftn(wide, dim=of_signal(node))).to(x.dtype)


@converter("Irfft", domain=MICROSOFT)
def irfft(node: NodeView, x: Tensor) -> Tensor:
    """Undo Rfft, for signals of even length."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    signal: Tensor = torch.fft.irfftn(torch.complex(*wide.unbind(-1)), dim=of_signal(node))
    return signal.to(x.dtype)


def complex_product(a: Tensor, b: Tensor, sign: int) -> Tensor:
    """Multiply complex numbers whose parts are the last axis; ``-1`` conjugates ``b``."""
    (a_real, a_part), (b_real, b_part) = a.unbind(-1), b.unbind(-1)
    real = a_real * b_real - sign * a_part * b_part
    return torch.stack([real, sign * a_real * b_part + a_part * b_real], -1)


@converter("ComplexMul", domain=MICROSOFT)
def complex_mul(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """Multiply complex numbers, whose two parts are the last axis."""
    return complex_product(a, b, 1)


@converter("ComplexMulConj", domain=MICROSOFT)
def complex_mul_conj(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """Multiply with the conjugates of complex numbers, whose two parts are the last axis."""
    return complex_product(a, b, -1)
