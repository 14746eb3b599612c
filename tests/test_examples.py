"""The examples run, and the files they come with are what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from checkout import ROOT, environment

EXAMPLES = ROOT / "examples"
MODELS = ("digits_cnn", "digits_fc")


def run(name: str, *arguments: str, where: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        cwd=where,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracy(folder: Path, model: str) -> float:
    """Give the share of test images a model of a folder names right, in onnxruntime."""
    images, labels = load_digits(return_X_y=True)
    _, expected_images, _, expected = train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    test = np.load(folder / "digits_test.npz")["image"]
    assert np.array_equal(test.reshape(-1, 64) * 16, expected_images)
    session = onnxruntime.InferenceSession(
        folder / f"{model}.onnx", providers=["CPUExecutionProvider"]
    )
    scores = np.asarray(session.run(None, {"image": test})[0])
    return float((scores.argmax(1) == expected).mean())


def test_training_writes_models_and_data(tmp_path: Path) -> None:
    printed = run("digits.py", "--epochs", "3", "--out", str(tmp_path), where=tmp_path)
    for model, line in zip(MODELS, printed.splitlines(), strict=True):
        share = accuracy(tmp_path, model)
        assert share > 0.8
        assert line.startswith(f"{model}: ")
        assert line.endswith(f"{share:.1%} of the test images right")
    for name in ("digits_train.npz", "digits_test.npz"):
        written, shipped = np.load(tmp_path / name), np.load(EXAMPLES / name)
        assert np.array_equal(written["image"], shipped["image"])


@pytest.mark.parametrize("model", MODELS)
def test_the_models_that_come_along_are_trained_and_small(model: str) -> None:
    path = EXAMPLES / f"{model}.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert accuracy(EXAMPLES, model) >= 0.97
    assert path.stat().st_size < 300_000


def test_pressing_in_python_takes_under_15_lines_and_works(tmp_path: Path) -> None:
    assert len((EXAMPLES / "press_digits.py").read_text(encoding="utf-8").splitlines()) < 15
    printed = run("press_digits.py", where=tmp_path)
    assert printed.strip()
    pressed = tmp_path / "digits_fc.pressed.onnx"
    assert pressed.stat().st_size < (EXAMPLES / "digits_fc.onnx").stat().st_size
