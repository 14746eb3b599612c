"""Patterns of zeros, by hand and in every kind of layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor

from laws import Ran, StepLaws
from models import MODELS, case_of, graph_model, key, linear_model, normal
from onnxpress import Job, compress, obs, press
from onnxpress.layerwise import curves_of
from onnxpress.objective import objective_of
from onnxpress.pattern import FREE, Pattern
from onnxpress.plans import Plan
from onnxpress.step import Chain, Only, Step, follow
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.iht import Iht
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress.support import keep_largest_overall, keep_patterned
from onnxpress_adapters.errors import MisuseError, SparsityError
from onnxpress_adapters.layers import Layer, layers_of
from onnxpress_adapters.network import import_network
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.densify import densify

PATTERNS = ("2:4", "1:3", "block:2x3", "rows:4", "even:4")


def holds(support: Tensor, pattern: Pattern) -> bool:
    """Say, entry by entry, whether a support ``[groups, rows, columns]`` has a pattern."""
    groups, rows, columns = support.shape
    for group in range(groups):
        for row in range(rows):
            for first in range(0, columns if pattern.span else 0, pattern.span or 1):
                if int(support[group, row, first : first + pattern.span].sum()) > pattern.most:
                    return False
        for top in range(0, rows, pattern.rows):
            for left in range(0, columns, pattern.columns):
                block = support[group, top : top + pattern.rows, left : left + pattern.columns]
                if bool(block.any()) != bool(block.all()):
                    return False
    if pattern.even:
        return int(support[:, :: pattern.rows].sum(2).unique().numel()) == 1
    return True


def every_layer() -> dict[str, ModelProto]:
    """Small models with one weight ``w`` each, in each kind of place."""
    conv: dict[str, Any] = {"kernel_shape": [3, 3]}
    node = helper.make_node
    flat, image, steps = ("N", 8), ("N", 4, 5, 5), (5, 1, 6)
    lstm = [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=3)]
    return {
        "MatMul on the right": graph_model(
            [node("MatMul", ["x", "w"], ["y"])], normal(0, w=(8, 10)), flat
        ),
        "MatMul on the left": graph_model(
            [node("MatMul", ["w", "x"], ["y"])], normal(1, w=(10, 7)), (7, 3)
        ),
        "Gemm transposed": graph_model(
            [node("Gemm", ["x", "w"], ["y"], transB=1)], normal(2, w=(10, 8)), flat
        ),
        "Conv": graph_model(
            [node("Conv", ["x", "w"], ["y"], **conv)], normal(3, w=(6, 4, 3, 3)), image
        ),
        "Conv in groups": graph_model(
            [node("Conv", ["x", "w"], ["y"], group=2, **conv)], normal(4, w=(6, 2, 3, 3)), image
        ),
        "ConvTranspose": graph_model(
            [node("ConvTranspose", ["x", "w"], ["y"], group=2, **conv)],
            normal(5, w=(4, 3, 3, 3)),
            image,
        ),
        "LSTM": graph_model(lstm, normal(6, w=(1, 12, 6), r=(1, 12, 3)), steps),
        "through a Transpose": graph_model(
            [node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"])],
            normal(7, w=(10, 8)),
            flat,
        ),
    }


LAYERS = every_layer()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("none", FREE),
        ("2:4", Pattern(2, 4)),
        ("1:16", Pattern(1, 16)),
        ("block:4x8", Pattern(0, 0, 4, 8)),
        ("rows:32", Pattern(0, 0, 32, 1)),
        ("even:32", Pattern(0, 0, 32, 1, even=True)),
    ],
)
def test_patterns_read(text: str, wanted: Pattern) -> None:
    assert Pattern.parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4:4",
        "5:4",
        "0:4",
        "2:",
        "block:0x4",
        "block:4",
        "rows:0",
        "rows:-1",
        "even:0",
        "columns:2",
    ],
)
def test_patterns_that_are_none(text: str) -> None:
    with pytest.raises(MisuseError, match=f"'{text}' is no pattern; write n:m with n below m"):
        Pattern.parse(text)
    for step in (Greedy, Iht, Magnitude):
        with pytest.raises(MisuseError, match="is no pattern"):
            step(pattern=text)


def test_n_of_m_by_hand() -> None:
    row = torch.tensor([[[1.0, 3.0, 3.0, 2.0, 5.0, 4.0, 0.0, 4.0, 7.0, 8.0, 9.0]]])
    wanted = [[[0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1]]]
    assert Pattern(2, 4).allowed(row).int().tolist() == wanted
    assert Pattern(2, 4).capacity(1, 1, 11) == 6
    assert Pattern(2, 4).capacity(2, 3, 9) == 2 * 3 * 5


def linear_layers(rows: int, columns: int) -> tuple[Tensor, dict[WeightKey, Layer]]:
    made = linear_model(np.zeros((columns, rows)))
    (layer,) = layers_of(made)
    return torch.zeros(columns, rows), {layer.key: layer}


def test_blocks_by_hand() -> None:
    # The matrix is the transpose of the weight; blocks of 2 rows and 2 columns, one row left over.
    scores, layers = linear_layers(3, 4)
    scores += torch.tensor([[1.0, 2.0, 9.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    pattern = Pattern(0, 0, 2, 2)
    # By entry: 4/4, 3/4 in the rows above; 9/2 and 1/2 in the last.
    wanted = {
        0: [[0, 0, 0]] * 4,
        2: [[0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]],
        5: [[0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]],
        6: [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]],
        11: [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]],
        12: [[1, 1, 1]] * 4,
    }
    for count, support in wanted.items():
        kept = keep_patterned({key("w"): scores}, count, pattern, layers)[key("w")]
        assert kept.int().tolist() == support, count
    with pytest.raises(SparsityError, match="cannot keep 13 of 12 entries"):
        keep_patterned({key("w"): scores}, 13, pattern, layers)


def test_a_tie_of_blocks_goes_to_the_lower_one() -> None:
    scores, layers = linear_layers(4, 6)
    kept = keep_patterned({key("w"): scores + 1}, 8, Pattern(0, 0, 4, 1), layers)[key("w")]
    assert kept.int().tolist() == [[1] * 4] * 2 + [[0] * 4] * 4


def test_even_rows_by_hand() -> None:
    scores = torch.tensor([[9.0, 8, 0], [1, 2, 9], [5, 4, 8], [2, 3, 1]])
    layers = {
        layer.key: layer for layer in case_of(linear_model(np.ones((4, 3)))).problem.network.layers
    }
    pattern = Pattern.parse("even:2")
    # Rows 0 and 1 add up to 17, 3, 9 and 5 by column, row 2 alone has 0, 9, 8 and 1.
    for count, wanted in ((3, 1), (5, 1), (6, 2), (8, 2), (9, 3), (12, 4)):
        kept = keep_patterned({key("w"): scores}, count, pattern, layers)[key("w")]
        assert kept.sum(0).tolist() == [wanted] * 3
    kept = keep_patterned({key("w"): scores}, 6, pattern, layers)[key("w")]
    assert kept.T.int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0]]


@pytest.mark.parametrize("text", PATTERNS)
def test_a_budget_over_several_weights(text: str) -> None:
    case = case_of(MODELS["cnn"]())
    layers = {layer.key: layer for layer in case.problem.network.layers}
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.rand(form.values.shape, generator=generator)
        for name, form in case.state.weights.items()
    }
    pattern = Pattern.parse(text)
    entries = sum(value.numel() for value in scores.values())
    before = None
    for count in (entries, entries // 2, entries // 5, 0):
        kept = keep_patterned(scores, count, pattern, layers)
        total = sum(int(mask.sum()) for mask in kept.values())
        most = sum(pattern.capacity(x.groups, x.rows, x.columns) for x in layers.values())
        assert total <= min(count, most)
        slices = [x.groups * x.rows for x in layers.values()] if pattern.even else []
        assert total > min(count, most) - max([pattern.rows * pattern.columns, *slices])
        for name, mask in kept.items():
            assert holds(layers[name].matrix(mask), pattern)
            assert before is None or not (mask & ~before[name]).any()
        before = kept
    free = keep_patterned(scores, 100, FREE, layers)
    plain = keep_largest_overall(scores, 100)
    assert all(torch.equal(free[name], plain[name]) for name in scores)


def test_a_weight_without_a_view_is_free_and_named() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h1"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h1", "t"], ["y"]),
    ]
    case = case_of(graph_model(nodes, normal(0, w=(8, 8))))
    for step in (
        Magnitude(sparsity=0.5, pattern="1:8"),
        Magnitude(sparsity=0.5, pattern="block:4x4", scope="global"),
        Greedy(sparsity=0.5, pattern="1:8"),
    ):
        after = step(case.state, case.problem)
        assert after.weights[key("w")].nonzeros == 32
        assert after.log[0] == "the pattern does not hold for w: no matrix view"


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("name", list(LAYERS))
def test_every_step_keeps_the_pattern_in_every_layer(name: str, text: str) -> None:
    case = case_of(LAYERS[name])
    pattern = Pattern.parse(text)
    short = Repair(work=0.5)
    for step in (
        Magnitude(sparsity=0.4, pattern=text),
        Magnitude(sparsity=0.4, pattern=text, scope="global"),
        Greedy(sparsity=0.4, pattern=text),
        Greedy(sparsity=0.7, pattern=text, layerwise=0.2, block=0.3, between=short),
        Iht(sparsity=0.4, rounds=3, pattern=text),
    ):
        after = Repair(work=0.5)(step(case.state, case.problem), case.problem)
        assert case.problem.network.layers
        for layer in case.problem.network.layers:
            form = after.weights[layer.key]
            assert holds(layer.matrix(form.support), pattern), step
            assert not form.values[~form.support].any()
        sparsity = step.sparsity
        assert sparsity is not None
        assert after.sparsity >= sparsity


class TestGreedyTwoOfFour(StepLaws):
    sparsity = 0.7

    def make_step(self) -> Step:
        return Greedy(sparsity=0.7, pattern="2:4")


class TestMagnitudeTwoOfFour(StepLaws):
    sparsity = 0.7

    def make_step(self) -> Step:
        return Magnitude(sparsity=0.7, pattern="2:4", scope="global")


def test_n_of_m_fixes_the_sparsity_by_itself() -> None:
    case = case_of(linear_model(np.random.default_rng(0).normal(size=(16, 6))))
    for step in (
        Magnitude(sparsity=0.0, pattern="2:4"),
        Greedy(sparsity=0.0, pattern="2:4"),
        Iht(sparsity=0.0, rounds=3, pattern="2:4"),
    ):
        assert step(case.state, case.problem).sparsity == 0.5


def test_greedy_goes_on_from_a_network_pruned_otherwise() -> None:
    ran = Ran.of(Magnitude(sparsity=0.3), case_of(MODELS["mlp"]()))
    step = Greedy(sparsity=0.0, pattern="2:4", between=Repair(work=0.5))
    after = step(ran.after, ran.case.problem)
    for layer in ran.case.problem.network.layers:
        assert holds(layer.matrix(after.weights[layer.key].support), Pattern(2, 4))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram(seed: int, columns: int) -> Tensor:
    """A Hessian of correlated inputs."""
    inputs = drawn(seed, 4 * columns, columns)
    inputs = inputs + 0.7 * inputs.roll(1, 1)
    return (inputs.T @ inputs / len(inputs))[None]


def left_after(matrix: Tensor, hessian: Tensor, support: Tensor) -> float:
    fitted = obs.refit(matrix, hessian, support, matrix, 60)
    return obs.layer_error(fitted - matrix, hessian)


def test_surgery_never_takes_too_many_of_a_group() -> None:
    matrix, hessian, pattern = drawn(0, 1, 20, 34), gram(1, 34), Pattern(2, 4)
    costs = obs.removal_costs(matrix, hessian, pattern)
    support = pattern.allowed(costs)
    # What had to go costs less than what could stay: thresholding alone finds the pattern.
    for row, kept in zip(costs[0], support[0], strict=True):
        assert float(row[~kept].max()) < float(row[kept].min())
    anyhow = pattern.allowed(obs.removal_costs(matrix, hessian))
    magnitude = pattern.allowed(matrix.abs())
    losses = [left_after(matrix, hessian, mask) for mask in (support, anyhow, magnitude)]
    assert losses[0] < losses[1] < losses[2]


def test_the_cost_of_a_block_is_what_its_removal_does() -> None:
    # Against least squares: the best values of a row once the columns B are gone.
    matrix, hessian = drawn(2, 1, 4, 10), gram(3, 10)
    pattern = Pattern(0, 0, 2, 4)
    costs = pattern.pooled(obs.block_costs(matrix, hessian, pattern, in_order=False))
    damped = obs.damped(hessian)[0].double()
    for down in range(2):
        for across, gone in enumerate(([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])):
            kept = [column for column in range(10) if column not in gone]
            rows = matrix[0, 2 * down : 2 * down + 2].double()
            best = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ rows.T).T
            change = rows.clone()
            change[:, kept] -= best
            wanted = ((change @ damped) * change).sum()
            torch.testing.assert_close(costs[0, down, across], wanted, rtol=1e-4, atol=1e-6)


def test_blocks_of_single_entries_are_plain_surgery() -> None:
    matrix, hessian = drawn(4, 1, 6, 30), gram(5, 30)
    found = obs.block_costs(matrix, hessian, FREE)
    plain = obs.removal_costs(matrix, hessian)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-6)


def test_surgery_on_blocks_beats_one_look() -> None:
    matrix, hessian, pattern = drawn(6, 1, 16, 48), gram(7, 48), Pattern(0, 0, 4, 2)
    layers = {key("w"): layers_of(linear_model(np.zeros((48, 16))))[0]}
    losses = []
    for costs in (
        obs.block_costs(matrix, hessian, pattern),
        obs.block_costs(matrix, hessian, pattern, in_order=False),
        matrix.square(),
    ):
        kept = keep_patterned({key("w"): costs[0].T}, 256, pattern, layers)[key("w")]
        losses.append(left_after(matrix, hessian, kept.T[None]))
    assert losses[0] < losses[1] < losses[2]


def test_a_dead_block_costs_nothing() -> None:
    hessian = gram(8, 8)
    hessian[:, :4] = hessian[:, :, :4] = 0
    for in_order in (True, False):
        costs = obs.block_costs(drawn(9, 1, 4, 8), hessian, Pattern(0, 0, 2, 4), in_order=in_order)
        assert not costs[:, :, :4].any()
        assert (costs[:, :, 4:] > 0).all()


def test_the_curves_of_a_pattern() -> None:
    case = case_of(MODELS["cnn"]())
    objective = objective_of(case.problem)
    pattern = Pattern(2, 4)
    for found in curves_of(objective, case.state, pattern):
        assert found.layer is not None
        assert found.losses[0] > 0  # half of the entries are gone even there
        assert list(found.losses) == sorted(found.losses)
        for count in found.counts():
            assert found.at(count).nonzeros == count
    assert curves_of(objective, case.state)[0].losses[0] == 0.0


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_written_file_has_the_pattern(name: str, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(LAYERS[name].SerializeToString())
    out = tmp_path / "p.onnx"
    steps = Chain((Greedy(sparsity=0.6, pattern="2:4"), Repair(work=0.05)))
    report = compress(Job(model, out, domain=("x=normal:0,1",), recipe=steps))
    assert report.out == out
    written = densify(read_model(out))
    values = import_network(written)[1]
    layers = import_network(LAYERS[name])[0].layers
    assert layers
    for layer in layers:
        assert holds(layer.matrix(values[layer.key] != 0), Pattern(2, 4))


def test_two_of_four_needs_no_sparsity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Chain((Greedy(), Repair(work=0.05)))
    monkeypatch.setattr(press, "default_plan", lambda *_, **__: Plan.of(short))
    model = tmp_path / "m.onnx"
    model.write_bytes(MODELS["mlp"]().SerializeToString())
    out = tmp_path / "p.onnx"
    report = compress(
        Job(model, out, domain=("x=normal:0,1",), pattern="2:4", effort="quick", include=("w1",))
    )
    assert report.out == out
    assert report.sparsity == pytest.approx(256 / 640)


def test_a_pattern_beside_a_recipe_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(MODELS["mlp"]().SerializeToString())
    job = Job(model, domain=("x=normal:0,1",), pattern="2:4", recipe=Magnitude(sparsity=0.5))
    with pytest.raises(MisuseError, match="--pattern is for the steps onnxpress chooses; with a"):
        compress(job)
    with pytest.raises(MisuseError, match="'4' is no pattern"):
        compress(Job(model, domain=("x=normal:0,1",), pattern="4"))


def test_a_chain_follows_a_pattern() -> None:
    chain = Chain((Greedy(), Only("w*", Chain((Iht(), Repair()))), Magnitude()))
    assert follow(chain, "2:4") == Chain(
        (
            Greedy(pattern="2:4"),
            Only("w*", Chain((Iht(pattern="2:4"), Repair()))),
            Magnitude(pattern="2:4"),
        )
    )
