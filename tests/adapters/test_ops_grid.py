"""Sampling grids and bent convolutions against onnxruntime and the reference."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from beside_reference import reference
from beside_runtime import Row, check, row
from one_node import Array, make
from onnxpress_adapters.errors import AdapterError

dice = random.Random(0)
rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def drawn_grid_sample() -> Row:
    rank = dice.choice([2, 2, 3])
    mode = dice.choice(["linear", "nearest", "cubic"] if rank == 2 else ["linear", "nearest"])
    version = dice.choice([16, 20]) if rank == 2 else 20
    if version == 16:
        mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    sizes, counts = ([dice.randint(2, 6) for _ in range(rank)] for _ in range(2))
    attributes: dict[str, Any] = {
        "mode": mode,
        "padding_mode": dice.choice(["zeros", "border", "reflection"]),
        "align_corners": dice.randint(0, 1),
    }
    grid = rng.uniform(-2.2, 2.2, (2, *counts, rank)).astype(np.float32)
    if mode == "nearest" and dice.random() < 0.5:
        # Between two entries, where the even one is the nearest.
        lengths = np.array(sizes[::-1]) - attributes["align_corners"]
        grid = (rng.integers(-9, 9, grid.shape) / (2 * lengths)).astype(np.float32)
    return row("GridSample", version, normal(2, 3, *sizes), grid, **attributes)


def drawn_affine_grid() -> Row:
    rank = dice.choice([2, 3])
    size = np.array([2, 3, *(dice.randint(1, 5) for _ in range(rank))])
    theta = normal(2, rank, rank + 1)
    return row("AffineGrid", 20, theta, size, align_corners=dice.randint(0, 1))


def drawn_deform_conv() -> Row:
    kernel, strides, dilations = ([dice.randint(1, n) for _ in range(2)] for n in (3, 2, 2))
    pads = [dice.randint(0, 2) for _ in range(4)]
    groups, shared = dice.randint(1, 2), dice.choice([1, 2])
    sizes = [dice.randint(5, 7) for _ in range(2)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    out = [(sizes[a] + pads[a] + pads[a + 2] - reach[a]) // strides[a] + 1 for a in range(2)]
    steps = kernel[0] * kernel[1] * shared
    inputs: list[Array | None] = [normal(2, 4, *sizes), normal(6, 4 // groups, *kernel)]
    inputs += [normal(2, 2 * steps, *out), normal(6) if dice.random() < 0.5 else None]
    inputs += [normal(2, steps, *out)] if dice.random() < 0.5 else []
    while inputs[-1] is None:
        inputs.pop()
    return row(
        "DeformConv",
        19,
        *inputs,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        group=groups,
        offset_group=shared,
    )


DRAWS = {
    "affine": drawn_affine_grid,
    "deform": drawn_deform_conv,
    "sample": drawn_grid_sample,
}


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_answers_as_onnxruntime(kind: str) -> None:
    dice.seed(kind)
    for _ in range(100):
        check(DRAWS[kind]())


def run(operator: str, *inputs: Array | None, **attributes: Any) -> Array:
    _, prepared = make(operator, inputs, attributes, version=22)
    (result,) = prepared.run()
    assert result is not None
    return result.numpy()


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize(("mode", "rank"), [("cubic", 3), ("cubic", 1), ("linear", 1)])
def test_any_number_of_axes_is_sampled(mode: str, rank: int, corners: int, padding: str) -> None:
    x = normal(1, 2, *[4, 3, 2][:rank])
    # Outside a border the reference moves all taps of a cubic at once, onnxruntime each by itself.
    reach = 0.45 if (mode, padding) == ("cubic", "border") else 1.8
    grid = rng.uniform(-reach, reach, (1, *[2, 3, 2][:rank], rank)).astype(np.float32)
    how: dict[str, Any] = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    (expected,) = reference(row("GridSample", 20, x, grid, **how))
    np.testing.assert_allclose(run("GridSample", x, grid, **how), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_a_volume_of_equal_layers_is_sampled_as_the_image(padding: str) -> None:
    image, grid = normal(1, 2, 4, 3), rng.uniform(-2, 2, (1, 1, 9, 2)).astype(np.float32)
    depth = rng.uniform(-2, 2, (1, 1, 9, 1)).astype(np.float32)
    volume, places = np.stack([image] * 5, 2), np.concatenate([grid, depth], -1)
    how = {"mode": "cubic", "padding_mode": padding}
    result = run("GridSample", volume, places[:, None], **how)
    expected = run("GridSample", image, grid, **how)
    np.testing.assert_allclose(result[:, :, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_complex_numbers_are_sampled_part_by_part(mode: str) -> None:
    x = normal(1, 1, 3, 4), normal(1, 1, 3, 4)
    grid = rng.uniform(-1.5, 1.5, (1, 5, 5, 2)).astype(np.float32)
    result = run("GridSample", x[0] + 1j * x[1], grid, mode=mode)
    parts = [run("GridSample", part, grid, mode=mode) for part in x]
    np.testing.assert_allclose(result, parts[0] + 1j * parts[1], rtol=1e-4, atol=1e-5)


def test_whole_numbers_are_sampled_exactly() -> None:
    x = np.array([[[[2**40 + 1, 3], [5, 7]]]])
    corners = np.array([[[[-0.5, -0.5], [0.5, 0.5]]]], np.float32)
    assert run("GridSample", x, corners, mode="nearest").tolist() == [[[[2**40 + 1, 7]]]]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_kernels_that_do_not_bend_convolve(rank: int) -> None:
    kernel, sizes, out = [3, 2, 2][:rank], [7, 6, 5][:rank], [3, 3, 2][:rank]
    x, w, bias = normal(2, 4, *sizes), normal(6, 2, *kernel), normal(6)
    offsets = np.zeros((2, 2 * int(np.prod(kernel)) * rank, *out), np.float32)
    how: dict[str, Any] = {"strides": [2] * rank, "group": 2}
    expected = run("Conv", x, w, bias, **how)
    assert expected.shape[2:] == tuple(out)
    result = run("DeformConv", x, w, offsets, bias, offset_group=2, **how)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_offsets_move_along_their_axis(axis: int) -> None:
    x, w = normal(1, 2, 4, 5, 6), normal(3, 2, 2, 2, 2)
    offsets = np.zeros((1, 8, 3, 3, 4, 5), np.float32)
    offsets[:, :, axis] = 0.25
    moved = np.moveaxis(x, axis + 2, 0)
    behind = np.concatenate([moved[1:], np.zeros_like(moved[:1])])
    between = np.moveaxis(0.75 * moved + 0.25 * behind, 0, axis + 2)
    result = run("DeformConv", x, w, offsets.reshape(1, 24, 3, 4, 5))
    np.testing.assert_allclose(result, run("Conv", between, w), rtol=1e-4, atol=1e-5)


def test_the_position_of_a_sample_has_a_gradient() -> None:
    image = torch.tensor([[[[0.0, 1.0, 4.0]]]])
    grid = torch.zeros(1, 1, 1, 2, requires_grad=True)
    _, prepared = make("GridSample", [image.numpy(), np.zeros((1, 1, 1, 2), np.float32)], {})
    prepared.with_({1: grid})[0].sum().backward()
    reference = torch.zeros(1, 1, 1, 2, requires_grad=True)
    functional.grid_sample(image, reference, align_corners=False).sum().backward()
    assert grid.grad is not None
    assert reference.grad is not None
    assert grid.grad.tolist() == reference.grad.tolist()


@pytest.mark.parametrize("how", [{"mode": "odd"}, {"padding_mode": "odd"}])
def test_unknown_modes_are_refused(how: dict[str, str]) -> None:
    with pytest.raises(AdapterError, match=r"^GridSample 'here' samples by .*'odd'"):
        run("GridSample", normal(1, 1, 2, 2), normal(1, 1, 1, 2), **how)
