"""Constants and nodes that belong together, under names that nothing else has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxpress_exporters.sparse import framed_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

SPLIT_BY_INPUT = 13
"""The first opset whose Split takes its lengths as an input."""

CUM_SUM = 11
"""The first opset with CumSum, ScatterElements and a Pad for every type; all at once."""

MODULO = 10
"""The first opset with Mod."""

CONSTANT_OF_SHAPE = 9
"""The first opset with ConstantOfShape, and with a Less for whole numbers."""

ROW = 128
"""Numbers in a row whose sums a matrix makes, where there is no CumSum."""


class Parts:
    """A decoder as it grows.

    Attributes:
        opset: of the model; only what it has is used.
        tensors: streams and small constants.
        nodes: in an order in which they can run.
        needs: names of ``common`` parts that the nodes read.
    """

    def __init__(self, prefix: str, common: str, opset: int) -> None:
        """Begin without parts.

        Args:
            prefix: of every name made here.
            common: the prefix of the parts that the decoders of a graph share.
            opset: of the model.
        """
        self.opset = opset
        self.tensors: list[TensorProto] = []
        self.nodes: list[NodeProto] = []
        self.needs: set[str] = set()
        self._prefix = prefix
        self._common = common

    def common(self, name: str) -> str:
        """Use a part that all decoders of a graph share; give its name."""
        self.needs.add(name)
        return self._common + name

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a constant; give its name."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), self._prefix + name)
        if array.ndim == 0:  # ascontiguousarray makes it a vector
            del tensor.dims[:]
        self.tensors.append(tensor)
        return str(tensor.name)

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output; give its name."""
        self.nodes.append(helper.make_node(operator, inputs, [self._prefix + name], **attributes))
        return self._prefix + name

    def cast(self, value: str, name: str, data_type: int) -> str:
        """Add a Cast."""
        return self.node("Cast", [value], name, to=data_type)

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any], name: str) -> str:
        """Add zeros of a type."""
        zero = numpy_helper.from_array(np.zeros(1, dtype))
        extents = self.constant(f"{name}s", np.array(shape, np.int64))
        if self.opset < CONSTANT_OF_SHAPE:
            one = self.constant(f"{name}1", np.zeros(1, dtype))
            return self.node("Expand", [one, extents], name)
        return self.node("ConstantOfShape", [extents], name, value=zero)

    def remainder(self, value: str, divisor: str, name: str) -> str:
        """Add what is left of whole numbers, from 0 up, after a division."""
        if self.opset >= MODULO:
            return self.node("Mod", [value, divisor], name)
        whole = self.node("Div", [value, divisor], f"{name}d")
        return self.node("Sub", [value, self.node("Mul", [whole, divisor], f"{name}m")], name)

    def split(self, value: str, lengths: Sequence[int], name: str) -> list[str]:
        """Add a Split of a vector."""
        names = [f"{self._prefix}{name}{place}" for place in range(len(lengths))]
        if self.opset < SPLIT_BY_INPUT:
            self.nodes.append(helper.make_node("Split", [value], names, split=list(lengths)))
        else:
            sizes = self.constant(f"{name}n", np.array(lengths, np.int64))
            self.nodes.append(helper.make_node("Split", [value, sizes], names))
        return names

    def call_last(self, name: str) -> None:
        """Give what the last node makes its final name."""
        self.nodes[-1].output[0] = name

    @property
    def size_bytes(self) -> int:
        """What the parts take in a file, without the common ones."""
        return sum(map(framed_bytes, self.tensors)) + sum(map(framed_bytes, self.nodes))


def common_parts(needs: set[str], prefix: str, opset: int) -> Parts:
    """Make the parts that the decoders of a graph share.

    ``axis`` is a 0 and ``flat`` a -1, as CumSum and Reshape want them. ``bits`` ``[256, 8]`` are
    the bits of a byte, the highest first; ``ranks`` ``[256, 8]`` count the ones up to and including
    each; ``counts`` ``[256, 1]`` count them all. The three are computed from a few numbers, which
    takes a quarter of the bytes of the tables. ``divisorsN`` bring the N-bit fields of a byte, the
    highest first, to its end, and ``fieldN`` is 2 to the N. ``advanceN`` says how far a step of N
    bits leads, ``endingN`` whether it ends at a nonzero; ``one`` is a 1.

    Where there is no CumSum, ``lines`` are ``[-1, ROW]``, ``counts`` are float32 ``[256]``, and
    rows are multiplied by ``upto`` or ``below`` ``[ROW, ROW]``: 1 where a number belongs to a sum
    with and without its own place.

    Args:
        needs: which of them.
        prefix: of their names.
        opset: of the model.
    """
    parts = Parts(prefix, prefix, opset)
    tables = needs & {"bits", "ranks", "counts"}
    if opset >= CUM_SUM and (needs & {"axis"} or tables):
        parts.constant("axis", np.array(0, np.int32))
    if "flat" in needs:
        parts.constant("flat", np.array([-1], np.int64))
    for bits in (1, 2, 4):
        if f"divisors{bits}" in needs or (bits == 1 and tables):
            fields = 2 ** np.arange(8 - bits, -1, -bits)
            parts.constant(f"divisors{bits}", fields.astype(np.int32))
            parts.constant(f"field{bits}", np.array(1 << bits, np.int32))
        if f"advance{bits}" in needs:
            places = np.arange(1 << bits, dtype=np.int32)
            parts.constant(f"advance{bits}", np.where(places, places, len(places) - 1))
            parts.constant(f"ending{bits}", (places > 0).astype(np.int32))
    if "one" in needs:
        parts.constant("one", np.array(1, np.int32))
    if "lines" in needs:
        parts.constant("lines", np.array([-1, ROW], np.int64))
    if needs & {"upto", "below"}:
        _matrices(parts, needs)
    if tables and opset >= CUM_SUM:
        one = numpy_helper.from_array(np.ones(1, np.int32))
        shape = parts.constant("bytes", np.array([256, 1], np.int64))
        ones = parts.node("ConstantOfShape", [shape], "ones", value=one)
        values = parts.node("CumSum", [ones, prefix + "axis"], "values", exclusive=1)
        moved = parts.node("Div", [values, prefix + "divisors1"], "moved")
        bits_ = parts.node("Mod", [moved, prefix + "field1"], "bits")
        across = parts.constant("across", np.array(1, np.int32))
        ranks = parts.node("CumSum", [bits_, across], "ranks")
        last = parts.constant("last", np.array([7], np.int32))
        parts.node("Gather", [ranks, last], "counts", axis=1)
    elif tables:
        numbers = parts.constant("numbers", np.arange(256, dtype=np.uint8)[:, None])
        values = parts.cast(numbers, "values", TensorProto.INT32)
        moved = parts.node("Div", [values, prefix + "divisors1"], "moved")
        bits_ = parts.remainder(moved, prefix + "field1", "bits")
        floats = parts.cast(bits_, "floats", TensorProto.FLOAT)
        square = parts.constant("square", np.triu(np.ones((8, 8), np.float32)))
        sums = parts.node("MatMul", [floats, square], "sums")
        parts.cast(sums, "ranks", TensorProto.INT32)
        last = parts.constant("last", np.array(7, np.int64))
        parts.node("Gather", [sums, last], "counts", axis=1)
    return parts


def _matrices(parts: Parts, needs: set[str]) -> None:
    """Compare places with places, which takes fewer bytes than a matrix."""
    comparable = TensorProto.FLOAT if parts.opset < CONSTANT_OF_SHAPE else TensorProto.INT32
    places = parts.cast(
        parts.constant("places", np.arange(ROW, dtype=np.uint8)[None]), "across", comparable
    )
    down = parts.node("Transpose", [places], "down", perm=[1, 0])
    if "below" in needs:
        parts.cast(parts.node("Less", [down, places], "less"), "below", TensorProto.FLOAT)
    if "upto" in needs:
        parts.cast(
            parts.node("Not", [parts.node("Less", [places, down], "more")], "most"),
            "upto",
            TensorProto.FLOAT,
        )
