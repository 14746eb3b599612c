"""Weights behind an operator that torch does not run: named, and left as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxpress.inspection import inspect_model
from onnxpress.job import Job
from onnxpress.press import compress
from onnxpress_adapters.errors import AdapterError
from small_models import scaled


def test_inspect_names_the_operator_a_weight_hides_behind(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(scaled(), str(path))
    found = inspect_model(path)
    rows = {row.name: row for row in found.weights}
    assert rows["w1"].how == (
        "no: not optimisable, its gradient would have to pass through Scaler, which torch does "
        "not run"
    )
    assert rows["w2"].trained
    assert found.fallbacks == ("Scaler 'scale'",)
    assert "Run on the host by onnx's reference implementation" in found.text()
    assert found.json()["fallbacks"] == ["Scaler 'scale'"]


def test_compress_leaves_a_weight_behind_it_dense(tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "x.npz"
    onnx.save(scaled(), str(path))
    np.savez(data, x=np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32))
    report = compress(Job(path, sparsity=0.3, data=data, effort="quick", form="dense"))
    rows = {row.name: row for row in report.layers}
    assert rows["w1"].zeros_after == 0
    assert rows["w2"].zeros_after >= 5
    assert any("pass through Scaler stay as they are" in note for note in report.notes)


def test_compress_refuses_where_every_weight_hides_behind_it(tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "x.npz"
    onnx.save(scaled(after=False), str(path))
    np.savez(data, x=np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32))
    with pytest.raises(AdapterError, match=r"no weight of .* is optimisable: .* through Scaler"):
        compress(Job(path, tolerance="1%", data=data, effort="quick"))
