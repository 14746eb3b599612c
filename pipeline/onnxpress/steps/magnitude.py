"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from onnxpress.closeness import closeness
from onnxpress.objective import objective_of
from onnxpress.pattern import Pattern
from onnxpress.step import target_count
from onnxpress.support import cut, keep_largest, keep_patterned, unpatterned
from onnxpress_adapters.errors import MisuseError, StepError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxpress.problem import Problem
    from onnxpress.state import State


@dataclass(frozen=True)
class Magnitude:
    """Zero the entries of smallest magnitude.

    The theorem says that a network of random weights pruned by it is ε-close to the original with a
    probability that grows with its widths; with the widths there are, it says next to nothing
    (FACTS section 5). So what came of it is measured: the log has the density of every layer, and
    how far the outputs move over the unit ball, at least and at most (``closeness.py``).

    Attributes:
        sparsity: share of zeros over the free weights, 0 to 1; None for a search to find.
        scope: ``layer`` prunes every weight to the same sparsity, ``global`` compares magnitudes
            over all weights, each divided by its root mean square so that a scale does not decide;
            ``theorem`` zeroes the smallest ⌊D^(1-alpha)⌋ entries of a weight with D of them, so
            that large layers lose a smaller share than small ones.
        alpha: for the theorem, between 0 and 1; None to follow from the sparsity.
        pattern: what may stay together: ``none``, ``2:4``, ``block:4x8``,
            ``rows:32``, ``even:32`` (``Pattern.parse``).

    Source:
        seeds/magnitude_pruning_review.md, "The Main Result": the smallest entries of each weight
        matrix are set to zero; Theorem 1 (Qian & Klabjan 2021) for how many of them. The review
        goes on that alpha makes the compression ratio D^(-alpha): that is the share that leaves,
        and the density is what remains of 1.
    """

    sparsity: float | None = None
    scope: Literal["layer", "global", "theorem"] = "layer"
    pattern: str = "none"
    alpha: float | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        free = Pattern.parse(self.pattern).is_free
        if self.alpha is not None and self.scope != "theorem":
            raise MisuseError("alpha is the theorem's; add `scope: theorem` or leave alpha out")
        if self.alpha is not None and self.sparsity is not None:
            raise MisuseError("alpha says how much leaves, and so does a sparsity; give one")
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise MisuseError(f"alpha lies between 0 and 1, not at {self.alpha:g}")
        if self.scope == "theorem" and not free:
            raise MisuseError(
                f"the theorem prunes single entries, which do not keep to '{self.pattern}'; leave "
                "out the pattern or take another scope"
            )

    @property
    def is_bounded(self) -> bool:
        """Whether alpha says how far to go."""
        return self.alpha is not None

    def at(self, sparsity: float) -> Magnitude:
        """Give the same step with its sparsity fixed."""
        return replace(self, sparsity=sparsity)

    def following(self, pattern: str) -> Magnitude:
        """Give the same step with its pattern set."""
        return replace(self, pattern=pattern)

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Prune; values that stay are not changed, and nothing pruned returns."""
        if self.scope == "theorem":
            return self._by_the_theorem(state, problem)
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

    def _by_the_theorem(self, state: State, problem: Problem) -> State:
        """Prune so many entries of each weight as the theorem says, and measure what it cost."""
        free = {key: state.weights[key] for key in sorted(state.free)}
        sizes = [form.values.numel() for form in free.values()]
        alpha = self.alpha
        if alpha is None:
            if self.sparsity is None:
                raise StepError(
                    f"{self} has neither alpha nor a sparsity: give it one, or put it in a search"
                )
            alpha = alpha_for(sizes, sum(sizes) - target_count(state, self.sparsity))
        counts = [0] * len(sizes) if alpha is None else theorem_counts(sizes, alpha)
        state = state.with_weights(
            {
                key: cut(form.values, keep_largest(form.values.abs(), size - count) & form.support)
                for (key, form), size, count in zip(free.items(), sizes, counts, strict=True)
            }
        )
        named = f"alpha {alpha:.4g}" if alpha is not None else "nothing to prune"
        shares = ", ".join(f"{key} {density(state.weights[key].support):.4g}" for key in free)
        state = state.noted(f"theorem, {named}: densities {shares}")
        close = closeness(objective_of(problem), state.tensors, problem.generator("closeness"))
        return state.noted(f"theorem: {close}")


def theorem_counts(sizes: Sequence[int], alpha: float) -> list[int]:
    """Give how many entries of each weight the theorem prunes: ⌊D^(1-alpha)⌋ of D.

    Args:
        sizes: entries of each weight.
        alpha: 0 to 1.

    Source:
        seeds/magnitude_pruning_review.md, Theorem 1.

    >>> theorem_counts([65536, 256], 1 / 16)
    [32768, 181]
    """
    return [floor(size ** (1 - alpha) + 1e-9) for size in sizes]


def alpha_for(sizes: Sequence[int], removed: int) -> float | None:
    """Give the largest alpha by which the theorem prunes so many entries; None to prune none.

    Args:
        sizes: entries of each weight.
        removed: over all of them, at most their sum.

    >>> alpha = alpha_for([65536, 256], 32949)
    >>> round(alpha, 4), sum(theorem_counts([65536, 256], alpha))
    (0.0625, 32949)
    """
    if removed <= 0:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        enough = sum(theorem_counts(sizes, middle)) >= removed
        low, high = (middle, high) if enough else (low, middle)
    return low


def density(support: Tensor) -> float:
    """Give the share of entries that stay, the review's compression ratio γ = ‖vec(W)‖₀ / D.

    Its example keeps four of six entries, so that the share is 2/3; the 3/6 it states is a slip, in
    the count of the nonzeros.

    Source:
        seeds/magnitude_pruning_review.md, "Intuition Behind the Objects", the toy example.

    >>> import torch
    >>> weight = torch.tensor([[1.0, 2.0], [4.0, 5.0], [7.0, 8.0]])
    >>> mask = torch.tensor([[True, True], [False, True], [True, False]])
    >>> cut(weight, mask).values @ torch.tensor([1.0, 10.0])  # x1 + 2 x2, 5 x2, 7 x1
    tensor([21., 50.,  7.])
    >>> round(density(mask), 3)
    0.667
    """
    return float(support.double().mean())
