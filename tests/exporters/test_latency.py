"""Races and loadings: what is counted, in which order, and what the interval promises."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng

from onnxpress_adapters.errors import ExportError
from onnxpress_exporters import latency
from onnxpress_exporters.compare import CPU, Runner
from onnxpress_exporters.latency import FEWEST_TURNS, WARMING, Race, median_interval, race
from onnxpress_exporters.loading import loadings
from small_models import perceptron


class Clock:
    """A clock that only models move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Model:
    """Takes so many seconds, and remembers its runs in a list it shares."""

    def __init__(
        self, name: str, seconds: float, clock: Clock, runs: list[tuple[str, int]]
    ) -> None:
        self._name, self._seconds, self._clock, self._runs = name, seconds, clock, runs

    def run(self, feed: dict[str, np.ndarray]) -> None:
        self._clock.now += self._seconds
        self._runs.append((self._name, int(feed["x"])))


FEEDS = [{"x": np.array(place)} for place in range(3)]


def test_models_run_in_turns_on_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, runs = Clock(), list[tuple[str, int]]()
    monkeypatch.setattr(latency, "perf_counter", clock)
    first, second = (
        Model(name, seconds, clock, runs) for name, seconds in (("a", 0.25), ("b", 0.5))
    )
    told: list[float] = []
    found = race(first, second, FEEDS, seconds=0.0, progress=told.append)
    assert found == Race((0.25,) * FEWEST_TURNS, (0.5,) * FEWEST_TURNS)
    assert (found.ratio, found.interval) == (2.0, (2.0, 2.0))
    turns = runs[2 * WARMING + 2 :]
    assert turns == [
        (name, turn % 3)
        for turn in range(FEWEST_TURNS)
        for name in (("a", "b") if turn % 2 else ("b", "a"))
    ]
    assert len(told) == FEWEST_TURNS
    # With time to spare it goes on, and ends with a whole pair of turns.
    assert len(race(first, second, FEEDS, seconds=20.0).first) == 27


def test_what_is_quick_runs_several_times_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, runs = Clock(), list[tuple[str, int]]()
    monkeypatch.setattr(latency, "perf_counter", clock)
    monkeypatch.setattr(latency, "TURN_SECONDS", 1.0)
    first, second = (
        Model(name, seconds, clock, runs) for name, seconds in (("a", 0.25), ("b", 2.0))
    )
    found = race(first, second, FEEDS, seconds=0.0)
    assert found == Race((0.25,) * FEWEST_TURNS, (2.0,) * FEWEST_TURNS)
    counts = {name: [run[0] for run in runs].count(name) for name in "ab"}
    assert counts == {"a": WARMING + 1 + 4 * FEWEST_TURNS, "b": WARMING + 1 + FEWEST_TURNS}


@pytest.mark.parametrize("count", [1, 2, 5, 6, 11, 12, 51, 2001])
def test_the_interval_is_the_narrowest_that_can_be_counted_out(count: int) -> None:
    low, high = median_interval(list(default_rng(0).permutation(count).astype(float)), 0.95)
    assert low + high == count - 1
    places = int(low)  # as many values lie below it, and as many above the other end

    def outside(places: int) -> float:
        return float(2 * sum(comb(count, k) for k in range(places + 1)) / 2**count)

    if count >= 6:  # fewer can not promise it
        assert outside(places) <= 0.05 < outside(places + 1)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = median_interval(list(rng.lognormal(sigma=2.0, size=21)), 0.95)
        held += low <= 1.0 <= high
    assert 0.95 <= held / 2000 < 0.985


def test_fresh_processes_load_models(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(perceptron().SerializeToString())
    (found,) = loadings([model], 1, [(CPU, {})], rounds=1)
    assert found.seconds > 0
    assert found.peak_bytes is None or found.peak_bytes >= 0
    with pytest.raises(ExportError, match=r"process cannot load .*gone.onnx: .*NO_SUCHFILE"):
        loadings([tmp_path / "gone.onnx"], 1, [(CPU, {})], rounds=1)


def test_runners_race() -> None:
    runner = Runner(perceptron(), threads=1)
    found = race(runner, runner, [{"x": np.zeros((1, 16), np.float32)}], seconds=0.0)
    assert len(found.first) == len(found.second) == FEWEST_TURNS
    assert min(*found.first, *found.second) > 0
