"""Two models side by side: their zeros, their bytes, and a row per prunable weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from onnx import numpy_helper

from onnxpress.sizes import FileSize, Sizes
from onnxpress.weight_bytes import WeightBytes, weight_bytes
from onnxpress_adapters.prunable import Prunable, count_zeros, prunable
from onnxpress_exporters.densify import densify
from onnxpress_exporters.external_data import room

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from onnxpress_adapters.weights import WeightKey
    from onnxpress_exporters.values import Storage
    from onnxpress_exporters.write import Patched


@dataclass(frozen=True)
class LayerRow:
    """One prunable weight, before and after.

    Attributes:
        name: the weight's key.
        operator: of the first node that uses it.
        shape: in the file.
        elements: how many entries it has.
        zeros_before: in the original.
        zeros_after: in the pressed model, what left with its unit included.
        form: how it is written: ``"dense"``, ``"sparse"``, or ``"packed: "`` and how; empty where
            that is not known; and the shape that is left where units left.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    elements: int
    zeros_before: int
    zeros_after: int
    form: str = ""


class Outcome(NamedTuple):
    """What patching made of a model: fields of ``Report``."""

    sparsity: float
    original_sparsity: float
    sizes: Sizes
    layers: tuple[LayerRow, ...]
    weight_bytes: tuple[WeightBytes, WeightBytes]


def weigh(
    path: Path,
    original: ModelProto,
    patched: Patched,
    storage: Mapping[WeightKey, Storage],
    target: Path,
    *,
    tables: bool = False,
) -> Outcome:
    """Count the zeros and bytes of a model and of what was made of it.

    Args:
        path: of the original.
        original: as ``read_model`` gives it.
        patched: with other constants.
        storage: how their values were rounded.
        target: where the patched one would be written.
        tables: whether the tables of Gather count as prunable.
    """
    plain = densify(patched.model)
    zeros, elements = count_zeros(plain, tables=tables)
    zeros_before, elements_before = count_zeros(original, tables=tables)
    zeros += elements_before - elements  # what left with its unit
    return Outcome(
        zeros / elements_before if elements_before else 0.0,
        zeros_before / elements_before if elements_before else 0.0,
        Sizes(FileSize.of(path), FileSize.of_written(patched.model, target, room(path))),
        layer_rows(original, plain, patched.forms, tables=tables),
        (
            weight_bytes(original, tables=tables),
            weight_bytes(plain, storage, tables=tables),
        ),
    )


def layer_rows(
    original: ModelProto,
    pressed: ModelProto,
    forms: Mapping[WeightKey, str] | None = None,
    *,
    tables: bool = False,
) -> tuple[LayerRow, ...]:
    """Set the prunable weights of two models side by side.

    Args:
        original: dense.
        pressed: dense, with other values in the same weights; units may have left it. A weight only
            one of the two has is left out.
        forms: how each weight is written, where that is known.
        tables: whether the tables of Gather count as prunable.
    """
    after = {weight.key: weight for weight in prunable(pressed, tables=tables)}
    return tuple(
        LayerRow(
            name=str(weight.key),
            operator=weight.uses[0].node.op_type,
            shape=tuple(weight.tensor.dims),
            elements=weight.elements,
            zeros_before=_zeros(weight),
            zeros_after=weight.elements - _kept(after[weight.key]),
            form=_form(weight, after[weight.key], (forms or {}).get(weight.key, "")),
        )
        for weight in prunable(original, tables=tables)
        if weight.key in after and _is_part(after[weight.key].tensor.dims, weight.tensor.dims)
    )


def _is_part(small: Sequence[int], large: Sequence[int]) -> bool:
    """Whether a tensor may be what is left of another one."""
    return len(small) == len(large) and all(a <= b for a, b in zip(small, large, strict=True))


def _kept(weight: Prunable) -> int:
    return int((numpy_helper.to_array(weight.tensor) != 0).sum())


def _form(old: Prunable, new: Prunable, form: str) -> str:
    """Say how a weight is written, and what is left of its shape where units left."""
    if old.tensor.dims == new.tensor.dims:
        return form
    return f"{form} as {'x'.join(map(str, new.tensor.dims))}".strip()


def _zeros(weight: Prunable) -> int:
    return int((numpy_helper.to_array(weight.tensor) == 0).sum())
