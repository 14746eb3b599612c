"""Models as onnxruntime's optimizers and quantisers leave them, imported and compared with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model

from one_node import Array
from onnxpress_adapters.network import import_network
from onnxpress_adapters.read import read_model
from optimisable import (
    DECODER,
    HEADS,
    TOKENS,
    WIDTH,
    bert,
    bert_feeds,
    decoder,
    feed_forward,
    four_bit_products,
    image_feeds,
    image_net,
)

Level = onnxruntime.GraphOptimizationLevel
Feeds = Mapping[str, Array]
EIGHT_BIT = (QuantType.QUInt8, QuantType.QInt8)


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    """Keep the tools from telling what they fuse."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def session(model: ModelProto, level: Any, saved: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    data = model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def answers(model: ModelProto, feeds: Feeds) -> list[Array]:
    """Run a model in onnxruntime as it stands."""
    kinds = {TensorProto.INT32: np.int32, TensorProto.FLOAT16: np.float16}
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    given = {n: v.astype(kinds.get(types[n], v.dtype)) for n, v in feeds.items()}
    found: list[Array] = session(model, Level.ORT_DISABLE_ALL).run(None, given)
    return found


def optimised(
    model: ModelProto, folder: Path, level: Any = Level.ORT_ENABLE_EXTENDED
) -> ModelProto:
    saved = folder / "optimised.onnx"
    session(model, level, saved)
    return onnx.load(saved)


def fused(model: ModelProto, folder: Path, *, half: bool = False, **choices: bool) -> ModelProto:
    """Fuse with the tools onnxruntime has for transformers."""
    plain, saved = folder / "plain.onnx", folder / "fused.onnx"
    onnx.save(model, plain)
    options = FusionOptions("bert")
    for name, choice in choices.items():
        setattr(options, name, choice)
    sizes = {"num_heads": HEADS, "hidden_size": WIDTH}
    done = optimize_model(str(plain), "bert", **sizes, optimization_options=options, opt_level=0)
    if half:
        done.convert_float_to_float16()
    done.save_model_to_file(str(saved))
    return onnx.load(saved)


def dynamic(model: ModelProto, folder: Path, kind: Any, per_channel: bool = False) -> ModelProto:
    plain, saved = folder / "float.onnx", folder / "dynamic.onnx"
    onnx.save(model, plain)
    quantize_dynamic(
        plain,
        saved,
        weight_type=kind,
        per_channel=per_channel,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    return onnx.load(saved)


class Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands out some inputs."""

    def __init__(self, draw: Callable[[int], Feeds]) -> None:
        self.left = iter([draw(seed) for seed in range(1, 5)])

    def get_next(self) -> Feeds | None:
        return next(self.left, None)


def static(
    model: ModelProto,
    folder: Path,
    draw: Callable[[int], Feeds],
    form: Any,
    kinds: Any,
    **more: Any,
) -> ModelProto:
    plain, saved = folder / "float.onnx", folder / "static.onnx"
    onnx.save(model, plain)
    quantize_static(
        plain,
        saved,
        Samples(draw),
        quant_format=form,
        activation_type=kinds[0],
        weight_type=kinds[1],
        extra_options=more,
    )
    return onnx.load(saved)


def operators(model: ModelProto) -> set[str]:
    return {f"{n.domain}.{n.op_type}".removeprefix("com.microsoft") for n in model.graph.node}


def check(
    model: ModelProto, feeds: Feeds, expected: str, folder: Path, error: float = 1e-5
) -> None:
    """Import a model and compare it with onnxruntime.

    Args:
        model: as a tool left it.
        feeds: its inputs.
        expected: operators the tool must have written, or the test would show nothing.
        folder: for the file.
        error: the largest one allowed, as a part of the largest answer.
    """
    assert set(expected.split()) <= operators(model)
    path = folder / "model.onnx"
    onnx.save(model, path)
    read = read_model(path)
    assert read == model
    network, weights = import_network(read)
    given = [torch.from_numpy(feeds[spec.name]) for spec in network.inputs]
    for found, wanted in zip(network(weights, *given), answers(model, feeds), strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found.numpy() - wanted).max() <= error * np.abs(wanted).max()


def test_transformer_at_level_extended(tmp_path: Path) -> None:
    model = optimised(bert(), tmp_path)
    check(model, bert_feeds(), ".LayerNormalization .BiasGelu .FusedMatMul", tmp_path)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, ".Attention .EmbedLayerNormalization .SkipLayerNormalization .BiasGelu"),
        ({"enable_gelu_approximation": True}, ".Attention .FastGelu"),
        ({"use_multi_head_attention": True}, ".MultiHeadAttention .SkipLayerNormalization"),
        ({"enable_embed_layer_norm": False}, ".LayerNormalization .Attention"),
    ],
    ids=str,
)
def test_fused_transformer(choices: dict[str, bool], expected: str, tmp_path: Path) -> None:
    check(fused(bert(), tmp_path, **choices), bert_feeds(), expected, tmp_path)


def test_fused_transformer_in_half_precision(tmp_path: Path) -> None:
    expected = ".Attention .EmbedLayerNormalization .SkipLayerNormalization"
    check(fused(bert(), tmp_path, half=True), bert_feeds(), expected, tmp_path, error=1e-3)


def test_weights_of_a_fused_transformer_feel_its_output(tmp_path: Path) -> None:
    network, weights = import_network(fused(bert(), tmp_path))
    free = {key: value.clone().requires_grad_() for key, value in weights.items()}
    feeds = bert_feeds()
    (result,) = network(free, *(torch.from_numpy(feeds[spec.name]) for spec in network.inputs))
    # A norm has a fixed sum of squares, so weigh its entries.
    (result * torch.arange(result.numel()).reshape(result.shape)).sum().backward()
    gradients = {key.name: value.grad for key, value in free.items()}
    silent = [name for name, grad in gradients.items() if grad is None or not grad.any()]
    assert silent == []
    assert all(grad.isfinite().all() for grad in gradients.values() if grad is not None)


@pytest.mark.parametrize(
    ("norm", "activation", "expected"),
    [
        ("rms_norm", "gelu_by_sigmoid", ".SimplifiedLayerNormalization .QuickGelu"),
        ("rms_norm", "gelu_by_tanh", ".SimplifiedLayerNormalization .FastGelu"),
        ("layer_norm", "gelu", ".LayerNormalization .Gelu"),
    ],
)
def test_feed_forward_at_level_extended(
    norm: str, activation: str, expected: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
    model = optimised(feed_forward(norm, activation), tmp_path)
    check(model, {"x": x}, expected, tmp_path)


@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamically_quantised_transformer(kind: Any, per_channel: bool, tmp_path: Path) -> None:
    model = dynamic(bert(), tmp_path, kind, per_channel)
    check(model, bert_feeds(), ".MatMulInteger .DynamicQuantizeLinear", tmp_path)
    expected = ".DynamicQuantizeMatMul .MatMulIntegerToFloat .SkipLayerNormalization"
    check(optimised(model, tmp_path), bert_feeds(), expected, tmp_path)


def test_dynamically_quantised_fused_transformer(tmp_path: Path) -> None:
    model = dynamic(fused(bert(), tmp_path), tmp_path, QuantType.QInt8)
    check(model, bert_feeds(), ".QAttention .BiasGelu", tmp_path)
    check(optimised(model, tmp_path), bert_feeds(), ".QAttention .DynamicQuantizeMatMul", tmp_path)


def test_statically_quantised_transformer(tmp_path: Path) -> None:
    kinds = (QuantType.QUInt8, QuantType.QInt8)
    model = static(bert(), tmp_path, bert_feeds, QuantFormat.QDQ, kinds)
    check(model, bert_feeds(), ".QuantizeLinear .MatMul", tmp_path)
    expected = ".QLinearAdd .QLinearMul .QLinearSoftmax .QLinearMatMul"
    check(optimised(model, tmp_path), bert_feeds(), expected, tmp_path)


QUANTISED = (
    ".QLinearAdd .QLinearMul .QLinearConcat .QLinearSigmoid .QLinearLeakyRelu .QLinearSoftmax "
    ".QLinearAveragePool .QLinearGlobalAveragePool .QGemm"
)
LEVELS = {
    "extended": (Level.ORT_ENABLE_EXTENDED, QUANTISED),
    "all": (Level.ORT_ENABLE_ALL, f"{QUANTISED} .QLinearConv .NhwcMaxPool"),
}


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("weights", EIGHT_BIT)
@pytest.mark.parametrize("level", LEVELS)
def test_statically_quantised_images(form: Any, weights: Any, level: str, tmp_path: Path) -> None:
    kinds = (QuantType.QUInt8, weights)
    model = static(image_net(), tmp_path, image_feeds, form, kinds)
    check(model, image_feeds(), "", tmp_path)
    chosen, expected = LEVELS[level]
    check(optimised(model, tmp_path, chosen), image_feeds(), expected, tmp_path)


@pytest.mark.parametrize(
    "kinds",
    [
        (QuantType.QUInt16, QuantType.QInt8),
        (QuantType.QInt16, QuantType.QInt8),
        (QuantType.QUInt8, QuantType.QInt4),
        (QuantType.QUInt16, QuantType.QUInt4),
    ],
    ids=str,
)
def test_images_quantised_in_16_and_4_bits(kinds: Any, tmp_path: Path) -> None:
    ways = {"UseQDQContribOps": True}
    model = static(image_net(), tmp_path, image_feeds, QuantFormat.QDQ, kinds, **ways)
    # In 16 bits a step is as small as the rounding of the sums before it.
    check(model, image_feeds(), ".QuantizeLinear .DequantizeLinear", tmp_path, error=1e-3)


def test_images_at_level_extended(tmp_path: Path) -> None:
    check(optimised(image_net(), tmp_path), image_feeds(), ".FusedConv", tmp_path)


def test_products_in_4_bits(tmp_path: Path) -> None:
    """onnxruntime rounds the input of the fused product to 8 bits, so look at the plain one."""
    plain = four_bit_products()
    model = optimised(plain, tmp_path)
    assert ".MatMulNBits" in operators(model)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    network, weights = import_network(model)
    (found,) = network(weights, torch.from_numpy(x))
    (wanted,) = answers(plain, {"x": x})
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)
    (rounded,) = answers(model, {"x": x})
    assert 0 < np.abs(rounded - wanted).max() < 0.05 * np.abs(wanted).max()


def test_language_model_of_a_builder(tmp_path: Path) -> None:
    """A prompt of two lengths, then one token behind what came before."""
    rng = np.random.default_rng(0)
    model, few, size = decoder(), DECODER["few"], DECODER["size"]

    def feeds(tokens: int, past: int, mask: Any) -> dict[str, Array]:
        cache = rng.standard_normal((2, 2, few, past, size)).astype(np.float32)
        words = rng.integers(0, DECODER["words"], (2, tokens))
        return {
            "words": words,
            "mask": np.array(mask),
            "past_key": cache[0],
            "past_value": cache[1],
        }

    expected = ".GroupQueryAttention .MatMulNBits .GatherBlockQuantized"
    check(model, feeds(4, 0, [[1, 1, 1, 1], [1, 1, 0, 0]]), expected, tmp_path)
    check(model, feeds(1, 4, [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), expected, tmp_path)
