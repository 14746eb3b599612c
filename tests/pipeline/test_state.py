"""States: what they count and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models import case_of, key, two_headed_model
from onnxpress.support import cut
from onnxpress_adapters.errors import StepError
from onnxpress_adapters.weights import Dense


def test_zeros_are_counted_over_all_prunable_weights() -> None:
    state = case_of(two_headed_model()).state
    assert (state.zeros, state.elements, state.sparsity) == (0, 156, 0.0)
    form = state.weights[key("wa")]
    thin = state.with_weights({key("wa"): cut(form.values, torch.zeros_like(form.support))})
    assert (thin.zeros, thin.elements) == (36, 156)
    held = replace(thin, fixed_zeros=(10, 44), free=frozenset())
    assert (held.zeros, held.elements, held.sparsity) == (46, 200, 0.23)
    assert replace(state, weights={}).sparsity == 0.0


def test_only_free_weights_are_replaced() -> None:
    case = case_of(two_headed_model())
    form = case.state.weights[key("wa")]
    with pytest.raises(StepError, match="'wa' is not free: a step may not change it"):
        case.only("wb").with_weights({key("wa"): form})
    with pytest.raises(StepError, match="'w9' is not free"):
        replace(case.state, free=frozenset({key("w9")})).with_weights({key("w9"): form})


def test_what_is_equal_stays_the_object_it_was() -> None:
    state = case_of(two_headed_model()).state
    forms, bias = state.weights, state.extras[key("bias")]
    copies = {name: Dense(form.values.clone(), form.support) for name, form in forms.items()}
    copies[key("wb")] = Dense(-forms[key("wb")].values, forms[key("wb")].support)
    after = state.with_weights(copies).with_extras({key("bias"): bias.clone()})
    assert after.extras[key("bias")] is bias
    assert after.weights[key("w")] is forms[key("w")]
    assert after.weights[key("wb")] is copies[key("wb")]
    assert state.weights is forms


def test_tensors_and_log() -> None:
    state = case_of(two_headed_model()).state
    assert {str(name) for name in state.tensors} == {"w", "wa", "wb", "bias"}
    assert state.noted("first").noted("second").log == ("first", "second")
    assert state.log == ()
