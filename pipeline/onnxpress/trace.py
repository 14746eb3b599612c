"""What a search tried, kept in one file, so that another point of the curve costs seconds.

The file is in the safetensors format. Its metadata holds JSON: what identifies the run, and for
each candidate the figures and the constants it changed. Of such a constant the file holds which
entries are not zero, eight to a byte, and their values; where these are the original's own, as
after a step that only prunes, no values are stored. One without zeros is stored as it is. So a
candidate of a tenth of the weights takes about a seventh of the original. Where its values are to
be written with scales or a codebook, these are there too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from onnxpress import __version__
from onnxpress_adapters.errors import ExportError, MisuseError
from onnxpress_adapters.tensors import every_tensor
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.files import in_place_of
from onnxpress_exporters.values import Half, Palette, Plain, Scaled, Storage

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor

    from onnxpress.search import Point

FORMAT = 2
"""Raised whenever a file of before could be misread."""

ENTRY = "onnxpress_trace"
SEEN = "seen"
LABEL_BYTES = 16


@dataclass(frozen=True)
class Origin:
    """What identifies a run; the words are those of ``Job``.

    Attributes:
        model: path of the original.
        digest: of all its constants (``digest_of``).
        steps: the chain, with what was open in it.
        seed: the only source of chance.
        effort: of the steps.
        tolerance: the promise it searched for, or None.
        output: outputs that counted.
        flips: the largest share of changed answers.
        embeddings: whether tables counted as prunable.
        share: of the tolerance that the search used.
        sequence: whether the data was shared out in blocks.
        sources: which samples went together.
        samples: how many it fitted on and chose with.
        free: the weights that could change.
    """

    model: str
    digest: str
    steps: str
    seed: int
    effort: str
    tolerance: str | None
    output: tuple[str, ...]
    flips: str | None
    embeddings: bool
    share: float
    sequence: bool
    sources: str
    samples: tuple[int, int]
    free: tuple[WeightKey, ...]


@dataclass(frozen=True)
class Change:
    """A constant a candidate changed, its shape, and the name of how its values are stored."""

    key: WeightKey
    shape: tuple[int, ...]
    storage: str = "fp32"


@dataclass(frozen=True)
class Stored:
    """A candidate; its distances are in the terms of the run's tolerance, None where not finite.

    Attributes:
        asked: the sparsity its budgeted steps were given.
        sparsity: zeros over all prunable weights.
        fitted: d on samples of the fit set.
        distance: d on the choose set.
        upper: a bound on that one.
        steps: the chain, every sparsity fixed.
        log: a line per event.
        changed: the constants that differ from the original.
    """

    asked: float
    sparsity: float
    fitted: float | None
    distance: float | None
    upper: float | None
    steps: str
    log: tuple[str, ...]
    changed: tuple[Change, ...]

    @property
    def bound(self) -> float:
        """The bound as a number to compare."""
        return inf if self.upper is None else self.upper


@dataclass(frozen=True)
class _Header:
    """The JSON."""

    format: int
    version: str
    origin: Origin
    candidates: tuple[Stored, ...]


@dataclass(frozen=True, eq=False)
class Trace:
    """A trace file, read; the weights stay in the file until they are asked for.

    Attributes:
        path: of the file.
        origin: the run.
        candidates: the least sparse first.
        seen: marks of the samples the run fitted on and chose with (``samples.marks_of``).
    """

    path: Path
    origin: Origin
    candidates: tuple[Stored, ...]
    seen: frozenset[bytes]

    def weights(
        self, place: int, originals: Mapping[WeightKey, np.ndarray]
    ) -> dict[WeightKey, np.ndarray]:
        """Read what a candidate changed.

        Args:
            place: of the candidate.
            originals: the prunable weights as they were.

        Returns:
            New values by key, in the shape of the constants.

        Raises:
            MisuseError: the file does not hold what its JSON says, or not of these weights.
        """
        found = {}
        try:
            with safe_open(self.path, framework="np") as file:
                names = set(file.keys())
                for index, change in enumerate(self.candidates[place].changed):
                    kept, values = (
                        file.get_tensor(name) if name in names else None
                        for name in _names(place, index)
                    )
                    found[change.key] = _unpacked(change, kept, values, originals.get(change.key))
            return found
        except (SafetensorError, OSError, ValueError) as error:
            raise _broken(self.path, error) from error

    def storage(self, place: int) -> dict[WeightKey, Storage]:
        """Read how the values of what a candidate changed are stored; those as they are left out.

        Raises:
            MisuseError: the file does not hold what its JSON says.
        """
        found = {}
        try:
            with safe_open(self.path, framework="np") as file:
                for index, change in enumerate(self.candidates[place].changed):
                    if change.storage != "fp32":
                        table = None
                        if change.storage != "fp16":
                            table = file.get_tensor(_table_name(place, index))
                        found[change.key] = _storage(change, table)
            return found
        except (SafetensorError, OSError, ValueError) as error:
            raise _broken(self.path, error) from error


def digest_of(model: ModelProto) -> str:
    """Give a digest of all constants of a model, their names and places included."""
    digest = hashlib.sha256()
    for where, tensor in every_tensor(model):
        digest.update(f"{where}\0".encode())
        digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def save_trace(
    path: Path,
    origin: Origin,
    points: Sequence[Point],
    reference: Mapping[WeightKey, Tensor],
    seen: Sequence[bytes] = (),
) -> int:
    """Write a trace, whole or not at all.

    Args:
        path: of the file; an older one is replaced.
        origin: the run.
        points: every candidate.
        reference: the original constants.
        seen: marks of the samples the run fitted on and chose with, where they came from data.

    Returns:
        The size of the file in bytes.

    Raises:
        ExportError: the folder is missing or cannot be written to.
    """
    ranked = sorted(points, key=lambda point: (point.state.sparsity, point.sparsity))
    tensors: dict[str, np.ndarray] = {}
    stored = []
    for place, point in enumerate(ranked):
        changed: list[Change] = []
        for key, tensor in point.state.tensors.items():
            old, storage = reference[key], point.state.storage.get(key, Plain())
            if isinstance(storage, Plain) and (tensor is old or tensor.equal(old)):
                continue
            kept, values = _packed(_array(tensor), _array(old), key in point.state.weights)
            for name, array in zip(_names(place, len(changed)), (kept, values), strict=True):
                if array is not None:
                    tensors[name] = array
            if isinstance(storage, Scaled | Palette):
                tensors[_table_name(place, len(changed))] = _table(storage)
            changed.append(Change(key, tuple(tensor.shape), str(storage)))
        stored.append(
            Stored(
                asked=point.sparsity,
                sparsity=point.state.sparsity,
                fitted=_finite(point.fitted),
                distance=_finite(point.distance),
                upper=_finite(point.upper),
                steps=str(point.steps),
                log=point.state.log,
                changed=tuple(changed),
            )
        )
    if seen:
        tensors[SEEN] = np.frombuffer(b"".join(seen), np.uint8).reshape(len(seen), -1)
    header = _Header(FORMAT, __version__, origin, tuple(stored))
    text = json.dumps(asdict(header), allow_nan=False)
    with in_place_of(path) as temporary:
        temporary.touch(exist_ok=False)
        usual = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, {ENTRY: text})
            temporary.chmod(usual)  # safetensors lets nobody else read what it writes
        except SafetensorError as error:
            raise ExportError(f"cannot write {path}: {error}") from error
    return path.stat().st_size


def load_trace(path: Path) -> Trace:
    """Read a trace, all but the weights.

    Raises:
        MisuseError: the file is missing, torn, no trace, or of another version.
    """
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(ENTRY)
            seen = file.get_tensor(SEEN) if SEEN in file.keys() else None  # noqa: SIM118
    except FileNotFoundError:
        raise MisuseError(f"cannot read {path}: there is no such file; check the path") from None
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error
    if text is None:
        raise MisuseError(f"{path} is no trace; `onnxpress compress … --trace FILE` writes one")
    header = _header(path, text)
    labels = [] if seen is None else [row.tobytes() for row in seen]
    if any(len(label) != LABEL_BYTES for label in labels):
        raise _broken(path, "its labels have a wrong length")
    return Trace(path, header.origin, header.candidates, frozenset(labels))


def _header(path: Path, text: str) -> _Header:
    """Read the JSON; the version first, since only then the rest can be understood."""
    try:
        read = json.loads(text)
        version = (read["format"], read["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _broken(path, "its JSON does not read") from error
    if version[0] != FORMAT:
        raise MisuseError(
            f"{path} was written by onnxpress {version[1]} in format {version[0]}, and this is "
            f"onnxpress {__version__}, which reads format {FORMAT}; use that version or compress "
            "again"
        )
    try:
        header = TypeAdapter(_Header).validate_json(text, strict=True)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise _broken(path, f"its JSON is wrong at {place}") from error
    if not header.candidates:
        raise MisuseError(f"{path} holds no candidate; compress again")
    return header


def _broken(path: Path, why: object) -> MisuseError:
    said = getattr(why, "strerror", None) or str(why).partition("\n")[0]
    return MisuseError(
        f"cannot read {path}: it is no sound trace ({said}); copy it again, or compress again"
    )


def _names(place: int, index: int) -> tuple[str, str]:
    """Name the two tensors of a changed constant: what is not zero, and the values there."""
    return f"{place}.{index}.kept", f"{place}.{index}.values"


def _table_name(place: int, index: int) -> str:
    return f"{place}.{index}.table"


def _table(storage: Scaled | Palette) -> np.ndarray:
    return storage.scales if isinstance(storage, Scaled) else storage.codebook


SCALED = ("int8", "int6", "int5", "int4")


def _storage(change: Change, table: np.ndarray | None) -> Storage:
    """Put a name and its scales or codebook together.

    Raises:
        ValueError: they do not fit each other or the constant.
    """
    if table is None:
        return Half()
    if change.storage in SCALED and table.dtype in (np.float16, np.float32):
        np.broadcast_to(table, change.shape)
        return Scaled(table, int(change.storage.removeprefix("int")))
    if change.storage == "palette" and table.dtype == np.float32 and 1 <= table.size <= 256:
        return Palette(table.reshape(-1))
    raise ValueError(f"'{change.key}' is stored as {change.storage}, which does not fit its table")


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return array


def _packed(
    values: np.ndarray, original: np.ndarray, prunable: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Give the entries that are not zero as bits, and their values; either where it is needed."""
    flat, old = values.reshape(-1), original.reshape(-1)
    # By their bits, so that a -0.0 comes back as one.
    kept = flat.view(f"u{flat.itemsize}") != 0
    if kept.all():
        return None, values
    same = prunable and flat[kept].tobytes() == old[kept].tobytes()
    return np.packbits(kept), None if same else flat[kept]


def _unpacked(
    change: Change,
    kept: np.ndarray | None,
    values: np.ndarray | None,
    original: np.ndarray | None,
) -> np.ndarray:
    """Undo ``_packed``.

    Raises:
        ValueError: the pieces do not fit each other.
    """
    size = prod(change.shape)
    if kept is None:
        if values is None:
            raise ValueError(f"it lacks the values of '{change.key}'")
        if values.shape != change.shape:
            raise ValueError(f"the values of '{change.key}' have another shape")
        return values
    if kept.dtype != np.uint8 or kept.shape != ((size + 7) // 8,):
        raise ValueError(f"the support of '{change.key}' has another size")
    mask = np.unpackbits(kept, count=size).astype(bool)
    if values is None:
        if original is None or original.shape != change.shape:
            raise ValueError(f"the original has no weight '{change.key}' of that shape")
        array = original.copy().reshape(-1)
        array[~mask] = 0
    else:
        if values.shape != (int(mask.sum()),):
            raise ValueError(f"the values of '{change.key}' do not fit its support")
        array = np.zeros(size, values.dtype)
        array[mask] = values
    shaped: np.ndarray = array.reshape(change.shape)
    return shaped


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None
