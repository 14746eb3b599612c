"""Which operators of ai.onnx have a converter: all there ever were, in every version."""

from onnx import defs

from onnxpress_adapters.control import CONTROL
from onnxpress_adapters.ops import load

WORDS = "it works on text, which torch does not have"
MISSING = {
    "Constant": "constants are read with the graph, before any node runs",
    "ImageDecoder": "it unpacks files",
    "RegexFullMatch": WORDS,
    "StringConcat": WORDS,
    "StringNormalizer": WORDS,
    "StringSplit": WORDS,
}


def versions() -> list[tuple[str, int]]:
    schemas = defs.get_all_schemas_with_history()
    return sorted((s.name, s.since_version) for s in schemas if s.domain == "")


def test_every_version_of_every_operator_has_a_converter() -> None:
    table = load()
    missing = {
        (name, version)
        for name, version in versions()
        if name not in CONTROL and table.find("", name, version) is None
    }
    assert missing == {(name, version) for name, version in versions() if name in MISSING}


def test_every_operator_there_is_has_been_looked_at() -> None:
    names = {name for name, _ in versions()}
    assert set(MISSING) <= names
    assert set(CONTROL) <= names


EXPERIMENTS = {
    *("Affine", "Crop", "DynamicSlice", "ImageScaler", "ParametricSoftplus"),
    *("Scale", "ScaledTanh"),
}
"""Operators of the first opsets that ONNX tried and dropped."""

BESIDE = EXPERIMENTS | {"SimplifiedLayerNormalization"}
"""These, and what onnxruntime puts into the domain of ONNX."""


def test_no_converter_is_for_an_operator_that_never_was() -> None:
    names = {name for name, _ in versions()}
    assert {name for domain, name in load().rows if not domain} - names == BESIDE
