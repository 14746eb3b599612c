"""What holds for any step, whatever its method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from models import MODELS, Case, case_of
from onnxpress.problem import Problem, Tolerance
from onnxpress.state import State
from onnxpress.step import Only, Step, checked, target_count
from onnxpress_adapters.weights import WeightKey


@dataclass(frozen=True, eq=False)
class Ran:
    """A step's run: what it was given, bit for bit as it was before, and what it made of it."""

    case: Case
    bits: dict[WeightKey, Tensor]
    supports: dict[WeightKey, Tensor]
    after: State

    @classmethod
    def of(cls, step: Step, case: Case) -> Ran:
        """Run a step and remember what it was given."""
        bits = {key: value.clone() for key, value in case.state.tensors.items()}
        supports = {key: form.support.clone() for key, form in case.state.weights.items()}
        return cls(case, bits, supports, checked(step, case.state, case.problem))

    def values(self) -> list[bytes]:
        """Give every value of the result, in the order of the keys."""
        tensors = self.after.tensors
        return [tensors[key].numpy().tobytes() for key in sorted(tensors)]


class StepLaws:
    """Laws of one step; a subclass gives the step.

    Attributes:
        sparsity: what the step promises over the free weights; None for a step without a budget.
        regrows: whether entries that were pruned before may return.
        coarse: how many entries leave together at most: so many more than promised may go.
        tolerance: of the problem.
    """

    sparsity: ClassVar[float | None] = None
    regrows: ClassVar[bool] = False
    coarse: ClassVar[int] = 1
    tolerance: ClassVar[Tolerance | None] = None

    def make_step(self) -> Step:
        """Give the step under test."""
        raise NotImplementedError

    def begin(self, state: State, problem: Problem) -> State:
        """Give the state to try the step on, from the one with the original weights."""
        del problem
        return state

    def make_case(self, name: str, seed: int = 0) -> Case:
        """Give a fresh problem and the state to begin with."""
        case = case_of(MODELS[name](), seed=seed, tolerance=self.tolerance)
        return replace(case, state=self.begin(case.state, case.problem))

    @pytest.fixture(scope="class", params=list(MODELS))
    @classmethod
    def ran(cls, request: pytest.FixtureRequest) -> Ran:
        """Run the step once for each model."""
        return Ran.of(cls().make_step(), cls().make_case(request.param))

    def test_the_given_state_is_untouched(self, ran: Ran) -> None:
        state = ran.case.state
        assert state.tensors.keys() == ran.bits.keys()
        for key, value in state.tensors.items():
            assert value.numpy().tobytes() == ran.bits[key].numpy().tobytes(), key
        for key, form in state.weights.items():
            assert torch.equal(form.support, ran.supports[key]), key
        for key, value in ran.case.problem.reference.items():
            assert not value.requires_grad, key

    def test_everything_survives_and_keeps_its_kind(self, ran: Ran) -> None:
        before, after = ran.case.state, ran.after
        assert list(after.weights) == list(before.weights)
        assert list(after.extras) == list(before.extras)
        assert after.free == before.free
        assert after.fixed_zeros == before.fixed_zeros
        assert after.log[: len(before.log)] == before.log
        for key, value in after.tensors.items():
            assert value.shape == before.tensors[key].shape, key
            assert value.dtype == before.tensors[key].dtype, key
            assert not value.requires_grad, key

    def test_what_did_not_change_is_the_same_object(self, ran: Ran) -> None:
        before, after = ran.case.state, ran.after
        for key, form in after.weights.items():
            old = before.weights[key]
            same = torch.equal(form.values, old.values) and torch.equal(form.support, old.support)
            assert (form is old) == same, key
        for key, value in after.extras.items():
            assert (value is before.extras[key]) == torch.equal(value, before.extras[key]), key

    def test_values_are_finite_and_pruned_entries_exactly_zero(self, ran: Ran) -> None:
        for key, form in ran.after.weights.items():
            assert form.values.isfinite().all(), key
            pruned = form.values[~form.support]
            assert pruned.numpy().tobytes() == bytes(pruned.nbytes), key
        assert all(value.isfinite().all() for value in ran.after.extras.values())

    def test_what_was_pruned_stays_pruned(self, ran: Ran) -> None:
        for key, form in ran.after.weights.items():
            may_return = self.regrows and key in ran.after.free
            assert may_return or not (form.support & ~ran.supports[key]).any(), key

    def test_the_budget_is_met(self, ran: Ran) -> None:
        if self.sparsity is None:
            for key, form in ran.after.weights.items():
                assert torch.equal(form.support, ran.supports[key]), key
            return
        free = ran.case.state.free
        count = target_count(ran.case.state, self.sparsity)
        if not self.regrows:
            count = min(count, sum(ran.case.state.weights[key].nonzeros for key in free))
        kept = sum(ran.after.weights[key].nonzeros for key in free)
        assert count - max(len(free), self.coarse) < kept <= count
        assert ran.after.sparsity >= self.sparsity

    def test_the_same_seed_gives_the_same_bits(self, ran: Ran) -> None:
        name = next(n for n, make in MODELS.items() if make() == ran.case.model)
        assert Ran.of(self.make_step(), self.make_case(name)).values() == ran.values()

    @pytest.mark.parametrize("name", ["mlp", "cnn"])
    def test_only_free_weights_change(self, name: str) -> None:
        case = self.make_case(name)
        chosen, *others = case.state.weights
        after = Only(str(chosen), self.make_step())(case.state, case.problem)
        assert after.free == case.state.free
        for key in others:
            assert after.weights[key] is case.state.weights[key]
        if self.sparsity is not None:
            values = after.weights[chosen].values
            assert (values == 0).sum() >= self.sparsity * values.numel()
