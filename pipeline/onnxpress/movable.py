"""The tensors a descent moves with the supports held: values, biases and norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onnxpress.storage import Rounding, roundings, through
from onnxpress_adapters.weights import Dense, WeightKey

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

LEAST_SCALE = 0.01
"""What a tensor of zeros counts as, where the length of a step is a share of a tensor's size."""


@dataclass(frozen=True, eq=False)
class Movable:
    """Where a descent stands.

    Attributes:
        leaves: what moves: the free weights, and biases and norms if they are free too.
        supports: of the free weights, bool in their shapes.
    """

    leaves: dict[WeightKey, Tensor]
    supports: dict[WeightKey, Tensor]
    masks: dict[WeightKey, Tensor]
    fixed: dict[WeightKey, Tensor]
    roundings: Mapping[WeightKey, Rounding]

    @classmethod
    def of(cls, state: State, problem: Problem, *, extras: bool) -> Movable:
        """Begin at a state; its tensors are copied."""
        free = {key: state.weights[key] for key in sorted(state.free)}
        leaves = {
            key: torch.where(form.support, form.values.detach(), 0.0) for key, form in free.items()
        }
        if extras:
            leaves.update({k: v.detach().clone() for k, v in sorted(state.extras.items())})
        for leaf in leaves.values():
            leaf.requires_grad_()
        fixed = {key: value for key, value in state.tensors.items() if key not in leaves}
        supports = {key: form.support for key, form in free.items()}
        masks = {key: support.to(leaves[key].dtype) for key, support in supports.items()}
        return cls(leaves, supports, masks, fixed, roundings(state, problem))

    @property
    def size(self) -> int:
        """Entries that may move, to give each descent of a run its own random stream."""
        return sum(int(support.sum()) for support in self.supports.values())

    def tensors(self, given: Mapping[WeightKey, Tensor] | None = None) -> dict[WeightKey, Tensor]:
        """Everything to lay over the reference, as the file will hold it."""
        moved = given or self.leaves
        rounded = {
            key: through(value, self.roundings[key])
            for key, value in moved.items()
            if key in self.roundings
        }
        return {**self.fixed, **moved, **rounded}

    def pin(self, leaves: Sequence[Tensor]) -> None:
        """Keep the zeros still: no gradient off the supports, so that no step moves them.

        Cheaper than to mask the values before every pass. Entries whose derivative is not finite
        stay as well: one step along it, and nothing of the network would be left.
        """
        for key, leaf in zip(self.leaves, leaves, strict=True):
            if leaf.grad is None:
                continue
            leaf.grad.nan_to_num_(0.0, 0.0, 0.0)
            if key in self.masks:
                leaf.grad.mul_(self.masks[key])

    def move(self, values: Mapping[WeightKey, Tensor]) -> None:
        """Put the leaves where they stood."""
        with torch.no_grad():
            for key, leaf in self.leaves.items():
                leaf.copy_(values[key])

    def values(self) -> dict[WeightKey, Tensor]:
        """A copy of where the leaves stand."""
        return {key: leaf.detach().clone() for key, leaf in self.leaves.items()}

    def scale(self, key: WeightKey) -> float:
        """Root mean square of the entries that may move; ``LEAST_SCALE`` for a tensor of zeros."""
        leaf = self.leaves[key].detach()
        if key in self.supports:
            leaf = leaf[self.supports[key]]
        size = float(leaf.square().mean().sqrt()) if leaf.numel() else 0.0
        return size or LEAST_SCALE

    def groups(self, rate: float) -> list[dict[str, object]]:
        """Give Adam's groups, each leaf with a first step that is a share of its tensor's size."""
        return [
            {"params": [leaf], "lr": rate * self.scale(key)} for key, leaf in self.leaves.items()
        ]

    def put(
        self,
        state: State,
        values: Mapping[WeightKey, Tensor],
        supports: Mapping[WeightKey, Tensor] | None = None,
    ) -> State:
        """Give the state with these values, on the supports it had unless others are given."""
        weights = {
            key: Dense(torch.where(support, values[key], 0.0), support)
            for key, support in (supports or self.supports).items()
        }
        extras = {key: value for key, value in values.items() if key not in self.supports}
        return state.with_weights(weights).with_extras(extras)
