from __future__ import annotations

import shlex
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxpress.domain import (
    Ball,
    Box,
    Domain,
    Normal,
    Tokens,
    call_line,
    no_domain_error,
    parse_domain,
    parse_domains,
)
from onnxpress.inputs import parse_shapes
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.specs import InputSpec

F32 = np.dtype("float32")
X = InputSpec("x", (None, 3), F32, ("batch", None))
IDS = InputSpec("ids:0", (1, 4), np.dtype("int64"))
FLAG = InputSpec("flag", (2,), np.dtype("bool"))
SPECS = (X, IDS, FLAG)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def one(text: str, spec: InputSpec = X) -> Domain:
    found = parse_domain(text, (spec,), {})
    assert list(found) == [spec.name]
    return found[spec.name]


def test_box_fills_its_corners_and_nothing_else() -> None:
    drawn = one("x=uniform:-1,3").draw(rng(), 4000)
    assert drawn.shape == (4000, 1, 3)
    assert drawn.dtype == np.float32
    assert drawn.min() >= -1
    assert drawn.max() <= 3
    assert drawn.mean() == pytest.approx(1, abs=0.05)
    assert drawn.var() == pytest.approx(16 / 12, rel=0.05)


def test_box_with_corners_from_files(tmp_path: Path) -> None:
    lower, upper = np.array([0.0, 10.0, -5.0]), np.array([1.0, 10.0, -4.0])
    np.save(tmp_path / "lower.npy", lower)
    np.save(tmp_path / "upper.npy", upper)
    drawn = one(f"x=uniform:{tmp_path / 'lower.npy'},{tmp_path / 'upper.npy'}").draw(rng(), 50)
    assert (drawn >= lower).all()
    assert (drawn <= upper).all()
    assert (drawn[..., 1] == 10).all()


def test_box_never_leaves_its_corners_by_rounding() -> None:
    box = Box((1000,), F32, np.asarray(0.1), np.asarray(0.3))
    drawn = box.draw(rng(), 200)
    assert drawn.min() >= np.float32(0.1)
    assert drawn.max() <= np.float32(0.3)


def test_ball_is_uniform_in_volume() -> None:
    ball = one("x=ball:2")
    assert isinstance(ball, Ball)
    drawn = ball.draw(rng(), 4000)
    radii = np.linalg.norm(drawn.reshape(4000, 3), axis=1)
    assert radii.max() <= 2 * (1 + 1e-6)
    # In three dimensions half of the radius holds an eighth of the volume.
    assert (radii < 1).mean() == pytest.approx(1 / 8, abs=0.02)
    assert np.abs(drawn.mean(axis=0)).max() < 0.06


def test_normal_has_its_moments() -> None:
    drawn = one("x=normal:5,0.5").draw(rng(), 4000)
    assert drawn.mean() == pytest.approx(5, abs=0.02)
    assert drawn.std() == pytest.approx(0.5, rel=0.03)


def test_tokens_draw_both_ends() -> None:
    drawn = one("ids:0=tokens:3,5", IDS).draw(rng(), 100)
    assert drawn.shape == (100, 1, 4)
    assert drawn.dtype == np.int64
    assert set(np.unique(drawn)) == {3, 4, 5}


def test_tokens_for_truth_values() -> None:
    drawn = one("flag=tokens:0,1", FLAG).draw(rng(), 100)
    assert drawn.dtype == np.bool_
    assert set(np.unique(drawn)) == {False, True}


def test_uniform_on_whole_numbers_draws_whole_numbers() -> None:
    pixels = InputSpec("x", (1, 3), np.dtype("uint8"))
    domain = one("x=uniform:0,255", pixels)
    assert isinstance(domain, Tokens)
    drawn = domain.draw(rng(), 2000)
    assert drawn.dtype == np.uint8
    assert (drawn.min(), drawn.max()) == (0, 255)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("text", ["x=uniform:0,1", "x=ball:1", "x=normal:0,1"])
def test_draws_come_in_the_type_of_the_input(text: str, dtype: type) -> None:
    spec = InputSpec("x", (1, 3), np.dtype(dtype))
    drawn = one(text, spec).draw(rng(), 5)
    assert drawn.dtype == dtype
    assert drawn.shape == (5, 1, 3)
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("text", ["x=uniform:0,1", "x=ball:1", "x=normal:0,1"])
def test_the_same_seed_gives_the_same_bits(text: str) -> None:
    first, second = (one(text).draw(rng(), 7) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_sizes_may_be_fixed_by_the_call() -> None:
    spec = InputSpec("x", (None, 3, None), F32)
    shapes = parse_shapes(["x=2,3,5"], (spec,))
    assert parse_domain("x=normal:0,1", (spec,), shapes)["x"].draw(rng(), 4).shape == (4, 2, 3, 5)


def test_a_pattern_means_several_inputs_and_an_exact_name_wins() -> None:
    other = InputSpec("x2", (1, 3), F32)
    domains = parse_domains(["x*=uniform:0,1", "x2=normal:0,1"], (X, other), {})
    assert list(domains) == ["x", "x2"]
    assert isinstance(domains["x"], Box)
    assert isinstance(domains["x2"], Normal)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "does not read as NAME=KIND:VALUES; write it like input=uniform:0,1"),
        ("x=uniform", "does not read as NAME=KIND:VALUES"),
        ("x=gauss:0,1", "'gauss' is not a kind of domain; there are ball, normal, tokens, uniform"),
        ("y=uniform:0,1", "the model has no input 'y'"),
        ("x=uniform:0", "uniform takes 2 values after the colon, not 1"),
        ("x=ball:1,2", "ball takes 1 value after the colon, not 2"),
        ("x=uniform:zero,1", "'zero' is neither a number nor a .npy file"),
        ("x=uniform:0,inf", "inf is not finite"),
        ("x=uniform:nan,1", "nan is not finite"),
        ("x=uniform:1,0", "the lower end lies above the upper end; swap them"),
        ("x=uniform:-3e38,3e38", "the box is too wide for the float32 of the input 'x'"),
        ("x=ball:0", "the radius of a ball is one number above 0"),
        ("x=normal:0,-1", "a standard deviation cannot be below 0"),
        ("x=tokens:0,5", "the input 'x' holds float32, not whole numbers; use uniform instead"),
        ("ids:0=normal:0,1", "normal draws real numbers, use tokens"),
        ("ids:0=ball:1", "ball draws real numbers, use tokens"),
        ("ids:0=tokens:0.5,5", "both ends must be whole"),
        ("ids:0=tokens:5,4", "the lower end lies above the upper end"),
        ("flag=tokens:0,2", "holds bool, which goes from 0 to 1"),
        ("x=uniform:missing.npy,1", "missing.npy is not a sound .npy file: .*No such file"),
    ],
)
def test_wrong_domains_are_refused(text: str, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        parse_domain(text, SPECS, {})


def test_corners_that_do_not_broadcast_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "low.npy", np.zeros(2))
    with pytest.raises(MisuseError, match=r"low.npy has shape \[2\], which does not broadcast to"):
        parse_domain(f"x=uniform:{tmp_path / 'low.npy'},1", SPECS, {})


def test_corners_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "low.npy", np.array(["a"]))
    with pytest.raises(MisuseError, match=r"low.npy holds <U1, not numbers"):
        parse_domain(f"x=uniform:{tmp_path / 'low.npy'},1", SPECS, {})


def test_a_torn_corner_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "low.npy", np.zeros(3))
    whole = (tmp_path / "low.npy").read_bytes()
    (tmp_path / "low.npy").write_bytes(whole[:-5])
    with pytest.raises(MisuseError, match=r"low.npy is not a sound .npy file"):
        parse_domain(f"x=uniform:{tmp_path / 'low.npy'},1", SPECS, {})


def test_open_sizes_are_refused() -> None:
    spec = InputSpec("x", (None, 3, None), F32)
    with pytest.raises(MisuseError, match="--shape x=1,3,32"):
        parse_domain("x=uniform:0,1", (spec,), {})


def test_inputs_without_a_domain_are_named() -> None:
    with pytest.raises(MisuseError) as caught:
        parse_domains(["x=uniform:0,1"], SPECS, {})
    assert str(caught.value) == (
        "no --domain says where the inputs ids:0 int64[1,4], flag bool[2] come from; "
        "add for example --domain ids:0=tokens:0,1 --domain flag=tokens:0,1"
    )


def test_two_domains_for_one_input_are_refused() -> None:
    with pytest.raises(MisuseError, match="two --domain flags speak of the input 'x'; keep one"):
        parse_domains(["x=uniform:0,1", "x=ball:1"], (X,), {})


def test_a_call_without_domains_gets_a_line_that_works() -> None:
    spec = InputSpec("in put", (None, 3, None), F32, ("batch", None, "width"))
    error = no_domain_error((spec, IDS), "model.onnx")
    line = (
        "onnxpress compress model.onnx --tolerance 1% --domain 'in put=uniform:0,1' "
        "--shape 'in put=1,3,32' --domain ids:0=tokens:0,1"
    )
    assert call_line((spec, IDS), "model.onnx") == line
    assert str(error) == (
        "model.onnx: say which inputs matter, with --data FILE (real ones, best) or with "
        "--domain for each input\nThe model takes\n"
        "  in put float32[batch,3,width]\n  ids:0 int64[1,4]\n"
        f"for example\n  {line}"
    )
    words = shlex.split(line)
    shapes = parse_shapes([words[8]], (spec, IDS))
    domains = parse_domains([words[6], words[10]], (spec, IDS), shapes)
    assert domains["in put"].draw(rng(), 2).shape == (2, 1, 3, 32)


def test_the_line_for_a_model_of_any_shape_works() -> None:
    spec = InputSpec("x", (), F32, ranked=False)
    line = call_line((spec,), "m.onnx")
    assert line == "onnxpress compress m.onnx --tolerance 1% --domain x=uniform:0,1 --shape x=1,32"
