"""How large a model is on disk, as it is and after gzip."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from onnxpress_adapters.tensors import every_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

GZIP_LEVEL = 6
GZIP_FORMAT = 31  # zlib's word for a gzip header around the largest window
PIECE = 1 << 20


@dataclass(frozen=True)
class FileSize:
    """How large a model is, its data files included.

    Attributes:
        size_bytes: as it is.
        gzip_bytes: after gzip at level 6.
    """

    size_bytes: int
    gzip_bytes: int

    @classmethod
    def of(cls, model: Path | bytes) -> FileSize:
        """Measure a file that ``read_model`` took, or the bytes that would be one."""
        if isinstance(model, bytes):
            return cls(len(model), _gzipped([model]))
        return cls(file_bytes(model), sum(_gzipped(_pieces(file)) for file in _files(model)))


@dataclass(frozen=True)
class Sizes:
    """The original and the pressed model on disk."""

    original: FileSize
    pressed: FileSize

    @property
    def size_bytes(self) -> tuple[int, int]:
        """Of both as they are, the original first."""
        return self.original.size_bytes, self.pressed.size_bytes

    def json(self) -> dict[str, int]:
        """Give the four numbers."""
        return {
            "original": self.original.size_bytes,
            "pressed": self.pressed.size_bytes,
            "original_gzip": self.original.gzip_bytes,
            "pressed_gzip": self.pressed.gzip_bytes,
        }


def file_bytes(model: Path) -> int:
    """Say how many bytes a model that ``read_model`` took has on disk, its data files included."""
    return sum(file.stat().st_size for file in _files(model))


def _files(path: Path) -> list[Path]:
    """Give the file of a model and the files it keeps tensor data in."""
    model = onnx.load_model(str(path), load_external_data=False)
    places = {
        str(entry.value)
        for _, tensor in every_tensor(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path, *(path.parent / place for place in sorted(places))]


def _pieces(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _gzipped(pieces: Iterable[bytes]) -> int:
    """Count the bytes after gzip, without keeping them."""
    squeeze = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_FORMAT)
    return sum(len(squeeze.compress(piece)) for piece in pieces) + len(squeeze.flush())
