"""Which entries may differ from zero: hard thresholding and its relatives.

Pure functions on scores. A score says what an entry is worth; the projection keeps the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from onnxpress.pattern import Pattern
from onnxpress_adapters.errors import SparsityError
from onnxpress_adapters.layers import Layer
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


def keep_largest_each(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` largest of the last dimension, in every row of ``[..., n]`` by itself.

    Otherwise like ``keep_largest``: bool, a tie goes to the lower index.

    Raises:
        SparsityError: ``count`` is out of range.

    Source:
        seeds/learning_sparse_network_iht.txt, footnote 1: of its two answers for H_2([1, -3, 1])
        the one with the first 1, always.

    >>> keep_largest_each(torch.tensor([[1.0, -3.0, 1.0], [1.0, 2.0, 3.0]]).abs(), 2)
    tensor([[ True,  True, False],
            [False,  True,  True]])
    """
    if not 0 <= count <= scores.shape[-1]:
        raise SparsityError(
            f"cannot keep {count} of {scores.shape[-1]} entries; a sparsity lies between 0 and 1"
        )
    order = torch.sort(scores.detach(), dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(scores, dtype=torch.bool)
    return kept.scatter_(-1, order[..., :count], value=True)


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


def keep_patterned(
    scores: Mapping[WeightKey, Tensor],
    count: int,
    pattern: Pattern,
    layers: Mapping[WeightKey, Layer],
) -> dict[WeightKey, Tensor]:
    """Mark the best entries over several tensors that a pattern lets stay together.

    Units leave whole: blocks of the pattern, or single entries; where a pattern is even, one block
    of every group of rows, the worst that each has left. A unit counts what its entries'
    scores add up to, by its entries, so that the smaller ones at an edge are no cheaper. Units stay
    in that order, ties in the order of the matrices, until the first that does not fit; so the
    supports of all counts are nested, and fewer entries than ``count`` may stay.

    Args:
        scores: key to real ``[...]`` in the shape of the weight, all on one device, larger is kept
            longer; infinite ones always.
        count: how many entries to keep over all tensors, at most.
        pattern: of each layer's matrix.
        layers: key to the matrix view; a weight without one keeps single entries.

    Raises:
        SparsityError: ``count`` is out of range.
    """
    if pattern.is_free:
        return keep_largest_overall(scores, count)
    if pattern.most:
        allowed = {
            key: _through(value, layers[key], pattern.allowed)
            if key in layers
            else torch.ones_like(value, dtype=torch.bool)
            for key, value in scores.items()
        }
        limited = {key: torch.where(allowed[key], scores[key], -torch.inf) for key in scores}
        most = sum(int(mask.sum()) for mask in allowed.values())
        kept = keep_largest_overall(limited, min(count, most))
        return {key: mask & allowed[key] for key, mask in kept.items()}
    return _keep_blocks(scores, count, pattern, layers)


def unpatterned(
    keys: Iterable[WeightKey], pattern: Pattern, layers: Mapping[WeightKey, Layer]
) -> str:
    """Name the weights a pattern does not reach, in one line; empty where it reaches all."""
    names = [] if pattern.is_free else [str(key) for key in sorted(keys) if key not in layers]
    return f"the pattern does not hold for {', '.join(names)}: no matrix view" if names else ""


def _through(value: Tensor, layer: Layer, projected: Callable[[Tensor], Tensor]) -> Tensor:
    """Project scores of a weight's shape in the layer's matrix and bring the mask back."""
    places = layer.matrix(torch.arange(value.numel(), device=value.device).reshape(value.shape))
    mask = torch.zeros(value.numel(), dtype=torch.bool, device=value.device)
    mask[places.reshape(-1)] = projected(value.reshape(-1)[places]).reshape(-1)
    return mask.reshape(value.shape)


def _keep_blocks(
    scores: Mapping[WeightKey, Tensor],
    count: int,
    pattern: Pattern,
    layers: Mapping[WeightKey, Layer],
) -> dict[WeightKey, Tensor]:
    """Keep whole blocks, the best by entry, until one does not fit."""
    entries = sum(value.numel() for value in scores.values())
    if not 0 <= count <= entries:
        raise SparsityError(
            f"cannot keep {count} of {entries} entries; a sparsity lies between 0 and 1"
        )
    if not scores:
        return {}
    worth, sizes = [], []
    ranks: dict[WeightKey, Tensor] = {}
    for key, value in scores.items():
        if key in layers:
            matrix = _seen(value, layers[key])
            sums, size = pattern.pooled(matrix), pattern.pooled(torch.ones_like(matrix))
            if pattern.even:  # the best column of every group of rows, their second best, ...
                sums, ranks[key] = sums.sort(dim=2, descending=True, stable=True)
                # What always stays outweighs what never does.
                sums, size = sums.sum((0, 1)).nan_to_num(torch.inf, torch.inf), size.sum((0, 1))
            worth.append((sums / size).reshape(-1))
            sizes.append(size.reshape(-1).long())
        else:
            worth.append(value.detach().reshape(-1).double())
            sizes.append(torch.ones_like(worth[-1], dtype=torch.long))
    order = torch.cat(worth).sort(descending=True, stable=True).indices
    fits = torch.cat(sizes)[order].cumsum(0) <= count
    kept = torch.empty_like(fits)
    kept[order] = fits
    supports = {}
    parts = kept.split([part.numel() for part in worth])
    for (key, value), part in zip(scores.items(), parts, strict=True):
        if key in layers:
            if pattern.even:
                places = ranks[key]
                part = torch.zeros_like(places, dtype=torch.bool).scatter_(
                    2, places, part.expand_as(places)
                )
            supports[key] = _through(value, layers[key], partial(_spread, part, pattern))
        else:
            supports[key] = part.reshape(value.shape)
    return supports


def _seen(value: Tensor, layer: Layer) -> Tensor:
    """See scores as the layer's matrix; unlike values they are not scaled on the way."""
    places = layer.matrix(torch.arange(value.numel(), device=value.device).reshape(value.shape))
    return value.detach().reshape(-1)[places]


def _spread(blocks: Tensor, pattern: Pattern, matrix: Tensor) -> Tensor:
    groups, rows, columns = matrix.shape
    down = -(-rows // pattern.rows)
    return pattern.spread(blocks.reshape(groups, down, -1), rows, columns)


def touched(support: Tensor, pattern: Pattern, layer: Layer | None) -> Tensor:
    """Mark the entries whose unit has any entry of a support, in the weight's shape."""
    if layer is None or not pattern.is_blocked:
        return support
    return _through(support, layer, pattern.touched)


def cut(values: Tensor, support: Tensor) -> Dense:
    """Zero what lies outside a support, exactly and without spreading NaN or -0.0.

    Args:
        values: real ``[...]``.
        support: bool, of the same shape.
    """
    return Dense(torch.where(support, values, torch.zeros_like(values)), support)
