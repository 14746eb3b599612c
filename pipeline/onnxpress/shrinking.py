"""Units nothing reads any more leave the file: what the exporter needs to know for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor

from onnxpress.step import Step, inside
from onnxpress.steps.l0 import L0
from onnxpress.steps.units import Units, alive_units, read_by
from onnxpress_adapters.groups_find import find_groups
from onnxpress_adapters.network import import_network
from onnxpress_adapters.walk import constants
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.merge import merge
from onnxpress_exporters.shrink import Subject, shrink
from onnxpress_exporters.values import Scaled, Storage

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxpress.problem import Problem
    from onnxpress_adapters.groups import Groups

Changed = Mapping[WeightKey, np.ndarray]


@dataclass(frozen=True, eq=False)
class Slim:
    """A model to patch, and what to put into it.

    Attributes:
        model: the original, or one without the units that left.
        changed: new values of constants, in the shapes they have there.
        storage: how these are stored.
        notes: what a reader should know.
    """

    model: ModelProto
    changed: Changed
    storage: Mapping[WeightKey, Storage]
    notes: tuple[str, ...] = ()


def wants_groups(step: Step) -> bool:
    """Say whether a step, or one inside it, removes units."""
    return any(
        isinstance(each, Units) or (isinstance(each, L0) and each.gates == "unit")
        for each in inside(step)
    )


def with_groups(problem: Problem, model: ModelProto) -> Problem:
    """Give a problem that knows which units leave together."""
    sample = [value[0] for value in problem.fit]
    return replace(problem, groups=find_groups(model, problem.network, problem.reference, sample))


def subject_of(model: ModelProto, problem: Problem) -> Subject | None:
    """Give what the exporter needs to take units out; None where the problem knows of none."""
    if problem.groups is None:
        return None
    reference = {key: value.cpu() for key, value in problem.reference.items()}
    sample = [value[0].cpu() for value in problem.fit]
    return Subject(model, problem.network, reference, problem.groups, sample)


def imported(model: ModelProto, arrays: Mapping[str, np.ndarray], *, tables: bool) -> Subject:
    """Import a model anew to take units out of it.

    Args:
        model: as ``read_model`` gives it.
        arrays: by input ``[samples, *feed shape]``.
        tables: whether the tables of Gather count as prunable weights.
    """
    network, reference = import_network(model, tables=tables)
    sample = [torch.from_numpy(arrays[spec.name][0]) for spec in network.inputs]
    groups = find_groups(model, network, reference, sample)
    return Subject(model, network, reference, groups, sample)


def slimmed(
    subject: Subject,
    supports: Mapping[WeightKey, Tensor],
    changed: Changed,
    storage: Mapping[WeightKey, Storage],
) -> Slim:
    """Take the units that nothing reads any more out of a model.

    Args:
        subject: the original; untouched.
        supports: of the free weights, bool in their shapes: what is read.
        changed: new values of the constants, in the shapes of the original.
        storage: how they are stored.

    Raises:
        ExportError: the result would be unsound.
    """
    groups = subject.groups
    gone = _dead(groups, supports)
    if not gone.any():
        return Slim(subject.model, changed, storage)
    values = {**subject.network.program.constants, **changed}
    # Nothing reads them: what they say does not matter, and of nothing but zeros nothing is left.
    whole = {**changed, **groups.masked(values, gone)}
    found = shrink(subject, whole, gone)
    held = {
        WeightKey((), name): numpy_helper.to_array(tensor)
        for name, tensor in constants(found.model.graph)
    }
    kept = {key: held.get(key, array) for key, array in changed.items()}
    cut = {key: _cut(each, key, groups, found.removed) for key, each in storage.items()}
    left, units = groups.units - int(found.removed.sum()), groups.units
    note = f"{left:,} of {units:,} units are left; the others are no longer in the file"
    return Slim(found.model, kept, cut, (note,))


def merged(slim: Slim, *, sparse: bool, freeze: bool) -> Slim:
    """Let products with nothing between them be one, where that is less to multiply.

    Args:
        slim: what would be written; its weights are floating-point ones.
        sparse: whether only nonzeros are multiplied with, as by gathered weights.
        freeze: whether no constant stays one that a caller may set.
    """
    found = merge(slim.model, slim.changed, sparse=sparse, freeze=freeze)
    if not found.count:
        return slim
    many = "1 product has" if found.count == 1 else f"{found.count} products have"
    note = f"{many} become one with the next, as there is nothing between the two"
    return Slim(found.model, found.changed, slim.storage, (*slim.notes, note))


def _dead(groups: Groups, supports: Mapping[WeightKey, Tensor]) -> np.ndarray:
    """Say which units nothing reads any more; one of each group stays."""
    gone = np.zeros(groups.units, bool)
    for group in read_by(groups, supports.keys()):
        dead = ~alive_units(group, supports).numpy()
        dead[0] &= not dead.all()
        gone[group.first : group.first + group.units] = dead
    return gone


def _cut(storage: Storage, key: WeightKey, groups: Groups, gone: np.ndarray) -> Storage:
    """Leave out the scales of channels that left."""
    if key.path or not isinstance(storage, Scaled) or storage.scales.size == 1:
        return storage
    places = groups.places(key.name, gone) or ()
    scales = storage.scales
    for axis, leaving in enumerate(places):
        if scales.shape[axis] > 1:
            scales = scales.compress(~leaving, axis)
    return replace(storage, scales=scales)
