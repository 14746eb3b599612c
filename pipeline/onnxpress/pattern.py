"""Patterns of zeros that hardware and formats can use: n:m, blocks, rows that share their columns.

A pattern speaks of the matrix view of a layer, ``[groups, rows, columns]``: one row is what one
output reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from re import fullmatch

import torch
from torch import Tensor
from torch.nn.functional import pad

from onnxpress_adapters.errors import MisuseError


@dataclass(frozen=True)
class Pattern:
    """Which entries of a layer's matrix may stay together.

    Attributes:
        most: of every ``span`` consecutive columns of a row, how many entries may stay; what is
            left of a row that ``span`` does not divide keeps at most as many. 0 for no such limit.
        span: see ``most``.
        rows: height of the blocks that leave or stay whole; smaller at the lower edge.
        columns: their width; smaller at the right edge.
        even: whether every ``rows`` rows keep as many columns, of their own choice. Written
            gathered, all of them take as long as the one that keeps most.

    Source:
        Mishra et al. 2021 for 2:4; FACTS section 2, "Sparsity that stock onnxruntime does run
        sparse", for rows that share their columns.
    """

    most: int = 0
    span: int = 0
    rows: int = 1
    columns: int = 1
    even: bool = False

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``none``, ``2:4``, ``block:4x8`` (rows x columns), ``rows:32`` or ``even:32``.

        Raises:
            MisuseError: it is none of them, or its numbers make no sense.

        >>> Pattern.parse("2:4")
        Pattern(most=2, span=4, rows=1, columns=1, even=False)
        """
        if text == "none":
            return cls()
        if found := fullmatch(r"(\d{1,9}):(\d{1,9})", text):
            most, span = int(found[1]), int(found[2])
            if 0 < most < span:
                return cls(most, span)
        if found := fullmatch(r"block:(\d{1,9})x(\d{1,9})", text):
            rows, columns = int(found[1]), int(found[2])
            if rows > 0 and columns > 0:
                return cls(0, 0, rows, columns)
        if (found := fullmatch(r"rows:(\d{1,9})", text)) and int(found[1]) > 0:
            return cls(0, 0, int(found[1]), 1)
        if (found := fullmatch(r"even:(\d{1,9})", text)) and int(found[1]) > 0:
            return cls(0, 0, int(found[1]), 1, even=True)
        raise MisuseError(
            f"'{text}' is no pattern; write n:m with n below m such as 2:4, block:ROWSxCOLUMNS "
            "such as block:4x8, rows:32, even:32, or none"
        )

    @property
    def is_blocked(self) -> bool:
        """Whether entries leave several at a time."""
        return self.rows * self.columns > 1 or self.even

    @property
    def is_free(self) -> bool:
        """Whether any support will do."""
        return not self.most and not self.is_blocked

    def capacity(self, groups: int, rows: int, columns: int) -> int:
        """Count the entries of a matrix that can stay at most."""
        if not self.most:
            return groups * rows * columns
        whole, rest = divmod(columns, self.span)
        return groups * rows * (whole * self.most + min(self.most, rest))

    def allowed(self, scores: Tensor) -> Tensor:
        """Mark the best ``most`` of every ``span`` columns; all entries where there is no limit.

        Args:
            scores: ``[groups, rows, columns]``, larger is kept longer; ties go to the lower column.

        Returns:
            Bool, of the same shape.
        """
        if not self.most:
            return torch.ones_like(scores, dtype=torch.bool)
        columns = scores.shape[2]
        filled = pad(scores.detach(), (0, -columns % self.span), value=-torch.inf)
        spans = filled.reshape(*scores.shape[:2], -1, self.span)
        best = spans.sort(dim=3, descending=True, stable=True).indices[..., : self.most]
        marked = torch.zeros_like(spans, dtype=torch.bool).scatter_(3, best, value=True)
        return marked.reshape(filled.shape)[..., :columns]

    def pooled(self, matrix: Tensor) -> Tensor:
        """Add up each block of ``[groups, rows, columns]``: ``[groups, down, across]``, float64."""
        groups, rows, columns = matrix.shape
        filled = pad(matrix.detach().double(), (0, -columns % self.columns, 0, -rows % self.rows))
        down, across = filled.shape[1] // self.rows, filled.shape[2] // self.columns
        return filled.reshape(groups, down, self.rows, across, self.columns).sum((2, 4))

    def spread(self, blocks: Tensor, rows: int, columns: int) -> Tensor:
        """Give every entry of ``[groups, rows, columns]`` what its block has: undo ``pooled``."""
        tall = blocks.repeat_interleave(self.rows, 1).repeat_interleave(self.columns, 2)
        return tall[:, :rows, :columns]

    def touched(self, support: Tensor) -> Tensor:
        """Mark all entries of the blocks of which a support ``[groups, rows, columns]`` has any."""
        return self.spread(self.pooled(support) > 0, *support.shape[1:])


FREE = Pattern()
"""Any support will do."""
