"""onnx's own backend test-suite: every case that ships with the package, whole models at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TypeProto, numpy_helper

from one_node import DRAWN, RUNTIME, STRINGS
from onnxpress_adapters.errors import UnsupportedOperatorError
from onnxpress_adapters.testing import Compiled, importer, importer_without_reference

Array = np.ndarray[Any, Any]
RTOL, ATOL = 1e-3, 1e-5
EXPANDED = "_expanded"
"""What the name of a case holds whose operator is spelt out."""

RANDOM = {"Bernoulli": DRAWN}
"""Operators of which only the shape and the type can be told."""

BRAIN = 2**-6
"""Relative tolerance for bfloat16, which has 8 significant bits: the reference rounds each step."""


with warnings.catch_warnings():
    # Importing the cases computes all of them, overflows and divisions by zero included.
    warnings.simplefilter("ignore")
    from onnx.backend.test.loader import load_model_tests


@dataclass(frozen=True, eq=False)
class Case:
    """A model, and what it must answer."""

    name: str
    operator: str
    domain: str
    model: ModelProto
    sets: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float


@cache
def node_cases() -> tuple[Case, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {test.name: test for test in load_model_tests(kind="node")}
    cases = []
    for name, test in found.items():
        plain = found.get(name.split(EXPANDED)[0], test)
        assert test.model is not None
        assert plain.model is not None
        last = plain.model.graph.node[-1]
        sets = [(arrays(given), arrays(wanted)) for given, wanted in test.data_sets or ()]
        about = (name, last.op_type, last.domain or "ai.onnx", test.model)
        cases.append(Case(*about, sets, test.rtol, test.atol))
    return tuple(cases)


def arrays(values: Sequence[Any]) -> list[Any]:
    return [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values]


def plain_cases() -> list[Case]:
    """Give the cases of one node; the others spell out the definition of its operator."""
    return [case for case in node_cases() if EXPANDED not in case.name]


def stored_cases(kind: str) -> Iterator[Case]:
    for test in load_model_tests(kind=kind):
        assert test.model_dir is not None
        folder = Path(test.model_dir)
        model = onnx.load(folder / "model.onnx")
        sets = [
            (stored(place, "input", model.graph.input), stored(place, "output", model.graph.output))
            for place in sorted(folder.glob("test_data_set_*"))
        ]
        yield Case(test.name, kind, "", model, sets, test.rtol, test.atol)


def stored(folder: Path, role: str, values: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    count = len(list(folder.glob(f"{role}_*.pb")))
    return [
        read((folder / f"{role}_{place}.pb").read_bytes(), values[place].type)
        for place in range(count)
    ]


def read(data: bytes, kind: TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def check(found: Any, wanted: Any, case: Case) -> None:
    if isinstance(wanted, list):
        assert isinstance(found, list)
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            check(ours, theirs, case)
        return
    if wanted is None:
        assert found is None
        return
    wanted = np.asarray(wanted)
    assert isinstance(found, np.ndarray)
    assert found.shape == wanted.shape
    if wanted.dtype.kind in "OUST":
        assert found.astype(str).tolist() == wanted.astype(str).tolist()
        return
    assert found.dtype == wanted.dtype
    if case.operator not in RANDOM:
        rtol = max(BRAIN if wanted.dtype.name == "bfloat16" else RTOL, case.rtol)
        np.testing.assert_allclose(wide(found), wide(wanted), rtol=rtol, atol=max(ATOL, case.atol))


def wide(array: Array) -> Array:
    # numpy warns where a NaN is of the signalling kind.
    with np.errstate(invalid="ignore"):
        return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def complaints_about(
    compiled: Callable[[ModelProto], Compiled], cases: Iterable[Case]
) -> dict[str, str]:
    """Say of each case that is not answered right what is wrong."""
    complaints = {}
    for case in cases:
        run = compiled(case.model)
        try:
            for given, wanted in case.sets:
                check(run(given), wanted, case)
        except AssertionError as error:
            complaints[case.name] = str(error)
    return complaints


DIFFERENT = {
    "test_maxunpool_export_with_output_shape": RUNTIME,
    "test_resize_downsample_scales_cubic_align_corners": RUNTIME,
    "test_resize_downsample_scales_linear_align_corners": RUNTIME,
}


@pytest.mark.parametrize("operator", sorted({case.operator for case in plain_cases()}))
def test_every_case_of_one_node_passes(operator: str) -> None:
    cases = [case for case in plain_cases() if case.operator == operator]
    complaints = complaints_about(importer, cases)
    assert complaints.keys() == DIFFERENT.keys() & {case.name for case in cases}, complaints


def test_there_are_as_many_cases_as_are_told() -> None:
    assert sum(case.domain == "ai.onnx" for case in plain_cases()) == 1378
    assert all(case.sets for case in node_cases())
    assert {case.name for case in plain_cases()} >= DIFFERENT.keys()


@pytest.mark.parametrize("name", DIFFERENT)
def test_onnxruntime_answers_as_onnxpress_does_where_the_reference_differs(name: str) -> None:
    (case,) = (case for case in plain_cases() if case.name == name)
    ((given, _),) = case.sets
    session = onnxruntime.InferenceSession(case.model.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    check(
        importer(case.model)(given), session.run(None, dict(zip(names, given, strict=True))), case
    )


HALVES = "in float16, where the answer expected is further from the exact one than onnxpress's"
DIFFERENT_DEFINITIONS = {"test_attention_4d_causal_fp16_expanded": HALVES}


def test_every_definition_passes() -> None:
    cases = [case for case in node_cases() if EXPANDED in case.name]
    complaints = complaints_about(importer, cases)
    assert complaints.keys() == DIFFERENT_DEFINITIONS.keys(), complaints


def test_a_half_that_differs_is_nearer_to_the_exact_answer() -> None:
    (case,) = (case for case in node_cases() if case.name in DIFFERENT_DEFINITIONS)
    ((given, (expected,)),) = case.sets
    (found,) = importer(case.model)(given)
    query, key, value = (wide(array) for array in given)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    shares = np.tril(np.exp(scores - scores.max(-1, keepdims=True)))
    exact = shares / shares.sum(-1, keepdims=True) @ value
    assert np.abs(wide(found) - exact).max() < np.abs(wide(expected) - exact).max()


PICTURES = "torch reads no image files"
TABLES = "classical machine learning on trees and tables, whose numbers are no weights of layers"
OPTIMISERS = "a step of training, not part of a model that answers"
REFUSED = {
    "Adagrad": (2, OPTIMISERS),
    "Adam": (2, OPTIMISERS),
    "ArrayFeatureExtractor": (1, TABLES),
    "Binarizer": (1, TABLES),
    "Equal": (2, STRINGS),
    "ImageDecoder": (9, PICTURES),
    "LabelEncoder": (4, TABLES),
    "Momentum": (3, OPTIMISERS),
    "RegexFullMatch": (3, STRINGS),
    "StringConcat": (5, STRINGS),
    "StringNormalizer": (6, STRINGS),
    "StringSplit": (6, STRINGS),
    "TreeEnsemble": (2, TABLES),
}
"""What has no converter: in how many cases of one node, and why."""


def test_without_the_reference_only_what_torch_cannot_hold_is_refused() -> None:
    cases = {case.name: case for case in plain_cases()}
    refused: dict[str, int] = {}
    for case in plain_cases():
        try:
            importer_without_reference(case.model)
        except UnsupportedOperatorError as error:
            operator = str(error).split("::")[1].split()[0]
            refused[operator] = refused.get(operator, 0) + 1
            del cases[case.name]
    assert refused == {operator: count for operator, (count, _) in REFUSED.items()}
    complaints = complaints_about(importer_without_reference, cases.values())
    assert complaints.keys() == DIFFERENT.keys(), complaints
    passing = {name for name, case in cases.items() if case.domain == "ai.onnx"} - complaints.keys()
    assert len(passing) >= 1200


GRADIENTS = "the operator Gradient trains, and onnx's reference implementation lacks it as well"
REFUSED_MODELS = {"test_gradient_of_add": GRADIENTS, "test_gradient_of_add_and_mul": GRADIENTS}
KINDS = {"simple": 23, "pytorch-operator": 35, "pytorch-converted": 82}


@pytest.mark.parametrize("kind", KINDS)
def test_every_stored_model_passes(kind: str) -> None:
    cases = {case.name: case for case in stored_cases(kind)}
    for name in cases.keys() & REFUSED_MODELS.keys():
        with pytest.raises(
            UnsupportedOperatorError, match=r"ai\.onnx\.preview\.training::Gradient"
        ):
            importer(cases.pop(name).model)
    assert complaints_about(importer, cases.values()) == {}


@pytest.mark.parametrize(("kind", "count"), KINDS.items())
def test_there_are_as_many_stored_models_as_are_told(kind: str, count: int) -> None:
    cases = {case.name: case for case in stored_cases(kind)}
    assert len(cases) == count
    assert all(case.sets for case in cases.values())
    assert kind != "simple" or cases.keys() >= REFUSED_MODELS.keys()
