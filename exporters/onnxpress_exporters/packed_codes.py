"""The entries of a constant as codes, in every way that gives back the same bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from onnxpress_exporters.values import WIDTHS, Half, Scaled, Storage, decoded, encoded

if TYPE_CHECKING:
    from onnxpress_exporters.packed_parts import Parts

MOST_ENTRIES = 256
"""What a codebook for codes of one byte holds at most."""

PROBED = 1 << 14
"""Entries looked at before all of them are sorted for a codebook."""


@dataclass(frozen=True, eq=False)
class Codes:
    """A code for each entry, 0 where the entry is +0.0.

    Attributes:
        kind: ``"plain"``, ``"fp16"``, ``"palette"``, or ``"int8"`` to ``"int2"``, which a scale
            is still to multiply.
        flat: ``[entries]``, in the order of the constant; float, int8, or uint8 places in the
            codebook.
        dtype: of the constant.
        codebook: ``[at most 256]`` of that type, its first entry +0.0; None where there is none.
    """

    kind: str
    flat: np.ndarray
    dtype: np.dtype[np.generic]
    codebook: np.ndarray | None = None

    @property
    def bits(self) -> int:
        """Bits a code takes in the file."""
        if self.codebook is None:
            return 8 * self.flat.dtype.itemsize
        return next(bits for bits in WIDTHS if len(self.codebook) <= 1 << bits)

    @property
    def is_scaled(self) -> bool:
        """Whether scales turn what is decoded into the constant."""
        return self.kind.startswith("int")

    @property
    def fixed_bytes(self) -> int:
        """Bytes that do not depend on how many codes there are, but for a table all can share."""
        return 0 if self.codebook is None or self.is_scaled else self.codebook.nbytes

    def finish(self, parts: Parts, name: str, data_type: int) -> str:
        """Add what makes values of codes, but for a scale; give its name.

        Args:
            parts: of the decoder.
            name: of the codes, in any shape.
            data_type: ONNX element type of these.
        """
        if self.codebook is not None:
            if data_type != TensorProto.INT32:
                name = parts.cast(name, "i", TensorProto.INT32)
            return parts.node("Gather", [parts.constant("book", self.codebook), name], "x")
        if self.flat.dtype != self.dtype:
            return parts.cast(name, "x", helper.np_dtype_to_tensor_dtype(self.dtype))
        return name


def all_codes(array: np.ndarray, storage: Storage) -> list[Codes]:
    """Give the ways to write an array that lose nothing.

    Args:
        array: ``[...]``, of any type that onnxpress packs.
        storage: how its values were rounded; a scale is taken from there. That they are halves, or
            few, is seen.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    found = [Codes("plain", flat, flat.dtype)]
    if flat.dtype == np.float32:
        half = encoded(flat, Half()) if np.isfinite(flat).all() else None
        if half is not None and _same_bits(half.astype(np.float32), flat):
            found.append(Codes("fp16", half, flat.dtype))
        if isinstance(storage, Scaled):
            codes = encoded(array, storage)
            if _same_bits(decoded(codes, storage), array):
                found.append(Codes("int8", codes.reshape(-1), flat.dtype))
                found += _narrow(codes.reshape(-1), storage.bits)
    # A codebook of its own would save a constant next to nothing and keep it from sharing one.
    palette = None if found[-1].codebook is not None else _palette(flat)
    return found if palette is None else [*found, palette]


def _narrow(codes: np.ndarray, bits: int) -> list[Codes]:
    """Give whole numbers as places in a table of all that so many bits can tell apart."""
    if bits >= 8:
        return []
    most = (1 << (bits - 1)) - 1
    book = np.concatenate([np.arange(most + 1), np.arange(-1, -most - 1, -1)]).astype(np.float32)
    places = np.where(codes < 0, most - codes, codes).astype(np.uint8)
    return [Codes(f"int{bits}", places, book.dtype, book)]


def _palette(flat: np.ndarray) -> Codes | None:
    """Give places in a codebook, where there are few enough values; told apart by their bits."""
    words = flat.view(f"u{flat.dtype.itemsize}")
    step = max(1, words.size // PROBED)
    if len(np.unique(words[::step])) > MOST_ENTRIES:
        return None
    different = np.unique(words)
    book = np.concatenate([np.zeros(1, words.dtype), different[different != 0]])
    if len(book) > MOST_ENTRIES:
        return None
    places = np.searchsorted(book, words).astype(np.uint8)
    return Codes("palette", places, flat.dtype, book.view(flat.dtype))


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def nonzero(flat: np.ndarray) -> np.ndarray:
    """Say which codes have a bit that is set, so that a -0.0 is kept: bool, same shape."""
    marked: np.ndarray = flat.view(f"u{flat.dtype.itemsize}") != 0
    return marked
