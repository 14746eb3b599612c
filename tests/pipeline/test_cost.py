"""Counting work instead of timing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import case_of, linear_model
from onnxpress import cost as module
from onnxpress.cost import (
    ELEMENT_MACS,
    LARGEST_BATCH,
    MACS_PER_UNIT,
    NODE_MACS,
    Cost,
    one_thread_spared,
)


def counted(effort: float = 1.0) -> Cost:
    problem = case_of(linear_model(np.ones((6, 3)))).problem
    return Cost.of(problem.network, problem.reference, problem.fit, effort)


def test_one_sample_of_a_linear_layer() -> None:
    found = counted()
    assert found.elements == 3
    assert found.macs == 3 * ELEMENT_MACS + 6 * 3
    assert found.nodes == 1
    assert found.batch == LARGEST_BATCH


def test_a_batch_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACTIVATION_BYTES", 4 * 3 * 10 + 1)
    assert counted().batch == 10
    monkeypatch.setattr(module, "ACTIVATION_BYTES", 1)
    assert counted().batch == 1


def test_steps_follow_from_counts() -> None:
    each = 4 * 5 * 42 + 3 * NODE_MACS
    assert counted().steps(2.0, 5) == int(2.0 * MACS_PER_UNIT / each)
    assert counted(0.5).steps(2.0, 5) == int(MACS_PER_UNIT / each)
    assert counted().steps(0.0, 5) == 1


def test_one_thread_is_spared_and_given_back() -> None:
    threads = torch.get_num_threads()
    with one_thread_spared():
        assert 1 <= torch.get_num_threads() <= threads
    assert torch.get_num_threads() == threads
