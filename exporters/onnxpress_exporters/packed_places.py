"""Where the nonzeros of a constant stand, and how standard operators bring them there.

Only operators that onnxruntime folds when it loads a model are used. NonZero and Compress, which
would be shorter, it runs again with every call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from onnxpress_exporters.packed_codes import nonzero
from onnxpress_exporters.packed_parts import CUM_SUM, ROW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnxpress_exporters.packed_codes import Codes
    from onnxpress_exporters.packed_parts import Parts

PADDED = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int8), np.dtype(np.uint8))
"""Types whose Pad onnxruntime folds."""


@dataclass(frozen=True)
class Placed:
    """Codes in their places, on the way.

    Attributes:
        name: of the value.
        data_type: its ONNX element type; int32 for places in a codebook, at times.
        length: entries; those beyond the constant's own are filling.
        flat: whether it is a vector already.
    """

    name: str
    data_type: int
    length: int
    flat: bool = True


@dataclass(frozen=True)
class Layout:
    """How many entries a constant has in each way of writing it.

    Attributes:
        size: of the constant.
        nonzeros: entries with a bit that is set.
        gaps: entries of the streams, by way: the nonzeros, and zeros named on the way.
        fields: the same where an entry of the gaps is a part of a byte.
    """

    size: int
    nonzeros: int
    gaps: Mapping[str, int]
    fields: Mapping[str, int]

    @classmethod
    def of(cls, flat: np.ndarray) -> Layout:
        """Count, in the entries or codes of a constant ``[entries]``."""
        steps = _steps(np.flatnonzero(nonzero(flat)))
        entries = {
            way: len(steps) + int(_fillers(steps, np.iinfo(dtype).max).sum())
            for way, dtype in GAPS.items()
        }
        steps[:1] += 1
        fields = {
            way: len(steps) + int(_fillers(steps, (1 << bits) - 1).sum())
            for way, bits in FIELDS.items()
            if flat.size <= MOST_SHORT
        }
        return cls(flat.size, len(steps), entries, fields)

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways it can be written."""
        return ("dense", *GAPS, *self.fields, "bitmask") if self.nonzeros else ("zeros",)

    def payload_bytes(self, codes: Codes, way: str) -> int:
        """Count the bytes of the streams, which is what grows with a constant.

        Args:
            codes: of the constant.
            way: a key of ``WAYS``.
        """
        if way == "zeros":
            return 0
        if way == "dense":
            bits = self.size * codes.bits
        elif way == "bitmask":
            bits = 8 * -(-self.size // 8) + self.nonzeros * codes.bits
        elif way in self.fields:
            bits = 8 * -(-self.fields[way] * FIELDS[way] // 8) + (self.nonzeros + 1) * codes.bits
        else:
            bits = self.gaps[way] * (8 * np.dtype(GAPS[way]).itemsize + codes.bits)
        return -(-bits // 8) + codes.fixed_bytes


def _steps(places: np.ndarray) -> np.ndarray:
    return np.diff(places, prepend=0)


def _fillers(steps: np.ndarray, most: int) -> np.ndarray:
    """Say how many zeros have to be named on the way, as a gap holds no more than ``most``."""
    zeros: np.ndarray = np.maximum(steps - 1, 0) // most
    return zeros


def _dense(parts: Parts, codes: Codes) -> Placed:
    """Write all codes, one after the other."""
    return _stream(parts, codes, codes.flat)


def _zeros(parts: Parts, codes: Codes) -> Placed:
    """Write nothing."""
    count = codes.flat.size
    name = parts.zeros([count], codes.flat.dtype, "z")
    return Placed(name, _data_type(codes.flat), count)


def _gaps(parts: Parts, codes: Codes, dtype: type[np.unsignedinteger]) -> Placed:
    """Write the steps from one nonzero to the next; their sums are where the nonzeros stand."""
    most = np.iinfo(dtype).max
    steps = _steps(np.flatnonzero(nonzero(codes.flat)))
    before = _fillers(steps, most)
    ends = np.cumsum(before + 1) - 1
    gaps = np.full(len(steps) + int(before.sum()), most, dtype)
    gaps[ends] = steps - before * most
    if parts.opset < CUM_SUM:  # the filling names the last place again, with the value it has
        gaps = np.pad(gaps, (0, -len(gaps) % ROW))
    places = np.cumsum(gaps, dtype=np.int64)
    if parts.opset >= CUM_SUM:
        numbers = parts.cast(parts.constant("gaps", gaps), "steps", TensorProto.INT32)
        at = parts.node("CumSum", [numbers, parts.common("axis")], "at")
    else:
        rows = parts.constant("gaps", gaps.reshape(-1, ROW))
        numbers = parts.cast(rows, "steps", TensorProto.FLOAT)
        sums = _row_sums(parts, numbers, "upto", np.r_[0, places[ROW - 1 : -1 : ROW]], "")
        at = parts.node("Reshape", [sums, parts.common("flat")], "at")
    kept = _narrow(parts, codes, _stream(parts, codes, codes.flat[places]), len(gaps))
    empty = parts.zeros([codes.flat.size], codes.flat.dtype, "z")
    scatter = "ScatterElements" if parts.opset >= CUM_SUM else "Scatter"
    name = parts.node(scatter, [empty, at, kept], "put")
    return Placed(name, _data_type(codes.flat), codes.flat.size)


def _row_sums(parts: Parts, numbers: str, matrix: str, before: np.ndarray, name: str) -> str:
    """Sum rows of whole numbers as CumSum would, by a matrix of ones and zeros.

    Args:
        parts: of the decoder.
        numbers: name of float32 ``[rows, ROW]``; their sums along a row are below 2^24, so exact.
        matrix: ``"upto"`` or ``"below"``.
        before: int64 ``[rows]``, the sum of all rows above each.
        name: before which its parts are called.
    """
    sums = parts.node("MatMul", [numbers, parts.common(matrix)], f"{name}sums")
    whole = parts.cast(sums, f"{name}whole", TensorProto.INT32)
    above = parts.constant(f"{name}above", before.astype(np.int32)[:, None])
    return parts.node("Add", [whole, above], f"{name}summed")


def _fields(parts: Parts, codes: Codes, bits: int) -> Placed:
    """Write the steps in a few bits each; 0 stands for the longest, with no nonzero at its end.

    The sums of the steps are places again. How many steps so far do end at a nonzero says which one
    it is; the others write the zero in front of the nonzeros.
    """
    longest = (1 << bits) - 1
    places = np.flatnonzero(nonzero(codes.flat))
    steps = np.diff(places, prepend=-1)
    ends = np.cumsum(_fillers(steps, longest) + 1) - 1
    fields: np.ndarray = np.zeros(int(ends[-1]) + 1, np.uint8)
    fields[ends] = steps - _fillers(steps, longest) * longest
    filled = -len(fields) % (8 // bits if parts.opset >= CUM_SUM else ROW)
    fields = np.pad(fields, (0, filled))
    name = _unpacked(parts, fields, bits, "gap")
    lines = "flat" if parts.opset >= CUM_SUM else "lines"
    name = parts.node("Reshape", [name, parts.common(lines)], "gapline")
    numbers = np.where(fields, fields, longest).astype(np.int64)
    at = _running(parts, name, f"advance{bits}", numbers)
    at = parts.node("Sub", [at, parts.common("one")], "at")
    which = _running(parts, name, f"ending{bits}", (fields > 0).astype(np.int64))
    ending = parts.node("Gather", [parts.common(f"ending{bits}"), name], "ending")
    if parts.opset < CUM_SUM:
        ending = parts.node("Reshape", [ending, parts.common("flat")], "endings")
    which = parts.node("Mul", [which, ending], "which")
    kept = np.concatenate([np.zeros(1, codes.flat.dtype), codes.flat[places]])
    values = _narrow(parts, codes, _stream(parts, codes, kept), len(kept))
    values = parts.node("Gather", [values, which], "values")
    length = codes.flat.size + filled * longest  # where the filling leads
    empty = parts.zeros([length], codes.flat.dtype, "z")
    scatter = "ScatterElements" if parts.opset >= CUM_SUM else "Scatter"
    name = parts.node(scatter, [empty, at, values], "put")
    return Placed(name, _data_type(codes.flat), length)


def _running(parts: Parts, fields: str, table: str, numbers: np.ndarray) -> str:
    """Look fields up in a table and sum what is there; give the vector of the sums.

    Args:
        parts: of the decoder.
        fields: name of int32 ``[fields]``, or ``[rows, ROW]`` where there is no CumSum.
        table: a common part.
        numbers: int64 ``[fields]``, what the table says.
    """
    looked = parts.node("Gather", [parts.common(table), fields], f"{table}s")
    if parts.opset >= CUM_SUM:
        return parts.node("CumSum", [looked, parts.common("axis")], f"{table}at")
    floats = parts.cast(looked, f"{table}f", TensorProto.FLOAT)
    above = np.cumsum(numbers)[ROW - 1 : -1 : ROW]
    sums = _row_sums(parts, floats, "upto", np.r_[0, above], table)
    return parts.node("Reshape", [sums, parts.common("flat")], f"{table}at")


def _two_bits(parts: Parts, codes: Codes) -> Placed:
    return _fields(parts, codes, 2)


def _four_bits(parts: Parts, codes: Codes) -> Placed:
    return _fields(parts, codes, 4)


def _gaps8(parts: Parts, codes: Codes) -> Placed:
    return _gaps(parts, codes, np.uint8)


def _gaps16(parts: Parts, codes: Codes) -> Placed:
    return _gaps(parts, codes, np.uint16)


def _bitmask(parts: Parts, codes: Codes) -> Placed:
    """Write a bit per entry.

    Each byte of the mask chooses a row of a table, and the ones in the bytes before it are added:
    that is the place of each entry among the kept ones, which follow as many zeros as there are of
    them, and one more. The table sends a cleared bit to one of these zeros, whatever is added.
    """
    kept = nonzero(codes.flat)
    count = int(kept.sum())
    packed: np.ndarray = np.packbits(kept)
    if parts.opset < CUM_SUM:
        packed = np.pad(packed, (0, -len(packed) % ROW)).reshape(-1, ROW)
    mask = parts.cast(parts.constant("mask", packed), "rows", TensorProto.INT32)
    ones = parts.node("Gather", [parts.common("counts"), mask], "ones")
    if parts.opset < CUM_SUM:
        inside = np.unpackbits(packed, axis=1).sum(1)
        sums = _row_sums(parts, ones, "below", np.cumsum(inside) - inside, "")
        shape = parts.constant("deep", np.array([*packed.shape, 1], np.int64))
        before = parts.node("Reshape", [sums, shape], "before")
    else:
        before = parts.node("CumSum", [ones, parts.common("axis")], "before", exclusive=1)
    shift = parts.constant("count", np.array(count, np.int32))
    shifted = parts.node("Add", [parts.common("ranks"), shift], "shifted")
    table = parts.node("Mul", [parts.common("bits"), shifted], "table")
    rows = parts.node("Gather", [table, mask], "ranks")
    places = parts.node("Add", [rows, before], "at")
    values = _narrow(parts, codes, _stream(parts, codes, codes.flat[kept]), count)
    if codes.flat.dtype in PADDED and parts.opset >= CUM_SUM:
        lengths = parts.constant("pads", np.array([count + 1, 0], np.int64))
        values = parts.node("Pad", [values, lengths], "padded")
    else:
        zeros = parts.zeros([count + 1], codes.flat.dtype, "z")
        values = parts.node("Concat", [zeros, values], "padded", axis=0)
    name = parts.node("Gather", [values, places], "put")
    return Placed(name, _data_type(codes.flat), 8 * packed.size, flat=False)


MOST_SHORT = 1 << 22
"""Entries of the largest constant with gaps in parts of a byte; their decoder takes more memory."""

FIELDS: Mapping[str, int] = {"2-bit gaps": 2, "4-bit gaps": 4}

GAPS: Mapping[str, type[np.unsignedinteger]] = {"gaps": np.uint8, "wide gaps": np.uint16}

WAYS: Mapping[str, Callable[[Parts, Codes], Placed]] = {
    "dense": _dense,
    "zeros": _zeros,
    "gaps": _gaps8,
    "wide gaps": _gaps16,
    "2-bit gaps": _two_bits,
    "4-bit gaps": _four_bits,
    "bitmask": _bitmask,
}
"""How places are written; ``"zeros"`` is for constants that have no others."""


def _stream(parts: Parts, codes: Codes, kept: np.ndarray) -> Placed:
    """Write codes one after the other, several to a byte where they are short."""
    bits = codes.bits
    if bits >= 8:
        return Placed(parts.constant("codes", kept), _data_type(kept), kept.size)
    if bits in (3, 5, 6):
        return _stream_of_two(parts, kept, bits)
    name = _unpacked(parts, kept, bits, "")
    length = kept.size + -kept.size % (8 // bits)
    return Placed(name, TensorProto.INT32, length, flat=False)


def _stream_of_two(parts: Parts, kept: np.ndarray, bits: int) -> Placed:
    """Write the upper two or four bits of codes in one stream and the lower ones in another."""
    lower = bits - (4 if bits > 4 else 2)
    full = np.pad(kept, (0, -kept.size % 8))
    names = [
        parts.node("Reshape", [_unpacked(parts, *each), parts.common("flat")], f"{each[2]}line")
        for each in ((full >> lower, bits - lower, "upper"), (full & (1 << lower) - 1, lower, ""))
    ]
    raised = parts.node("Mul", [names[0], parts.common(f"field{lower}")], "raised")
    name = parts.node("Add", [raised, names[1]], "joined")
    return Placed(name, TensorProto.INT32, full.size)


def _unpacked(parts: Parts, fields: np.ndarray, bits: int, name: str) -> str:
    """Write numbers below 2^bits, several to a byte; give the name of int32 ``[bytes, in each]``.

    The last byte may hold zeros more than there are numbers.
    """
    each = 8 // bits
    padded = np.pad(fields, (0, -fields.size % each)).reshape(-1, each)
    powers = (2 ** np.arange(8 - bits, -1, -bits)).astype(np.uint8)
    packed = (padded * powers).sum(1, dtype=np.uint8)
    called = parts.constant(f"{name}codes", packed[:, None])
    wide = parts.cast(called, f"{name}wide", TensorProto.INT32)
    moved = parts.node("Div", [wide, parts.common(f"divisors{bits}")], f"{name}moved")
    return parts.remainder(moved, parts.common(f"field{bits}"), f"{name}fields")


def _narrow(parts: Parts, codes: Codes, stream: Placed, count: int) -> str:
    """Make a vector of exactly the codes there are, of their own type."""
    name = stream.name
    if not stream.flat:
        name = parts.node("Reshape", [name, parts.common("flat")], "line")
    if stream.length > count:
        name = parts.split(name, [count, stream.length - count], "own")[0]
    if stream.data_type != _data_type(codes.flat):
        name = parts.cast(name, "narrow", _data_type(codes.flat))
    return name


def _data_type(array: np.ndarray) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
