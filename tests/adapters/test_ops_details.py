"""Hand-computed cases of converters: exact integers, the first opsets, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from one_node import Array, make
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.ops.dtypes import to_tensor, torch_dtype

LARGE = 2**53 + 1
"""The first integer that float64 does not hold."""


def run(operator: str, *inputs: Array | None, **options: Any) -> Tensor:
    version, domain = options.pop("version", 17), options.pop("domain", "")
    _, prepared = make(operator, inputs, options, version=version, domain=domain)
    (result, *_) = prepared.run()
    assert result is not None
    return result


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def images(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("operator", "inputs", "expected"),
    [
        ("Add", (ints(LARGE), ints(2)), [LARGE + 2]),
        ("Sub", (ints(LARGE), ints(2)), [LARGE - 2]),
        ("Mul", (ints(LARGE), ints(3)), [3 * LARGE]),
        ("Div", (ints(LARGE, -7, 7), ints(1, 2, -2)), [LARGE, -3, -3]),
        ("Max", (ints(LARGE), ints(LARGE - 1)), [LARGE]),
        ("Min", (ints(LARGE), ints(LARGE + 1)), [LARGE]),
        ("Pow", (ints(3), ints(35)), [3**35]),
        ("ReduceSum", (ints(LARGE, 1),), [LARGE + 1]),
        ("ReduceProd", (ints(LARGE, 2),), [2 * LARGE]),
        ("ReduceMax", (ints(LARGE, LARGE - 1),), [LARGE]),
        ("Equal", (ints(LARGE), ints(LARGE - 1)), [False]),
        ("Neg", (ints(LARGE),), [-LARGE]),
        ("Range", (np.array(LARGE), np.array(LARGE + 3), np.array(2)), [LARGE, LARGE + 2]),
        ("Where", (np.array([True]), ints(LARGE), ints(0)), [LARGE]),
        ("Gather", (ints(1, LARGE), ints(-1)), [LARGE]),
        ("Concat", (ints(1), ints(LARGE)), [1, LARGE]),
    ],
)
def test_integers_are_exact(operator: str, inputs: tuple[Array, ...], expected: list[int]) -> None:
    options: dict[str, Any] = {"axis": 0} if operator in ("Concat", "Gather") else {}
    assert run(operator, *inputs, **options).tolist() == expected


def test_unsigned_64_bit_numbers_shift_in_zeros() -> None:
    top = np.array([2**63 + 5, 2**63, 3, 7], np.uint64)
    places = np.array([1, 63, 0, 64], np.uint64)
    result = run("BitShift", top, places, direction="RIGHT")
    assert result.dtype == torch.uint64
    assert result.tolist() == [2**62 + 2, 1, 3, 0]


def test_types_torch_only_stores_wrap_around() -> None:
    result = run("Add", np.array([65535], np.uint16), np.array([2], np.uint16))
    assert result.dtype == torch.uint16
    assert result.tolist() == [1]


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
def test_first_opsets_broadcast_from_an_axis(operator: str) -> None:
    a, b = images(2, 3, 4, 5) + 1, images(3, 4) + 1
    functions = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
    for axis in (1, -3):
        result = run(operator, a, b, version=6, broadcast=1, axis=axis)
        np.testing.assert_allclose(result, functions[operator](a, b[None, :, :, None]), rtol=1e-6)
    result = run(operator, a, images(4, 5) + 1, version=6, broadcast=1)
    np.testing.assert_allclose(result, functions[operator](a, images(4, 5) + 1), rtol=1e-6)


def test_first_prelu_has_a_slope_per_channel() -> None:
    x = np.array([[[-1, 2], [-3, -4]]], np.float32)
    slope = np.array([10, 100], np.float32)
    assert run("PRelu", x, slope, version=6).tolist() == [[[-10, 2], [-300, -400]]]
    assert run("PRelu", x, slope, version=7).tolist() == [[[-10, 2], [-30, -400]]]


def test_first_upsample_names_height_and_width() -> None:
    result = run("Upsample", images(1, 1, 1, 2), version=1, height_scale=2.0, width_scale=1.0)
    assert result.tolist() == [[[[0, 1], [0, 1]]]]


@pytest.mark.parametrize("scales", [(1, 1, 3, 1), (1, 1, 1, 2), (1, 1, 2, 4), (2, 1, 1, 1)])
def test_enlarging_by_whole_numbers_repeats_entries(scales: tuple[int, ...]) -> None:
    x = images(2, 3, 4, 5)
    result = run(
        "Resize",
        x,
        None,
        np.array(scales, np.float32),
        version=13,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    wanted = x
    for axis, times in enumerate(scales):
        wanted = wanted.repeat(times, axis)
    assert result.is_contiguous()
    assert torch.equal(result, torch.from_numpy(wanted))


def test_first_cast_names_its_type() -> None:
    assert run("Cast", images(2), version=1, to="INT32").dtype == torch.int32


def test_first_tile_repeats_one_axis() -> None:
    assert run("Tile", images(2), ints(2), ints(0), version=1).tolist() == [0, 1, 0, 1]


def test_first_reshape_has_its_shape_as_an_attribute() -> None:
    assert run("Reshape", images(2, 3), version=1, shape=[0, -1, 1]).shape == (2, 3, 1)


def test_first_split_may_have_its_sizes_as_an_input() -> None:
    _, prepared = make("Split", [images(6), ints(2, 4)], version=1, outputs=2)
    parts = [part.tolist() for part in prepared.run() if part is not None]
    assert parts == [[0, 1], [2, 3, 4, 5]]
    _, prepared = make("Split", [images(3)], {"split": [1, 2]}, version=1, outputs=2)
    assert [len(part) for part in prepared.run() if part is not None] == [1, 2]


def test_first_selu_has_shorter_numbers() -> None:
    assert run("Selu", np.array([1.0]), version=1).item() == pytest.approx(1.0507, abs=1e-9)
    assert run("Selu", np.array([1.0]), version=6).item() == pytest.approx(1.05070098, abs=1e-8)


def test_gather_of_no_axis_keeps_the_rest() -> None:
    assert run("Gather", images(3, 2), np.array(-1), axis=0).tolist() == [4, 5]


def test_constant_fill_has_a_value_of_any_type() -> None:
    result = run("ConstantOfShape", ints(2), value=numpy_helper.from_array(ints(7)))
    assert result.dtype == torch.int64
    assert result.tolist() == [7, 7]


def test_reflection_may_be_longer_than_the_axis() -> None:
    result = run("Pad", images(3), ints(5, 4), mode="reflect")
    assert result.tolist() == np.pad(images(3), (5, 4), mode="reflect").tolist()


def test_lstm_without_steps_used_keeps_its_state() -> None:
    rng = np.random.default_rng(0)
    w, r = rng.random((1, 4, 1), np.float32), rng.random((1, 4, 1), np.float32)
    start = np.array([[[0.5], [0.25]]], np.float32)
    _, prepared = make(
        "LSTM",
        [images(2, 2, 1), w, r, None, np.array([0, 2], np.int32), start, start],
        {"hidden_size": 1},
        outputs=3,
    )
    history, last, cell = prepared.run()
    assert history is not None
    assert last is not None
    assert cell is not None
    assert history[:, 0, 0].tolist() == [[0.0], [0.0]]
    assert last[0, 0].tolist() == [0.5]
    assert cell[0, 0].tolist() == [0.5]
    assert history[1, 0, 1].tolist() == last[0, 1].tolist()


CUBE = images(1, 1, 2, 2, 2, 2)
SEQUENCE = [images(1, 1, 1), np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)]


@pytest.mark.parametrize(
    ("operator", "inputs", "options", "message"),
    [
        ("Conv", [CUBE, CUBE], {}, "4 spatial axes"),
        ("MaxPool", [CUBE], {"kernel_shape": [1, 1, 1, 1]}, "4 spatial axes"),
        ("MaxPool", [images(1, 1, 2)], {"kernel_shape": [1], "auto_pad": "ODD"}, "auto_pad 'ODD'"),
        ("Pad", [images(2), ints(1, 1)], {"mode": "odd"}, "unknown mode 'odd'"),
        ("Resize", [images(1, 1, 2, 2)], {}, "neither scales nor sizes"),
        ("Resize", [images(2), None, np.ones(1)], {"mode": "odd"}, "unknown mode 'odd'"),
        ("ScatterElements", [images(2), ints(0), images(1)], {"reduction": "odd"}, "'odd'"),
        ("RNN", SEQUENCE, {"direction": "odd"}, "unknown direction 'odd'"),
        ("RNN", SEQUENCE, {"activations": ["Odd"]}, "activation 'Odd'"),
        ("RNN", SEQUENCE, {"activations": ["Affine"]}, "without its alpha"),
    ],
)
def test_refusals_name_the_node(
    operator: str, inputs: list[Array | None], options: dict[str, Any], message: str
) -> None:
    _, prepared = make(operator, inputs, options)
    with pytest.raises(AdapterError, match=message) as caught:
        prepared.run()
    assert str(caught.value).startswith(f"{operator} 'here'")


def test_unknown_fused_activation_is_refused() -> None:
    inputs = [images(1, 1, 2), images(1, 1, 1)]
    _, prepared = make(
        "FusedConv", inputs, {"activation": "Odd"}, version=1, domain="com.microsoft"
    )
    with pytest.raises(AdapterError, match="fuses the activation 'Odd'"):
        prepared.run()


def test_types_without_tensors_are_refused() -> None:
    with pytest.raises(AdapterError, match="type STRING"):
        torch_dtype("STRING")
    with pytest.raises(AdapterError, match="torch has no tensors of type"):
        to_tensor(np.array(["word"]))
