"""Reports made by hand, for every test that shows one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.problem import Tolerance
from onnxpress.report import Report, SampleCounts
from onnxpress.sizes import FileSize, Sizes
from onnxpress.verdict import decide
from onnxpress.weighing import LayerRow
from onnxpress_adapters.distance import DistanceMeter


def made(share: float = 0.0, tolerance: str = "1%", name: str = "y", **changed: Any) -> Report:
    """A report on 100 samples of one output that moved by ``share`` of its variance."""
    old = np.resize([[1.0], [-1.0]], (100, 1))
    meter = DistanceMeter([name])
    meter.add([old], [old + share**0.5])
    distance = meter.distance()
    asked = Tolerance.parse(tolerance)
    report = Report(
        model=Path("a.onnx"),
        pressed=Path("b.onnx"),
        out=Path("b.onnx"),
        decision=decide(distance, asked, seed=0),
        distance=distance,
        tolerance=asked,
        sparsity=0.75,
        original_sparsity=0.01,
        sizes=Sizes(FileSize(1000, 900), FileSize(500, 300)),
        seconds=12.34,
        seed=7,
        device="cpu",
        providers=("CPUExecutionProvider",),
        samples=SampleCounts(60, 20, 100),
        batching="batch",
        layers=(LayerRow("w1", "MatMul", (16, 32), 512, 0, 384, "sparse"),),
        steps="Chain(steps=(Greedy(),))",
        log=("one", "two"),
    )
    return replace(report, **changed)
