"""How long a product takes with its rows in groups, measured on this machine.

What a group of rows costs beside its multiplications depends on the processor, on the size of the
layer and on how many inputs meet it. So each kind of layer is tried: a matrix of its size alone in
a model, whole and with groups of some heights and widths, in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.gathered_nodes import gather_weights
from onnxpress_exporters.latency import race

OPSET = 17

SHARES = (0.05, 0.3)
"""Shares of its columns a group has where it is timed: between them, time is a line."""

SECONDS = 0.03
"""About how long each of them runs in turns with the whole matrix."""

MOST_POSITIONS = 1024
"""Inputs that meet a matrix at once, at most; beyond that, time is in proportion to them."""


@dataclass(frozen=True)
class GatheredTimes:
    """What a product with one matrix takes.

    Attributes:
        whole: seconds of the whole matrix, for all the inputs of a sample.
        heights: for each height of groups that was tried: it, seconds beside the columns, and
            seconds for every column that a group reads.
    """

    whole: float
    heights: tuple[tuple[int, float, float], ...]

    def seconds(self, height: int, width: float) -> float:
        """Say what it takes with groups of a height, each of which reads so many columns.

        >>> GatheredTimes(8.0, ((64, 0.5, 0.25),)).seconds(64, 10)
        3.0
        """
        fixed, each = next((a, b) for tried, a, b in self.heights if tried == height)
        return fixed + each * width


def gathered_times(
    rows: int, columns: int, positions: int, heights: Sequence[int]
) -> GatheredTimes:
    """Time a product with a matrix, whole and in groups, on one thread.

    Args:
        rows: of the matrix, at least 1.
        columns: of the matrix, at least 2.
        positions: how many inputs meet it in one sample, at least 1.
        heights: of groups to try; those above ``rows`` are left out.

    Raises:
        ExportError: onnxruntime cannot run it.
    """
    rng = np.random.default_rng([rows, columns])
    many = min(positions, MOST_POSITIONS)
    feeds = [{"x": rng.standard_normal((many, columns), np.float32)}]
    values = rng.standard_normal((rows, columns), np.float32)
    scale = positions / many
    whole, found = 0.0, []
    plain = Runner(_product(values, many), threads=1)
    for height in (tried for tried in heights if tried <= rows):
        seconds = []
        widths = [max(1, round(share * columns)) for share in SHARES]
        for width in widths:
            kept = values * _even(rng, rows, columns, height, width)
            placed = gather_weights(_product(kept, many), {WeightKey((), "w"): height})
            taken = race(plain, Runner(placed.model, threads=1), feeds, SECONDS)
            whole = float(np.median(taken.first)) * scale
            seconds.append(taken.ratio * whole)
        each = max(0.0, (seconds[1] - seconds[0]) / max(1, widths[1] - widths[0]))
        found.append((height, max(0.0, seconds[0] - each * widths[0]), each))
    return GatheredTimes(whole, tuple(found))


def _product(values: np.ndarray, positions: int) -> ModelProto:
    """Make a model of one MatMul by a matrix ``[rows, columns]``."""
    rows, columns = values.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [positions, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [positions, rows])],
        [numpy_helper.from_array(np.ascontiguousarray(values.T), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _even(rng: np.random.Generator, rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """Mark ``width`` columns for every ``height`` rows."""
    groups = -(-rows // height)
    marked = np.zeros((groups, columns), bool)
    for group in marked:
        group[rng.choice(columns, width, replace=False)] = True
    return np.repeat(marked, height, axis=0)[:rows]
