"""Run one ONNX node through its converter; and the node cases that ship with onnx."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor

from onnxpress_adapters import node as nodes
from onnxpress_adapters.ops import load
from onnxpress_adapters.ops.dtypes import to_tensor

with warnings.catch_warnings():
    # Importing the cases computes all of them, overflows and divisions by zero included.
    warnings.simplefilter("ignore")
    from onnx.backend.test.loader import load_model_tests

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A converter bound to a node, and the arguments it takes."""

    operator: str
    call: Callable[..., tuple[Tensor | None, ...]]
    arguments: tuple[Any, ...]

    def tensors(self) -> list[int]:
        """Give the places of the arguments that are tensors."""
        return [p for p, value in enumerate(self.arguments) if isinstance(value, Tensor)]

    def with_(self, changes: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """Run with some arguments replaced; outputs nobody makes are left out."""
        arguments = [changes.get(p, value) for p, value in enumerate(self.arguments)]
        return tuple(result for result in self.call(*arguments) if result is not None)

    def run(self) -> tuple[Tensor | None, ...]:
        return self.call(*self.arguments)


def prepare(proto: NodeProto, version: int, given: Mapping[str, Array]) -> Prepared:
    """Find the converter of a node and lay out its inputs, each in its lane."""
    types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in given.items()}
    view = nodes.view(proto, version, types)
    entry = load().find(view.domain, view.operator, view.version)
    assert entry is not None, f"no converter for {view} at opset {version}"
    rest = next((-place - 1 for place in entry.host if place < 0), len(view.inputs))
    arguments: list[Any] = []
    for place, name in enumerate(view.inputs):
        hosted = place in entry.host or place >= rest
        arguments.append(None if not name else given[name] if hosted else to_tensor(given[name]))

    def call(*values: Any) -> tuple[Tensor | None, ...]:
        results = entry.convert(view, *values)
        return results if isinstance(results, tuple) else (results,)

    return Prepared(view.operator, call, tuple(arguments))


def make(
    operator: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    version: int = 17,
    domain: str = "",
    outputs: int = 1,
) -> tuple[NodeProto, Prepared]:
    """Build a node and prepare its converter; inputs are named ``i0``, ``i1``..."""
    names = ["" if value is None else f"i{place}" for place, value in enumerate(inputs)]
    given = {n: v for n, v in zip(names, inputs, strict=True) if v is not None}
    results = [f"o{place}" for place in range(outputs)]
    proto = helper.make_node(
        operator, names, results, name="here", domain=domain, **(attributes or {})
    )
    return proto, prepare(proto, version, given)


@dataclass(frozen=True, eq=False)
class Case:
    """A node case of onnx: one node, inputs, and the outputs it must give."""

    name: str
    model: onnx.ModelProto
    sets: Sequence[tuple[Sequence[Array], Sequence[Array]]]
    rtol: float
    atol: float

    def prepared(self, inputs: Sequence[Array]) -> Prepared:
        (proto,) = self.model.graph.node
        versions = {"": 1} | {entry.domain: entry.version for entry in self.model.opset_import}
        names = [value.name for value in self.model.graph.input]
        return prepare(proto, versions[proto.domain], dict(zip(names, inputs, strict=True)))


@cache
def cases() -> dict[str, Case]:
    """Give the cases of one node that onnxpress has a converter of tensors for.

    Raw converters take and give lists and arrays as well; they are tested as parts of models.
    """
    rows = load().rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    chosen = {}
    for test in found:
        if test.model is None or "_expanded" in test.name or len(test.model.graph.node) != 1:
            continue
        (proto,) = test.model.graph.node
        entries = rows.get((proto.domain, proto.op_type), ())
        if entries and not any(entry.raw for entry in entries):
            sets = [(_arrays(given), _arrays(wanted)) for given, wanted in test.data_sets or ()]
            chosen[test.name] = Case(test.name, test.model, sets, test.rtol, test.atol)
    return chosen


def _arrays(values: Any) -> list[Array]:
    return [
        numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else np.asarray(v)
        for v in values
    ]


def wide(value: Tensor) -> Array:
    """Give a tensor of any type as float64 or complex128."""
    return value.to(torch.complex128 if value.is_complex() else torch.float64).numpy()


RUNTIME = "onnxruntime answers as onnxpress does, the reference does not"
BODY = "the node holds a graph, and only a whole model can run one"
STRINGS = "torch has no strings"
DRAWN = "drawn from numpy's own state, which no seed of the node tells"
EXCEPTIONS = {
    "test_bernoulli": DRAWN,
    "test_bernoulli_double": DRAWN,
    "test_bernoulli_seed": DRAWN,
    "test_equal_string": STRINGS,
    "test_equal_string_broadcast": STRINGS,
    "test_flexattention_causal_mask": BODY,
    "test_flexattention_prob_mod": BODY,
    "test_flexattention_relative_positional": BODY,
    "test_flexattention_score_mod": BODY,
    "test_flexattention_soft_cap": BODY,
    "test_maxunpool_export_with_output_shape": RUNTIME,
    "test_resize_downsample_scales_cubic_align_corners": RUNTIME,
    "test_resize_downsample_scales_linear_align_corners": RUNTIME,
}


def reason(name: str) -> str | None:
    """Say why a case cannot pass, or None where it must."""
    return EXCEPTIONS.get(name)
