"""How large a model is on disk, as it is and after gzip."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxpress_adapters.external import data_files
from onnxpress_exporters.external_data import Layout, data_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import ModelProto

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
        """Measure a file that ``read_model`` took, data files included, or the bytes of one."""
        if isinstance(model, bytes):
            return cls(len(model), _gzipped([model])[1])
        return cls._sum(_pieces(file) for file in _files(model))

    @classmethod
    def of_written(cls, model: ModelProto, target: Path, most_bytes: int) -> FileSize:
        """Measure what ``write`` would make of a model.

        Args:
            model: all data inline.
            target: where it would be; a data file is called after it.
            most_bytes: above which there is a data file.

        Raises:
            ExportError: it is too large to be written.
        """
        layout = Layout.of(model, most_bytes)
        if not layout.outside:
            return cls._sum([[layout.first("")]])
        name = data_name(target.resolve().name, layout.digest())
        return cls._sum([[layout.first(name)], layout.data()])

    @classmethod
    def _sum(cls, files: Iterable[Iterable[bytes]]) -> FileSize:
        counted = [_gzipped(pieces) for pieces in files]
        return cls(sum(size for size, _ in counted), sum(squeezed for _, squeezed in counted))


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
    return [path, *(path.parent / place for place in sorted(data_files(path)))]


def _pieces(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _gzipped(pieces: Iterable[bytes]) -> tuple[int, int]:
    """Count the bytes as they are and after gzip, without keeping them."""
    squeeze = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_FORMAT)
    size = squeezed = 0
    for piece in pieces:
        size += len(piece)
        squeezed += len(squeeze.compress(piece))
    return size, squeezed + len(squeeze.flush())
