"""Stored values: what the codes are, and that onnxruntime makes the same of them bit by bit."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array

from onnxpress_exporters.values import (
    Half,
    Palette,
    Plain,
    Scaled,
    Storage,
    code_bytes,
    decoded,
    encoded,
    rounded,
    table_bytes,
)
from small_models import model, value

VALUES = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
VALUES[1, 2] = VALUES[3] = 0.0

STORAGES: dict[str, Storage] = {
    "half": Half(),
    "one scale": Scaled(np.array(0.013, np.float32)),
    "a scale per row": Scaled(np.linspace(0.01, 0.03, 6)[:, None].astype(np.float16)),
    "a scale per column": Scaled(np.linspace(0.01, 0.03, 5)[None].astype(np.float16)),
    "tiny scales": Scaled(np.array(3e-8, np.float16)),
    "palette": Palette(np.linspace(-2, 2.3, 16).astype(np.float32)),
    "large palette": Palette(np.linspace(-2, 2, 255).astype(np.float32)),
}


def run(codes: np.ndarray, storage: Storage) -> np.ndarray:
    """Decode with standard operators, without a chance to fold them."""
    tensors, nodes = [], [helper.make_node("Cast", ["codes"], ["wide"], to=TensorProto.FLOAT)]
    if isinstance(storage, Half):
        nodes.append(helper.make_node("Identity", ["wide"], ["y"]))
    if isinstance(storage, Scaled):
        tensors = [from_array(storage.scales, "scales")]
        nodes += [
            helper.make_node("Cast", ["scales"], ["wide_scales"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["wide", "wide_scales"], ["y"]),
        ]
    if isinstance(storage, Palette):
        tensors = [from_array(storage.codebook, "codebook")]
        nodes = [
            helper.make_node("Cast", ["codes"], ["places"], to=TensorProto.INT64),
            helper.make_node("Gather", ["codebook", "places"], ["y"]),
        ]
    return answer(nodes, tensors, codes)


def answer(nodes: list[NodeProto], tensors: list[TensorProto], codes: np.ndarray) -> np.ndarray:
    kind = helper.np_dtype_to_tensor_dtype(codes.dtype)
    inputs, outputs = [value("codes", *codes.shape, kind=kind)], [value("y", *codes.shape)]
    made = model(helper.make_graph(nodes, "g", inputs, outputs, tensors))
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: np.ndarray = session.run(None, {"codes": codes})[0]
    return found


@pytest.mark.parametrize("name", STORAGES)
def test_onnxruntime_decodes_to_the_same_bits(name: str) -> None:
    storage = STORAGES[name]
    codes = encoded(VALUES, storage)
    assert run(codes, storage).tobytes() == decoded(codes, storage).tobytes()
    kept = VALUES != 0
    assert run(codes, storage)[kept].tobytes() == rounded(VALUES, storage)[kept].tobytes()


@pytest.mark.parametrize("name", STORAGES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounded_values_are_encoded_exactly(name: str, dtype: type) -> None:
    storage = STORAGES[name]
    values: np.ndarray = VALUES.astype(dtype)
    found = rounded(values, storage)
    assert found.dtype == dtype
    assert rounded(found, storage).tobytes() == found.tobytes()
    back: np.ndarray = decoded(encoded(found, storage), storage).astype(dtype)
    kept = VALUES != 0
    assert back[kept].tobytes() == found[kept].tobytes()


@pytest.mark.parametrize("name", STORAGES)
def test_zeros_stay_zeros_without_a_sign(name: str) -> None:
    values = np.where(VALUES == 0, np.float32(-0.0), VALUES)
    found = rounded(values, STORAGES[name])
    assert found[VALUES == 0].tobytes() == bytes(4 * int((VALUES == 0).sum()))


def test_what_rounds_to_zero_is_a_zero_without_a_sign() -> None:
    values = np.array([-1e-9, 1e-9, 0.5], np.float32)
    for storage in (Half(), Scaled(np.array(0.5, np.float32))):
        found = rounded(values, storage)
        assert found.tobytes() == np.array([0.0, 0.0, 0.5], np.float32).tobytes()


def test_what_no_code_reaches_takes_the_outermost() -> None:
    values = np.array([1e9, -1e9], np.float32)
    assert rounded(values, Half()).tolist() == [65504.0, -65504.0]
    assert rounded(values, Scaled(np.array(2.0, np.float16))).tolist() == [254.0, -254.0]
    assert rounded(values, Palette(np.array([-1.0, 3.0], np.float32))).tolist() == [3.0, -1.0]


def test_every_code_of_every_scale_survives_a_round() -> None:
    codes = np.arange(-127, 128, dtype=np.int8)[:, None]
    halves = np.arange(1, 0x7C00, 7, dtype=np.uint16).view(np.float16)[None]  # subnormals too
    storage = Scaled(halves)
    held = decoded(codes, storage)
    assert np.array_equal(encoded(held, storage), np.broadcast_to(codes, held.shape))


def test_neighbours_among_the_floats_are_told_apart() -> None:
    codebook = np.array([1.0, np.nextafter(np.float32(1), np.float32(2)), 1.5], np.float32)
    assert encoded(codebook, Palette(codebook)).tolist() == [0, 1, 2]


def test_plain_values_are_left_alone() -> None:
    assert rounded(VALUES, Plain()) is VALUES
    assert encoded(VALUES, Plain()) is VALUES
    assert decoded(VALUES, Plain()) is VALUES


def test_bytes_are_counted() -> None:
    sizes = {name: (code_bytes(7, 4, each), table_bytes(each)) for name, each in STORAGES.items()}
    assert sizes == {
        "half": (14, 0),
        "one scale": (7, 4),
        "a scale per row": (7, 12),
        "a scale per column": (7, 10),
        "tiny scales": (7, 2),
        "palette": (4, 64),
        "large palette": (7, 1020),
    }
    assert (code_bytes(7, 8, Plain()), table_bytes(Plain())) == (56, 0)
    assert [Palette(np.zeros(n, np.float32)).bits for n in (1, 2, 3, 4, 5, 16, 17)] == [
        *(1, 1, 2, 2, 3, 4, 5)
    ]


def test_they_are_called_as_the_flag_calls_them() -> None:
    names = ["fp32", "fp16", "int8", "palette"]
    assert [str(each) for each in (Plain(), Half(), *list(STORAGES.values())[1:6:4])] == names
