"""What the rules say about axes, held to what operators do, on onnx's own backend test-suite.

Of every case whose operator has a rule, the positions that can leave together are taken out of the
inputs: the operator must give what it gave, without these positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from hand_built import Array
from onnxpress_adapters.axes import FREE, Axes, Classes
from onnxpress_adapters.axes_numbers import TARGETS, Ledger
from onnxpress_adapters.axes_site import Site
from onnxpress_adapters.functions import opsets_of, plain
from onnxpress_adapters.groups_find import RULES
from onnxpress_adapters.node import view
from onnxpress_adapters.testing import importer

TOLD = frozenset(TARGETS) | {"Gather", "Slice", "Split", "GRU", "LSTM", "RNN"}
"""Operators that are told sizes: the exporter tells them the new ones, and is tested for that."""

MOST = 12
"""Classes tried of one case."""

with warnings.catch_warnings():
    # Importing the cases computes all of them, overflows and divisions by zero included.
    warnings.simplefilter("ignore")
    from onnx.backend.test.loader import load_model_tests


@dataclass(frozen=True, eq=False)
class Node:
    """A case of one node and its tensors by name."""

    model: ModelProto
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@cache
def nodes() -> Mapping[str, Node]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    return {test.name: node for test in tests for node in _node(test)}


def _node(test: object) -> Iterator[Node]:
    model, sets = getattr(test, "model", None), getattr(test, "data_sets", None)
    if not isinstance(model, ModelProto) or not sets or len(model.graph.node) != 1:
        return
    proto = model.graph.node[0]
    if (plain(proto.domain), proto.op_type) not in RULES or proto.op_type in TOLD:
        return
    counts = {attribute.name: attribute.i for attribute in proto.attribute}
    if counts.get("group", 1) > 1 or "q_num_heads" in counts:
        return
    found = []
    for names, values in zip((model.graph.input, model.graph.output), sets[0], strict=True):
        if not all(isinstance(value, np.ndarray) for value in values):
            return
        found.append({n.name: value for n, value in zip(names, values, strict=True)})
    yield Node(model, *found)


def classes_of(node: Node) -> tuple[Axes, Classes]:
    """Apply the rule to the case, all of whose axes could leave for all that is known."""
    axes = Axes()
    ledger = Ledger(axes.shapes, {})
    for name, value in {**node.inputs, **node.outputs}.items():
        axes.add(name, value.shape)
        if name in node.inputs:
            ledger.constant(name, value)
    proto = node.model.graph.node[0]
    seen = view(proto, opsets_of(node.model)[plain(proto.domain)])
    RULES[seen.domain, seen.operator](Site(seen, axes, ledger))
    return axes, axes.solve()


@pytest.mark.parametrize("operator", sorted({op for _, op in RULES} - TOLD))
def test_positions_that_leave_together_leave_the_rest_alone(operator: str) -> None:
    cases = [n for n in nodes().values() if n.model.graph.node[0].op_type == operator]
    for node in cases:
        axes, classes = classes_of(node)

        def without(name: str, value: Array, each: int) -> Array:
            for axis in range(value.ndim):
                kept = classes.of_cell[axes.of(name, axis)] != each  # noqa: B023  # called in this round
                value = np.compress(kept, value, axis)
            return value

        met = [
            classes.of_cell[axes.of(n, a)] for n, v in node.outputs.items() for a in range(v.ndim)
        ]
        on = np.unique(np.concatenate(met)) if met else np.zeros(0, np.int64)
        for each in on[classes.reason[on] == FREE][:MOST].tolist():
            given = [without(name, value, each) for name, value in node.inputs.items()]
            found = importer(node.model)(given)
            for (name, value), ours in zip(node.outputs.items(), found, strict=True):
                wanted = without(name, value, each)
                assert ours.shape == wanted.shape, onnx.printer.to_text(node.model)
                # bfloat16 has 8 significant bits.
                rough = 2e-2 if value.dtype.itemsize < 4 else 1e-3
                np.testing.assert_allclose(
                    ours.astype(np.float64), wanted.astype(np.float64), rtol=rough, atol=1e-4
                )
