"""Where things are in a checkout, and how another process finds them without an installed copy."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# By floor, lowest first.
SOURCES = {
    "onnxpress_adapters": ROOT / "adapters" / "onnxpress_adapters",
    "onnxpress_exporters": ROOT / "exporters" / "onnxpress_exporters",
    "onnxpress": ROOT / "pipeline" / "onnxpress",
}


def environment() -> dict[str, str]:
    """Give the variables for a Python that imports the packages of this checkout."""
    folders = os.pathsep.join(str(folder.parent) for folder in SOURCES.values())
    return {**os.environ, "PYTHONPATH": folders}
