"""Hard concrete gates: their closed forms against samples, and gates on weights and on units."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from onnx import helper
from torch import Tensor

from models import case_of, graph_model, key, normal
from onnxpress.gated import UnitGates, WeightGates, noise_of
from onnxpress.gates import HardConcrete
from onnxpress.shrinking import with_groups
from onnxpress.steps.units import removable
from onnxpress_adapters.errors import MisuseError, SparsityError
from onnxpress_adapters.groups import Group
from onnxpress_adapters.weights import WeightKey

GATES = HardConcrete()
LOCATIONS = torch.linspace(-6.0, 6.0, 25)
SAMPLES = 100_000


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def sampled(locations: Tensor) -> Tensor:
    """Sample every gate ``SAMPLES`` times: ``[SAMPLES, gates]``."""
    noise = GATES.noise(torch.Size((SAMPLES, len(locations))), generator())
    return GATES.sample(locations, noise)


@pytest.mark.parametrize("gates", [GATES, HardConcrete(0.5, -0.3, 1.05)], ids=str)
def test_the_expected_l0_norm_is_that_of_samples(gates: HardConcrete) -> None:
    noise = gates.noise(torch.Size((SAMPLES, len(LOCATIONS))), generator())
    opened = (gates.sample(LOCATIONS, noise) != 0).double()
    chances = gates.chance(LOCATIONS).double()
    assert float(opened.sum(1).mean()) == pytest.approx(float(chances.sum()), rel=0.01)
    # Each gate by itself: within five standard errors.
    spread = (chances * (1 - chances) / SAMPLES).sqrt()
    assert ((opened.mean(0) - chances).abs() < 5 * spread).all()


def test_ones_are_as_likely_as_zeros_of_the_opposite_location() -> None:
    # The interval reaches as far below 0 as above 1, and the noise is symmetric.
    ones = (sampled(LOCATIONS) == 1).double().mean(0)
    chances = 1 - GATES.chance(-LOCATIONS).double()
    assert ((ones - chances).abs() < 5 * (chances * (1 - chances) / SAMPLES).sqrt()).all()


def test_samples_lie_between_0_and_1_and_some_do_inside() -> None:
    found = sampled(LOCATIONS)
    assert float(found.min()) == 0.0
    assert float(found.max()) == 1.0
    inside = (found > 0) & (found < 1)
    assert inside.any(0).all()


def test_the_slope_of_a_sample_is_that_of_its_formula() -> None:
    noise = GATES.noise(torch.Size((1000,)), generator()).double()
    at = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(GATES.sample(at, noise).sum(), at)
    with torch.no_grad():
        rise = (GATES.sample(at + 1e-6, noise) - GATES.sample(at - 1e-6, noise)) / 2e-6
    torch.testing.assert_close(slope, rise, atol=1e-6, rtol=1e-6)


def test_the_deterministic_gate_is_0_up_to_the_border() -> None:
    border = GATES.border
    assert GATES.settled(torch.tensor([border - 1e-3, border + 1e-3])).tolist() == [
        0.0,
        pytest.approx(1.2e-3 / 12 * 11 / 12, rel=0.01),
    ]
    assert float(GATES.settled(torch.tensor(2.5))) == 1.0
    assert float(GATES.chance(torch.tensor(GATES.location(0.3)))) == pytest.approx(0.3)


@pytest.mark.parametrize("numbers", [(0.0, -0.1, 1.1), (1.0, 0.0, 1.1), (1.0, -0.1, 1.0)])
def test_numbers_that_make_no_gate(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(MisuseError, match="is no gate: its temperature lies above 0, and the"):
        HardConcrete(*numbers)


# Gates on the entries of weights


def on_weights() -> WeightGates:
    """Two weights of three entries each, one of which was pruned, at six places."""
    values = {key("a"): torch.tensor([1.0, 2.0, 4.0]), key("b"): torch.tensor([3.0, 0.0, -3.0])}
    supports = {name: value != 0 for name, value in values.items()}
    gated = WeightGates(GATES, values, supports, start=3.0, spread=0.0)
    gated.locations = [torch.tensor([-3.0, 0.5, 3.0]), torch.tensor([-2.5, 9.0, 2.0])]
    return gated


def listed(masks: dict[WeightKey, Tensor]) -> list[list[bool]]:
    return [mask.tolist() for mask in masks.values()]


def test_weights_begin_where_their_size_puts_them() -> None:
    values = {key("a"): torch.tensor([1.0, 7.0, 0.0])}
    supports = {key("a"): torch.tensor([True, True, False])}
    (even,) = WeightGates(GATES, values, supports, start=3.0, spread=0.0).locations
    assert even.tolist() == [3.0, 3.0, 3.0]
    (found,) = WeightGates(GATES, values, supports, start=3.0, spread=2.0).locations
    usual = torch.tensor([1.0, 7.0]).square().mean().sqrt()
    torch.testing.assert_close(found[:2], 3 + 2 * (values[key("a")][:2] / usual).log())


def test_the_expected_l0_norm_of_weights_leaves_out_what_was_pruned() -> None:
    gated = on_weights()
    assert gated.entries == 5
    expected = float(sum(chance.sum() for chance in gated.chances().values()))
    chance = GATES.chance(torch.tensor([-3.0, 0.5, 3.0, -2.5, 2.0]))
    assert expected == pytest.approx(float(chance.sum()))
    # As many rows as samples, so that one draw is all of them.
    rows = {name: support.expand(SAMPLES, 3) for name, support in gated.supports.items()}
    ones = {name: support.float() for name, support in rows.items()}
    wide = WeightGates(GATES, ones, rows, start=0.0, spread=0.0)
    wide.locations = [at.expand(SAMPLES, 3) for at in gated.locations]
    opened = wide.through(ones, noise_of(wide, generator()))
    total = sum(int((value != 0).sum()) for value in opened.values())
    assert total / SAMPLES == pytest.approx(expected, rel=0.01)


def test_values_go_through_their_gates() -> None:
    gated = on_weights()
    values = {key("a"): torch.ones(3), key("b"): torch.ones(3), key("c"): torch.ones(2)}
    found = gated.through(values, None)
    torch.testing.assert_close(found[key("a")], GATES.settled(gated.locations[0]))
    assert found[key("a")][0] == 0
    assert found[key("c")] is values[key("c")]


def test_deterministic_gates_decide_where_no_count_is_given() -> None:
    gated = on_weights()
    before = [at.clone() for at in gated.locations]
    supports = gated.settle(None)
    assert listed(supports) == [[False, True, True], [False, False, True]]
    assert all(torch.equal(*pair) for pair in zip(before, gated.locations, strict=True))
    assert gated.told(supports) == "3 of 5 gates stay"


@pytest.mark.parametrize(
    ("count", "wanted"), [(2, [[0, 0, 1], [0, 0, 1]]), (4, [[0, 1, 1], [1, 0, 1]])]
)
def test_a_count_is_met(count: int, wanted: list[list[bool]]) -> None:
    gated = on_weights()
    supports = gated.settle(count)
    assert listed(supports) == wanted
    ones = {name: torch.ones(3) for name in supports}
    opened = gated.through(ones, None)
    # What stays is open, if only just.
    assert all((opened[name][support] > 0).all() for name, support in supports.items())
    assert (float(gated.locations[0][2]) == 3.0) == (count == 2)


def test_more_than_there_is_keeps_what_there_is() -> None:
    assert listed(on_weights().settle(6)) == [[True, True, True], [True, False, True]]


# Gates on units


def on_units() -> tuple[UnitGates, list[Group]]:
    """One hidden layer: 6 -> 8 -> 3, unit 5 read by nothing."""
    constants = normal(0, w=(6, 8), bias=(8,), v=(8, 3))
    constants["v"][5] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h1"], name="first"),
        helper.make_node("Add", ["h1", "bias"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "v"], ["y"], name="last"),
    ]
    case = case_of(graph_model(nodes, constants, ("N", 6)))
    problem = with_groups(case.problem, case.model)
    state = replace(case.state)
    groups = list(removable(state, problem))
    values = {name: form.values for name, form in state.weights.items()}
    supports = {name: form.support for name, form in state.weights.items()}
    return UnitGates(GATES, values, supports, groups, start=1.0, spread=0.5), groups


def test_the_expected_l0_norm_of_units_counts_all_that_leaves() -> None:
    gated, _ = on_units()
    (at,) = gated.locations
    assert at[5] == -torch.inf
    chances = gated.chances()
    per_unit = GATES.chance(at)
    torch.testing.assert_close(chances[key("w")], per_unit.expand(6, 8))
    assert float(sum(chance.sum() for chance in chances.values())) == pytest.approx(
        float(per_unit.sum()) * 9
    )
    opened = sampled(at) != 0
    entries = 9 * opened.double().sum(1).mean()
    assert float(entries) == pytest.approx(9 * float(per_unit.sum()), rel=0.01)


def test_what_reads_a_unit_goes_through_its_gate() -> None:
    gated, _ = on_units()
    values = {key("w"): torch.ones(6, 8), key("v"): torch.ones(8, 3)}
    found = gated.through(values, None)
    assert found[key("w")] is values[key("w")]
    torch.testing.assert_close(
        found[key("v")], GATES.settled(gated.locations[0])[:, None].expand(8, 3)
    )


def test_units_leave_with_all_that_makes_and_reads_them() -> None:
    gated, _ = on_units()
    gated.locations = [torch.tensor([3.0, -3.0, 1.0, 2.0, -5.0, -torch.inf, 0.0, -2.0])]
    supports = gated.settle(None)
    alive = [True, False, True, True, False, False, True, True]
    assert supports[key("w")].all(0).tolist() == supports[key("w")].any(0).tolist() == alive
    assert supports[key("v")].any(1).tolist() == alive
    assert gated.told(supports) == "units left: 5 of 8 'w'"
    fewer = gated.settle(30)  # three units of nine entries each
    assert fewer[key("v")].any(1).nonzero().flatten().tolist() == [0, 2, 3]
    more = gated.settle(60)  # six of the seven there are; unit 4 is the lowest of them
    assert more[key("v")].any(1).nonzero().flatten().tolist() == [0, 1, 2, 3, 6, 7]
    assert float(GATES.settled(gated.locations[0])[1]) > 0


def test_one_unit_of_a_group_stays() -> None:
    gated, _ = on_units()
    gated.locations = [torch.full((8,), -9.0)]
    assert gated.settle(None)[key("v")].any(1).nonzero().flatten().tolist() == [0]
    with pytest.raises(SparsityError, match="with one unit left in every group only 88% of the"):
        gated.settle(8)
