"""How the values of a constant are stored, and what a decoder makes of them.

Four ways: as they are, as halves, as whole numbers times a scale, as places in a codebook. Each is
defined by ``decoded``: what standard operators compute in float32 from the codes. Where an entry is
zero is no business of these: a zero stays one in each of them. A kept entry may be rounded to zero
(``Half``, ``Scaled``); it then is a zero in the file and counts as one, although its support keeps
it, so that a repair can bring it back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_CODE = 127
"""The largest code of a scaled value; -128 is not used, so that signs are alike."""

WIDTHS = (1, 2, 3, 4, 5, 6, 8)
"""Bits a code may take in a file: what one or two fields of a byte make."""

MOST_HALF = 65504.0
"""The largest finite half: what lies beyond is stored as this."""


@dataclass(frozen=True)
class Plain:
    """As they are, in the type of the constant."""

    def __str__(self) -> str:
        """Name it as ``--values`` does."""
        return "fp32"


@dataclass(frozen=True)
class Half:
    """As float16; a decoder casts them."""

    def __str__(self) -> str:
        """Name it as ``--values`` does."""
        return "fp16"


@dataclass(frozen=True, eq=False)
class Scaled:
    """As whole numbers times a scale; a decoder makes both float32 and multiplies.

    Attributes:
        scales: float16 or float32, positive; of shape ``[]`` for one scale, or with as many axes as
            the constant, all of size 1 but the first or the last.
        bits: of a code, sign included: 8, or fewer for a file that packs them.
    """

    scales: np.ndarray
    bits: int = 8

    def __str__(self) -> str:
        """Name it as ``--values`` does."""
        return f"int{self.bits}"

    @property
    def most(self) -> int:
        """The largest code; its negative is the smallest."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True, eq=False)
class Palette:
    """As places in a codebook; a decoder gathers them.

    Attributes:
        codebook: float32 ``[entries]``, at most 256, strictly rising. It need not hold 0: see
            ``encoded``.
    """

    codebook: np.ndarray

    def __str__(self) -> str:
        """Name it as ``--values`` does."""
        return "palette"

    @property
    def bits(self) -> int:
        """Bits that tell the entries apart, one of ``WIDTHS``."""
        return next(bits for bits in WIDTHS if len(self.codebook) <= 1 << bits)

    @property
    def borders(self) -> np.ndarray:
        """Where one entry ends and the next begins: float32 ``[entries - 1]``.

        The value of a border belongs to the entry below it.
        """
        low, high = self.codebook[:-1], self.codebook[1:]
        middle = low + (high - low) / np.float32(2)
        # Between neighbours among the floats the middle is one of them; never the upper.
        borders: np.ndarray = np.where(middle < high, middle, low)
        return borders


Storage = Plain | Half | Scaled | Palette


def encoded(values: np.ndarray, storage: Storage) -> np.ndarray:
    """Give the codes whose values lie nearest, ties to even (``Palette``: to the lower entry).

    Args:
        values: floating-point ``[...]``, finite.
        storage: of the constant; its scales have to fit the shape.

    Returns:
        Codes ``[...]``: the values themselves (``Plain``), float16, int8, or uint8 places in the
        codebook. Of values that are ``rounded`` they are exact: ``decoded`` gives them back, all
        but zeros where the codebook holds none. These get a neighbour's code: a form that packs
        keeps the places of zeros anyway, and passes over what stands there.

    >>> encoded(np.float32([0.0, 0.26, -9.0]), Scaled(np.float32(0.5)))
    array([  0,   1, -18], dtype=int8)
    """
    if isinstance(storage, Plain):
        return values
    single = values.astype(np.float32)
    if isinstance(storage, Half):
        # Without the sign of zero.
        half: np.ndarray = np.clip(single, -MOST_HALF, MOST_HALF).astype(np.float16)
        return half + np.float16(0)
    if isinstance(storage, Scaled):
        scaled = np.rint(single / storage.scales.astype(np.float32))
        return np.clip(scaled, -storage.most, storage.most).astype(np.int8)
    return np.searchsorted(storage.borders, single).astype(np.uint8)


def decoded(codes: np.ndarray, storage: Storage) -> np.ndarray:
    """Compute what a decoder makes of codes: Cast, Cast and Mul, or Gather, in float32.

    >>> decoded(np.int8([0, 1, -18]), Scaled(np.float16(0.5)))
    array([ 0. ,  0.5, -9. ], dtype=float32)
    """
    if isinstance(storage, Plain):
        return codes
    if isinstance(storage, Half):
        return codes.astype(np.float32)
    if isinstance(storage, Scaled):
        product: np.ndarray = codes.astype(np.float32) * storage.scales.astype(np.float32)
        return product
    gathered: np.ndarray = storage.codebook[codes]
    return gathered


def rounded(values: np.ndarray, storage: Storage) -> np.ndarray:
    """Round values to what the file will hold, exactly as a decoder will compute them.

    Args:
        values: floating-point ``[...]``, finite.
        storage: of the constant.

    Returns:
        Of the same shape and type; float64 holds float32 values then. Zeros are ``+0.0``. The same
        object for ``Plain``.

    >>> rounded(np.float32([0.0, 0.3, 0.9]), Palette(np.float32([0.25, 1.0])))
    array([0.  , 0.25, 1.  ], dtype=float32)
    """
    if isinstance(storage, Plain):
        return values
    found = decoded(encoded(values, storage), storage).astype(values.dtype)
    found[values == 0] = 0
    return found


def code_bytes(count: int, itemsize: int, storage: Storage) -> int:
    """Count the bytes of codes, packed to whole bytes at the end.

    Args:
        count: of the codes.
        itemsize: bytes of an entry of the constant as it is.
        storage: says how many bits each takes.
    """
    if isinstance(storage, Plain):
        return count * itemsize
    if isinstance(storage, Half):
        return 2 * count
    return (count * storage.bits + 7) // 8


def table_bytes(storage: Storage) -> int:
    """Count the bytes of the scales or the codebook, which stand beside the codes."""
    if isinstance(storage, Scaled):
        return storage.scales.nbytes
    return storage.codebook.nbytes if isinstance(storage, Palette) else 0
