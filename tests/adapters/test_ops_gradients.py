"""Every converter either has the gradient its difference quotients show, or says why it has none.

A converter is looked at in one of three ways: on the node cases of onnx, which
``test_ops_calculus.py`` checks one by one; on inputs picked by hand, in ``gradient_picks.py``; or
not at all, where it is listed below with its reason.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor

from beside_runtime import Row, prepared
from calculus import check_gradient, floats, moved
from gradient_picks import IDLE, PICKS
from one_node import Prepared, cases, reason
from onnxpress_adapters.node import view
from onnxpress_adapters.ops import load

Key = tuple[str, str, int]
"""Domain, operator, and the first opset a converter holds for."""


COMPARES = "its result is a truth value or an integer, and steps"
COUNTS = "its inputs and its result are integers or truth values"
DRAWS = "its result is drawn, and steps where an input decides it at all"
SHAPES = "its inputs decide the shape of the result, so they are read on the host"
STEPS = "the derivative is zero where it exists: it rounds, or marks one entry"
WITHOUT = {
    ("", "And"): COUNTS,
    ("", "ArgMax"): COMPARES,
    ("", "ArgMin"): COMPARES,
    ("", "Bernoulli"): DRAWS,
    ("", "BitCast"): "it reads the bits of a number as another",
    ("", "BitShift"): COUNTS,
    ("", "BitwiseAnd"): COUNTS,
    ("", "BitwiseNot"): COUNTS,
    ("", "BitwiseOr"): COUNTS,
    ("", "BitwiseXor"): COUNTS,
    ("", "BlackmanWindow"): SHAPES,
    ("", "Ceil"): STEPS,
    ("", "ConstantOfShape"): SHAPES,
    ("", "ConvInteger"): COUNTS,
    ("", "Equal"): COMPARES,
    ("", "EyeLike"): SHAPES,
    ("", "Floor"): STEPS,
    ("", "Greater"): COMPARES,
    ("", "GreaterOrEqual"): COMPARES,
    ("", "HammingWindow"): SHAPES,
    ("", "HannWindow"): SHAPES,
    ("", "Hardmax"): STEPS,
    ("", "IsInf"): COMPARES,
    ("", "IsNaN"): COMPARES,
    ("", "Less"): COMPARES,
    ("", "LessOrEqual"): COMPARES,
    ("", "MatMulInteger"): COUNTS,
    ("", "MelWeightMatrix"): SHAPES,
    ("", "Multinomial"): DRAWS,
    ("", "NonMaxSuppression"): COMPARES,
    ("", "NonZero"): COMPARES,
    ("", "Not"): COUNTS,
    ("", "OptionalHasElement"): COUNTS,
    ("", "Or"): COUNTS,
    ("", "QLinearConv"): STEPS,
    ("", "QLinearMatMul"): STEPS,
    ("", "QuantizeLinear"): STEPS,
    ("", "RandomNormal"): DRAWS,
    ("", "RandomNormalLike"): DRAWS,
    ("", "RandomUniform"): DRAWS,
    ("", "RandomUniformLike"): DRAWS,
    ("", "Range"): SHAPES,
    ("", "Round"): STEPS,
    ("", "SequenceEmpty"): "it holds nothing",
    ("", "SequenceLength"): COUNTS,
    ("", "Shape"): SHAPES,
    ("", "Sign"): STEPS,
    ("", "Size"): SHAPES,
    ("", "TfIdfVectorizer"): COUNTS,
    ("", "Xor"): COUNTS,
    ("ai.onnx.ml", "ZipMap"): "its result is a map, not a tensor",
    ("com.microsoft", "MatMulInteger16"): COUNTS,
    ("com.microsoft", "NhwcMaxPool"): COUNTS,
    ("com.microsoft", "QLinearAdd"): STEPS,
    ("com.microsoft", "QLinearAveragePool"): STEPS,
    ("com.microsoft", "QLinearConcat"): STEPS,
    ("com.microsoft", "QLinearConv"): STEPS,
    ("com.microsoft", "QLinearGlobalAveragePool"): STEPS,
    ("com.microsoft", "QLinearLeakyRelu"): STEPS,
    ("com.microsoft", "QLinearMul"): STEPS,
    ("com.microsoft", "QLinearReduceMean"): STEPS,
    ("com.microsoft", "QLinearSigmoid"): STEPS,
    ("com.microsoft", "QLinearSoftmax"): STEPS,
    ("com.microsoft", "QLinearWhere"): STEPS,
    ("com.microsoft", "QuantizeLinear"): STEPS,
    ("com.microsoft", "Range"): SHAPES,
}


HANDED_ON = {
    *("Identity", "Optional", "OptionalGetElement", "SequenceAt", "SequenceConstruct"),
    *("SequenceErase", "SequenceInsert", "SplitToSequence", "ConcatFromSequence"),
}
"""Raw converters of ai.onnx that hand values on; one test runs all of them."""


def key_of(domain: str, operator: str, version: int) -> Key:
    entry = load().find(domain, operator, version)
    assert entry is not None, f"no converter for {operator} at opset {version}"
    return domain, operator, entry.since


@cache
def node_cases() -> dict[Key, list[Prepared]]:
    """Give the node cases of each converter, the first set of inputs of each."""
    found: dict[Key, list[Prepared]] = {}
    for case in cases().values():
        if reason(case.name) is None:
            (proto,) = case.model.graph.node
            versions = {entry.domain: entry.version for entry in case.model.opset_import}
            key = key_of(proto.domain, proto.op_type, versions.get(proto.domain, 1))
            found.setdefault(key, []).append(case.prepared(case.sets[0][0]))
    return found


ENTRIES = sorted(
    (domain, operator, entry.since)
    for (domain, operator), rows in load().rows.items()
    for entry in rows
)
PICKED = {key_of(pick.domain, pick.operator, pick.version) for pick in PICKS}
LARGEST = 500
"""More numbers than this make a node case slow to difference."""


def small(bound: Prepared) -> bool:
    """Say whether a node case has numbers to differentiate in, and few enough."""
    count: int = sum(bound.arguments[place].numel() for place in floats(bound))
    return 0 < count <= LARGEST


def felt(bound: Prepared) -> set[int]:
    """Give the places of the inputs whose gradient is not all zero."""
    places = floats(bound)
    values = [moved(bound.arguments[place], place).requires_grad_() for place in places]
    results = bound.with_(dict(zip(places, values, strict=True)))
    found = zip(places, gradients(results, values), strict=True)
    return {place for place, gradient in found if gradient.any()}


def gradients(results: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Differentiate a weighted sum of the results that depend on the values, in every value."""
    total = torch.zeros(())
    for result in results:
        # Torch takes rounding to 8 bits for the identity, which is no derivative.
        if result.requires_grad and result.dtype.itemsize > 1:
            weights = torch.arange(1, result.numel() + 1).reshape(result.shape)
            total = total + (result.double() * weights).sum()
    if not total.requires_grad:
        return [torch.zeros_like(value) for value in values]
    return list(torch.autograd.grad(total, values, materialize_grads=True))


@pytest.mark.parametrize(("domain", "operator", "since"), ENTRIES)
def test_every_converter_has_a_gradient_or_a_reason(domain: str, operator: str, since: int) -> None:
    if (domain, operator) in WITHOUT or (domain, operator, since) in PICKED:
        return
    if domain == "" and operator in HANDED_ON:
        return
    found = [b for b in node_cases().get((domain, operator, since), []) if small(b)]
    assert any(check_gradient(bound, floats(bound)) for bound in found), (
        f"pick inputs for {domain or 'ai.onnx'}::{operator} from opset {since} on, "
        "or list it with the reason why it has no gradient"
    )
    every = {place for bound in found for place in floats(bound)}
    assert every - {place for bound in found for place in felt(bound)} == set()


@pytest.mark.parametrize("pick", PICKS, ids=str)
def test_gradient_of_a_pick_is_its_difference_quotient(pick: Row) -> None:
    bound = prepared(pick)
    places = [place for place in floats(bound) if place not in IDLE.get(pick.operator, ())]
    values = [bound.arguments[place].clone().requires_grad_() for place in places]

    def outputs(*given: Tensor) -> tuple[Tensor, ...]:
        results = bound.with_(dict(zip(places, given, strict=True)))[: pick.outputs]
        return tuple(result for result in results if result.is_floating_point())

    results = outputs(*values)
    assert all(result.requires_grad for result in results)
    assert all(gradient.any() for gradient in gradients(results, values))
    assert torch.autograd.gradcheck(outputs, values)


@pytest.mark.parametrize(("domain", "operator"), sorted(WITHOUT))
def test_what_is_said_to_have_no_gradient_has_none(domain: str, operator: str) -> None:
    assert (domain, operator) in load().rows
    for (*name, _), found in node_cases().items():
        for bound in found if tuple(name) == (domain, operator) else ():
            places = floats(bound)
            values = [bound.arguments[place].clone().requires_grad_() for place in places]
            results = bound.with_(dict(zip(places, values, strict=True)))
            for gradient in gradients(results, values):
                assert not gradient.any()


def test_picks_are_for_what_has_a_gradient() -> None:
    assert {(domain, operator) for domain, operator, _ in PICKED}.isdisjoint(WITHOUT)


def hand_on(operator: str, *values: Any, **attributes: Any) -> Any:
    """Run a raw converter."""
    names = [f"i{place}" for place, _ in enumerate(values)]
    entry = load().find("", operator, 17)
    assert entry is not None
    assert entry.raw
    return entry.convert(view(helper.make_node(operator, names, ["o"], **attributes), 17), *values)


def test_gradients_pass_through_sequences_and_optionals() -> None:
    met = set()

    def run(operator: str, *values: Any, **attributes: Any) -> Any:
        met.add(operator)
        return hand_on(operator, *values, **attributes)

    def chain(x: Tensor, y: Tensor) -> Tensor:
        both = run("SequenceConstruct", run("Identity", x), y)
        three = run("SequenceInsert", both, x * y, np.array(1))
        two = run("SequenceErase", three, np.array(0))
        joined = run("ConcatFromSequence", two, axis=0)
        parts = run("SplitToSequence", joined, np.array([1, 3]), axis=0)
        last = run("SequenceAt", parts, np.array(-1))
        whole: Tensor = run("OptionalGetElement", run("Optional", last))
        return whole

    x, y = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 4.0]).double()
    values = (x.requires_grad_(), y.requires_grad_())
    assert chain(*values).tolist() == [8.0, 3.0, 4.0]
    assert torch.autograd.gradcheck(chain, values)
    assert met == HANDED_ON
