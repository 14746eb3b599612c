"""The free weights of a state as one flat vector, and what hard thresholding keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from onnxpress.pattern import Pattern
from onnxpress.support import cut, keep_patterned
from onnxpress_adapters.layers import Layer
from onnxpress_adapters.weights import WeightKey

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress.task import Goal

Scope = Literal["global", "layer"]


@dataclass(frozen=True, eq=False)
class Space:
    """Flat points ``[n]`` over the free weights, in the order of their keys.

    Attributes:
        state: what is not free stays as it is there.
        goal: what is minimised.
        keys: of the free weights, sorted.
        root: ``[n]``: √m of the metric M. H_s keeps the largest √m |θ|; in φ = √m θ it is
            Euclidean.
        pattern: what may stay together.
        scope: whether entries of all weights compete, or each weight keeps its share.
        layers: the matrix views of the network.
    """

    state: State
    goal: Goal
    keys: tuple[WeightKey, ...]
    root: Tensor
    pattern: Pattern
    scope: Scope
    layers: Mapping[WeightKey, Layer]

    @classmethod
    def of(
        cls,
        state: State,
        problem: Problem,
        goal: Goal,
        root: Mapping[WeightKey, Tensor] | None,
        pattern: Pattern,
        scope: Scope,
    ) -> Space:
        """Lay the free weights out.

        Args:
            state: where a step begins.
            problem: of the run.
            goal: what is minimised.
            root: √m for every entry; None for the Euclidean metric.
            pattern: what may stay together.
            scope: whether all weights compete.
        """
        keys = tuple(sorted(state.free))
        layers = {layer.key: layer for layer in problem.network.layers}
        values = {key: state.weights[key].values for key in keys}
        given = {key: torch.ones_like(value) for key, value in values.items()}
        return cls(state, goal, keys, _joined(root or given, keys), pattern, scope, layers)

    @property
    def start(self) -> Tensor:
        """The values of the state."""
        return self.flat({key: self.state.weights[key].values for key in self.keys})

    def flat(self, tensors: Mapping[WeightKey, Tensor]) -> Tensor:
        """Join tensors of the free weights' shapes."""
        return _joined(tensors, self.keys)

    def split(self, point: Tensor) -> dict[WeightKey, Tensor]:
        """Give the parts of a flat vector in the shapes of the weights; views, where types agree.

        Only of numbers; ``parts`` keeps the type of what it is given.
        """
        shaped = self.parts(point)
        return {key: part.to(self.state.weights[key].values.dtype) for key, part in shaped.items()}

    def parts(self, point: Tensor) -> dict[WeightKey, Tensor]:
        """Give the parts of a flat vector in the shapes of the weights."""
        forms = {key: self.state.weights[key].values for key in self.keys}
        cuts = point.split([value.numel() for value in forms.values()])
        return {
            key: part.reshape(value.shape)
            for (key, value), part in zip(forms.items(), cuts, strict=True)
        }

    def laid(self, point: Tensor) -> dict[WeightKey, Tensor]:
        """Give all tensors of the state with the free weights at a point."""
        return {**self.state.tensors, **self.split(point)}

    def put(self, point: Tensor) -> State:
        """Give the state with the free weights at a point, and its zeros pruned."""
        return self.state.with_weights(
            {key: cut(value, value != 0) for key, value in self.split(point).items()}
        )

    def descent(self, point: Tensor) -> tuple[float, Tensor]:
        """Give the goal on the fit set and its gradient ``[n]``."""
        value, gradient = self.goal.gradient(self.laid(point), self.keys)
        return value, self.flat(gradient)

    def scaled_gradient(self, scaled: Tensor) -> Tensor:
        """Give the goal's gradient in φ, at φ."""
        return self.descent(scaled / self.root)[1] / self.root

    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Mark the ``count`` best scores ``[n]``, or fewer where the pattern wants it; bool.

        Within a weight, and over all of them, a tie goes to the lower place.
        """
        parts = self.parts(scores.square() if self.pattern.is_blocked else scores)
        if self.scope == "global":
            return self.flat(keep_patterned(parts, count, self.pattern, self.layers))
        share = count / max(1, scores.numel())
        kept: dict[WeightKey, Tensor] = {}
        for key, part in parts.items():
            some = int(share * part.numel() + 1e-9)
            kept |= keep_patterned({key: part}, some, self.pattern, self.layers)
        return self.flat(kept)

    def project(self, point: Tensor, count: int) -> Tensor:
        """Apply H_s in the metric."""
        kept = self.keep((point * self.root).abs(), count)
        return torch.where(kept, point, torch.zeros_like(point))

    def initial_bound(self) -> Tensor:
        """Give half the width of the uniform distribution each entry is initialised from, ``[n]``.

        1 / √inputs, as linear and convolutional layers of torch begin; a weight without a matrix
        view keeps its own spread.
        """
        bounds = {}
        for key in self.keys:
            value = self.state.weights[key].values
            if key in self.layers:
                bound = self.layers[key].columns ** -0.5
            else:
                bound = 3**0.5 * float(value.double().square().mean().sqrt())
            bounds[key] = torch.full_like(value, bound)
        return self.flat(bounds)


def _joined(tensors: Mapping[WeightKey, Tensor], keys: tuple[WeightKey, ...]) -> Tensor:
    return torch.cat([tensors[key].detach().reshape(-1) for key in keys] or [torch.zeros(0)])
