"""Bytes per prunable weight, against sizes counted by hand and by gzip."""

from __future__ import annotations

import gzip
from dataclasses import replace
from math import log2

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnxpress import weight_bytes as module
from onnxpress.sizes import FileSize
from onnxpress.weight_bytes import WeightBytes, table, weight_bytes
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.sparse import to_sparse
from onnxpress_exporters.values import Palette, Scaled, rounded
from onnxpress_exporters.write import patch
from reports import made
from small_models import model, perceptron, thinned, value


def product(weight: np.ndarray) -> ModelProto:
    """One MatMul by one weight."""
    rows, columns = weight.shape
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [value("x", "N", rows)], [value("y", "N", columns)]
    return model(helper.make_graph([node], "g", *ends, [numpy_helper.from_array(weight, "w")]))


WEIGHT = thinned(200, 300, density=0.1)
SHARE = np.count_nonzero(WEIGHT) / WEIGHT.size
PLACES = -SHARE * log2(SHARE) - (1 - SHARE) * log2(1 - SHARE)


def test_every_form_takes_what_it_takes() -> None:
    found = weight_bytes(product(WEIGHT))
    assert found.elements == WEIGHT.size
    tensor = numpy_helper.from_array(WEIGHT, "w").SerializeToString()
    assert found.forms["dense"].size_bytes == len(tensor)
    assert found.forms["dense"].gzip_bytes == len(gzip.compress(tensor, 6))
    sparse = to_sparse("w", WEIGHT).SerializeToString()
    assert found.forms["sparse"].size_bytes == len(sparse)
    assert found.forms["sparse"].gzip_bytes == len(gzip.compress(sparse, 6))
    file = patch(product(WEIGHT), {WeightKey((), "w"): WEIGHT}, "packed").model
    rest = file.ByteSize() - found.forms["packed"].size_bytes
    assert 0 < rest < 400  # the frame of the graph
    assert found.entropy_bytes * 8 / WEIGHT.size == pytest.approx(PLACES + 32 * SHARE)
    assert found.entropy_bytes < found.forms["packed"].size_bytes


def test_values_of_few_codes_count_by_their_entropy() -> None:
    kept = WEIGHT != 0
    book = np.array([-1.0, -0.25, 0.25, 1.0], np.float32)
    few = rounded(WEIGHT, Palette(book))
    counts = np.unique(few[kept], return_counts=True)[1]
    values = -sum(c / kept.sum() * log2(c / kept.sum()) for c in counts)
    each = weight_bytes(product(few)).entropy_bytes * 8 / WEIGHT.size
    assert each == pytest.approx(PLACES + SHARE * values)


def test_channels_with_scales_of_their_own_need_the_storage() -> None:
    scales = (np.abs(WEIGHT).max(0, keepdims=True) / 127).astype(np.float32)
    storage = Scaled(np.where(scales, scales, np.float32(1)))
    made = product(rounded(WEIGHT, storage))
    known = weight_bytes(made, {WeightKey((), "w"): storage})
    unknown = weight_bytes(made)
    assert known.entropy_bytes < unknown.entropy_bytes / 2
    assert known.forms["packed"].size_bytes < unknown.forms["packed"].size_bytes
    assert known.forms["dense"] == unknown.forms["dense"]


def test_halves_count_as_sixteen_bits() -> None:
    halves = WEIGHT.astype(np.float16)
    share = np.count_nonzero(halves) / halves.size
    for array in (halves, halves.astype(np.float32)):
        each = weight_bytes(product(array)).entropy_bytes * 8 / array.size
        places = -share * log2(share) - (1 - share) * log2(1 - share)
        assert each == pytest.approx(places + 16 * share)


def test_nothing_but_zeros_has_no_entropy() -> None:
    assert weight_bytes(product(np.zeros((20, 30), np.float32))).entropy_bytes == 0


def test_a_weight_that_cannot_be_packed_stays_dense() -> None:
    old = product(WEIGHT)
    old.opset_import[0].version = 7
    found = weight_bytes(old)
    assert found.forms["packed"] == found.forms["dense"]


def test_of_large_models_gzip_sees_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = weight_bytes(product(WEIGHT)).forms["dense"]
    monkeypatch.setattr(module, "MOST_GZIPPED_BYTES", WEIGHT.nbytes // 4)
    monkeypatch.setattr(module, "PIECE_BYTES", 1 << 13)
    about = weight_bytes(product(WEIGHT)).forms["dense"]
    assert about.size_bytes == exact.size_bytes
    assert about.gzip_bytes != exact.gzip_bytes
    assert about.gzip_bytes == pytest.approx(exact.gzip_bytes, rel=0.1)


@pytest.mark.parametrize("per_channel", [False, True])
def test_of_a_large_weight_slices_from_all_over_are_measured(
    per_channel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dense above, sparse below: a share of the top alone would be far off.
    array = np.concatenate([thinned(300, 200, density=d, seed=1) for d in (0.5, 0.1)])
    scales = np.abs(array).max(1, keepdims=True) / 127 if per_channel else np.full((1, 1), 0.03)
    storage = {WeightKey((), "w"): Scaled(np.where(scales, scales, 1).astype(np.float32))}
    small = product(rounded(array, storage[WeightKey((), "w")]))
    exact = weight_bytes(small, storage)
    monkeypatch.setattr(module, "MOST_MEASURED", array.size // 4)
    about = weight_bytes(small, storage)
    assert about.elements == exact.elements == array.size
    assert about != exact
    for form, size in exact.forms.items():
        assert about.forms[form].size_bytes == pytest.approx(size.size_bytes, rel=0.1)
        assert about.forms[form].gzip_bytes == pytest.approx(size.gzip_bytes, rel=0.1)
    assert about.entropy_bytes == pytest.approx(exact.entropy_bytes, rel=0.1)


def test_where_gzip_does_better_than_packing_the_report_says_so() -> None:
    def sized(dense_gzip: int, packed: int) -> WeightBytes:
        forms = {"dense": FileSize(400, dense_gzip), "packed": FileSize(packed, packed)}
        return WeightBytes(100, forms, 0.0)

    assert sized(98, 100).gzip_wins == ""
    assert sized(300, 400).gzip_wins == ""
    told = "gzip of dense weights takes 0.960 bytes each, less than the 1.000 of packed ones"
    assert sized(96, 100).gzip_wins == told


def test_a_model_without_weights_is_a_table_of_nothing() -> None:
    empty = perceptron()
    del empty.graph.node[:]
    found = weight_bytes(empty)
    assert (found.elements, found.entropy_bytes) == (0, 0.0)
    assert found.json()["dense"]["raw"] == 0


def test_reports_show_both_sides() -> None:
    before, after = weight_bytes(perceptron()), weight_bytes(product(WEIGHT))
    report = replace(made(), weight_bytes=(before, after))
    assert report.remarks == ()
    thin = WeightBytes(1, {"dense": FileSize(9, 1), "packed": FileSize(8, 8)}, 0.0)
    assert len(replace(made(), weight_bytes=(before, thin)).remarks) == 1
    head, *rows = table([("before", before), ("after", after)])
    assert head == ["bytes per weight", "before", "before, gzipped", "after", "after, gzipped"]
    assert [row[0] for row in rows] == ["dense", "sparse", "packed", "entropy"]
    for row in rows:
        assert any(line.split() == row for line in report.text().splitlines())
    assert report.json()["weight_bytes"] == {"before": before.json(), "after": after.json()}
    assert "<h2>Forms</h2>" in report.html()
    assert f"<td>{rows[2][3]}</td>" in report.html()
    assert isinstance(after, WeightBytes)
