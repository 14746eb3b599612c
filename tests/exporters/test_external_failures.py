"""Models with their large tensors in a data file: failures at every step."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from onnxpress_adapters.errors import ExportError
from onnxpress_adapters.external import data_files
from onnxpress_adapters.read import read_model
from onnxpress_exporters import files
from onnxpress_exporters.densify import densify
from onnxpress_exporters.external_data import Layout
from onnxpress_exporters.write import write
from pairs import content, data_in, pressed


class Interrupted(BaseException):
    """What Ctrl-C and the like look like from inside."""


def interrupting(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, at: int, error: BaseException
) -> list[int]:
    """Let the call number ``at`` of a function fail; give a list that grows with the calls."""
    real: Callable[..., object] = getattr(module, name)
    calls: list[int] = []

    def call(*arguments: object, **named: object) -> object:
        calls.append(len(calls))
        if len(calls) - 1 == at:
            raise error
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, call)
    return calls


STEPS: list[tuple[object, str, int]] = [
    (os, "fsync", 0),  # the data file
    (os, "replace", 0),  # takes its name
    (os, "fsync", 2),  # the model (1 is the folder, which may fail)
    (os, "replace", 1),  # takes its name
    (files, "_data_of", 0),  # in between
    (Layout, "data", 1),  # 0 is the digest, 1 the writing
    (Layout, "digest", 0),
    (Layout, "first", 0),
]


@pytest.mark.parametrize("old", ["pair", "one", "none"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), Interrupted()]
)
@pytest.mark.parametrize(("module", "name", "at"), STEPS)
def test_a_failure_leaves_what_was_there(
    module: object,
    name: str,
    at: int,
    error: BaseException,
    old: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "m.onnx"
    if old != "none":
        write(pressed(seed=1), path, most_bytes=1000 if old == "pair" else 10**9)
    before = content(tmp_path)
    calls = interrupting(monkeypatch, module, name, at, error)
    with pytest.raises((ExportError, KeyboardInterrupt, Interrupted)) as caught:
        write(pressed(seed=2), path, most_bytes=1000)
    assert len(calls) > at
    assert content(tmp_path) == before
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
    monkeypatch.undo()
    if old != "none":
        assert read_model(path) == densify(pressed(seed=1))
    write(pressed(seed=2), path, most_bytes=1000)
    assert read_model(path) == densify(pressed(seed=2))
    assert len(content(tmp_path)) == 2


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Let files grow no further than some bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, not the end
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("size", [0, 70_000, 300_000])  # nothing, half of the data, all of them
def test_a_full_disk(size: int, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write(pressed(seed=1), path, most_bytes=1000)
    before = content(tmp_path)
    with disk_full_after(size), pytest.raises(ExportError, match="File too large"):
        write(pressed(seed=2), path, most_bytes=1000)
    assert content(tmp_path) == before
    assert read_model(path) == densify(pressed(seed=1))


def test_a_failure_does_not_take_the_data_an_older_model_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    write(pressed(), path, most_bytes=1000)
    before = content(tmp_path)
    again = pressed()
    again.doc_string = "other words, the same weights"
    interrupting(monkeypatch, os, "replace", 0, OSError(5, "Input/output error"))
    with pytest.raises(ExportError, match=r"m\.onnx: Input/output error"):
        write(again, path, most_bytes=1000)
    assert content(tmp_path) == before


def test_an_interrupt_right_after_the_model_took_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    write(pressed(seed=1), path, most_bytes=1000)
    real = files._sync_folder
    seen: list[Path] = []

    def interrupt(folder: Path) -> None:
        seen.append(folder)
        if len(seen) == 2:  # the first is that of the data file
            raise KeyboardInterrupt
        real(folder)

    monkeypatch.setattr(files, "_sync_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(pressed(seed=2), path, most_bytes=1000)
    assert read_model(path) == densify(pressed(seed=2))


def test_old_data_that_cannot_be_removed_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    write(pressed(seed=1), path, most_bytes=1000)
    (old,) = data_in(tmp_path)
    real = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.name == old:
            raise PermissionError(13, "Permission denied")
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    write(pressed(seed=2), path, most_bytes=1000)
    assert read_model(path) == densify(pressed(seed=2))
    assert len(data_in(tmp_path)) == 2


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[5:]
from onnxpress_adapters.read import read_model
from onnxpress_exporters.write import write

model, name, at = read_model(Path(sys.argv[2])), sys.argv[3], int(sys.argv[4])
real, calls = getattr(os, name), []

def call(*arguments):
    calls.append(name)
    if len(calls) == at:
        os._exit(9)  # as a kill does: nothing is tidied up
    return real(*arguments)

setattr(os, name, call)
write(model, Path(sys.argv[1]), most_bytes=1000)
"""


@pytest.mark.parametrize(
    ("name", "at"), [("fsync", 1), ("replace", 1), ("fsync", 2), ("fsync", 3), ("replace", 2)]
)
def test_a_killed_process_leaves_the_old_pair_whole(name: str, at: int, tmp_path: Path) -> None:
    path, source = tmp_path / "m.onnx", tmp_path / "new.onnx"
    write(pressed(seed=1), path, most_bytes=1000)
    write(pressed(seed=2), source)
    before = content(tmp_path)
    words = [sys.executable, "-c", KILLED, str(path), str(source), name, str(at), *sys.path]
    assert subprocess.run(words, check=False).returncode == 9
    after = content(tmp_path)
    assert {file: after[file] for file in before} == before
    assert read_model(path) == densify(pressed(seed=1))
    # What a killed process leaves behind is in nobody's way.
    write(pressed(seed=2), path, most_bytes=1000)
    assert read_model(path) == densify(pressed(seed=2))
    assert all(one in content(tmp_path) for one in data_files(path))
