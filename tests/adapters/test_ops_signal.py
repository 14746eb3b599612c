"""Fourier transforms, windows and the mel scale against onnxruntime and numpy."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto

from beside_runtime import Row, check, prepared, row
from calculus import check_gradient, check_vmap
from one_node import Array, make

dice = random.Random(0)
rng = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def number(value: float, kind: Any = np.int64) -> Array:
    return np.array(value, kind)


def drawn_dft() -> Row:
    rank, version = dice.randint(1, 3), dice.choice([17, 20])
    inverse, half = dice.randint(0, 1), dice.randint(0, 1)
    parts = 2 if inverse else dice.choice([1, 2 - half])
    sizes = [dice.randint(2, 9) for _ in range(rank)]
    axis = dice.choice([*range(rank), *range(-rank - 1, -1)])
    x = normal(2, *sizes, parts)
    axis = axis + 1 if axis >= 0 else axis
    length = number(dice.randint(1, 12)) if dice.random() < 0.5 else None
    if inverse and half and length is not None:
        # Other lengths onnxruntime fills with frequencies the specification does not use.
        length = number(2 * x.shape[axis] - dice.randint(1, 2))
    if version == 17:
        inputs = [x] if length is None else [x, length]
        return row("DFT", 17, *inputs, axis=axis, inverse=inverse, onesided=half)
    return row("DFT", 20, x, length, number(axis), inverse=inverse, onesided=half)


def drawn_stft() -> Row:
    time, count = dice.randint(12, 30), dice.randint(2, 12)
    half = dice.randint(0, 1)
    x = normal(2, time, 1 if half else dice.choice([1, 2]))
    window = normal(count) if dice.random() < 0.6 else None
    length = number(count) if window is None or dice.random() < 0.5 else None
    return row("STFT", 17, x, number(dice.randint(1, 5)), window, length, onesided=half)


def drawn_mel() -> Row:
    rate = dice.choice([8000, 16000, 44100])
    counts = [number(dice.randint(1, 20)), number(2 ** dice.randint(4, 10)), number(rate)]
    edges = dice.choice([0, 20, 300]), dice.choice([rate / 2, rate / 3, 3900])
    return row("MelWeightMatrix", 17, *counts, *(number(e, np.float32) for e in edges))


def drawn_window() -> Row:
    kind = dice.choice([TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32])
    name, size = dice.choice(["Hann", "Hamming", "Blackman"]), number(dice.randint(2, 20))
    periodic = dice.randint(0, 1)
    return row(f"{name}Window", 17, size, periodic=periodic, output_datatype=kind)


DRAWS = {"dft": drawn_dft, "mel": drawn_mel, "stft": drawn_stft, "window": drawn_window}


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_answers_as_onnxruntime(kind: str) -> None:
    dice.seed(kind)
    for _ in range(100):
        check(DRAWS[kind](), rtol=1e-3, atol=1e-4)


def run(operator: str, *inputs: Array | None, version: int = 20, **attributes: Any) -> Array:
    _, node = make(operator, inputs, attributes, version=version)
    (result,) = node.run()
    assert result is not None
    return result.numpy()


@pytest.mark.parametrize("length", [None, 3, 4, 6, 9])
def test_half_spectra_go_back_as_in_numpy(length: int | None) -> None:
    x = normal(3, 4, 2)
    whole = None if length is None else number(length)
    result = run("DFT", x, whole, inverse=1, onesided=1)
    expected = np.fft.irfft(x[..., 0] + 1j * x[..., 1], length)
    np.testing.assert_allclose(result[..., 0], expected, rtol=1e-4, atol=1e-5)


def test_a_half_spectrum_may_lack_imaginary_parts() -> None:
    x = normal(3, 4, 1)
    result = run("DFT", x, inverse=1, onesided=1)
    np.testing.assert_allclose(result[..., 0], np.fft.irfft(x[..., 0]), rtol=1e-4, atol=1e-5)


def test_half_of_a_complex_spectrum_is_cut_off() -> None:
    x = normal(3, 6, 2)
    full = run("DFT", x)
    np.testing.assert_array_equal(run("DFT", x, onesided=1), full[:, :4])


def test_transforms_there_and_back_give_the_signal() -> None:
    x = normal(2, 5, 7, 1)
    there = run("DFT", x, None, number(-3))
    back = run("DFT", there, None, number(1), inverse=1)
    np.testing.assert_allclose(back[..., :1], x, rtol=1e-4, atol=1e-5)


def test_frames_without_window_and_length_are_the_signal() -> None:
    x = normal(2, 6, 1)
    result = run("STFT", x, number(3), onesided=0)
    np.testing.assert_allclose(result, run("DFT", x)[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Hann", "Hamming", "Blackman"])
def test_windows_of_hardly_any_length(name: str) -> None:
    assert run(f"{name}Window", number(1), periodic=0).tolist() == [1]
    assert run(f"{name}Window", number(0)).tolist() == []
    half = run(f"{name}Window", number(4), output_datatype=TensorProto.FLOAT16)
    assert half.dtype == np.float16


def test_half_precision_is_transformed_in_float32() -> None:
    x = normal(1, 8, 1).astype(np.float16)
    result = run("DFT", x)
    expected = np.fft.fft(x[0, :, 0].astype(np.float64))
    assert result.dtype == np.float16
    np.testing.assert_allclose(result[0, :, 0], expected.real, rtol=2e-3, atol=1e-3)


def test_transforms_and_windows_have_gradients() -> None:
    for half in (0, 1):
        node = prepared(row("DFT", 20, normal(2, 5, 1), number(6), onesided=half))
        assert check_gradient(node, [0])
    back = prepared(row("DFT", 20, normal(2, 5, 2), inverse=1, onesided=1))
    assert check_gradient(back, [0])
    frames = prepared(row("STFT", 17, normal(2, 9, 1), number(2), normal(4)))
    assert check_gradient(frames, [0, 2])
    check_vmap(frames)


def test_bands_may_lie_beyond_the_spectrum() -> None:
    counts = number(4), number(8), number(100)
    result = run("MelWeightMatrix", *counts, number(0, np.float32), number(90, np.float32))
    assert result.shape == (5, 4)
    assert torch.isfinite(torch.from_numpy(result)).all()
