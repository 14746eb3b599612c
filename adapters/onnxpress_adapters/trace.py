"""What a run of the graph can be asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]

Value = Tensor | Array
"""A tensor of the device lane or an array of the host lane."""

Site = tuple[tuple[str, ...], int, int]
"""An input of a node: path of its graph, place of the node, place of the input."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What one run gave.

    Attributes:
        outputs: one per graph output.
        watched: one per watched site; None where the node did not run (a branch not taken).
        sizes: elements of the first output of every node that ran on the device, by the path of
            its graph and its place there.
    """

    outputs: tuple[Tensor, ...]
    watched: tuple[Tensor | None, ...]
    sizes: Mapping[tuple[tuple[str, ...], int], int] = field(default_factory=dict)
