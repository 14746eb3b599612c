"""Sources of samples: which are found, which are read, and what is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxpress.sources import Sources, round_of, said_as, sources_of
from onnxpress_adapters.errors import MisuseError

RNG = np.random.default_rng


def pictures(sources: int, each: int, *, size: int = 24, seed: int = 0) -> np.ndarray:
    """Windows of a few pictures in turn, ``[samples, 1, 3, size, size]``."""
    rng = RNG(seed)
    whole = rng.normal(size=(sources, 3, 1, 1)) + rng.normal(size=(sources, 3, 2 * size, 2 * size))
    samples = []
    for place in range(sources * each):
        y, x = rng.integers(0, size, 2)
        window = whole[place % sources, :, y : y + size, x : x + size]
        samples.append(window[..., ::-1] if rng.random() < 0.5 else window)
    return np.stack(samples)[:, None].astype(np.float32)


@pytest.mark.parametrize("sources", [2, 3, 6, 20])
def test_windows_of_a_few_pictures_are_found(sources: int) -> None:
    found = round_of({"x": pictures(sources, 12)})
    assert found is not None
    assert found.count == sources
    assert found.of.tolist() == [place % sources for place in range(12 * sources)]
    assert found.told == f"every {sources} samples they come round"
    assert not found.given


def test_channels_last_and_whole_numbers_are_seen_as_well() -> None:
    last = np.moveaxis(pictures(4, 10), 2, -1)
    found = round_of({"x": np.clip(100 + 40 * last, 0, 255).astype(np.uint8)})
    assert found is not None
    assert found.count == 4


def test_places_that_show_the_same_picture_are_one_source() -> None:
    two = pictures(2, 1)
    rng = RNG(0)
    samples = [
        np.roll(np.flip(two[place % 4 // 2], -1 if place % 2 else ()), rng.integers(24), -1)
        for place in range(64)
    ]
    found = round_of({"x": np.stack(samples)})
    assert found is not None
    assert found.of[:8].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("samples", [3, 16, 17, 60, 300])
@pytest.mark.parametrize("seed", range(8))
def test_samples_that_are_each_their_own_have_none(samples: int, seed: int) -> None:
    assert round_of({"x": pictures(samples, 1, seed=seed)}) is None
    assert round_of({"x": RNG(seed).normal(size=(samples, 1, 5))}) is None


def test_shuffled_windows_are_not_found() -> None:
    assert round_of({"x": RNG(1).permutation(pictures(6, 20))}) is None


def test_a_sequence_is_no_round() -> None:
    steps = RNG(0).normal(size=(400, 1, 4)).cumsum(axis=0)
    assert round_of({"x": steps}) is None
    wave = np.sin(np.arange(400) * 2 * np.pi / 25)[:, None] * np.ones(4)
    assert round_of({"x": wave + RNG(0).normal(size=(400, 4)) / 100}) is None


def test_what_has_nothing_to_look_at_has_none() -> None:
    assert round_of({}) is None
    assert round_of({"x": np.zeros((50, 1, 8), np.float32)}) is None
    assert round_of({"x": np.full((50, 1), "text", dtype=object)}) is None


def test_several_inputs_are_looked_at_together() -> None:
    data = {"noise": RNG(0).normal(size=(60, 1, 30)), "x": pictures(3, 20)}
    found = round_of(data)
    assert found is not None
    assert found.count == 3


def test_a_file_says_which(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("patient\n" + "\n".join(["7", "7", "12", "3"]))
    found = sources_of(path, {}, 4)
    assert found is not None
    assert (found.of.tolist(), found.count, found.given) == ([1, 1, 2, 0], 3, True)
    assert found.told == f"as {path} says"


def test_files_that_say_nothing_of_use(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.full(9, 4))
    with pytest.raises(MisuseError, match="one source for all samples, and those that judge need"):
        sources_of(tmp_path / "one.npy", {}, 9)
    np.save(tmp_path / "rows.npy", np.ones((9, 2)))
    with pytest.raises(MisuseError, match="has 2 numbers for each sample; a source is one"):
        sources_of(tmp_path / "rows.npy", {}, 9)
    with pytest.raises(
        MisuseError, match=r"gone\.csv does not exist; check the path of the sources"
    ):
        sources_of(tmp_path / "gone.csv", {}, 9)


def test_words() -> None:
    data = {"x": pictures(3, 20)}
    assert sources_of(said_as("none"), data, 60) is None
    assert isinstance(sources_of(said_as("auto"), data, 60), Sources)
