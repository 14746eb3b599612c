"""How steps compose, and that every broken promise is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from laws import StepLaws
from models import Case, case_of, convolutional_model, key, two_headed_model
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.step import (
    Best,
    Budgeted,
    Chain,
    Only,
    Step,
    check_sparsity,
    checked,
    fix,
    follow,
    is_open,
    target_count,
)
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress.support import cut
from onnxpress_adapters.errors import MisuseError, SparsityError, StepError
from onnxpress_adapters.weights import Dense


class TestChain(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        return Chain((Magnitude(sparsity=0.3), Repair(), Magnitude(sparsity=0.6), Repair()))


class TestOnly(StepLaws):
    def make_step(self) -> Step:
        return Only("*", Only("[cw]*", Repair()))


class TestBest(StepLaws):
    sparsity = 0.6

    def make_step(self) -> Step:
        pruned = Magnitude(sparsity=0.6)
        return Best((pruned, Chain((pruned, Repair()))))


@dataclass(frozen=True)
class Does:
    """A step that does whatever it is told."""

    what: Callable[[State], State]

    def __call__(self, state: State, problem: Problem, /) -> State:
        return self.what(state)

    def __repr__(self) -> str:
        return "Does()"


@pytest.fixture
def case() -> Case:
    return case_of(two_headed_model())


def _replaced(state: State, name: str, form: Dense) -> State:
    return replace(state, weights={**state.weights, key(name): form})


def _loses(state: State) -> State:
    return replace(state, weights={k: f for k, f in state.weights.items() if k != key("w")})


def _invents(state: State) -> State:
    return replace(state, extras={**state.extras, key("new"): torch.zeros(3)})


def _trespasses(state: State) -> State:
    form = state.weights[key("wb")]
    return _replaced(state, "wb", Dense(2 * form.values, form.support))


def _leaks(state: State) -> State:
    form = state.weights[key("w")]
    return _replaced(state, "w", Dense(form.values, torch.zeros_like(form.support)))


def _diverges(state: State) -> State:
    form = state.weights[key("w")]
    return _replaced(state, "w", Dense(form.values * torch.nan, form.support))


def _diverges_beside(state: State) -> State:
    return replace(state, extras={key("bias"): state.extras[key("bias")] + torch.inf})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (_loses, "Does() lost or invented weights"),
        (_invents, "Does() lost or invented weights"),
        (_trespasses, "Does() changed 'wb', which is not free"),
        (_leaks, "Does() left nonzeros outside the support of 'w'"),
        (_diverges, "Does() left values in 'w' that are not finite"),
        (_diverges_beside, "Does() left values in 'bias' that are not finite"),
    ],
)
def test_every_broken_promise_is_caught(
    case: Case, what: Callable[[State], State], message: str
) -> None:
    state = case.only("w", "wa")
    for step in (Does(what), Chain((Does(what),)), Only("w", Does(what))):
        with pytest.raises(StepError) as raised:
            checked(step, state, case.problem)
        assert str(raised.value) == message


def test_a_kept_promise_passes(case: Case) -> None:
    assert checked(Does(lambda state: state), case.state, case.problem) is case.state


def test_a_chain_says_where_it_broke(case: Case) -> None:
    chain = Chain((Magnitude(sparsity=0.5), Only("wa", Chain((Magnitude(),)))))
    with pytest.raises(StepError, match="has no sparsity") as raised:
        chain(case.state, case.problem)
    assert raised.value.__notes__ == [
        f"in step 1 of 1: {Magnitude()}",
        f"in step 2 of 2: Only(pattern='wa', step=Chain(steps=({Magnitude()},)))",
    ]


@pytest.mark.parametrize("places", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_best_is_nearest_on_choose_and_starts_where_the_others_did(
    case: Case, places: tuple[int, ...]
) -> None:
    scales = (0.5, 0.9, 2.0)

    def scaled(share: float) -> Does:
        def what(state: State) -> State:
            assert state is case.state
            form = state.weights[key("w")]
            return _replaced(state, "w", Dense(share * form.values, form.support))

        return Does(what)

    after = Best(tuple(scaled(scales[place]) for place in places))(case.state, case.problem)
    assert torch.equal(after.weights[key("w")].values, 0.9 * case.state.weights[key("w")].values)
    assert after.log[-1].startswith(f"way {places.index(1) + 1} of 3: d = ")
    assert after.log[-1].endswith(" on choose")


def test_the_first_of_equals_is_kept(case: Case) -> None:
    pruned = Magnitude(sparsity=0.5)
    after = Best((pruned, pruned))(case.state, case.problem)
    assert after.log[-1].startswith("way 1 of 2: ")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(MisuseError, match="give `best` at least one step"):
        Best(())
    with pytest.raises(MisuseError, match="the nearest would be the least sparse"):
        Best((Magnitude(), Magnitude(sparsity=0.5)))


def test_what_is_not_finite_is_never_the_best(case: Case) -> None:
    def huge(state: State) -> State:
        form = state.weights[key("w")]
        return _replaced(state, "w", Dense(form.values.sign() * 3e38, form.support))

    pruned = Magnitude(sparsity=0.5)
    after = Best((Does(huge), pruned))(case.state, case.problem)
    assert after.zeros == pruned(case.state, case.problem).zeros
    assert after.log[-1].startswith("way 2 of 2: ")


def test_what_is_inside_the_best_is_held_to_its_promise(case: Case) -> None:
    with pytest.raises(StepError, match="lost or invented weights"):
        Best((Magnitude(sparsity=0.5), Does(_loses)))(case.state, case.problem)


def test_the_best_is_fixed_and_follows_like_a_chain() -> None:
    ways = Best((Magnitude(), Chain((Magnitude(sparsity=0.2), Only("a", Magnitude())))))
    assert is_open(ways)
    fixed = fix(ways, 0.7)
    assert fixed == Best(
        (
            Magnitude(sparsity=0.7),
            Chain((Magnitude(sparsity=0.2), Only("a", Magnitude(sparsity=0.7)))),
        )
    )
    assert not is_open(fixed)
    assert follow(Best((Magnitude(0.5), Repair())), "2:4") == Best(
        (Magnitude(0.5, pattern="2:4"), Repair())
    )


def test_only_narrows_and_widens(case: Case) -> None:
    after = Only("w?", Magnitude(sparsity=0.5))(case.state, case.problem)
    assert after.free == case.state.free
    counts = {str(name): form.nonzeros for name, form in after.weights.items()}
    assert counts == {"w": 96, "wa": 18, "wb": 12}
    both = Only("w*", Only("*a", Magnitude(sparsity=0.5)))(case.state, case.problem)
    counts = {str(name): form.nonzeros for name, form in both.weights.items()}
    assert counts == {"w": 96, "wa": 18, "wb": 24}


def test_only_refuses_a_pattern_without_a_weight(case: Case) -> None:
    message = r"^no free weight matches 'W\*'; free weights begin with: w, wa, wb$"
    with pytest.raises(StepError, match=message):
        Only("W*", Magnitude(sparsity=0.5))(case.state, case.problem)
    with pytest.raises(StepError, match="no free weight matches 'w'; free weights begin with: wb"):
        Only("wb", Only("w", Magnitude(sparsity=0.5)))(case.state, case.problem)


def test_a_name_matches_itself_whatever_is_in_it() -> None:
    made = convolutional_model()
    for tensor in made.graph.initializer:
        tensor.name = f"layers[{tensor.name}]"
    for node in made.graph.node:
        for place, name in enumerate(node.input):
            if name not in ("x", *(f"h{i}" for i in range(9))):
                node.input[place] = f"layers[{name}]"
    case = case_of(made)
    after = Only("layers[c1]", Magnitude(sparsity=0.5))(case.state, case.problem)
    assert after.zeros == 36


def test_open_budgets() -> None:
    assert is_open(Magnitude())
    assert not is_open(Magnitude(sparsity=0.0))
    assert not is_open(Repair())
    assert is_open(Chain((Repair(), Only("a", Chain((Magnitude(),))))))
    assert not is_open(Chain(()))
    assert isinstance(Magnitude(), Budgeted)
    assert not isinstance(Repair(), Budgeted)


def test_fixing_leaves_what_was_fixed() -> None:
    chain = Chain((Magnitude(sparsity=0.2), Only("a", Chain((Magnitude(), Repair())))))
    wanted = Chain((Magnitude(sparsity=0.2), Only("a", Chain((Magnitude(sparsity=0.7), Repair())))))
    assert fix(chain, 0.7) == wanted
    with pytest.raises(SparsityError, match=r"not at -0\.1"):
        fix(chain, -0.1)


@pytest.mark.parametrize("sparsity", [float("nan"), 1.01, -1e-9])
def test_a_sparsity_lies_between_0_and_1(sparsity: float) -> None:
    with pytest.raises(SparsityError, match="a sparsity lies between 0 and 1, not at"):
        check_sparsity(sparsity)


def test_target_counts_reach_the_sparsity(case: Case) -> None:
    assert target_count(case.state, 0.0) == 156
    assert target_count(case.state, 1.0) == 0
    assert target_count(case.state, 0.5) == 78
    assert target_count(case.state, 0.501) == 77
    assert target_count(case.only("wa"), 0.5) == 18
    assert target_count(case.only(), 0.5) == 0


def test_a_form_has_one_shape() -> None:
    with pytest.raises(StepError, match=r"a support of shape \[2\] does not fit values of shape"):
        Dense(torch.zeros(3), torch.zeros(2, dtype=torch.bool))
    assert cut(torch.ones(3), torch.tensor([True, False, True])).nonzeros == 2


class _Penalised:
    """A budgeted step that may be told by a penalty how far to go."""

    def __init__(self, *, is_bounded: bool) -> None:
        self.sparsity: float | None = None
        self.is_bounded = is_bounded

    def at(self, sparsity: float) -> _Penalised:
        fixed = _Penalised(is_bounded=self.is_bounded)
        fixed.sparsity = sparsity
        return fixed

    def __call__(self, state: State, problem: Problem, /) -> State:
        del problem
        return state


def test_a_step_that_knows_how_far_to_go_is_not_open() -> None:
    free, bound = _Penalised(is_bounded=False), _Penalised(is_bounded=True)
    assert [is_open(Chain((step,))) for step in (free, bound)] == [True, False]
    assert fix(bound, 0.5) is bound
    assert isinstance(found := fix(free, 0.5), _Penalised)
    assert found.sparsity == 0.5
