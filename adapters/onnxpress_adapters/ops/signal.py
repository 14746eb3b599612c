"""Signals: Fourier transforms, the windows laid over them, and the mel scale."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.dtypes import torch_dtype
from onnxpress_adapters.ops.shape import numbers
from onnxpress_adapters.registry import converter

WINDOWS = {
    "BlackmanWindow": (0.42, 0.5, 0.08),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "HannWindow": (0.5, 0.5, 0.0),
}
"""The coefficients of a sum of cosines: a constant, one turn, two turns."""


@converter("DFT", until=19, host=(1,))
def dft_old(node: NodeView, x: Tensor, length: np.ndarray | None = None) -> Tensor:
    """Transform along the axis an attribute names, the one behind the batch by default."""
    return _dft(node, x, length, node.get("axis", 1))


@converter("DFT", since=20, host=(1, 2))
def dft(
    node: NodeView, x: Tensor, length: np.ndarray | None = None, axis: np.ndarray | None = None
) -> Tensor:
    """Transform along the axis an input names, the last of the signal by default."""
    return _dft(node, x, length, -2 if axis is None else numbers(axis)[0])


def _dft(node: NodeView, x: Tensor, length: np.ndarray | None, axis: int) -> Tensor:
    """Transform forwards or back; the last axis of ``x`` holds real and imaginary parts."""
    axis, half = axis % x.dim(), bool(node.get("onesided", 0))
    inverse = bool(node.get("inverse", 0))
    count = x.shape[axis]
    if inverse and half:
        count = 2 * (count - 1)
    if length is not None:
        count = numbers(length)[0]
    signal = _signal(x)
    if not inverse:
        return spectrum(signal, count, axis, half).to(x.dtype)
    if half:
        # torch wants a complex half; a lone real part has no other.
        signal = signal if signal.is_complex() else torch.complex(signal, torch.zeros_like(signal))
        real: Tensor = torch.fft.irfft(signal, count, axis)
        return real.unsqueeze(-1).to(x.dtype)
    return _as_parts(torch.fft.ifft(signal, count, axis)).to(x.dtype)


def _signal(x: Tensor) -> Tensor:
    """Read the last axis as a real number or as real and imaginary parts, at least in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.complex(wide[..., 0], wide[..., 1]) if x.shape[-1] == 2 else wide[..., 0]


def _as_parts(z: Tensor) -> Tensor:
    """Write complex numbers as real and imaginary parts in a new last axis."""
    # A transform of real numbers may be kept as the conjugate of another one.
    return torch.view_as_real(z.resolve_conj())


def spectrum(signal: Tensor, count: int, axis: int, half: bool) -> Tensor:
    """Transform forwards, and give real and imaginary parts in a new last axis.

    Args:
        signal: real or complex; zeros are added, or its end cut, to ``count`` entries.
        count: length of the transform.
        axis: along which.
        half: whether to give the first ``count // 2 + 1`` frequencies only.
    """
    if half and not signal.is_complex():
        return _as_parts(torch.fft.rfft(signal, count, axis))
    full = torch.fft.fft(signal, count, axis)
    return _as_parts(full.narrow(axis, 0, count // 2 + 1) if half else full)


@converter("STFT", host=(1, 3))
def stft(
    node: NodeView,
    x: Tensor,
    step: np.ndarray,
    window: Tensor | None = None,
    length: np.ndarray | None = None,
) -> Tensor:
    """Transform frames of a signal ``[batch, time, parts]``, each under the window."""
    count = x.shape[1] if window is None else window.shape[0]
    if length is not None:
        count = numbers(length)[0]
    frames = _signal(x).unfold(1, count, numbers(step)[0])
    weighted = frames if window is None else frames * window.to(frames.real.dtype)
    return spectrum(weighted, count, 2, bool(node.get("onesided", 1))).to(x.dtype)


@converter(*WINDOWS, host=(0,))
def window(node: NodeView, size: np.ndarray) -> Tensor:
    """Give a window of some length: one period, or with both ends alike.

    A window whose two ends are one entry is one there, as in torch; onnxruntime divides by zero.
    """
    count, dtype = numbers(size)[0], torch_dtype(node.get("output_datatype", 1))
    turn = count if node.get("periodic", 1) else count - 1
    if turn < 1:
        return torch.ones(count, dtype=dtype)
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / turn)
    constant, once, twice = WINDOWS[node.operator]
    result = constant - once * torch.cos(angle) + twice * torch.cos(2 * angle)
    # In float32 a peak is one, also where float64 just misses it and a whole number is asked for.
    return result.to(torch.promote_types(dtype, torch.float32)).to(dtype)


@converter("MelWeightMatrix", host=(0, 1, 2))
def mel_weight_matrix(
    node: NodeView,
    bands: np.ndarray,
    length: np.ndarray,
    rate: np.ndarray,
    lowest: Tensor,
    highest: Tensor,
) -> Tensor:
    """Weigh the frequencies of half a spectrum into overlapping bands, even on the mel scale.

    Returns:
        ``[frequencies, bands]``: each band rises from its left neighbour's middle to one, and falls
        to its right neighbour's.
    """
    count, samples = numbers(bands)[0], numbers(length)[0]
    low, high = (
        2595 * torch.log10(1 + edge.reshape(()).to(torch.float64) / 700)
        for edge in (lowest, highest)
    )
    steps = torch.arange(count + 2, dtype=torch.float64, device=lowest.device)
    mel = low + steps * ((high - low) / (count + 2))
    hertz = 700 * (torch.pow(10.0, mel / 2595) - 1)
    edges = torch.floor((samples + 1) * hertz / numbers(rate)[0])
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    places = torch.arange(samples // 2 + 1, dtype=torch.float64, device=lowest.device)
    at = places.unsqueeze(-1)
    rising = (at - left) / (middle - left).clamp(min=1)
    falling = (right - at) / (right - middle).clamp(min=1)
    slope = torch.where(at < middle, rising, torch.where(at == middle, 1.0, falling))
    return slope.clamp(min=0).to(torch_dtype(node.get("output_datatype", 1)))
