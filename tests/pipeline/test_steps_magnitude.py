"""Magnitude pruning: its laws, and cases small enough to do by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from laws import StepLaws
from models import case_of, key, linear_model, two_headed_model
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import Chain, Step, fix, is_open
from onnxpress.steps.magnitude import Magnitude, alpha_for, density, theorem_counts
from onnxpress.support import cut
from onnxpress_adapters.errors import MisuseError, SparsityError, StepError


class TestMagnitudePerLayer(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return Magnitude(sparsity=0.6)


class TestMagnitudeGlobal(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return Magnitude(sparsity=0.6, scope="global")


class TestMagnitudeByTheTheorem(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return Magnitude(sparsity=0.6, scope="theorem")


class TestMagnitudeAfterMore(StepLaws):
    """It asks for less than is pruned already: nothing may return, and nothing may change."""

    sparsity = 0.3

    def begin(self, state: State, problem: Problem) -> State:
        return Magnitude(sparsity=0.8)(state, problem)

    def make_step(self) -> Step:
        return Magnitude(sparsity=0.3)


def test_the_smallest_go() -> None:
    case = case_of(linear_model(np.array([[1.0, -4.0], [-2.0, 3.0], [0.5, -0.25]])))
    after = Magnitude(sparsity=0.5)(case.state, case.problem).weights[key("w")]
    assert after.values.tolist() == [[0.0, -4.0], [-2.0, 3.0], [0.0, 0.0]]
    assert after.support.tolist() == [[False, True], [True, True], [False, False]]


def test_globally_a_scale_does_not_decide() -> None:
    case = case_of(two_headed_model())
    louder = {
        name: replace(form, values=form.values * (1000 if name == key("wb") else 1))
        for name, form in case.state.weights.items()
    }
    step = Magnitude(sparsity=0.5, scope="global")
    plain = step(case.state, case.problem)
    loud = step(replace(case.state, weights=louder), case.problem)
    for name, form in plain.weights.items():
        assert torch.equal(form.support, loud.weights[name].support)
    counts = [form.nonzeros for form in plain.weights.values()]
    assert sum(counts) == plain.elements // 2


def test_each_layer_keeps_its_share() -> None:
    case = case_of(two_headed_model())
    after = Magnitude(sparsity=0.25)(case.state, case.problem)
    for form in after.weights.values():
        assert form.nonzeros == form.values.numel() * 3 // 4


def test_it_refuses_what_it_cannot_do() -> None:
    case = case_of(linear_model(np.ones((2, 2))))
    with pytest.raises(StepError, match="has no sparsity: give it one, or put it in a search"):
        Magnitude()(case.state, case.problem)
    with pytest.raises(StepError, match="has neither alpha nor a sparsity: give it one, or put it"):
        Magnitude(scope="theorem")(case.state, case.problem)
    with pytest.raises(SparsityError, match=r"between 0 and 1, not at 1\.5"):
        Magnitude(sparsity=1.5)(case.state, case.problem)


def test_the_theorem_prunes_so_many_of_each_weight() -> None:
    case = case_of(two_headed_model())  # 96, 36 and 24 entries
    step = Magnitude(scope="theorem", alpha=0.25)
    after = step(case.state, case.problem)
    pruned = {
        name.name: form.support.numel() - form.nonzeros for name, form in after.weights.items()
    }
    assert pruned == {"w": 30, "wa": 14, "wb": 10}  # 96^.75 = 30.7, 36^.75 = 14.7, 24^.75 = 10.8
    for name, form in after.weights.items():
        size = case.state.weights[name].values.abs()
        assert size[~form.support].max() <= size[form.support].min()
        assert torch.equal(form.values[form.support], case.state.weights[name].values[form.support])
    told, close = after.log
    assert told == "theorem, alpha 0.25: densities w 0.6875, wa 0.6111, wb 0.5833"
    assert close.startswith("theorem: over the unit ball the outputs move by at least ")
    assert close.endswith("; no upper bound: a chain has one input and one output that counts")


def test_the_theorem_needs_no_search_where_alpha_is_given() -> None:
    assert is_open(Magnitude(scope="theorem"))
    assert not is_open(Magnitude(scope="theorem", alpha=0.1))
    step = fix(Chain((Magnitude(scope="theorem", alpha=0.5), Magnitude(scope="theorem"))), 0.5)
    assert step == Chain(
        (Magnitude(scope="theorem", alpha=0.5), Magnitude(sparsity=0.5, scope="theorem"))
    )


def test_half_the_weights_at_width_256_take_a_sixteenth() -> None:
    # FACTS section 5: a guide and no certificate.
    assert theorem_counts([256 * 256], 1 / 16) == [256 * 256 // 2]
    assert alpha_for([256 * 256], 256 * 256 // 2) == pytest.approx(1 / 16, abs=1e-4)
    assert theorem_counts([7, 1], 0.0) == [7, 1]
    assert alpha_for([7, 1], 8) == pytest.approx(0.0, abs=1e-9)
    assert alpha_for([7, 1], 0) is None


def test_nothing_to_prune_prunes_nothing() -> None:
    case = case_of(two_headed_model())
    after = Magnitude(sparsity=0.0, scope="theorem")(case.state, case.problem)
    assert after.weights == case.state.weights
    assert after.log[0] == "theorem, nothing to prune: densities w 1, wa 1, wb 1"
    assert "at least 0;" in after.log[1]


def test_the_toy_example_keeps_two_thirds() -> None:
    """The document says 3/6: it counts three of the four nonzeros."""
    weight = torch.tensor([[1.0, 2.0], [4.0, 5.0], [7.0, 8.0]])
    mask = torch.tensor([[True, True], [False, True], [True, False]])
    pruned = cut(weight, mask).values
    assert pruned.tolist() == [[1.0, 2.0], [0.0, 5.0], [7.0, 0.0]]
    x1, x2 = 3.0, -2.0
    wanted = [x1 + 2 * x2, 5 * x2, 7 * x1]
    assert (pruned @ torch.tensor([x1, x2])).tolist() == wanted
    assert wanted != (weight @ torch.tensor([x1, x2])).tolist()
    assert int(pruned.count_nonzero()) == 4
    assert density(mask) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0.5}, "alpha is the theorem's; add `scope: theorem` or leave alpha out"),
        (
            {"alpha": 0.5, "sparsity": 0.5, "scope": "theorem"},
            "alpha says how much leaves, and so does a sparsity; give one",
        ),
        ({"alpha": 1.5, "scope": "theorem"}, "alpha lies between 0 and 1, not at 1.5"),
        (
            {"pattern": "2:4", "scope": "theorem"},
            "the theorem prunes single entries, which do not keep to '2:4'; leave out the pattern",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError) as raised:
        Magnitude(**fields)
    assert str(raised.value).startswith(message)
