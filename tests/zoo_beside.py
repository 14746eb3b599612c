"""The model zoo that may lie beside a checkout, and the distance it defines."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from checkout import ROOT

ZOO = ROOT.parent / "shared" / "zoo"


def load_zoo(name: str = "zoo") -> ModuleType:
    """Import a module of the zoo's own; skip the calling test where there is no zoo."""
    path = ZOO / f"{name}.py"
    if not path.exists():
        pytest.skip("the model zoo (../shared/zoo) is not beside this checkout")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
    return sys.modules[name]
