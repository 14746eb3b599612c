"""Gather: its laws, and that heights and columns follow from time and distance together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper

from laws import Ran, StepLaws
from models import Case, case_of, graph_model, key, linear_model, normal
from onnxpress.step import Step
from onnxpress.steps.gather import Gather, gatherable
from onnxpress.steps.magnitude import Magnitude
from onnxpress_adapters.errors import SparsityError, StepError
from onnxpress_exporters.gathered import gathered
from onnxpress_exporters.gathered_times import GatheredTimes


def wide() -> ModelProto:
    """Two products that can be gathered and one that is too small."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "u"], ["y"]),
    ]
    return graph_model(nodes, normal(3, w=(96, 128), v=(128, 64), u=(64, 4)), ("N", 96))


def times(whole: float, **each: float) -> GatheredTimes:
    return GatheredTimes(whole, tuple((int(name[1:]), 0.0, value) for name, value in each.items()))


class TestGather(StepLaws):
    """On a model that has something to gather; those of the other laws are too small."""

    sparsity = 0.4
    coarse = 128

    @pytest.fixture(scope="class")
    @classmethod
    def ran(cls) -> Ran:
        return Ran.of(cls().make_step(), case_of(wide()))

    def make_case(self, name: str, seed: int = 0) -> Case:
        return case_of(wide(), seed=seed)

    def make_step(self) -> Step:
        return Gather(sparsity=0.4)

    def test_the_same_seed_gives_the_same_bits(self, ran: Ran) -> None:
        assert Ran.of(self.make_step(), case_of(wide())).values() == ran.values()


def test_only_what_can_be_written_so_is_touched() -> None:
    case = case_of(wide())
    layers = gatherable(case.problem.network.layers, case.state)
    assert [layer.key for layer in layers] == [key("v"), key("w")] or [
        layer.key for layer in layers
    ] == [key("w"), key("v")]
    after = Gather(sparsity=0.6)(case.state, case.problem)
    assert torch.equal(after.weights[key("u")].values, case.state.weights[key("u")].values)
    assert after.sparsity >= 0.6
    entries = 96 * 128 + 128 * 64
    most = entries / (entries + 256)
    with pytest.raises(SparsityError, match=r"enough for 9\d%"):
        Gather(sparsity=(most + 1) / 2)(case.state, case.problem)


@pytest.mark.parametrize(("fast", "height"), [("h32", 32), ("h64", 64)])
def test_the_height_is_what_is_faster(fast: str, height: int) -> None:
    case = case_of(wide())
    slow = {"h32": 1e-3, "h64": 1e-3, fast: 1e-6}
    step = Gather(
        sparsity=0.5,
        heights=(32, 64),
        times=(("w", times(0.05, **slow)), ("v", times(0.05, **slow))),
    )
    after = step(case.state, case.problem)
    assert f"{height} rows by" in after.log[-1]
    assert f"{96 - height} rows by" not in after.log[-1]
    for name in ("w", "v"):
        matrix = after.weights[key(name)].values.numpy().T
        found = gathered(matrix, height)
        # Every group reads as many columns, so that not one entry is filled up.
        assert found.entries == np.count_nonzero(matrix) or found.entries == matrix.size


def test_a_layer_that_would_be_no_faster_stays_whole() -> None:
    case = case_of(wide())
    step = Gather(
        sparsity=0.3,
        heights=(32,),
        times=(("w", times(1e-2, h32=1e-6)), ("v", times(1e-2, h32=1.0))),
    )
    after = step(case.state, case.problem)
    assert after.weights[key("v")].nonzeros == 128 * 64
    assert after.weights[key("w")].nonzeros < 96 * 128
    assert after.sparsity >= 0.3
    # And what was not timed is left alone as well.
    alone = Gather(sparsity=0.3, heights=(32,), times=(("w", times(1e-2, h32=1e-6)),))
    assert alone(case.state, case.problem).weights[key("v")].nonzeros == 128 * 64


def test_at_one_time_the_layer_that_is_missed_least_gives_most() -> None:
    # The second weight is multiplied by almost nothing, so d hardly misses it.
    arrays = normal(3, w=(128, 128), v=(128, 128))
    arrays["v"] = arrays["v"] * np.float32(1e-3)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    case = case_of(graph_model(nodes, arrays, ("N", 128)))
    after = Gather(sparsity=0.45, heights=(32,))(case.state, case.problem)
    kept = {name: after.weights[key(name)].nonzeros for name in ("w", "v")}
    assert kept["v"] < 0.2 * kept["w"]


def test_from_a_network_that_is_pruned_columns_leave_in_blocks() -> None:
    case = case_of(wide())
    pruned = Magnitude(sparsity=0.1)(case.state, case.problem)
    after = Gather(sparsity=0.4, heights=(32,))(pruned, case.problem)
    assert after.sparsity >= 0.4
    for name, form in after.weights.items():
        assert not (form.support & ~pruned.weights[name].support).any()


def test_misuse_is_told() -> None:
    case = case_of(linear_model(np.ones((8, 8))))
    with pytest.raises(StepError, match="has no sparsity"):
        Gather()(case.state, case.problem)
    with pytest.raises(StepError, match="heights from 1 on"):
        Gather(heights=())
    with pytest.raises(SparsityError, match="enough for 0%"):
        Gather(sparsity=0.5)(case.state, case.problem)
    assert Gather(sparsity=0.0)(case.state, case.problem) is case.state
