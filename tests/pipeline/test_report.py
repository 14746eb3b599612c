"""Reports: what people, machines and browsers are told."""

from __future__ import annotations

import gzip
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxpress import __version__
from onnxpress.problem import Tolerance
from onnxpress.report import Closest, CurvePoint, SampleCounts
from onnxpress.sizes import FileSize, Sizes
from onnxpress.verdict import decide
from onnxpress.weighing import LayerRow, layer_rows
from onnxpress_adapters.distance import DistanceMeter
from onnxpress_adapters.weights import WeightKey
from reports import made
from small_models import perceptron


def test_the_whole_text() -> None:
    assert made(0.0064).text() == "\n".join(
        [
            "a.onnx -> b.onnx: within the tolerance of 1 %",
            "",
            "  distance   0.64 % of the output's variance (8 % RMS)",
            "             0.0064 as a mean squared error, at most 0.0064",
            "  verdict    within: the output 'y' moves by at most 0.64 % of its variance, "
            "and 1 % is allowed",
            "  zeros      75 % of the prunable weights (1 % before)",
            "  file       1,000 -> 500 bytes (50 %)",
            "  gzipped    900 -> 300 bytes (33 %)",
            "  judged on  100 samples in onnxruntime (CPU) that nothing else has seen, "
            "1 candidate; 60 to fit, 20",
            "             to choose",
            f"  run        12.3 s, seed 7, on cpu, batching: batch, onnxpress {__version__}",
            "  steps      Chain(steps=(Greedy(),))",
            "",
            "  weight  operator  shape  zeros before  zeros after  written",
            "  w1      MatMul    16x32  0 %           75 %         sparse",
        ]
    )


def test_outside_the_tolerance_names_the_closest() -> None:
    report = made(0.04, out=None, closest=Closest(0.5, 0.02), judged=2)
    assert report.exit_code == 3
    assert report.text().startswith(
        "a.onnx -> b.onnx: outside the tolerance of 1 %; nothing was written\n"
    )
    assert (
        "2 % of the variance at 50 % zeros was the closest that could be reached" in report.text()
    )
    assert "2 candidates" in report.text()
    assert report.json()["closest"] == {"sparsity": 0.5, "distance": 0.02}


def test_what_is_required_and_not_reached_is_no_success() -> None:
    report = made(0.0064, out=None, unmet="the file would be 50 % of the original")
    assert (report.verdict, report.exit_code) == ("within", 3)
    assert report.text().startswith(
        "a.onnx -> b.onnx: within the tolerance of 1 %, but not what was required; nothing was "
        "written\n"
    )
    assert "  required   the file would be 50 % of the original\n" in report.text()
    assert report.json()["unmet"] == "the file would be 50 % of the original"
    assert made().json()["unmet"] is None


def test_the_closest_speaks_the_tolerances_language() -> None:
    report = made(0.04, tolerance="0.01", closest=Closest(0.5, 0.02))
    assert "a mean squared error of 0.02 at 50 % zeros" in report.text()


def test_a_verification_has_no_steps() -> None:
    bare = made(steps="", device="", batching="", samples=SampleCounts(0, 0, 100), out=None)
    text = bare.text()
    assert "nothing was written" not in text
    assert "100 samples in onnxruntime (CPU)\n" in text
    assert "  steps" not in text


@pytest.mark.parametrize(("share", "code"), [(0.0, 0), (0.02, 3)])
def test_exit_codes(share: float, code: int) -> None:
    assert made(share).exit_code == code


def test_a_larger_file_is_always_said() -> None:
    report = made(sizes=Sizes(FileSize(1000, 900), FileSize(1500, 300)), notes=("first",))
    said = "the file is larger than the original: 1,500 bytes, not 1,000"
    assert report.text().endswith(f"Note: first.\nNote: {said}.")
    assert report.json()["notes"] == ["first", said]
    assert said in report.html()


def test_only_the_largest_weights_are_in_the_text() -> None:
    rows = tuple(LayerRow(f"w{k}", "Conv", (k + 1,), k + 1, 0, 0) for k in range(15))
    text = made(layers=rows).text()
    assert "  w14 " in text
    assert "  w2 " not in text
    assert text.endswith("  and 3 smaller ones")
    assert len(made(layers=rows).json()["layers"]) == 15


def test_the_json_has_what_was_promised() -> None:
    read = json.loads(json.dumps(made(0.0064).json(), allow_nan=False))
    assert read["verdict"] == "within"
    assert read["distance"]["absolute"] == pytest.approx(0.0064)
    assert read["distance"]["relative"] == pytest.approx(0.0064)
    assert read["distance"]["per_output"]["y"]["ok"] is True
    assert read["distance"]["interval"]["relative"] == pytest.approx([0.0064, 0.0064])
    assert (read["sparsity"], read["seconds"]) == (0.75, 12.34)
    assert read["size_bytes"] == {
        "original": 1000,
        "pressed": 500,
        "original_gzip": 900,
        "pressed_gzip": 300,
    }
    assert read["tolerance"] == {"value": 0.01, "absolute": False, "outputs": {}, "flips": None}
    assert read["layers"][0]["shape"] == [16, 32]


CURVE = (
    CurvePoint(0.6, 0.001, 0.002, 0.0025),
    CurvePoint(0.75, 0.003, 0.0061, 0.0072, chosen=True),
    CurvePoint(0.9, float("nan"), 0.5, float("inf")),
)


def test_the_curve_has_the_fitted_figure_beside_every_held_out_one() -> None:
    report = made(0.0064, curve=CURVE)
    lines = report.text().splitlines()
    assert lines[-4:] == [
        "  zeros  on fitted samples  held out  at most  chosen",
        "  60 %   0.1 %              0.2 %     0.25 %",
        "  75 %   0.3 %              0.61 %    0.72 %   yes",
        "  90 %   -                  50 %      -",
    ]
    assert "             0.3 % of the variance on samples it was fitted to" in lines
    read = json.loads(json.dumps(report.json(), allow_nan=False))
    assert read["distance"]["fitted"] == 0.003
    assert read["curve"] == [
        {"sparsity": s, "fitted": f, "distance": d, "upper": u, "chosen": c}
        for s, f, d, u, c in (
            (0.6, 0.001, 0.002, 0.0025, False),
            (0.75, 0.003, 0.0061, 0.0072, True),
            (0.9, None, 0.5, None, False),
        )
    ]
    page = Page()
    page.feed(report.html())
    page.close()
    assert page.words.count("0.61 %") == 1
    assert "Candidates" in page.words


def test_the_curve_speaks_the_tolerances_language() -> None:
    text = made(0.0064, tolerance="0.01", curve=CURVE).text()
    assert "  75 %   0.003              0.0061    0.0072   yes" in text
    assert "a mean squared error of 0.003 on samples it was fitted to" in text


def test_a_single_candidate_is_no_curve_in_the_text() -> None:
    report = made(curve=CURVE[1:2])
    assert "on fitted samples" not in report.text()
    assert len(report.json()["curve"]) == 1
    assert made().json()["distance"]["fitted"] is None
    assert made().json()["curve"] == []


def test_json_stays_json_when_the_outputs_are_not_finite() -> None:
    meter = DistanceMeter(["y"])
    meter.add([np.ones((4, 1))], [np.full((4, 1), np.nan)])
    distance = meter.distance()
    report = made(distance=distance, decision=decide(distance, Tolerance(0.01), seed=0))
    read = json.loads(json.dumps(report.json(), allow_nan=False))
    assert read["verdict"] == "nonfinite"
    assert read["distance"]["relative"] is None
    assert "the outputs hold NaN or infinity" in report.text()
    assert "NaN" in report.html()


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert {name for name, _ in attrs} <= {"lang", "charset"}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_else_and_escapes_names() -> None:
    nasty = "<script>alert('&')</script>"
    row = LayerRow(nasty, nasty, (1,), 1, 0, 0)
    report = made(name=nasty, model=Path(nasty), layers=(row,), notes=(nasty,), log=(nasty,))
    page = Page()
    page.feed(report.html())
    page.close()
    assert page.open == []
    assert {"script", "link", "img"}.isdisjoint(page.tags)
    assert page.words.count(nasty) >= 4


def test_layers_are_counted_on_both_sides() -> None:
    original = perceptron()
    pressed = perceptron()
    weight = numpy_helper.to_array(pressed.graph.initializer[0]).copy()
    weight[:4] = 0
    pressed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    rows = layer_rows(original, pressed, {WeightKey((), "w1"): "sparse"})
    assert rows == (
        LayerRow("w1", "MatMul", (16, 32), 512, 0, 128, "sparse"),
        LayerRow("w2", "MatMul", (32, 4), 128, 0, 0, ""),
    )


def test_weights_only_one_side_has_are_left_out() -> None:
    pressed = perceptron()
    pressed.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((16, 64)), "w1"))
    pressed.graph.initializer[2].name = "other"
    pressed.graph.node[3].input[1] = "other"
    assert layer_rows(perceptron(), pressed) == ()


def test_of_a_weight_that_lost_units_the_rest_is_told() -> None:
    pressed = perceptron()
    left = np.ones((16, 8), np.float32)
    left[0, 0] = 0
    pressed.graph.initializer[0].CopyFrom(numpy_helper.from_array(left, "w1"))
    row = layer_rows(perceptron(), pressed)[0]
    assert (row.elements, row.zeros_after, row.form) == (512, 512 - 127, "as 16x8")


def test_sizes_agree_with_gzip(tmp_path: Path) -> None:
    data = b"onnx" * 1000 + bytes(range(256))
    path = tmp_path / "m.onnx"
    path.write_bytes(perceptron().SerializeToString())
    assert FileSize.of(data) == FileSize(4256, len(gzip.compress(data, 6)))
    raw = path.read_bytes()
    assert FileSize.of(path) == FileSize(len(raw), len(gzip.compress(raw, 6)))


def test_data_files_count(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(
        perceptron(),
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="m.data",
        size_threshold=0,
    )
    raw = [(tmp_path / name).read_bytes() for name in ("m.onnx", "m.data")]
    assert len(raw[1]) > 2000
    expected = FileSize(sum(map(len, raw)), sum(len(gzip.compress(data, 6)) for data in raw))
    assert FileSize.of(path) == expected
