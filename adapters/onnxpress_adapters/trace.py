"""What a run of the graph can be asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

Value = Tensor | Array | list[Any] | dict[Any, Any]
"""A tensor of the device lane, an array of the host lane, a sequence or a map of such."""

Site = tuple[tuple[str, ...], int, int]
"""Where a weight is used: path of the node's graph, place of the node, slot of the weight in it."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What one run gave.

    Attributes:
        outputs: one per graph output: a tensor; a list, a dict or None where the model says so, and
            a numpy array where it holds strings.
        watched: one per watched site: what the weight there met, one tensor per call of the node
            (several in a loop, none in a branch not taken). Calls that met tensors of one shape
            may come stacked along a new first dimension.
        sizes: elements of the first output of every node that ran on the device, over all its
            calls, by the path of its graph and its place there.
        steps: how many nodes ran on the device, a node once per call.
    """

    outputs: tuple[Tensor, ...]
    watched: tuple[tuple[Tensor, ...], ...]
    sizes: Mapping[tuple[tuple[str, ...], int], int] = field(default_factory=dict)
    steps: int = 0


def stacked(calls: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Stack what calls met, shape by shape; a single one stays as it is."""
    shapes: dict[tuple[int, ...], list[Tensor]] = {}
    for call in calls:
        shapes.setdefault(tuple(call.shape), []).append(call)
    return tuple(torch.stack(alike) if len(alike) > 1 else alike[0] for alike in shapes.values())
