"""Numbers for each sample, read from a file: what a task wants of it, or which source it is of.

Nothing here unpickles, and whatever is wrong with a file is one sentence.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from onnxpress.arrays import Array, read_npy, read_npz
from onnxpress_adapters.errors import MisuseError

LABELS, SOURCES = "labels", "sources"
"""What the array of an .npz is called where it holds several."""

KINDS = {LABELS: "classes", SOURCES: "sources"}
"""What the numbers stand for."""


def read_labels(path: Path, samples: int, what: str = LABELS) -> Array:
    """Read one label, or the number of one source, for each sample of the data, in its order.

    Args:
        path: a .npy; an .npz with one array, or one called as ``what``; or a .csv with a line per
            sample, numbers alone, under a heading or not.
        samples: how many the data has.
        what: ``labels`` or ``sources``.

    Returns:
        int64 or float32 ``[samples]``, or ``[samples, *target shape]``; truth values are 0 and 1.

    Raises:
        MisuseError: the file cannot be read, holds something other than numbers, or has another
            number of labels.
    """
    if not path.exists():
        raise MisuseError(f"{path} does not exist; check the path of the {what}")
    if path.suffix == ".npy":
        array = read_npy(path)
    elif path.suffix == ".npz":
        array = _of_npz(path, what)
    elif path.suffix == ".csv":
        array = _of_csv(path, what)
    else:
        raise MisuseError(
            f"{path} is not a file onnxpress reads {what} from; give a .npy, an .npz with one "
            "array, or a .csv with a line per sample"
        )
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        found = "a single value" if array.ndim == 0 else str(array.dtype)
        raise MisuseError(
            f"{path} holds {found}; {what} are numbers, one (or one row) per sample of the data: "
            f"number the {KINDS[what]} from 0 on"
        )
    if len(array) != samples:
        raise MisuseError(
            f"{path} has {len(array)} {what} and the data {samples} samples; give one for each"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        first = int(np.flatnonzero(~np.isfinite(array.reshape(samples, -1)).all(axis=1))[0])
        raise MisuseError(f"{path} holds NaN or infinity, first for sample {first}; leave it out")
    if array.ndim > 1 and array.shape[1:] == (1,) * (array.ndim - 1):
        array = array.reshape(samples)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _of_npz(path: Path, what: str) -> Array:
    arrays = read_npz(path)
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if what not in arrays:
        names = ", ".join(arrays) or "none"
        raise MisuseError(f"{path} holds several arrays ({names}); call the {what} '{what}'")
    return arrays[what]


def _of_csv(path: Path, what: str) -> Array:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(place, row) for place, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise MisuseError(f"{path} is not a sound .csv file: {error}") from error
    rows: list[list[float]] = []
    for place, row in lines:
        try:
            rows.append([float(cell) for cell in row])
        except ValueError:
            if place == lines[0][0]:
                continue  # a heading
            raise MisuseError(
                f"{path}, line {place}: '{','.join(row):.40}' is no number; number the "
                f"{KINDS[what]} from 0 on"
            ) from None
        if len(rows[-1]) != len(rows[0]):
            raise MisuseError(
                f"{path}, line {place}: {len(rows[-1])} numbers, and {len(rows[0])} in the first; "
                "give each sample as many"
            )
    array = np.asarray(rows, dtype=np.float64)
    whole = bool(np.isfinite(array).all()) and bool((array == np.round(array)).all())
    return array.astype(np.int64) if whole else array
