"""Tensor data kept in files beside the model: which ones, and inline without trusting the model.

onnxruntime opens whatever a model names, hard links to other files included. Here a file is opened
only when it is a plain file with one name, inside the model's own folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs
from onnx import TensorProto

from onnxpress_adapters.errors import BrokenModelError
from onnxpress_adapters.tensors import TYPED_FIELDS, data_bytes, every_tensor

if TYPE_CHECKING:
    from typing import BinaryIO

LOCATION = "location"
"""The key under which a tensor names its file."""

PIECE_BYTES = 1 << 20


def data_files(path: Path) -> frozenset[str]:
    """Give the files a model names for its data, as it names them; none of them is opened.

    Args:
        path: of the model, trusted or not.

    Raises:
        BrokenModelError: it cannot be read.
    """
    try:
        if not _has(path, LOCATION.encode()):  # then nothing need be parsed, however large it is
            return frozenset()
        model = onnx.load_model(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BrokenModelError(f"cannot read {path}: it is not an ONNX model") from error
    return frozenset(
        str(entry.value)
        for _, tensor in every_tensor(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == LOCATION
    )


def _has(path: Path, word: bytes) -> bool:
    """Say whether the bytes of a file hold a word."""
    tail = b""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            if word in tail + piece:
                return True
            tail = piece[1 - len(word) :]
    return False


def inline(where: str, tensor: TensorProto, folder: Path) -> None:
    """Move the data of a tensor from its file into ``raw_data``.

    Args:
        where: what a message calls the tensor.
        tensor: changed in place; untouched if its data are inline already.
        folder: of the model, its real place (``Path.resolve``).

    Raises:
        BrokenModelError: the file, or the part of it that the tensor names, is not acceptable.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return
    if tensor.data_type == TensorProto.STRING:
        raise BrokenModelError(f"{where} keeps text outside the model, which ONNX forbids")
    entries = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    location = entries.get(LOCATION, "")
    expected = data_bytes(where, tensor.data_type, tensor.dims)
    offset = _number(where, "offset", entries.get("offset", "0"))
    length = _number(where, "length", entries.get("length", str(expected)))
    if length != expected:
        raise BrokenModelError(
            f"{where} of shape {list(tensor.dims)} needs {expected} bytes of data and names "
            f"{length} in '{location}'"
        )
    with _opened(where, folder, location) as file:
        size = os.fstat(file.fileno()).st_size
        if offset + length > size:
            raise BrokenModelError(
                f"{where} names bytes {offset} to {offset + length} of '{location}', "
                f"which has only {size}; copy the file again"
            )
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise BrokenModelError(f"'{location}' became shorter while it was read; try again")
    for field in TYPED_FIELDS:
        tensor.ClearField(field)
    tensor.raw_data = data
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _opened(where: str, folder: Path, location: str) -> BinaryIO:
    refused = f"{where} keeps its data in '{location}'"
    if not location or "\0" in location:
        raise BrokenModelError(f"{refused}, which names no file")
    if Path(location).is_absolute() or ".." in Path(location).parts:
        raise BrokenModelError(f"{refused}, outside the model's folder; put it beside the model")
    path = folder / location
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # not every system has all
        flags |= getattr(os, name, 0)
    try:
        if path.resolve(strict=True) != path:
            raise BrokenModelError(f"{refused}, a symbolic link; put the file itself there")
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise BrokenModelError(f"{refused}, which is missing; put it beside the model") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BrokenModelError(f"{refused}, which cannot be opened: {reason}") from error
    # Judged on what was opened, so that nothing can be swapped in between.
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return os.fdopen(handle, "rb")
    os.close(handle)
    what = "a hard link" if stat.S_ISREG(found.st_mode) else "not a plain file"
    raise BrokenModelError(f"{refused}, {what}; put a copy of the file there")


def _number(where: str, key: str, text: str) -> int:
    # 18 digits: more than any file has, and int() is quick on them.
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise BrokenModelError(f"{where} has the external data {key} '{text[:40]}', not a number")
    return int(text)
