"""Labels from files: what is read, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxpress.labels import SOURCES, read_labels
from onnxpress_adapters.errors import MisuseError


def refusal(path: Path, samples: int = 3) -> str:
    with pytest.raises(MisuseError) as caught:
        read_labels(path, samples)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (np.array([2, 0, 1], np.uint8), np.int64),
        (np.array([True, False, True]), np.int64),
        (np.array([0.5, -1.0, 2.0]), np.float32),
        (np.array([[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]]), np.float32),
    ],
    ids=["classes", "truth values", "targets", "rows of targets"],
)
def test_npy_files(tmp_path: Path, given: np.ndarray, kind: type) -> None:
    path = tmp_path / "l.npy"
    np.save(path, given)
    found = read_labels(path, 3)
    assert found.dtype == kind
    assert found.tolist() == given.astype(kind).tolist()


def test_a_column_is_one_label_a_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.array([[1], [0], [2]]))
    assert read_labels(tmp_path / "l.npy", 3).tolist() == [1, 0, 2]


def test_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "l.npz"
    np.savez(path, digit=[1, 2, 3])
    assert read_labels(path, 3).tolist() == [1, 2, 3]
    np.savez(path, digit=[1, 2, 3], labels=[3, 2, 1])
    assert read_labels(path, 3).tolist() == [3, 2, 1]
    np.savez(path, digit=[1, 2, 3], other=[3, 2, 1])
    assert refusal(path) == f"{path} holds several arrays (digit, other); call the labels 'labels'"


@pytest.mark.parametrize(
    ("text", "wanted", "kind"),
    [
        ("1\n0\n2\n", [1, 0, 2], np.int64),
        ("\ufeffdigit\r\n1\r\n0\r\n\r\n2\r\n", [1, 0, 2], np.int64),
        ("a,b\n1,.5\n2,1\n3,0\n", [[1, 0.5], [2, 1], [3, 0]], np.float32),
    ],
    ids=["bare", "with a heading, from a spreadsheet", "rows of targets"],
)
def test_csv_files(tmp_path: Path, text: str, wanted: list[object], kind: type) -> None:
    path = tmp_path / "l.csv"
    path.write_text(text, encoding="utf-8")
    found = read_labels(path, 3)
    assert found.dtype == kind
    assert found.tolist() == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\ncat\n", "line 2: 'dog' is no number; number the classes from 0 on"),
        ("1\n2,3\n4\n", "line 2: 2 numbers, and 1 in the first; give each sample as many"),
        ("1\nnan\n2\n", "holds NaN or infinity, first for sample 1; leave it out"),
        ("", "has 0 labels and the data 3 samples; give one for each"),
        ("1\n2\n", "has 2 labels and the data 3 samples; give one for each"),
    ],
    ids=["words", "uneven", "not a number", "empty", "too few"],
)
def test_csv_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "l.csv"
    path.write_text(text, encoding="utf-8")
    assert refusal(path).endswith(message)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.npy"
    assert refusal(path) == f"{path} does not exist; check the path of the labels"
    np.save(path, np.array(["cat", "dog", "cat"]))
    assert refusal(path).startswith(f"{path} holds <U3; labels are numbers, one (or one row) per")
    np.save(path, np.array(3))
    assert refusal(path).startswith(f"{path} holds a single value; labels are numbers")
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    assert refusal(path).startswith(f"{path} is not a sound .npy file: ")
    torn = tmp_path / "l.csv"
    torn.write_bytes(b"\xff\xfe\x00")
    assert refusal(torn).startswith(f"{torn} is not a sound .csv file: ")
    text = tmp_path / "l.txt"
    text.write_text("1\n")
    assert "is not a file onnxpress reads labels from; give a .npy" in refusal(text)


def test_sources_are_read_alike_and_called_by_their_name(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, sources=[4, 4, 9], labels=[0, 1, 0])
    assert read_labels(path, 3, SOURCES).tolist() == [4, 4, 9]
    with pytest.raises(MisuseError, match="has 3 sources and the data 5 samples; give one for"):
        read_labels(path, 5, SOURCES)
    (tmp_path / "s.csv").write_text("patient\n1\nsmith\n2\n")
    with pytest.raises(MisuseError, match="line 3: 'smith' is no number; number the sources from"):
        read_labels(tmp_path / "s.csv", 3, SOURCES)
