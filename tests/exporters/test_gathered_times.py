"""What gathered products take: what is timed, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from onnxpress_exporters import gathered_times as timing
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.gathered_times import MOST_POSITIONS, GatheredTimes, gathered_times
from onnxpress_exporters.latency import Race


def test_between_the_widths_time_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def race(
        first: Runner, second: Runner, feeds: Sequence[dict[str, np.ndarray]], seconds: float
    ) -> Race:
        (whole,), (grouped,) = (runner.run(feeds[0]) for runner in (first, second))
        assert whole.shape == grouped.shape
        shapes.append(feeds[0]["x"].shape)
        # As if the time were 2 ms and .1 ms for each of the columns read, which are 5 and then 30.
        taken = 2e-3 + 1e-4 * (5, 30)[(len(shapes) - 1) % 2]
        return Race((10e-3,) * 3, (taken,) * 3)

    monkeypatch.setattr(timing, "race", race)
    found = gathered_times(70, 100, 3, (32, 64, 128))
    assert shapes == [(3, 100)] * 4
    assert found.whole == pytest.approx(10e-3)
    assert [height for height, _, _ in found.heights] == [
        32,
        64,
    ]  # 128 rows are more than there are
    for height in (32, 64):
        assert found.seconds(height, 10) == pytest.approx(3e-3)
    many = gathered_times(70, 100, 4 * MOST_POSITIONS, (32,))
    assert shapes[4:] == [(MOST_POSITIONS, 100)] * 2
    assert many.whole == pytest.approx(40e-3)
    assert many.seconds(32, 10) == pytest.approx(12e-3)


def test_it_runs_in_onnxruntime() -> None:
    found = gathered_times(64, 64, 2, (32,))
    assert found.whole > 0
    ((height, fixed, each),) = found.heights
    assert height == 32
    assert fixed >= 0
    assert each >= 0
    assert found.seconds(32, 64) > 0


def test_a_time_is_what_is_beside_the_columns_and_theirs() -> None:
    times = GatheredTimes(1.0, ((8, 0.25, 0.5), (16, 0.125, 0.25)))
    assert times.seconds(8, 3) == 1.75
    assert times.seconds(16, 3) == 0.875
