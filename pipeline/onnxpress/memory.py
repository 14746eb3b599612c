"""When memory runs out: half as many samples at a time, for the rest of the run.

The planned batch is an estimate (``cost.py``). What else a machine holds, and what a convolution
wants beside its result, shows only when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from onnxpress_adapters.errors import OnnxpressError, StepError

T = TypeVar("T")

FULL = ("can't allocate memory", "not enough memory", "out of memory")
"""How torch's allocators say it where they raise nothing more special than a RuntimeError."""


@dataclass
class Batch:
    """How many samples run together: the one thing a run may change its mind about.

    Attributes:
        size: how many from now on.
        planned: how many there were to begin with.
    """

    size: int
    planned: int

    @classmethod
    def of(cls, memo: dict[object, object], planned: int) -> Batch:
        """Give the one of a problem, by its memo."""
        known = memo.get("batch")
        if isinstance(known, cls):
            return known
        made = cls(planned, planned)
        memo["batch"] = made
        return made

    @property
    def note(self) -> str | None:
        """What a reader of the report should know."""
        if self.size == self.planned:
            return None
        return f"memory ran out with {self.planned} samples at a time; {self.size} fit"

    def parts(self, samples: int, work: Callable[[int, int], T]) -> Iterator[T]:
        """Go over samples in order, as many at a time as fit.

        Args:
            samples: how many there are.
            work: does what is to be done with the samples from a place up to another, and leaves
                nothing behind when it fails.

        Raises:
            StepError: not even one sample fits.
        """
        start = 0
        while start < samples:
            stop = min(samples, start + self.size)
            try:
                done = work(start, stop)
            except (RuntimeError, MemoryError, OnnxpressError) as error:
                if not ran_out(error):
                    raise
                if stop - start == 1:
                    raise StepError(
                        "memory ran out with a single sample; close other programs, make the "
                        "dynamic sizes smaller with --shape, or use a machine with more memory"
                    ) from error
                self.size = (stop - start) // 2
            else:
                start = stop
                yield done
                continue
            # Only here is the failed attempt forgotten, and what it held can go.
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def ran_out(error: BaseException) -> bool:
    """Say whether an error, or the one behind it, means that there was no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in FULL):
        return True
    return error.__cause__ is not None and ran_out(error.__cause__)


def accumulate(
    batch: Batch, leaves: Sequence[Tensor], samples: int, loss: Callable[[int, int], Tensor]
) -> float:
    """Add up a loss and its gradient over samples, part by part.

    A part whose gradient could not be finished counts for nothing and is done again in halves.

    Args:
        batch: of the problem.
        leaves: ``grad`` of each is replaced; None where the loss does not depend on it.
        samples: how many the loss is a sum over.
        loss: gives what the samples from a place up to another add to it, with the graph behind it.
    """

    def one(start: int, stop: int) -> tuple[float, Sequence[Tensor | None]]:
        part = loss(start, stop)
        if not part.requires_grad:
            return float(part), [None] * len(leaves)
        return float(part.detach()), torch.autograd.grad(part, leaves, allow_unused=True)

    total = 0.0
    for leaf in leaves:
        leaf.grad = None
    for value, slopes in batch.parts(samples, one):
        total += value
        for leaf, slope in zip(leaves, slopes, strict=True):
            if slope is not None:
                # Behind a Transpose or Expand a gradient has strides that optimisers do not take.
                leaf.grad = slope.contiguous() if leaf.grad is None else leaf.grad.add_(slope)
    return total
