"""Which entries may differ from zero: hard thresholding and its relatives.

Pure functions on scores. A score says what an entry is worth; the projection keeps the best.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from onnxpress_adapters.errors import SparsityError
from onnxpress_adapters.weights import Dense, WeightKey


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` entries with the largest scores.

    With scores ``|w|`` or ``w²``, zeroing the rest projects ``w`` onto the tensors with at most
    ``count`` nonzeros, in the Euclidean norm.

    Args:
        scores: real, any shape ``[...]``, any device.
        count: how many entries to keep, from 0 to ``scores.numel()``.

    Returns:
        Bool tensor ``[...]`` on the same device. A tie goes to the lower flat index, so a CUDA run
        repeats a CPU run.

    Raises:
        SparsityError: ``count`` is out of range.

    Source:
        Blumensath & Davies 2009, the operator ``H_s``.

    >>> keep_largest(torch.tensor([1.0, 3.0, 3.0]), 1)
    tensor([False,  True, False])
    """
    if not 0 <= count <= scores.numel():
        raise SparsityError(
            f"cannot keep {count} of {scores.numel()} entries; a sparsity lies between 0 and 1"
        )
    flat = scores.detach().flatten()
    kept = torch.zeros_like(flat, dtype=torch.bool)
    if count:
        order = torch.sort(flat, descending=True, stable=True).indices
        kept[order[:count]] = True
    return kept.reshape(scores.shape)


def keep_largest_overall(scores: Mapping[WeightKey, Tensor], count: int) -> dict[WeightKey, Tensor]:
    """Mark the ``count`` best entries over several tensors, whatever tensor they are in.

    Args:
        scores: key to real ``[...]``, all on one device; their order breaks ties.
        count: how many entries to keep over all tensors.

    Returns:
        Key to a bool tensor of the same shape.

    Raises:
        SparsityError: ``count`` is out of range.
    """
    if not scores:
        return {}
    joined = torch.cat([value.detach().flatten() for value in scores.values()])
    parts = keep_largest(joined, count).split([value.numel() for value in scores.values()])
    return {
        key: part.reshape(value.shape)
        for (key, value), part in zip(scores.items(), parts, strict=True)
    }


def cut(values: Tensor, support: Tensor) -> Dense:
    """Zero what lies outside a support, exactly and without spreading NaN or -0.0.

    Args:
        values: real ``[...]``.
        support: bool, of the same shape.
    """
    return Dense(torch.where(support, values, torch.zeros_like(values)), support)
