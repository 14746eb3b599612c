"""Where a compression stands: a form for each weight, and what happened so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from onnxpress_adapters.errors import StepError
from onnxpress_adapters.weights import Dense, WeightKey
from onnxpress_exporters.values import Storage


@dataclass(frozen=True, eq=False)
class State:
    """One point of a compression. Steps never edit it; they return a new one.

    Tensors a step did not change are the same objects in the new state.

    Attributes:
        weights: the prunable floating-point weights, a form each.
        extras: biases, scales and shifts of norms: free in a repair, never counted as zeros.
        free: the keys of ``weights`` steps may touch.
        fixed_zeros: zeros and entries of prunable weights no step can change (integer weights of
            a quantised model): counted in every sparsity.
        log: a line per event, without tensors.
        storage: how the values of weights are stored; those it does not name, as in the original.
    """

    weights: Mapping[WeightKey, Dense]
    extras: Mapping[WeightKey, Tensor]
    free: frozenset[WeightKey]
    fixed_zeros: tuple[int, int] = (0, 0)
    log: tuple[str, ...] = ()
    storage: Mapping[WeightKey, Storage] = field(default_factory=dict)

    def with_weights(self, changed: Mapping[WeightKey, Dense]) -> State:
        """Give a state with some weights replaced; one that is equal stays the object it was.

        Raises:
            StepError: a key is not free, or not a weight of this state.
        """
        for key in changed:
            if key not in self.free or key not in self.weights:
                raise StepError(f"'{key}' is not free: a step may not change it")
        fresh = {key: form for key, form in changed.items() if not is_same(form, self.weights[key])}
        return replace(self, weights={**self.weights, **fresh})

    def with_extras(self, changed: Mapping[WeightKey, Tensor]) -> State:
        """Give a state with some biases and norms replaced; likewise."""
        known = self.extras
        fresh = {key: new for key, new in changed.items() if not torch.equal(new, known[key])}
        return replace(self, extras={**known, **fresh})

    def stored_as(self, chosen: Mapping[WeightKey, Storage]) -> State:
        """Give a state with the values of some weights stored in another way; none are rounded yet.

        Raises:
            StepError: a key is not free.
        """
        for key in chosen:
            if key not in self.free:
                raise StepError(f"'{key}' is not free: a step may not say how it is stored")
        return replace(self, storage={**self.storage, **chosen})

    def noted(self, line: str) -> State:
        """Give a state with one more line in its log."""
        return replace(self, log=(*self.log, line))

    @property
    def tensors(self) -> dict[WeightKey, Tensor]:
        """The values of weights and extras, to lay over the reference weights."""
        return {**{key: form.values for key, form in self.weights.items()}, **self.extras}

    @property
    def zeros(self) -> int:
        """Zeros over all prunable weights, those nobody may touch included."""
        held = sum(int((form.values == 0).sum()) for form in self.weights.values())
        return held + self.fixed_zeros[0]

    @property
    def elements(self) -> int:
        """Entries over all prunable weights."""
        return sum(form.values.numel() for form in self.weights.values()) + self.fixed_zeros[1]

    @property
    def kept(self) -> int:
        """Entries of the free weights that their supports keep."""
        return sum(self.weights[key].nonzeros for key in self.free)

    @property
    def sparsity(self) -> float:
        """Zeros over entries, 0 to 1."""
        return self.zeros / self.elements if self.elements else 0.0


def is_same(new: Dense, old: Dense) -> bool:
    """Say whether two forms hold the same values and keep the same entries."""
    return torch.equal(new.values, old.values) and torch.equal(new.support, old.support)
