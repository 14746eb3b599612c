"""How fast two models are, side by side: ``onnxpress bench A B``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxpress.domain import Normal, no_domain_error, parse_domains
from onnxpress.inputs import feed_shape, parse_shapes
from onnxpress.job import parse_time
from onnxpress.problem import Progress, silent
from onnxpress.report import aligned
from onnxpress.samples import count, from_domains, load_data
from onnxpress.sizes import file_bytes
from onnxpress.verify import check_alike
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.read import read_model
from onnxpress_adapters.specs import InputSpec, check_plain, kind, specs
from onnxpress_exporters.compare import OPTIONS, Runner
from onnxpress_exporters.latency import MOST_FEEDS, Race, feeds_of, race, spread
from onnxpress_exporters.loading import Loading, loadings

if TYPE_CHECKING:
    Feed = dict[str, np.ndarray]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

LOADS = 5
"""Fresh processes that load each model."""

WORDS = {"s": 1.0, "ms": 1e3, "us": 1e6}


@dataclass(frozen=True)
class BenchJob:
    """A call of ``bench``; every field is what the flag of that name takes.

    Attributes:
        first: the model to compare with.
        second: the other one, with the same inputs and outputs.
        data: inputs, as ``samples.load_data`` reads them.
        domain: regions to draw inputs from, instead of ``data``. Without either, inputs of real
            numbers are drawn from a standard normal distribution, and the report says so.
        shape: sizes of inputs the model leaves open.
        batch: samples that run together; more than 1 where the models leave their first dimension
            open.
        threads: of an operator; 0 is onnxruntime's own choice.
        provider: ``cpu`` or ``cuda``.
        time: about how long the two run in turns, such as ``5s``.
        load: whether to measure what loading takes, in fresh processes.
        seed: of what is drawn.
    """

    first: Path
    second: Path
    data: Path | None = None
    domain: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    batch: int = 1
    threads: int = 1
    provider: str = "cpu"
    time: str = "5s"
    load: bool = True
    seed: int = 0


@dataclass(frozen=True)
class BenchReport:
    """What ``bench`` found.

    Attributes:
        job: what was asked.
        race: the times, turn by turn.
        loads: what loading either model takes; None where it was not measured.
        size_bytes: of both on disk, data files included.
        inputs: where the inputs come from, in words.
    """

    job: BenchJob
    race: Race
    loads: tuple[Loading, Loading] | None
    size_bytes: tuple[int, int]
    inputs: str

    def json(self) -> dict[str, Any]:
        """Give everything but the single turns."""
        sides = (self.race.first, self.race.second)
        spreads = [dict(zip(("p5", "p50", "p95"), spread(side), strict=True)) for side in sides]
        low, high = self.race.interval
        return {
            "first": str(self.job.first),
            "second": str(self.job.second),
            "latency_seconds": {"first": spreads[0], "second": spreads[1]},
            "latency_ratio": {"median": self.race.ratio, "interval": [low, high]},
            "load": None
            if self.loads is None
            else {
                name: {"seconds": each.seconds, "peak_bytes": each.peak_bytes}
                for name, each in zip(("first", "second"), self.loads, strict=True)
            },
            "size_bytes": dict(zip(("first", "second"), self.size_bytes, strict=True)),
            "turns": len(self.race.first),
            "batch": self.job.batch,
            "threads": self.job.threads,
            "provider": self.job.provider,
            "inputs": self.inputs,
        }

    def text(self) -> str:
        """Lay it out for people."""
        low, high = self.race.interval
        rows = [
            ("", "first", "second", "ratio"),
            (
                "latency",
                *(_duration(spread(side)[1]) for side in (self.race.first, self.race.second)),
                f"{self.race.ratio:.3f} ({low:.3f} to {high:.3f})",
            ),
            (
                "5 % to 95 %",
                *(
                    " to ".join(_duration(value) for value in spread(side)[::2])
                    for side in (self.race.first, self.race.second)
                ),
                "",
            ),
        ]
        if self.loads is not None:
            old, new = self.loads
            rows.append(
                (
                    "load",
                    _duration(old.seconds),
                    _duration(new.seconds),
                    f"{new.seconds / old.seconds:.2f}",
                )
            )
            if old.peak_bytes and new.peak_bytes:
                rows.append(
                    (
                        "load, peak memory",
                        f"{old.peak_bytes:,}",
                        f"{new.peak_bytes:,}",
                        f"{new.peak_bytes / old.peak_bytes:.2f}",
                    )
                )
        old_bytes, new_bytes = self.size_bytes
        rows.append(
            ("file, bytes", f"{old_bytes:,}", f"{new_bytes:,}", f"{new_bytes / old_bytes:.3f}")
        )
        threads = f"{self.job.threads} thread{'' if self.job.threads == 1 else 's'}"
        how = (
            f"{len(self.race.first)} turns, batch {self.job.batch}, "
            f"{threads if self.job.threads else 'threads as onnxruntime likes'}, "
            f"{self.job.provider}, inputs {self.inputs}"
        )
        return "\n".join(
            (
                f"first   {self.job.first}",
                f"second  {self.job.second}",
                "",
                *aligned(rows),
                "",
                self._verdict(),
                how,
            )
        )

    def _verdict(self) -> str:
        """Say in words which is faster."""
        low, high = self.race.interval
        if high < 1:
            return f"the second model is faster: {1 / self.race.ratio:.2f} times as fast"
        if low > 1:
            return f"the second model is slower: it takes {self.race.ratio:.2f} times as long"
        return "no difference: the interval around the ratio holds 1"


def bench(job: BenchJob, progress: Progress = silent) -> BenchReport:
    """Run two models in turns and measure what loading them takes.

    Raises:
        AdapterError: a model cannot be read.
        MisuseError: the models do not take and give the same, or the call does not fit them.
        ExportError: onnxruntime cannot load or run one of them.
    """
    if job.provider not in PROVIDERS:
        raise MisuseError(
            f"there is no provider '{job.provider}'; there are {', '.join(PROVIDERS)}"
        )
    if job.batch < 1 or job.threads < 0:
        raise MisuseError("a batch holds at least 1 sample, and threads are 0 or more")
    seconds = parse_time(job.time)
    models = read_model(job.first), read_model(job.second)
    borders = [specs(model) for model in models]
    inputs = borders[0][0]
    check_plain(inputs, ())
    check_alike(job.first, job.second, *borders)
    arrays, origin = _arrays(job, inputs)
    runners = [
        Runner(path, (PROVIDERS[job.provider],), job.threads) for path in (job.first, job.second)
    ]
    feeds = _feeds(job, arrays, runners)
    found = race(
        runners[0],
        runners[1],
        feeds,
        seconds,
        lambda done: progress("running in turns", done, ""),
    )
    loads = None
    if job.load:
        progress("loading in fresh processes", 1.0, "")
        name = PROVIDERS[job.provider]
        first, second = loadings(
            (job.first, job.second), job.threads, [(name, OPTIONS.get(name, {}))], LOADS
        )
        loads = first, second
    sizes = file_bytes(job.first), file_bytes(job.second)
    return BenchReport(job, found, loads, sizes, origin)


def _arrays(job: BenchJob, inputs: Sequence[InputSpec]) -> tuple[Mapping[str, np.ndarray], str]:
    """Load or draw inputs, and say where they come from."""
    shapes = parse_shapes(job.shape, inputs)
    if job.data is not None and job.domain:
        raise MisuseError("give --data or --domain, not both")
    if job.data is not None:
        return load_data(job.data, inputs, shapes), f"of {job.data}"
    wanted = MOST_FEEDS * job.batch
    if job.domain:
        domains = parse_domains(job.domain, inputs, shapes)
        return from_domains(domains, (0, 0, wanted), job.seed).judge, "drawn from the domain"
    if any(kind(spec.dtype) != "float" for spec in inputs):
        raise no_domain_error(inputs, str(job.first), str(job.second), command="bench")
    rng = np.random.default_rng(job.seed)
    drawn = {
        spec.name: Normal(feed_shape(spec, shapes), spec.dtype, np.zeros(()), np.ones(())).draw(
            rng, wanted
        )
        for spec in inputs
    }
    return drawn, "drawn from a standard normal distribution"


def _feeds(
    job: BenchJob, arrays: Mapping[str, np.ndarray], runners: Sequence[Runner]
) -> list[Feed]:
    """Lay samples out as the models take them, ``job.batch`` in each feed."""
    samples = count(arrays)
    if job.batch == 1:
        return feeds_of(arrays)
    single = [name for name, array in arrays.items() if array.ndim < 2 or array.shape[1] != 1]
    if single or not all(runner.has_free_batch for runner in runners):
        raise MisuseError(
            f"a batch of {job.batch} needs models whose inputs all leave their first dimension "
            "open; leave out --batch"
        )
    # Few samples are gone through again, so that every batch is full.
    places = np.arange(job.batch * min(MOST_FEEDS, ceil(samples / job.batch))) % samples
    return [
        {name: array[part, 0] for name, array in arrays.items()}
        for part in places.reshape(-1, job.batch)
    ]


def _duration(seconds: float) -> str:
    """Say how long in three digits.

    >>> _duration(0.01234), _duration(2.5), _duration(0.0000421)
    ('12.3 ms', '2.5 s', '42.1 us')
    """
    unit = next((word for word, scale in WORDS.items() if seconds * scale >= 1), "us")
    return f"{seconds * WORDS[unit]:.3g} {unit}"
