"""Make ONNX models smaller or faster while their outputs stay within a tolerance you name.

The names below are the whole Python interface. They are looked up when first used, so that
``import onnxpress`` and ``onnxpress --help`` load neither torch nor onnxruntime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpress.job import Job
    from onnxpress.press import compress
    from onnxpress.recipe import load_recipe
    from onnxpress.report import Report
    from onnxpress.search import Search
    from onnxpress.step import Best, Chain, Only
    from onnxpress.steps.greedy import Greedy
    from onnxpress.steps.iht import Iht
    from onnxpress.steps.l0 import L0
    from onnxpress.steps.magnitude import Magnitude
    from onnxpress.steps.repair import Repair
    from onnxpress.verdict import Verdict

__version__ = "0.1.0"

__all__ = [
    "L0",
    "Best",
    "Chain",
    "Greedy",
    "Iht",
    "Job",
    "Magnitude",
    "Only",
    "Repair",
    "Report",
    "Search",
    "Verdict",
    "compress",
    "load_recipe",
]

# A module must not be called like a public name: importing it would put the module in the place
# of the name, which is why `compress` lives in `press.py`.
_HOMES = {
    "Best": "onnxpress.step",
    "Chain": "onnxpress.step",
    "Greedy": "onnxpress.steps.greedy",
    "Iht": "onnxpress.steps.iht",
    "Job": "onnxpress.job",
    "L0": "onnxpress.steps.l0",
    "Magnitude": "onnxpress.steps.magnitude",
    "Only": "onnxpress.step",
    "Repair": "onnxpress.steps.repair",
    "Report": "onnxpress.report",
    "Search": "onnxpress.search",
    "Verdict": "onnxpress.verdict",
    "compress": "onnxpress.press",
    "load_recipe": "onnxpress.recipe",
}


def __getattr__(name: str) -> object:
    """Import the module that defines a public name, the first time the name is used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxpress' has no attribute '{name}'")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
