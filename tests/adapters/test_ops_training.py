"""Operators of training: losses, dropout, and the statistics of a batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from beside_runtime import Row, check, row
from one_node import Array, make
from onnxpress_adapters.errors import AdapterError

rng = np.random.default_rng(0)
LOSSES = ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")


def single(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def loss_rows() -> list[Row]:
    rows = []
    scores, labels = single(3, 4, 2), np.array([[0, 3], [1, 1], [2, 0]])
    weight, wild = np.abs(single(4)), np.array([[-1, 3], [1, -1], [2, 0]])
    for operator in LOSSES:
        for reduction in ("none", "sum", "mean"):
            options: Any = {"reduction": reduction}
            rows.append(row(operator, 12, scores, labels.astype(np.int32), **options))
            rows.append(row(operator, 13, scores, labels, weight, **options))
            rows.append(row(operator, 13, scores, wild, ignore_index=-1, **options))
            rows.append(row(operator, 13, scores, wild, weight, ignore_index=-1, **options))
            rows.append(row(operator, 13, scores[..., 0], labels[:, 0], **options))
    rows.append(row(LOSSES[1], 13, scores, labels, outputs=2))
    return rows


@pytest.mark.parametrize("chosen", loss_rows(), ids=str)
def test_losses_answer_as_onnxruntime(chosen: Row) -> None:
    check(chosen)


@pytest.mark.parametrize("operator", LOSSES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradients_of_losses(operator: str, reduction: str) -> None:
    scores, weight = rng.standard_normal((3, 4, 2)), rng.random(4) + 0.5
    labels = np.array([[0, 9], [1, 1], [2, 0]])
    attributes = {"reduction": reduction, "ignore_index": 9}
    _, prepared = make(operator, [scores, labels, weight], attributes)
    values = [torch.tensor(x, requires_grad=True) for x in (scores, weight)]

    def outputs(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return prepared.with_({0: x, 2: w})

    assert torch.autograd.gradcheck(outputs, values)
    (gradient,) = torch.autograd.grad(outputs(*values)[0].sum(), values[0])
    assert not gradient[0, :, 1].any()
    assert gradient[0, 0, 0] < 0


def test_an_ignored_infinity_does_no_harm() -> None:
    logs = np.array([[-np.inf, 0.0], [np.log(0.5)] * 2], np.float32)
    _, prepared = make(LOSSES[0], [logs, np.array([0, 1])], {"ignore_index": 0})
    (loss,) = prepared.with_({})
    assert loss.item() == pytest.approx(np.log(2))


def test_half_precision_losses_are_computed_in_float32() -> None:
    scores, labels = single(3, 4).astype(np.float16), np.array([0, 3, 1])
    _, prepared = make(LOSSES[1], [scores, labels], outputs=2)
    loss, logs = prepared.with_({})
    assert (loss.dtype, logs.dtype) == (torch.float16, torch.float16)
    exact = functional.cross_entropy(torch.from_numpy(scores).float(), torch.from_numpy(labels))
    assert torch.equal(loss, exact.half())


@pytest.mark.parametrize("operator", LOSSES)
def test_an_unknown_reduction_is_refused(operator: str) -> None:
    _, prepared = make(operator, [single(1, 2), np.array([0])], {"reduction": "odd"})
    with pytest.raises(AdapterError, match=f"{operator} 'here' has the unknown reduction 'odd'"):
        prepared.run()


def dropped(x: Array, ratio: float | None, training: bool = True, **attributes: Any) -> Any:
    share = None if ratio is None else np.array(ratio, np.float32)
    _, prepared = make("Dropout", [x, share, np.array(training)], attributes, outputs=2)
    return prepared.with_({})


def test_dropout_scales_what_it_keeps_and_zeroes_the_rest() -> None:
    x = np.abs(single(50, 20)) + 1
    result, mask = dropped(x, 0.25, seed=3)
    assert torch.equal(result, torch.where(mask, torch.from_numpy(x) / 0.75, 0.0))
    assert 0.7 < mask.float().mean().item() < 0.8
    assert torch.equal(mask, dropped(2 * x, 0.25, seed=3)[1])
    assert not torch.equal(mask, dropped(x, 0.25, seed=4)[1])


@pytest.mark.parametrize(("ratio", "training"), [(0.0, True), (0.5, False), (None, False)])
def test_dropout_keeps_all_without_a_share_or_outside_training(
    ratio: float | None, training: bool
) -> None:
    x = single(3, 4)
    result, mask = dropped(x, ratio, training)
    assert np.array_equal(result, x)
    assert mask.all()


def test_a_ratio_left_out_is_one_half() -> None:
    x = single(3, 4)
    assert torch.equal(dropped(x, None, seed=5)[0], dropped(x, 0.5, seed=5)[0])


def test_dropout_without_a_seed_repeats_itself_and_takes_any_seed() -> None:
    x = single(8, 8)
    assert torch.equal(dropped(x, 0.5)[0], dropped(x, 0.5)[0])
    assert not dropped(x, 0.5, seed=-1)[1].all()


def test_dropout_passes_the_gradient_of_what_it_keeps() -> None:
    x = torch.ones(4, 4, requires_grad=True)
    ratio, training = np.array(0.5, np.float32), np.array(True)
    _, prepared = make("Dropout", [np.ones((4, 4)), ratio, training], {"seed": 1}, outputs=2)
    result, mask = prepared.with_({0: x})
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert torch.equal(gradient, 2 * mask.float())


def batch(
    x: Array, version: int, outputs: int, shape: tuple[int, ...] = (3,), **attributes: Any
) -> list[Array]:
    """Normalise by scale 2, bias 1, and running statistics 0.5 and 4."""
    numbers = [np.full(shape, value, x.dtype) for value in (2, 1, 0.5, 4)]
    _, prepared = make(
        "BatchNormalization", [x, *numbers], attributes, version=version, outputs=outputs
    )
    return [result.numpy() for result in prepared.with_({})]


@pytest.mark.parametrize("sizes", [(5, 3), (4, 3, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("version", [6, 7, 9, 14, 15])
def test_training_normalises_by_the_batch(sizes: tuple[int, ...], version: int) -> None:
    x = rng.standard_normal(sizes)
    axes = (0, *range(2, x.ndim))
    mode: Any = {"training_mode": 1} if version >= 14 else {}
    result, mean, variance, *own = batch(
        x, version, 3 if version >= 14 else 5, momentum=0.25, **mode
    )
    spread = x.var(axes, keepdims=True)
    exact = 2 * (x - x.mean(axes, keepdims=True)) / np.sqrt(spread + 1e-5) + 1
    np.testing.assert_allclose(result, exact)
    np.testing.assert_allclose(mean, 0.25 * 0.5 + 0.75 * x.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(variance, 0.25 * 4 + 0.75 * x.var(axes), rtol=1e-6)
    if version < 14:
        np.testing.assert_allclose(own[0], x.mean(axes), rtol=1e-6)
        np.testing.assert_allclose(own[1], x.var(axes), rtol=1e-6)


def test_statistics_per_feature_and_of_a_row() -> None:
    x = rng.standard_normal((6, 2, 3))
    result, mean, *_ = batch(x, 7, 5, (2, 3), spatial=0, momentum=0.0)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(result, 2 * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + 1)
    line = rng.standard_normal(6)
    result, mean, _ = batch(line, 15, 3, (1,), training_mode=1, momentum=0.0)
    np.testing.assert_allclose(mean, [line.mean()])
    np.testing.assert_allclose(result, 2 * (line - line.mean()) / np.sqrt(line.var() + 1e-5) + 1)


@pytest.mark.parametrize(
    ("version", "outputs", "attributes"),
    [(6, 1, {}), (6, 5, {"is_test": 1}), (9, 1, {}), (14, 1, {}), (15, 1, {"training_mode": 0})],
)
def test_inference_normalises_by_what_it_is_given(
    version: int, outputs: int, attributes: dict[str, Any]
) -> None:
    x = rng.standard_normal((2, 3))
    results = batch(x, version, outputs, **attributes)
    assert len(results) == 1
    np.testing.assert_allclose(results[0], 2 * (x - 0.5) / np.sqrt(4 + 1e-5) + 1)


def test_gradients_of_a_batch_go_through_its_statistics() -> None:
    inputs = [rng.standard_normal((4, 3, 2)), *(rng.random(3) + 0.5 for _ in range(4))]
    attributes = {"training_mode": 1}
    _, prepared = make("BatchNormalization", inputs, attributes, version=15, outputs=3)
    values = [torch.tensor(x, requires_grad=True) for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: prepared.with_(dict(enumerate(x))), values)


@pytest.mark.parametrize(
    ("operator", "count"), [("LayerNormalization", 2), ("RMSNormalization", 1)]
)
def test_statistics_of_half_precision_are_float32(operator: str, count: int) -> None:
    x = (single(2, 512) * 300).astype(np.float16)
    weights = [np.ones(512, np.float16), np.zeros(512, np.float16)][:count]
    _, prepared = make(operator, [x, *weights], version=23)
    result, *statistics = prepared.with_({})
    exact = x.astype(np.float64)
    if operator == "LayerNormalization":
        exact = exact - exact.mean(1, keepdims=True)
        assert {value.dtype for value in statistics} == {torch.float32}
    exact = exact / np.sqrt((exact**2).mean(1, keepdims=True))
    assert result.dtype == torch.float16
    np.testing.assert_allclose(result, exact, rtol=2e-3, atol=1e-3)
