"""Calls of ``compress`` for tests that need one and not what it finds."""

from __future__ import annotations

from pathlib import Path

from onnxpress.job import Job
from onnxpress.step import Step
from small_models import perceptron


def quick_job(folder: Path, recipe: Step, seed: int = 0) -> Job:
    """Give a job on the perceptron, with drawn inputs, on the CPU."""
    original = folder / "m.onnx"
    original.write_bytes(perceptron().SerializeToString())
    return Job(original, domain=("x=normal:0,1",), recipe=recipe, device="cpu", seed=seed)
