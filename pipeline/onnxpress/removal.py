"""Taking entries out of weights, and letting the rest of each layer make up for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from onnxpress import obs
from onnxpress.layerwise import REFIT_ROUNDS, hessians_of
from onnxpress.storage import stored
from onnxpress.support import cut

if TYPE_CHECKING:
    from onnxpress.objective import Objective
    from onnxpress.state import State
    from onnxpress_adapters.layers import Layer
    from onnxpress_adapters.weights import WeightKey


def without(
    state: State, objective: Objective, taken: Mapping[WeightKey, Tensor], *, adapt: bool = True
) -> State:
    """Give the state without some entries, the layers adapted to the loss, as a file can hold it.

    Args:
        state: pruned or not.
        objective: the problem's.
        taken: free weights to bool masks in their shapes, the entries that leave.
        adapt: whether the rest of a layer makes up for them, as far as it can on what the original
            network sends it.
    """
    hessians = first_hessians(objective, state) if adapt else {}
    layers = layers_by_key(objective)
    changed = {}
    for key, gone in taken.items():
        form = state.weights[key]
        support = form.support & ~gone
        if key in hessians and bool(gone.any()):
            layer = layers[key]
            matrix = layer.matrix(form.values)
            fitted = obs.refit(matrix, hessians[key], layer.matrix(support), matrix, REFIT_ROUNDS)
            changed[key] = cut(layer.weight(fitted).contiguous(), support)
        else:
            changed[key] = cut(form.values, support)
    return stored(state.with_weights(changed), state, objective.problem)


def first_hessians(objective: Objective, state: State) -> dict[WeightKey, Tensor]:
    """Give the layers' Hessians on the original network's activations; computed once."""
    memo = objective.problem.memo
    known = memo.get(("hessians", state.free))
    if isinstance(known, dict):
        return known
    found = hessians_of(objective, state.free, {})
    memo[("hessians", state.free)] = found
    return found


def layers_by_key(objective: Objective) -> dict[WeightKey, Layer]:
    """Give the matrix views of the network's weights."""
    return {layer.key: layer for layer in objective.problem.network.layers}
