"""A path -> a checked ModelProto. Nothing broken or hostile gets further than this file.

The order matters: sizes are capped before anything is walked, names and shapes are checked before
any data are loaded, and the ONNX checker comes last, on a model that cannot hurt it.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs
from onnx import ModelProto, TensorProto

from onnxpress_adapters.checker import check
from onnxpress_adapters.errors import AdapterError, BrokenModelError
from onnxpress_adapters.external import inline
from onnxpress_adapters.finite import check_finite
from onnxpress_adapters.gathered_tensors import make_whole
from onnxpress_adapters.light import MOST_PROTOBUF_BYTES
from onnxpress_adapters.packed_tensors import make_plain
from onnxpress_adapters.soundness import check_names, check_size, check_work
from onnxpress_adapters.sparse_tensors import make_dense, sparse_constants
from onnxpress_adapters.tensors import check_length, data_bytes, every_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _affordable() -> int:
    """Give a quarter of the machine's memory, and 2 GiB at least.

    Pressing takes the weights about four times: as they were, in torch, changed and written.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system says so
        memory = 0
    return max(MOST_PROTOBUF_BYTES, memory // 4)


@dataclass(frozen=True)
class Limits:
    """What a file may ask for before it is refused.

    Attributes:
        file_bytes: the .onnx file itself; protobuf allows no more than 2 GiB.
        constant_bytes: all constants together, data files included and sparse ones dense; unless
            given, what this machine can work with.
        tensor_bytes: each constant alone, and each array a constant shape asks for.
        nodes: all graphs together, with every function expanded.
        levels: bodies in bodies, and functions calling functions.
        trips: how often the body of a loop with a fixed trip count may run.
    """

    file_bytes: int = MOST_PROTOBUF_BYTES
    constant_bytes: int = field(default_factory=_affordable)
    tensor_bytes: int = MOST_PROTOBUF_BYTES - (1 << 20)  # with its name it is a message too
    nodes: int = 1_000_000
    levels: int = 32
    trips: int = 1_000_000


def read_model(path: Path, limits: Limits = Limits()) -> ModelProto:
    """Read an ONNX file that can be worked with.

    Args:
        path: of a binary .onnx file; its data files are found in the same folder.
        limits: what the file may ask for.

    Returns:
        The model with all data inline and all sparse, packed or gathered constants dense; all else
        as in the file. It may be more than protobuf could write as one file.

    Raises:
        BrokenModelError: the file is missing, not ONNX, torn, inconsistent or hostile.
        AdapterError: the file is larger than the limits allow.
    """
    try:
        model = _parsed(_file_bytes(path, limits.file_bytes))
        check_size(model, limits.nodes, limits.levels)
        _load(model, path.parent.resolve(), limits)
        check_names(model)
        check_work(model, limits.trips, limits.tensor_bytes)
        _check(model)
        check_finite(model)
    except AdapterError as error:
        raise type(error)(f"cannot read {path}: {error}") from error
    return model


def _file_bytes(path: Path, most: int) -> bytes:
    try:
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            raise BrokenModelError("it is a folder; name the .onnx file in it")
        if not stat.S_ISREG(kind.st_mode):
            raise BrokenModelError("it is not a plain file")
        if kind.st_size > most:
            raise AdapterError(f"it has {kind.st_size} bytes, more than the {most} allowed")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise BrokenModelError("there is no such file; check the path") from None
    except OSError as error:
        raise BrokenModelError(f"it cannot be opened: {error.strerror or error}") from error
    if not data:
        raise BrokenModelError("it is empty (0 bytes); copy or export it again")
    return data


def _parsed(data: bytes) -> ModelProto:
    if data.startswith(b"version https://git-lfs"):
        raise BrokenModelError("it is a git-lfs pointer, not the model; run `git lfs pull`")
    try:
        model: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        # ir_version, field 1, is what every exporter writes first.
        if data[0] == 0x08 and len(data) > 1 and data[1] < 0x40:
            raise BrokenModelError(
                "it begins like an ONNX model and then breaks off or is damaged; copy it again"
            ) from error
        raise BrokenModelError("it is not an ONNX model") from error
    if not model.HasField("graph"):
        if model.HasField("ir_version"):
            raise BrokenModelError("it holds no graph; it may be cut short, so copy it again")
        raise BrokenModelError("it is not an ONNX model")
    return model


def _load(model: ModelProto, folder: Path, limits: Limits) -> None:
    """Bring all tensor data inline and dense, after proving that they fit."""
    _check_room(model, limits, "")
    for where, tensor in every_tensor(model):
        inline(where, tensor, folder)
        check_length(where, tensor)
    make_dense(model)
    make_plain(model, limits.tensor_bytes)
    make_whole(model)
    _check_room(model, limits, ", unpacked,")


def _check_room(model: ModelProto, limits: Limits, how: str) -> None:
    total = 0
    for where, size in _constant_bytes(model):
        if size > limits.tensor_bytes:
            raise AdapterError(
                f"{where}{how} takes {size} bytes, more than the "
                f"{limits.tensor_bytes} a single constant may take"
            )
        total += size
    if total > limits.constant_bytes:
        raise AdapterError(
            f"its constants{how} take {total} bytes, more than the {limits.constant_bytes} allowed "
            "(a quarter of this machine's memory, and 2 GiB at least)"
        )


def _constant_bytes(model: ModelProto) -> Iterator[tuple[str, int]]:
    for where, tensor in every_tensor(model):
        if tensor.data_type != TensorProto.STRING:
            yield where, data_bytes(where, tensor.data_type, tensor.dims)
    for sparse in sparse_constants(model):
        if sparse.values.data_type != TensorProto.STRING:
            where = f"sparse tensor '{sparse.values.name}'"
            yield where, data_bytes(where, sparse.values.data_type, sparse.dims)


def _check(model: ModelProto) -> None:
    try:
        check(model)
    except onnx.checker.ValidationError as error:
        raise BrokenModelError(f"the ONNX checker says: {_sentence(str(error))}") from error


def _sentence(message: str) -> str:
    """Make one sentence of the checker's message and its context."""
    text, _, context = message.partition("==> Context:")
    found = re.search(r"Name: (\S*) OpType: (\S+)", context)
    at = f" (at {found[2]} '{found[1]}')" if found else ""
    return " ".join(text.split()).rstrip(".") + at
