"""Real models lose a random half of the units of every group and answer as the masked ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxpress_adapters.read import read_model
from onnxpress_exporters.shrink import Subject
from shrinking import halved, shrunk_like_masked, subject_of
from zoo_beside import ZOO, load_zoo

pytestmark = pytest.mark.zoo

WITHOUT = {
    "dtln_model_1": {"the model's input 'input_3' is what it is"},
    "silero_vad_op18_ifless": {"a graph inside If 'node_cond__1' reads them"},
    "sklearn_randomforest": set[str](),
}
"""Models nothing can leave, and what must be among the reasons: states that are inputs, a body that
holds the whole network, a forest of trees."""

GROUPS = {
    "mnist_fc_256x4": (256, 256, 256, 256),
    "cifar_resnet_2b": (8, 16, 16, 16, 100),
    "byte_bilstm": (128, 64),
}

NAMES = sorted(path.stem for path in (ZOO / "models").glob("*.onnx")) or ["the zoo"]


@cache
def entry(name: str) -> Any:
    return load_zoo().entry(name)


def subject(name: str) -> Subject:
    model: ModelProto = read_model(entry(name).path)
    return subject_of(model, entry(name).inputs(1, "calibration")[0])


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_units_leave(name: str) -> None:
    load_zoo()
    held = subject(name)
    if name in WITHOUT:
        assert held.groups.groups == ()
        assert set(held.groups.reasons.values()) >= WITHOUT[name]
        return
    assert held.groups.groups
    gone = halved(held, seed=1)
    feeds = entry(name).inputs(3, "evaluation")
    shrunk = shrunk_like_masked(held, lambda place: feeds[place], gone)
    assert shrunk.stays == {}
    np.testing.assert_array_equal(shrunk.removed, gone)
    onnx.checker.check_model(shrunk.model, full_check=True)
    assert shrunk.model.ByteSize() < held.model.ByteSize()


@pytest.mark.parametrize("name", GROUPS)
def test_groups_that_are_known(name: str) -> None:
    load_zoo()
    assert tuple(group.units for group in subject(name).groups.groups) == GROUPS[name]


def test_residual_streams_of_sri_resnet_a() -> None:
    load_zoo()
    groups = subject("sri_resnet_a").groups.groups
    streams = [g for g in groups if sum(m.weight and m.axis == 0 for m in g.members) > 1]
    assert len(streams) >= 2
