"""Named arrays from files: .npz, folders of .npy, folders of ``test_data_set_*/input_*.pb``.

Nothing here unpickles, and whatever is wrong with a file is one sentence.
"""

from __future__ import annotations

import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxpress.inputs import unknown_input
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.specs import InputSpec

Array = NDArray[Any]

# What numpy, zipfile, zlib and protobuf raise for a file that is torn, foreign, encrypted or
# absurdly large.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    DecodeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_arrays(path: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    """Read the arrays of a data file or folder.

    Args:
        path: an .npz with one array per input; a folder with one .npy per input, called after it
            (characters that file names do not like may be ``_``); or a folder of
            ``test_data_set_*/input_*.pb``, each a tensor that carries the name of its input, or
            else is counted in the order of the inputs.
        specs: the inputs of the model.

    Returns:
        By input, first axis = samples, as they stand in the file.

    Raises:
        MisuseError: the path is missing, unreadable or of another kind, or names an unknown input.
    """
    if not path.exists():
        raise MisuseError(f"{path} does not exist; check the path of the data")
    if path.is_dir():
        sets = sorted(path.glob("test_data_set_*"), key=_place)
        arrays = _read_sets(sets, specs) if sets else _read_folder(path, specs)
    elif path.suffix == ".npz":
        arrays = read_npz(path)
    else:
        raise MisuseError(
            f"{path} is not data onnxpress reads; give an .npz with one array per input, "
            "a folder of .npy files, or a folder of test_data_set_*/input_*.pb"
        )
    for name in arrays:
        if name not in {spec.name for spec in specs}:
            raise MisuseError(f"{path}: {unknown_input(name, specs)}")
    return arrays


def read_npy(path: Path) -> Array:
    """Read one .npy file.

    Raises:
        MisuseError: it is missing, torn, not a .npy, or holds Python objects.
    """
    with _refusing(path, "a sound .npy file"), path.open("rb") as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
        return array


def read_npz(path: Path) -> dict[str, Array]:
    """Read every array of one .npz file.

    Raises:
        MisuseError: likewise.
    """
    with _refusing(path, "a sound .npz file"), path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array; save it with np.savez and the input's name")
        with loaded:
            return {name: loaded[name] for name in loaded}


def _read_folder(path: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    files = sorted(path.glob("*.npy"))
    if not files:
        raise MisuseError(
            f"{path} holds no data; put one .npy per input in it, or test_data_set_*/input_*.pb"
        )
    names = {_file_name(spec.name): spec.name for spec in specs}
    if len(names) < len(specs):
        names = {}  # two inputs would share a file: then only exact names will do
    exact = {spec.name for spec in specs}
    return {
        file.stem if file.stem in exact else names.get(file.stem, file.stem): read_npy(file)
        for file in files
    }


def _read_sets(folders: Sequence[Path], specs: Sequence[InputSpec]) -> dict[str, Array]:
    feeds: dict[str, list[Array]] = {}
    for folder in folders:
        for file in sorted(folder.glob("input_*.pb"), key=_place):
            name, array = _read_tensor(file, specs)
            feeds.setdefault(name, []).append(array)
    for name, samples in feeds.items():
        shapes = sorted({array.shape for array in samples})
        if len(shapes) > 1:
            raise MisuseError(
                f"{folders[0].parent}: the samples of '{name}' differ in shape "
                f"({list(shapes[0])} and {list(shapes[1])}); give samples of one shape"
            )
    return {name: np.stack(samples) for name, samples in feeds.items()}


def _read_tensor(path: Path, specs: Sequence[InputSpec]) -> tuple[str, Array]:
    """Read one input_*.pb and say which input it is for."""
    with _refusing(path, "a sound ONNX tensor"):
        tensor = TensorProto.FromString(path.read_bytes())
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ValueError("its values lie in another file")
        array = numpy_helper.to_array(tensor)
    if tensor.name in {spec.name for spec in specs}:
        return tensor.name, array
    place = _place(path)
    if not 0 <= place < len(specs):
        raise MisuseError(f"{path}: {unknown_input(tensor.name or path.stem, specs)}")
    return specs[place].name, array


@contextmanager
def _refusing(path: Path, wanted: str) -> Iterator[None]:
    """Turn what goes wrong in reading a file into one sentence."""
    try:
        yield
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MisuseError(f"{path} is not {wanted}: {reason}") from error


def _place(path: Path) -> int:
    """Give the number at the end of a name such as ``input_3.pb``; -1 where there is none."""
    number = re.search(r"_(\d+)$", path.stem)
    return int(number[1]) if number else -1


def _file_name(name: str) -> str:
    """Say an input's name as a file can be called.

    >>> _file_name("net/in:0")
    'net_in_0'
    """
    return re.sub(r"[^\w.-]", "_", name)
