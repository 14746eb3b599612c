"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onnxpress.pattern import Pattern
from onnxpress.step import target_count
from onnxpress.support import cut, keep_patterned, unpatterned
from onnxpress_adapters.errors import StepError

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State


@dataclass(frozen=True)
class Magnitude:
    """Zero the entries of smallest magnitude.

    Attributes:
        sparsity: share of zeros over the free weights, 0 to 1; None for a search to find.
        scope: ``layer`` prunes every weight to the same sparsity, ``global`` compares magnitudes
            over all weights, each divided by its root mean square so that a scale does not decide.
        pattern: what may stay together: ``none``, ``2:4``, ``block:4x8``, ``rows:32``
            (``Pattern.parse``).

    Source:
        seeds/magnitude_pruning_review.md, "The Main Result": the smallest entries of each weight
        matrix are set to zero.
    """

    sparsity: float | None = None
    scope: Literal["layer", "global"] = "layer"
    pattern: str = "none"

    def __post_init__(self) -> None:
        """Refuse a pattern that is none."""
        Pattern.parse(self.pattern)

    def at(self, sparsity: float) -> Magnitude:
        """Give the same step with its sparsity fixed."""
        return replace(self, sparsity=sparsity)

    def following(self, pattern: str) -> Magnitude:
        """Give the same step with its pattern set."""
        return replace(self, pattern=pattern)

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Prune; values that stay are not changed, and nothing pruned returns."""
        if self.sparsity is None:
            raise StepError(f"{self} has no sparsity: give it one, or put it in a search")
        count = target_count(state, self.sparsity)
        free = {key: state.weights[key] for key in sorted(state.free)}
        pattern = Pattern.parse(self.pattern)
        layers = {layer.key: layer for layer in problem.network.layers}
        if self.scope == "global":
            scores = {
                key: form.values.abs() / form.values.square().mean().sqrt().clamp_min(1e-30)
                for key, form in free.items()
            }
            supports = keep_patterned(scores, count, pattern, layers)
        else:
            share = 1 - self.sparsity
            supports = {}
            for key, form in free.items():
                kept = int(share * form.values.numel() + 1e-9)
                supports |= keep_patterned({key: form.values.abs()}, kept, pattern, layers)
        state = state.with_weights(
            {key: cut(form.values, supports[key] & form.support) for key, form in free.items()}
        )
        note = unpatterned(free, pattern, layers)
        return state.noted(note) if note else state
