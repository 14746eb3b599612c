"""What a model takes and what it gives: names, shapes and types of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import TensorProto, helper

from onnxpress_adapters.errors import AdapterError, BrokenModelError

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

Kind = Literal["float", "integer", "bool", "other"]


@dataclass(frozen=True)
class ValueSpec:
    """One tensor at the border of a model.

    Attributes:
        name: the exact ONNX name.
        shape: one entry per dimension, None where the model leaves it open.
        dtype: numpy's; bfloat16 and the small floats are those of ml_dtypes, strings are object.
        symbols: what the model calls its open dimensions (``dim_param``), None where it has no word
            for one; as long as ``shape``, or empty.
        ranked: False where the model says nothing about the shape, not even how many dimensions
            there are; ``shape`` is ``()`` then.
        holds: ``"tensor"``, or for an output also ``"sequence"``, ``"map"``, ``"optional"``,
            ``"sparse tensor"``, ``"opaque"``; its type is object then.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    symbols: tuple[str | None, ...] = ()
    ranked: bool = True
    holds: str = "tensor"

    @property
    def kind(self) -> Kind:
        """Whether it holds real numbers, whole numbers, truth values, or none of these."""
        return kind(self.dtype)

    def describe(self) -> str:
        """Say it in one line, for messages.

        >>> import numpy as np
        >>> InputSpec("x", (None, 3, None), np.dtype("float32"), ("batch", None, None)).describe()
        'x float32[batch,3,?]'
        """
        if self.holds != "tensor":
            return f"{self.name} {self.holds}"
        words = "string" if self.dtype.kind == "O" else self.dtype.name
        if not self.ranked:
            return f"{self.name} {words} of any shape"
        symbols = self.symbols or (None,) * len(self.shape)
        dims = (
            (symbol or "?") if dim is None else str(dim)
            for dim, symbol in zip(self.shape, symbols, strict=True)
        )
        return f"{self.name} {words}[{','.join(dims)}]"


@dataclass(frozen=True)
class InputSpec(ValueSpec):
    """An input of a model."""


@dataclass(frozen=True)
class OutputSpec(ValueSpec):
    """An output of a model."""


def specs(model: ModelProto) -> tuple[tuple[InputSpec, ...], tuple[OutputSpec, ...]]:
    """Read what a model takes and gives, in the order of the file.

    An initializer that the file lists among its graph inputs (IR version 3 and older do) is a
    weight, not an input.

    Raises:
        BrokenModelError: an input or output has no type.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    inputs = tuple(
        InputSpec(*_read(value, "input")) for value in graph.input if value.name not in constants
    )
    return inputs, tuple(OutputSpec(*_read(value, "output")) for value in graph.output)


def check_plain(inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]) -> None:
    """Refuse a model whose inputs or outputs are not all tensors.

    Raises:
        AdapterError: names those that are sequences, maps, optionals or sparse tensors.
    """
    for role, border in (("input", inputs), ("output", outputs)):
        odd = [f"'{spec.name}' is a {spec.holds}" for spec in border if spec.holds != "tensor"]
        if odd:
            raise AdapterError(
                f"{role} {', '.join(odd)}; onnxpress presses models whose inputs and outputs are "
                "plain tensors, so export the model without it"
            )


def batched_first(spec: ValueSpec) -> bool:
    """Whether the first dimension is a batch of one or open, so that a sample may leave it out."""
    return spec.ranked and spec.shape[:1] in ((1,), (None,))


def kind(dtype: np.dtype[Any]) -> Kind:
    """Sort a numpy type by what its values are; the types of ml_dtypes are known by their names.

    >>> import numpy as np
    >>> kind(np.dtype("uint8"))
    'integer'
    """
    name = dtype.name
    if name.startswith(("float", "bfloat")):
        return "float"
    if name.startswith(("int", "uint")):
        return "integer"
    return "bool" if name == "bool" else "other"


def whole_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Give the least and the greatest value of a type of whole numbers, or of bool.

    >>> import numpy as np
    >>> whole_range(np.dtype("int8")), whole_range(np.dtype("bool"))
    ((-128, 127), (0, 1))
    """
    if kind(dtype) == "bool":
        return 0, 1
    bits = int(dtype.name.lstrip("uint"))
    return (0, 2**bits - 1) if dtype.name[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _read(
    value: ValueInfoProto, role: str
) -> tuple[str, tuple[int | None, ...], np.dtype[Any], tuple[str | None, ...], bool, str]:
    """Give the fields of a spec, in their order."""
    held = value.type.WhichOneof("value")
    if held is not None and held != "tensor_type":
        word = held.removesuffix("_type").replace("_", " ")
        return value.name, (), np.dtype(object), (), False, word
    tensor = value.type.tensor_type
    if held is None or tensor.elem_type == TensorProto.UNDEFINED:
        raise BrokenModelError(f"{role} '{value.name}' has no type; export the model again")
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except KeyError:
        raise BrokenModelError(
            f"{role} '{value.name}' has an element type ({tensor.elem_type}) that ONNX does not "
            "define; export the model again"
        ) from None
    dims = tensor.shape.dim
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)
    symbols = tuple(dim.dim_param or None for dim in dims)
    return value.name, shape, dtype, symbols, tensor.HasField("shape"), "tensor"
