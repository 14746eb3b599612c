"""Which data of a model go to a second file beside it, and where in that file they lie.

One file is easier to handle than two, so a model is one file wherever it fits into one. Where it
does not, its large tensors go to one data file, in the order of the model, each at a multiple of
``ALIGNMENT``. The data file is called after the model and its own content
(``model.onnx.0123456789abcdef.data``): the same model makes the same names and bytes, and a new
pair never shares a name with an older one that differs, so either is whole at any time.
"""

from __future__ import annotations

import hashlib
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import FunctionProto, ModelProto, TensorProto, numpy_helper

from onnxpress_adapters.errors import ExportError, MisuseError
from onnxpress_adapters.external import data_files
from onnxpress_adapters.light import (
    MOST_PROTOBUF_BYTES,
    inline_bytes,
    lightened,
    message_bytes,
)
from onnxpress_adapters.tensors import TYPED_FIELDS, every_tensor
from onnxpress_adapters.walk import holders, is_constant

if TYPE_CHECKING:
    from collections.abc import Iterator

ALIGNMENT = 4096
"""Pages, so that a runtime can map the file into memory instead of reading it."""

SMALLEST_BYTES = 1 << 16
"""The smallest tensor that leaves the model. onnxruntime's shape inference does not look into data
files, and shapes, axes and lengths are always smaller."""

KEPT_OUTSIDE_BYTES = 1 << 28
"""Where the original kept its data outside, a pressed model above this does so too."""

DIGITS = 16
"""Hexadecimal digits of the SHA-256 digest in the name of a data file."""

NAME_BYTES = 300
"""More than the longest name of a data file takes, with the lengths of all around it."""

PIECE_BYTES = 1 << 24


def room(original: Path) -> int:
    """Say how large the file made of a model may become before its large tensors leave it.

    Args:
        original: a file that ``read_model`` took.

    Returns:
        All that protobuf allows; less where the original keeps data outside.
    """
    return KEPT_OUTSIDE_BYTES if data_files(original) else MOST_PROTOBUF_BYTES


def check_apart(original: Path, target: Path) -> None:
    """Refuse to write a model over the data of the one it is made from.

    Args:
        original: a file that ``read_model`` took.
        target: the file to write.

    Raises:
        MisuseError: the original keeps data in that very file.
    """
    if target.exists() and any(
        (held := original.parent / name).exists() and held.samefile(target)
        for name in data_files(original)
    ):
        raise MisuseError(f"{target} holds the data of {original}; give it another name")


@dataclass(frozen=True, eq=False)
class Layout:
    """A model and the data that go to a second file.

    Attributes:
        model: what the first file holds. Where data are outside, a copy without them.
        outside: tensors whose data the second file holds, in its order; empty where there is none.
        starts: where the data of each begin in it.
    """

    model: ModelProto
    outside: tuple[TensorProto, ...] = ()
    starts: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        model: ModelProto,
        most_bytes: int = MOST_PROTOBUF_BYTES,
        limit_bytes: int = MOST_PROTOBUF_BYTES,
    ) -> Layout:
        """Lay out a model.

        Args:
            model: all data inline; untouched.
            most_bytes: how large the one file may be; above, large tensors leave it. The indices of
                sparse ones stay, because the ONNX checker does not read them elsewhere, unless the
                model would be more than the limit with them.
            limit_bytes: what one file can hold at all.

        Raises:
            ExportError: what has to stay in the model is more than the limit.
        """
        if message_bytes(model) <= min(most_bytes, limit_bytes):
            return cls(model)
        for indices_too in (False, True):
            outside = tuple(_movable(model, indices_too=indices_too))
            found = cls._with(model, outside)
            # The name of the data file is not in there yet; file systems allow it 255 bytes.
            size = message_bytes(found.model) + NAME_BYTES * len(outside)
            if size <= limit_bytes:
                return found
        raise ExportError(
            f"what cannot leave the model takes {size} bytes, and one ONNX file can hold "
            f"{limit_bytes}"
        )

    @classmethod
    def _with(cls, model: ModelProto, outside: tuple[TensorProto, ...]) -> Layout:
        ours = {id(tensor) for tensor in outside}  # of what `outside` keeps alive
        light = lightened(model, lambda tensor: id(tensor) in ours)
        starts = []
        end = 0
        for (_, old), (_, new) in zip(every_tensor(model), every_tensor(light), strict=True):
            if id(old) not in ours:
                continue
            start, length = -(-end // ALIGNMENT) * ALIGNMENT, inline_bytes(old)
            for field in ("raw_data", *TYPED_FIELDS):  # where it was copied whole
                new.ClearField(field)
            new.data_location = TensorProto.EXTERNAL
            for key, value in (("location", ""), ("offset", start), ("length", length)):
                new.external_data.add(key=key, value=str(value))
            starts.append(start)
            end = start + length
        return cls(light, outside, tuple(starts))

    def data(self) -> Iterator[bytes]:
        """Give the content of the second file in pieces."""
        end = 0
        for tensor, start in zip(self.outside, self.starts, strict=True):
            yield bytes(start - end)
            raw = memoryview(_raw(tensor))
            for place in range(0, len(raw), PIECE_BYTES):
                yield bytes(raw[place : place + PIECE_BYTES])
            end = start + len(raw)

    def digest(self) -> str:
        """Give the SHA-256 digest of the second file, in hexadecimal."""
        digest = hashlib.sha256()
        for piece in self.data():
            digest.update(piece)
        return digest.hexdigest()

    def first(self, location: str) -> bytes:
        """Give the content of the first file.

        Args:
            location: the name of the second one.
        """
        for _, tensor in every_tensor(self.model) if self.outside else ():
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        content: bytes = self.model.SerializeToString()
        return content


def _movable(model: ModelProto, *, indices_too: bool) -> Iterator[TensorProto]:
    """Give the large tensors that may leave a model, in the order of ``every_tensor``."""
    may = []
    for _, holder in holders(model):
        sparse = []
        if not isinstance(holder, FunctionProto):
            may += list(holder.initializer)
            sparse += list(holder.sparse_initializer)
        for node in holder.node:
            if is_constant(node):
                for attribute in node.attribute:
                    if attribute.name == "value":
                        may.append(attribute.t)
                    elif attribute.name == "sparse_value":
                        sparse.append(attribute.sparse_tensor)
        for one in sparse:
            may += [one.values, one.indices] if indices_too else [one.values]
    known = {id(tensor) for tensor in may}  # of what `may` keeps alive
    for _, tensor in every_tensor(model):
        if id(tensor) in known and inline_bytes(tensor) >= SMALLEST_BYTES:
            yield tensor


def _raw(tensor: TensorProto) -> bytes:
    if not tensor.HasField("raw_data"):
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor))
    raw: bytes = tensor.raw_data
    return raw


def data_name(model_name: str, digest: str) -> str:
    """Name the data file of a model.

    >>> data_name("m.onnx", "0123456789abcdef0123456789abcdef")
    'm.onnx.0123456789abcdef.data'
    """
    return f"{model_name}.{digest[:DIGITS]}.data"


def is_data_name(name: str, model_name: str) -> bool:
    """Say whether we could have named the data file of a model so."""
    return bool(re.fullmatch(rf"{re.escape(model_name)}\.[0-9a-f]{{{DIGITS}}}\.data", name))


def holds(path: Path, digest: str) -> bool:
    """Say whether a file is a plain one with this content.

    Args:
        path: it may be missing, a link or anything else.
        digest: SHA-256, in hexadecimal.
    """
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False
