"""Regions of images against onnxruntime, where the node cases do not reach."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from beside_runtime import Row, check, row
from calculus import check_gradient, check_vmap
from one_node import Array, make
from onnxpress_adapters.errors import AdapterError

dice = random.Random(0)
rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def drawn_roi_align() -> Row:
    height, width = dice.randint(1, 7), dice.randint(1, 7)
    corners = rng.uniform(-4, 8, (5, 2))
    sides = rng.uniform(0, dice.choice([0.3, 3, 30]), (5, 2))
    regions = np.concatenate([corners, corners + sides], 1).astype(np.float32)
    version = dice.choice([10, 16])
    how: dict[str, Any] = {
        "output_height": dice.randint(1, 3),
        "output_width": dice.randint(1, 3),
        "sampling_ratio": dice.choice([0, 0, 1, 3]),
        "spatial_scale": dice.choice([1.0, 0.5, 2.0]),
        "mode": dice.choice(["avg", "max"]),
    }
    if version == 16 and dice.random() < 0.5:
        how["coordinate_transformation_mode"] = "output_half_pixel"
    batch = rng.integers(0, 2, 5)
    return row("RoiAlign", version, normal(2, 3, height, width), regions, batch, **how)


def drawn_max_roi_pool() -> Row:
    places = rng.uniform(-3, 10, (4, 5))
    regions = (np.rint(places * 2) / 2 if dice.random() < 0.5 else places).astype(np.float32)
    regions[:, 0] = rng.integers(0, 2, 4)
    sizes = [dice.randint(1, 8) for _ in range(2)]
    bins, scale = [dice.randint(1, 4) for _ in range(2)], dice.choice([1.0, 0.5])
    x = normal(2, 3, *sizes)
    return row("MaxRoiPool", 1, x, regions, spatial_scale=scale, pooled_shape=bins)


def drawn_suppression() -> Row:
    centred, count = dice.randint(0, 1), dice.randint(1, 12)
    boxes = rng.integers(-3, 6, (2, count, 4)).astype(np.float32)
    scores = (rng.integers(0, 6, (2, 3, count)) / 5).astype(np.float32)
    inputs: list[Array | None] = [boxes, scores]
    inputs.append(np.array([dice.choice([0, 1, 3, 20])]))
    inputs.append(np.array([dice.choice([0, 0.2, 0.5, 1])], np.float32))
    inputs.append(np.array([dice.choice([0, 0.4, 0.7])], np.float32))
    inputs = inputs[: dice.choice([2, 3, 4, 5, 5, 5])]
    return row("NonMaxSuppression", 11, *inputs, center_point_box=centred)


DRAWS = {
    "align": drawn_roi_align,
    "pool": drawn_max_roi_pool,
    "suppression": drawn_suppression,
}


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_answers_as_onnxruntime(kind: str) -> None:
    dice.seed(kind)
    for _ in range(150):
        check(DRAWS[kind]())


REGIONS = np.array([[0.3, 0.8, 4.1, 3.9], [1.2, 0.4, 2.9, 2.2]], np.float32)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_regions_have_gradients(mode: str, ratio: int) -> None:
    how = {"mode": mode, "sampling_ratio": ratio, "output_height": 2, "output_width": 3}
    inputs = [normal(2, 2, 5, 6), REGIONS, np.array([1, 0])]
    _, prepared = make("RoiAlign", inputs, how)
    assert check_gradient(prepared, [0, 1])
    check_vmap(prepared)


def test_pooled_regions_pass_gradients_to_their_largest_entries() -> None:
    regions = np.concatenate([np.array([[1], [0]], np.float32), REGIONS], 1)
    _, prepared = make("MaxRoiPool", [normal(2, 2, 5, 6), regions], {"pooled_shape": [2, 2]})
    assert check_gradient(prepared, [0])
    check_vmap(prepared)


def test_no_regions_give_no_images() -> None:
    inputs = [normal(1, 2, 3, 3), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)]
    _, prepared = make("RoiAlign", inputs, {"output_height": 2})
    (result,) = prepared.run()
    assert result is not None
    assert result.shape == (0, 2, 2, 1)


def test_a_region_turned_round_has_no_samples() -> None:
    inputs = [normal(1, 2, 3, 3) - 9, REGIONS[:1, [2, 3, 0, 1]], np.array([0])]
    for mode in ("avg", "max"):
        _, prepared = make("RoiAlign", inputs, {"mode": mode})
        (result,) = prepared.run()
        assert result is not None
        assert torch.count_nonzero(result) == 0


def test_a_box_without_area_hides_nothing() -> None:
    """It overlaps none, not even itself."""
    boxes = np.array([[[1, 1, 1, 5], [1, 1, 1, 5], [0, 0, 2, 2]]], np.float32)
    inputs = [boxes, np.array([[[0.5, 0.9, 0.7]]], np.float32), np.array(9)]
    _, prepared = make("NonMaxSuppression", inputs)
    (result,) = prepared.run()
    assert result is not None
    assert result.tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 0]]


def test_unknown_pooling_of_regions_is_refused() -> None:
    _, prepared = make("RoiAlign", [normal(1, 1, 2, 2), REGIONS, np.zeros(2, int)], {"mode": "odd"})
    with pytest.raises(AdapterError, match=r"^RoiAlign 'here' pools regions by 'odd'"):
        prepared.run()
