"""Store: values in fewer bits, rounded so that d notices least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from onnxpress import feedback
from onnxpress.cost import MACS_PER_UNIT
from onnxpress.curvature import gauss_newton
from onnxpress.layerwise import hessians_of
from onnxpress.objective import Objective, objective_of
from onnxpress.storage import Rounding, rounding, scaled
from onnxpress_adapters.layers import Layer
from onnxpress_adapters.weights import Dense, WeightKey
from onnxpress_exporters.grids import palette_for, scaled_for
from onnxpress_exporters.values import Half, Plain, Scaled, Storage, code_bytes, table_bytes

if TYPE_CHECKING:
    from onnxpress.problem import Problem
    from onnxpress.state import State

DRAWS = 8
"""Backward passes behind the importance of entries that no layer's Hessian speaks of."""

FEEDBACK_UNITS = 6.0
"""Work that may go into feedback; the widest layers beyond it are rounded entry by entry."""

Values = Literal["fp32", "fp16", "int8", "int6", "int5", "int4", "palette"]


@dataclass(frozen=True)
class Store:
    """Choose how the values of the free weights are stored, and round them to it.

    Scales and codebooks minimise the squared error weighted by what each entry's input is worth to
    its layer. Then the rounding errors of a row are made to cancel (``feedback.fed_back``). Later
    steps, a repair above all, see the values as the file will hold them. Weights that are no
    float32 or float64 in the file, and those that would not become smaller, stay as they are.
    Supports do not change; what is rounded to zero is a zero all the same.

    Attributes:
        values: ``int8`` with a scale per weight, or per channel where that pays; the same in fewer
            bits, ``int6`` to ``int4``; ``fp16``; ``palette``, a codebook for each weight; ``fp32``,
            which undoes an earlier choice but not its rounding.
        entries: of each codebook, at most; more only where a weight has few values anyway.
        feedback: whether errors are made to cancel.

    Source:
        Han, Mao & Dally 2016 (codebooks by k-means); Frantar et al. 2022 (feedback).
    """

    values: Values = "int8"
    entries: Literal[16, 256] = 16
    feedback: bool = True

    def __call__(self, state: State, problem: Problem, /) -> State:
        """Choose and round; supports stay as they are."""
        constants = problem.network.program.constants
        keys = [k for k in sorted(state.free) if constants[k].dtype.name in ("float32", "float64")]
        if self.values == "fp32":
            return state.stored_as({key: Plain() for key in keys if key in state.storage})
        objective = objective_of(problem)
        before = objective.measure_choose(state.tensors).value
        hessians = self._hessians(objective, state, keys)
        importance = self._importance(objective, state, keys, hessians)
        chosen: dict[WeightKey, Storage] = {}
        for key in keys:
            found = self._chosen(state.weights[key], importance.get(key))
            if _saved(state.weights[key], found, constants[key].itemsize) > 0:
                chosen[key] = found
        changed = _rounded(objective, state, chosen, hessians if self.feedback else {})
        after = state.with_weights(changed).stored_as(chosen)
        loss = objective.measure_choose(after.tensors).value
        codes = sum(code_bytes(_kept(after.weights[key]), 0, chosen[key]) for key in chosen)
        tables = sum(map(table_bytes, chosen.values()))
        return after.noted(
            f"{self}: d {before:.3g} -> {loss:.3g} on choose; the nonzeros of {len(chosen)} of "
            f"{len(keys)} weights take {codes:,} bytes, and {tables:,} for scales and codebooks"
        )

    def _hessians(
        self, objective: Objective, state: State, keys: list[WeightKey]
    ) -> dict[WeightKey, Tensor]:
        """Average X Xᵀ over the inputs the state makes; halves are close enough without."""
        if self.values == "fp16":
            return {}
        return hessians_of(objective, frozenset(keys), state.tensors)

    def _importance(
        self,
        objective: Objective,
        state: State,
        keys: list[WeightKey],
        hessians: Mapping[WeightKey, Tensor],
    ) -> dict[WeightKey, Tensor]:
        """Say what a squared error of each entry is worth, in the shape of the weight."""
        if self.values == "fp16":
            return {}
        layers = {layer.key: layer for layer in objective.problem.network.layers}
        found = {}
        for key, hessian in hessians.items():
            layer = layers[key]
            each = hessian.diagonal(dim1=1, dim2=2)[:, None]
            found[key] = layer.entries(each.expand(layer.groups, layer.rows, layer.columns))
        unseen = [key for key in keys if key not in hessians]
        if unseen:
            generator = objective.problem.generator("store")
            found |= gauss_newton(objective, state.tensors, unseen, DRAWS, generator)
        return found

    def _chosen(self, form: Dense, importance: Tensor | None) -> Storage:
        if importance is None:
            return Half()
        values, worth = form.values.cpu().numpy(), importance.cpu().numpy()
        if self.values != "palette":
            return scaled_for(values, worth, int(self.values.removeprefix("int")))
        # In the file a zero is a place of its own.
        return palette_for(values, worth, self.entries - 1)


def _kept(form: Dense) -> int:
    return int(form.values.count_nonzero())


def _saved(form: Dense, storage: Storage, itemsize: int) -> int:
    """Count the bytes a storage saves on the nonzeros of a weight."""
    kept = _kept(form)
    return kept * itemsize - code_bytes(kept, itemsize, storage) - table_bytes(storage)


def _rounded(
    objective: Objective,
    state: State,
    chosen: Mapping[WeightKey, Storage],
    hessians: Mapping[WeightKey, Tensor],
) -> dict[WeightKey, Dense]:
    """Round weights, with feedback where a Hessian is given and the work allows it."""
    layers = {layer.key: layer for layer in objective.problem.network.layers}
    price = {
        key: feedback.work(layers[key].groups, layers[key].rows, layers[key].columns)
        for key in chosen
        if key in hessians
    }
    budget = objective.cost.effort * FEEDBACK_UNITS * MACS_PER_UNIT
    found = {}
    for key in sorted(chosen, key=lambda key: (price.get(key, 0.0), key)):
        form, nearest = state.weights[key], rounding(chosen[key], objective.problem.device)
        values = form.values
        budget -= price.get(key, 0.0)
        if key in price and budget >= 0:
            values = _fed_back(layers[key], hessians[key], form, chosen[key])
        # Once more in the shape of the file, so that the bits are those of the file.
        found[key] = Dense(torch.where(form.support, nearest(values), 0.0), form.support)
    return found


def _fed_back(layer: Layer, hessian: Tensor, form: Dense, storage: Storage) -> Tensor:
    device = form.values.device
    if isinstance(storage, Scaled) and storage.scales.size > 1:
        each = torch.tensor(storage.scales, dtype=torch.float32, device=device)
        laid = layer.matrix(each.expand(form.values.shape))
        nearest = partial(_by_place, laid, storage.most)
    else:
        nearest = partial(_anywhere, rounding(storage, device))
    matrix, support = layer.matrix(form.values), layer.matrix(form.support)
    return layer.weight(feedback.fed_back(matrix, hessian, support, nearest)).contiguous()


def _by_place(scales: Tensor, most: int, values: Tensor, columns: slice) -> Tensor:
    return scaled(scales[:, :, columns], most)(values)


def _anywhere(nearest: Rounding, values: Tensor, columns: slice) -> Tensor:
    del columns
    return nearest(values)
