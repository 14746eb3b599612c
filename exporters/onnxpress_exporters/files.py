"""Files on disk that are there whole or not at all, one alone or a model and its data together."""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from onnxpress_adapters.errors import BrokenModelError, ExportError
from onnxpress_adapters.external import data_files
from onnxpress_exporters.external_data import data_name, holds, is_data_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from onnxpress_exporters.external_data import Layout


def write_files(layout: Layout, path: Path) -> int:
    """Write a model and its data so that the old pair or the new one is there, at any time.

    The data go first, under a name that no other content has; then the model takes its name, which
    is the moment the new pair is there; last the data file goes that only the old model named. A
    process that is killed meanwhile may leave a file that no model names.

    Args:
        layout: of the model.
        path: of its file; an older one is replaced. A symbolic link is followed where there is no
            data file.

    Returns:
        The bytes on disk of both.

    Raises:
        ExportError: the folder is missing or cannot be written to, or the model has data outside
            and its path is a symbolic link. What was there is untouched, and nothing was added.
    """
    target = path.resolve()
    if layout.outside and path.is_symlink():
        raise ExportError(
            f"cannot write {path}: it is a symbolic link, and beside it runtimes would look for "
            f"the data file that this model needs; name {target} instead"
        )
    size = 0
    location = ""
    with ExitStack() as cleanup:
        with in_place_of(path) as temporary:
            if layout.outside:
                digest = layout.digest()
                location = data_name(target.name, digest)
                data = target.with_name(location)
                if not holds(data, digest):
                    cleanup.enter_context(_only_if_named(data, target))
                    with in_place_of(data, follow=False) as new, new.open("xb") as file:
                        for piece in layout.data():
                            file.write(piece)
                size += data.stat().st_size
            content = layout.first(location)
            with temporary.open("xb") as file:
                file.write(content)
            old = _data_of(target)
        # By now the new pair is there; an old file that cannot go is no reason to fail.
        for name in old - {location}:
            with suppress(OSError):
                target.with_name(name).unlink()
    return size + len(content)


@contextmanager
def _only_if_named(data: Path, target: Path) -> Iterator[None]:
    """Remove a data file after a failure, unless the model on disk names it.

    An interrupt may come right after the model took its name, so what is on disk decides.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if data.name not in _data_of(target):
                data.unlink(missing_ok=True)
        raise


def _data_of(target: Path) -> set[str]:
    """Give the data files beside a model that it names and that we named."""
    beside = {path.name for path in target.parent.iterdir() if is_data_name(path.name, target.name)}
    if not beside:  # so that a model without any need not be parsed
        return set()
    try:
        return beside & data_files(target)
    except BrokenModelError:  # missing, or no model
        return set()


@contextmanager
def in_place_of(path: Path, *, follow: bool = True) -> Iterator[Path]:
    """Give a new file in the same folder, which takes the name once it is written and on disk.

    Args:
        path: of the file to write; an older one is replaced.
        follow: whether a symbolic link is followed, or replaced.

    Raises:
        ExportError: the folder is missing or cannot be written to. No partial file stays and an
            older file is untouched.
    """
    target = path.resolve() if follow else path.parent.resolve() / path.name
    folder = target.parent
    if not folder.is_dir():
        raise ExportError(f"cannot write {path}: there is no folder {folder}; make it first")
    if target.is_dir():
        raise ExportError(f"cannot write {path}: it is a folder; name a file in it")
    temporary = folder / f".{target.name}.{secrets.token_hex(8)}.tmp"
    try:
        with ExitStack() as stack:
            stack.callback(temporary.unlink, missing_ok=True)  # runs on Ctrl-C as well
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)  # noqa: PTH105  (what tests let fail)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can promise that."""
    # The file is complete by now: a file system that cannot sync a folder is no reason to fail.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
