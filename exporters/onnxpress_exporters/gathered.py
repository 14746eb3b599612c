"""A weight whose rows, in groups, read the same few columns: its entries without the zeros.

No runtime has a fast kernel for scattered zeros, and every runtime has one for small dense
matrices. Where a group of rows reads only some columns of the input, those are gathered once and
met by a dense matrix of what is left: as many multiplications as there are entries, and one index
for each column of a group instead of one for each entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxpress_adapters.gathered_tensors import whole_matrix


@dataclass(frozen=True, eq=False)
class Gathered:
    """A matrix ``[rows, columns]`` in groups of rows that share their columns.

    Attributes:
        columns: int32 ``[groups, width]``, which columns each group reads. One that reads fewer
            names one of them again, with zeros in its place.
        values: ``[groups, height, width]``: what is left of the rows of each group. The last group
            is filled up with rows of zeros where the heights do not come out even.
        order: int32 ``[rows]``, the place of each row among the rows of all groups; None where that
            is its own and no row was filled up.
        shape: rows and columns of the matrix.
    """

    columns: np.ndarray
    values: np.ndarray
    order: np.ndarray | None
    shape: tuple[int, int]

    @property
    def entries(self) -> int:
        """How many multiplications one input takes."""
        return self.values.size

    def matrix(self) -> np.ndarray:
        """Give the whole matrix back, bit for bit, with ``+0.0`` wherever nothing was kept."""
        return whole_matrix(self.columns, self.values, self.order, self.shape)


def gathered(matrix: np.ndarray, height: int) -> Gathered:
    """Put the rows of a matrix into groups and keep the columns each group reads.

    Rows stand together as they come, or sorted by which columns they read where that leaves a
    tenth fewer entries: a step may have grouped rows that are alike wherever they stood.

    Args:
        matrix: real ``[rows, columns]``, both at least 1.
        height: rows in a group, at least 1.

    >>> found = gathered(np.float32([[0, 1, 0], [0, 2, 0], [3, 0, 4], [5, 0, 0]]), 2)
    >>> found.columns.tolist(), found.entries
    ([[1, 1], [0, 2]], 8)
    """
    rows = np.arange(len(matrix))
    alike = np.lexsort(np.packbits(matrix != 0, axis=1).T[::-1])
    plain, moved = _width(matrix, rows, height), _width(matrix, alike, height)
    return _grouped(matrix, alike if moved * 10 <= plain * 9 else rows, height)


HEIGHTS = (8, 16, 32, 64, 128, 256)
"""Rows in a group, to choose from."""

GATHERING = 32
"""What gathering one column for a group costs, in multiplications: measured on layers of 512 to
4096 units, groups of 32 rows ran 1.65 times as long as groups of 128 with as many entries."""


def best_height(matrix: np.ndarray) -> int:
    """Choose the height of groups that makes a matrix cheapest to multiply by.

    Args:
        matrix: real ``[rows, columns]``.

    Returns:
        One of ``HEIGHTS``, or 0 where the whole matrix is no dearer.

    >>> best_height(np.kron(np.eye(4), np.ones((64, 64)))), best_height(np.ones((9, 9)))
    (64, 0)
    """
    if not matrix.size:
        return 0
    costs = {0: float(matrix.size)}
    for height in HEIGHTS:
        if height <= len(matrix):
            costs[height] = gathered(matrix, height).entries * (1 + GATHERING / height)
    return min(costs, key=lambda height: costs[height])


def _groups(kept: np.ndarray, height: int) -> np.ndarray:
    """Say which columns each group of rows reads: bool ``[groups, columns]``."""
    filled = np.pad(kept, ((0, -len(kept) % height), (0, 0)))
    return np.asarray(filled.reshape(-1, height, kept.shape[1]).any(axis=1))


def _width(matrix: np.ndarray, rows: np.ndarray, height: int) -> int:
    return max(1, int(_groups(matrix[rows] != 0, height).sum(axis=1).max()))


def _grouped(matrix: np.ndarray, rows: np.ndarray, height: int) -> Gathered:
    """Lay the rows out in an order, as groups."""
    count = len(matrix)
    reads = _groups(matrix[rows] != 0, height)
    width = max(1, int(reads.sum(axis=1).max()))
    columns = np.zeros((len(reads), width), np.int32)
    values = np.zeros((len(reads), height, width), matrix.dtype)
    for group, kept in enumerate(reads):
        own = np.flatnonzero(kept)
        members = rows[group * height : (group + 1) * height]
        columns[group, : len(own)] = own
        columns[group, len(own) :] = own[-1] if len(own) else 0
        values[group, : len(members), : len(own)] = matrix[np.ix_(members, own)]
    order = np.empty(count, np.int32)
    order[rows] = np.arange(count)
    even = count % height == 0 and np.array_equal(rows, np.arange(count))
    return Gathered(columns, values, None if even else order, (count, matrix.shape[1]))
