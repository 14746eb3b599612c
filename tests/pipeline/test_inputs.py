from __future__ import annotations

import numpy as np
import pytest

from onnxpress.inputs import feed_shape, matching, parse_shapes
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.specs import InputSpec

F32 = np.dtype("float32")
IMAGE = InputSpec("image", (None, 3, None, None), F32, ("batch", None, None, "width"))
MASK = InputSpec("mask:0", (1, 8), F32)
LOOSE = InputSpec("loose", (), F32, ranked=False)
SPECS = (IMAGE, MASK, LOOSE)


def test_an_exact_name_wins_over_a_pattern() -> None:
    odd = InputSpec("x[1]", (1,), F32)
    other = InputSpec("x1", (1,), F32)
    assert matching("x[1]", (odd, other)) == (odd,)
    assert matching("x*", (odd, other)) == (odd, other)


def test_an_unknown_name_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(MisuseError) as caught:
        matching("imgae", SPECS)
    assert str(caught.value) == (
        "the model has no input 'imgae' (did you mean 'image'?); it takes "
        "image float32[batch,3,?,width], mask:0 float32[1,8], loose float32 of any shape"
    )


def test_an_open_first_size_is_a_batch_of_one() -> None:
    assert feed_shape(InputSpec("x", (None, 3), F32), {}) == (1, 3)
    assert feed_shape(InputSpec("x", (), F32), {}) == ()


@pytest.mark.parametrize(
    ("spec", "line"),
    [(IMAGE, "--shape image=1,3,32,32"), (LOOSE, "--shape loose=1,32")],
)
def test_open_sizes_must_be_fixed(spec: InputSpec, line: str) -> None:
    with pytest.raises(MisuseError, match=f"leaves sizes of the input {spec.name} .*{line}"):
        feed_shape(spec, {})


def test_shapes_are_read() -> None:
    shapes = parse_shapes(["image=1,3,224,160", "mask:0=1,8", "loose=5"], SPECS)
    assert shapes == {"image": (1, 3, 224, 160), "mask:0": (1, 8), "loose": (5,)}
    assert feed_shape(IMAGE, shapes) == (1, 3, 224, 160)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["image"], "does not read as NAME=SIZES .* image=1,3,224,224"),
        (["image=1,3,0,5"], "does not read as NAME=SIZES"),
        (["image=1,-3,5,5"], "does not read as NAME=SIZES"),
        (
            ["image=1,4,5,5"],
            r"contradicts the model, which takes image float32\[batch,3,\?,width\]",
        ),
        (["image=3,5,5"], "contradicts the model"),
        (["mask:0=1,8", "mask*=1,8"], "two --shape flags fix the input 'mask:0'; keep one"),
        (["picture=1"], "the model has no input 'picture'"),
    ],
)
def test_wrong_shapes_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        parse_shapes(texts, SPECS)
