"""Counting work instead of timing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models import case_of, linear_model
from onnxpress import cost as module
from onnxpress.cost import (
    ELEMENT_MACS,
    LARGEST_BATCH,
    LOOP_NODES,
    MACS_PER_UNIT,
    NODE_MACS,
    Cost,
    one_thread_spared,
)
from onnxpress_adapters.network import import_network


def counted(effort: float = 1.0) -> Cost:
    problem = case_of(linear_model(np.ones((6, 3)))).problem
    return Cost.of(problem.network, problem.reference, problem.fit, effort)


def test_one_sample_of_a_linear_layer() -> None:
    found = counted()
    assert found.elements == 3
    assert found.macs == 3 * ELEMENT_MACS + 6 * 3
    assert found.nodes == 1
    assert found.batch == LARGEST_BATCH


def test_a_recurrent_loop_counts_once_per_place() -> None:
    hidden, places = 4, 7
    weights = {"W": (1, hidden, 3), "R": (1, hidden, hidden)}
    graph = helper.make_graph(
        [helper.make_node("RNN", ["x", "W", "R"], ["y"], hidden_size=hidden)],
        "loop",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [places, 1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [places, 1, 1, hidden])],
        [
            numpy_helper.from_array(np.zeros(shape, np.float32), name)
            for name, shape in weights.items()
        ],
    )
    network, reference = import_network(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    )
    found = Cost.of(network, reference, [torch.zeros(1, places, 1, 3)], 1.0)
    assert found.nodes == 1 + LOOP_NODES * places
    assert found.macs == ELEMENT_MACS * places * hidden + places * hidden * (3 + hidden)


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
    # Samples that do not fit together run the graph once more for every batch.
    samples = 3 * LARGEST_BATCH + 1
    each = 4 * samples * 42 + 3 * 4 * NODE_MACS
    assert counted().steps(2.0, samples) == int(2.0 * MACS_PER_UNIT / each)


def test_one_thread_is_spared_and_given_back() -> None:
    threads = torch.get_num_threads()
    with one_thread_spared():
        assert 1 <= torch.get_num_threads() <= threads
    assert torch.get_num_threads() == threads


def test_a_draw_is_larger_where_running_the_graph_costs_more_than_computing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = counted()
    # One node beside 42 multiply-adds a sample: 3 * NODE_MACS / (4 * 42) samples' worth.
    assert found.draw_size(1000) == min(LARGEST_BATCH, round(2 * (3 * NODE_MACS / 168) ** 0.5))
    assert found.draw_size(7) == 7
    monkeypatch.setattr(module, "NODE_MACS", 42 * 12)
    assert counted().draw_size(1000) == 6
    monkeypatch.setattr(module, "NODE_MACS", 0)
    assert counted().draw_size(1000) == 1
