"""What a weight is called and what it can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxpress_adapters.errors import StepError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, order=True)
class WeightKey:
    """Where a constant stands in an ONNX file.

    ``path`` leads to the subgraph that holds it, one entry per level and ``()`` for the main graph:
    each entry is ``"<node name or operator>[<place of the node in its graph>].<attribute>"``.
    ``name`` is the exact ONNX name: of an initializer, or of a Constant node's output.

    >>> str(WeightKey((), "conv1.weight"))
    'conv1.weight'
    >>> str(WeightKey(("If_3[12].then_branch",), "w"))
    'If_3[12].then_branch/w'
    """

    path: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        """Write the path and the name, parted by slashes."""
        return "/".join((*self.path, self.name))


@dataclass(frozen=True, eq=False)
class Dense:
    """A weight as a dense tensor and the entries of it that may differ from zero.

    Attributes:
        values: real ``[...]`` in the shape of the ONNX constant, any device; exactly ``0.0``
            wherever ``support`` is False.
        support: bool ``[...]``, same shape and device.
    """

    values: Tensor
    support: Tensor

    def __post_init__(self) -> None:
        """Refuse a support of another shape, the one mistake broadcasting would hide."""
        if self.values.shape != self.support.shape:
            raise StepError(
                f"a support of shape {list(self.support.shape)} does not fit "
                f"values of shape {list(self.values.shape)}"
            )

    @property
    def nonzeros(self) -> int:
        """How many entries the support keeps."""
        return int(self.support.sum())
