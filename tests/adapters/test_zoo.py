"""Every model of the zoo, with real inputs: imported, batched and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from hand_built import Array
from onnxpress_adapters.layers import layer_of
from onnxpress_adapters.network import Network, import_network
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import WeightKey
from zoo_beside import ZOO, load_zoo

pytestmark = pytest.mark.zoo

SAMPLES = 16
FOREST = "sklearn_randomforest"
MODELS = sorted(p.stem for p in (ZOO / "models").glob("*.onnx") if p.stem != FOREST)

NOISY = {"basic_pitch_nmp": 2e-4, "magika_v3_3": 2e-4, "ppocr_v3_det": 5e-4}
"""Models on which onnxruntime's own rounding is about 1e-4 or more, and what is allowed there."""

WAYS = {"batch": 16, "rebatched": 18, "vmap": 3, "loop": 0}
"""How many models are run which way."""

SLOW = frozenset({"basic_pitch_nmp", "fastestdet", "ppocr_v3_det", "super_resolution_x3"})
"""Models whose loop is compared on three inputs."""


@dataclass(frozen=True, eq=False)
class Imported:
    """A model and its real inputs ``[samples, *shape]``."""

    network: Network
    weights: dict[WeightKey, Tensor]
    feeds: Sequence[Mapping[str, Array]]

    @property
    def inputs(self) -> list[Tensor]:
        names = [spec.name for spec in self.network.inputs]
        return [torch.from_numpy(np.stack([feed[name] for feed in self.feeds])) for name in names]


def imported(name: str, samples: int = SAMPLES) -> Imported:
    entry = load_zoo().entry(name)
    network, weights = import_network(read_model(entry.path))
    return Imported(network, weights, entry.inputs(samples, "evaluation"))


def error(found: Tensor, wanted: Array | Tensor) -> float:
    """Give the largest error relative to the largest magnitude."""
    exact = np.asarray(wanted, np.float64)
    return float(np.abs(found.double().numpy() - exact).max() / np.abs(exact).max())


def largest(found: Sequence[Tensor], wanted: Sequence[Any]) -> float:
    return max(error(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def distance_to_runtime(name: str) -> float:
    """Give the largest error of any output on the inputs, in units of what is allowed."""
    model = imported(name)
    session = load_zoo().entry(name).session()
    answers = [session(feed) for feed in model.feeds]
    wanted = [np.stack(parts) for parts in zip(*answers, strict=True)]
    with torch.no_grad():
        found = model.network.batched(model.weights, model.inputs)
    half = any(array.dtype == np.float16 for array in wanted)
    return largest(found, wanted) / NOISY.get(name, 1e-3 if half else 1e-4)


def in_double(name: str) -> Network:
    """Import a model that computes in float64 where it would cast to float32."""
    model = read_model(load_zoo().entry(name).path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return import_network(model)[0]


def test_the_models_that_import_agree_with_onnxruntime() -> None:
    load_zoo()
    errors = {name: distance_to_runtime(name) for name in MODELS}
    assert len(errors) == 37
    assert {name: value for name, value in errors.items() if not value <= 1} == {}
    assert sum(value <= 1 for name, value in errors.items() if name not in NOISY) >= 28


@pytest.mark.parametrize("name", NOISY)
def test_where_onnxruntime_rounds_more_the_network_is_near_the_model_in_float64(name: str) -> None:
    model = imported(name)
    exact = {key: weight.double() for key, weight in model.weights.items()}
    precise = [v.double() if v.is_floating_point() else v for v in model.inputs]
    with torch.no_grad():
        wanted = in_double(name).batched(exact, precise)
        found = model.network.batched(model.weights, model.inputs)
    assert all(value.dtype == torch.float64 for value in wanted)
    assert largest(found, wanted) < 1e-4


def test_many_samples_at_once_equal_the_loop() -> None:
    load_zoo()
    chosen = dict.fromkeys(WAYS, 0)
    for name in MODELS:
        model = imported(name, 3 if name in SLOW else SAMPLES)
        with torch.no_grad():
            fast = model.network.proven(model.weights, model.inputs)
            found = fast.batched(model.weights, model.inputs)
            wanted = model.network.batched(model.weights, model.inputs)
        chosen[fast.batching.mode] += 1
        assert [value.shape for value in found] == [value.shape for value in wanted], name
        assert largest(found, wanted) < 1e-4, name
    assert chosen == WAYS


def test_prunable_weights_are_those_the_zoo_counts() -> None:
    yardstick = load_zoo("prunable")
    for name in [*MODELS, FOREST]:
        model = onnx.load(load_zoo().entry(name).path)
        theirs = [(where[1], found[0].size) for where, found in yardstick.weights(model).items()]
        assert [(weight.key.name, weight.elements) for weight in prunable(model)] == theirs, name


def test_a_forest_gives_labels_and_maps_as_onnxruntime_does() -> None:
    model = imported(FOREST)
    session = load_zoo().entry(FOREST).session()
    assert model.network.program.fallbacks == ("TreeEnsembleClassifier 'TreeEnsembleClassifier'",)
    fast = model.network.proven(model.weights, model.inputs)
    labels, scores = fast.batched(model.weights, model.inputs)
    for feed, label, maps in zip(model.feeds, labels, scores, strict=True):
        wanted, (theirs,) = session(feed)
        assert label.tolist() == wanted.tolist()
        (ours,) = maps
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert float(ours[name]) == pytest.approx(value, rel=1e-6)


def test_nothing_on_the_way_of_a_weight_runs_outside_torch() -> None:
    fallbacks = {name: imported(name, 1).network.program.fallbacks for name in MODELS}
    assert {name: nodes for name, nodes in fallbacks.items() if nodes} == {}


def test_every_prunable_weight_of_the_zoo_can_be_pressed_layer_by_layer() -> None:
    without = {}
    for name in MODELS:
        model = read_model(load_zoo().entry(name).path)
        for weight in prunable(model):
            found = layer_of(weight)
            if isinstance(found, str):
                without[f"{name}: {weight.key}"] = found
    assert without == {}
