"""What onnxruntime computes: two files on the same inputs, and how far apart their answers are.

This is the judge. It runs the files as they were written, knows nothing about steps or torch, and
never takes a provider it was not asked for.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from onnx import ModelProto
from onnxruntime.capi import (
    onnxruntime_pybind11_state as state,  # pyright: ignore[reportAttributeAccessIssue]  # compiled
)

from onnxpress_adapters.distance import Distance, DistanceMeter
from onnxpress_adapters.errors import ExportError, MisuseError
from onnxpress_adapters.light import message_bytes
from onnxpress_adapters.specs import kind
from onnxpress_exporters.write import write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Feed = Mapping[str, np.ndarray]

CPU = "CPUExecutionProvider"
SILENT = 4
PROBE_SAMPLES = 5
BATCH_SAMPLES = 32
MOST_LETTERS = 300  # of a message of onnxruntime
MOST_SERIALISED_BYTES = 1 << 28
"""The largest model that goes to onnxruntime as bytes: it reads them into a second copy."""

# A batch may be summed in another order than its samples, and must differ by no more than that.
PROBE_TOLERANCE = 1e-5
# TF32 would blur both models by more than a tight tolerance allows.
OPTIONS: dict[str, dict[str, str]] = {
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"},
}

# onnxruntime's errors have no common root.
REFUSALS: tuple[type[Exception], ...] = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
    ValueError,
)


class Runner:
    """A model in onnxruntime.

    Attributes:
        inputs: the shape of each input by name; None for a free dimension.
        outputs: names of the outputs that are tensors.
        providers: what the session really uses, first choice first.
    """

    def __init__(
        self,
        model: ModelProto | bytes | Path,
        providers: Sequence[str] = (CPU,),
        threads: int | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: as proto or bytes, with all data inline; or a path. Only models that
                ``read_model`` took may come here: onnxruntime opens whatever file a model names.
                A large proto is run as a file, as ``write`` makes it (``runnable``).
            providers: which ones must run it.
            threads: how many threads an operator may use; onnxruntime's own choice where None.

        Raises:
            MisuseError: a provider is not part of this onnxruntime.
            ExportError: onnxruntime refuses the model or does not use a provider asked for.
        """
        missing = [p for p in providers if p not in onnxruntime.get_available_providers()]
        if missing:
            raise MisuseError(f"this onnxruntime was built without {', '.join(missing)}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = threads or 0
        called = str(model) if isinstance(model, Path) else "the model"
        try:
            with runnable(model) as source:
                session = onnxruntime.InferenceSession(
                    source,
                    options,
                    providers=[(name, OPTIONS.get(name, {})) for name in providers],
                    enable_fallback=0,
                )
        except REFUSALS as error:
            raise ExportError(f"onnxruntime refuses {called}: {first_line(error)}") from error
        self.providers = tuple(session.get_providers())
        unused = [p for p in providers if p not in self.providers]
        if unused:
            raise ExportError(
                f"onnxruntime does not use {', '.join(unused)} for {called} but only "
                f"{', '.join(self.providers)}; check the driver, or ask for the CPU"
            )
        self.inputs: dict[str, tuple[int | None, ...]] = {
            value.name: tuple(d if isinstance(d, int) else None for d in value.shape)
            for value in session.get_inputs()
        }
        self.outputs = tuple(
            value.name for value in session.get_outputs() if value.type.startswith("tensor(")
        )
        self._session = session

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        """Run the model once.

        Args:
            feed: one array per input, in the model's own shapes.
            outputs: names; all tensors where None.

        Raises:
            ExportError: onnxruntime cannot run this feed.
        """
        try:
            answers: Any = self._session.run(list(outputs or self.outputs), dict(feed))
        except REFUSALS as error:
            raise ExportError(f"onnxruntime cannot run the model: {first_line(error)}") from error
        return [np.asarray(answer) for answer in answers]

    @property
    def has_free_batch(self) -> bool:
        """Whether every input begins with a free dimension."""
        return bool(self.inputs) and all(shape[:1] == (None,) for shape in self.inputs.values())


@contextmanager
def runnable(
    model: ModelProto | bytes | Path, most_bytes: int = MOST_SERIALISED_BYTES
) -> Iterator[bytes | str]:
    """Give a model as onnxruntime takes it: a path, or bytes.

    Args:
        model: as for ``Runner``.
        most_bytes: above which a proto is written, with a data file, to a temporary folder
            (``TMPDIR``), so that what runs is what ``write`` makes and as bytes it need not exist.

    Raises:
        ExportError: the temporary files cannot be written.
    """
    if isinstance(model, Path):
        yield str(model)
    elif isinstance(model, bytes):
        yield model
    elif message_bytes(model) <= most_bytes:
        yield model.SerializeToString()
    else:
        # Where a runtime has the data mapped, some systems do not let a file go.
        with TemporaryDirectory(prefix="onnxpress-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            write(model, path, most_bytes=0)
            yield str(path)


def first_line(error: Exception) -> str:
    """Give what an error of onnxruntime says first, without its codes."""
    text = str(error).strip().split("\n")[0]
    # "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model failed: ..."
    parts = text.split(" : ", 3)
    if parts[0] == "[ONNXRuntimeError]" and len(parts) == 4:
        text = parts[3]
    return text[:MOST_LETTERS].rstrip(" .")


@dataclass(frozen=True)
class Comparison:
    """Two models on the same inputs.

    Attributes:
        distance: of the second from the first.
        providers: what ran them.
        batched: whether samples went through in batches.
    """

    distance: Distance
    providers: tuple[str, ...]
    batched: bool


def check_runs(
    model: ModelProto | bytes | Path, feeds: Feed, providers: Sequence[str] = (CPU,)
) -> None:
    """Make sure that onnxruntime takes a model and answers, before any work goes into it.

    Args:
        model: as for ``compare``.
        feeds: likewise; only the first sample is run.
        providers: which ones must run it.

    Raises:
        ExportError: onnxruntime refuses the model or fails to run it.
    """
    runner = Runner(model, providers)
    _samples(runner, feeds, runner.outputs, batched=False)


def compare(
    original: ModelProto | bytes | Path,
    pressed: ModelProto | bytes | Path,
    feeds: Feed,
    outputs: Sequence[str] | None = None,
    providers: Sequence[str] = (CPU,),
    threads: int | None = None,
) -> Comparison:
    """Run two models in onnxruntime on the same inputs.

    Samples go through one by one; or in batches, where both models have a free first dimension and
    a few samples answer the same alone and together.

    Args:
        original: the reference.
        pressed: the candidate, with the same inputs and outputs.
        feeds: one array ``[samples, *shape]`` per input, ``shape`` being the input's own, with a
            batch of 1 where the model has one.
        outputs: which outputs count; all tensors of the original where None.
        providers: which ones must run both models.
        threads: how many threads an operator may use; onnxruntime's own choice where None.

    Raises:
        MisuseError: the feeds do not fit together, or a name or provider is unknown.
        ExportError: onnxruntime refuses or fails to run a model.
    """
    counts = {len(array) for array in feeds.values()}
    if len(counts) != 1 or counts == {0}:
        raise MisuseError("every input needs the same number of samples, at least one")
    runners = (Runner(original, providers, threads), Runner(pressed, providers, threads))
    names = tuple(outputs or runners[0].outputs)
    for runner, role in zip(runners, ("original", "pressed"), strict=True):
        unknown = [name for name in names if name not in runner.outputs]
        if unknown:
            raise MisuseError(
                f"the {role} model has no output {', '.join(unknown)}; "
                f"it has {', '.join(runner.outputs)}"
            )
    samples = counts.pop()
    batched = samples > 1 and all(_batches(runner, feeds, names) for runner in runners)
    meter = DistanceMeter(names)
    for feed in _parts(feeds, samples, BATCH_SAMPLES if batched else 1):
        old, new = (_samples(runner, feed, names, batched) for runner in runners)
        meter.add(old, new)
    return Comparison(meter.distance(), runners[0].providers, batched)


def _parts(feeds: Feed, samples: int, size: int) -> Iterator[Feed]:
    for start in range(0, samples, size):
        yield {name: array[start : start + size] for name, array in feeds.items()}


def _samples(runner: Runner, feed: Feed, names: Sequence[str], batched: bool) -> list[np.ndarray]:
    """Answer one sample, or a batch of them, with the samples as the first axis.

    ``feed`` holds arrays ``[samples, *shape]``. A batch goes in as ``[samples, *shape[1:]]`` and
    its answers get the batch of 1 back that each sample's own answer has.
    """
    if not batched:
        # asarray: a sample of a scalar input is a numpy number, which onnxruntime does not take.
        answers = runner.run({name: np.asarray(array[0]) for name, array in feed.items()}, names)
        return [answer[None] for answer in answers]
    answers = runner.run({name: array[:, 0] for name, array in feed.items()}, names)
    return [answer[:, None] for answer in answers]


def _batches(runner: Runner, feeds: Feed, names: Sequence[str]) -> bool:
    """Prove on a few samples that a batch answers what its samples answer alone."""
    if not runner.has_free_batch or any(
        array.ndim < 2 or array.shape[1] != 1 for array in feeds.values()
    ):
        return False
    probe = {name: array[:PROBE_SAMPLES] for name, array in feeds.items()}
    count = len(next(iter(probe.values())))
    try:
        together = _samples(runner, probe, names, batched=True)
    except ExportError:
        return False  # a free dimension that is not a batch; one by one always works
    alone = [_samples(runner, part, names, batched=False) for part in _parts(probe, count, 1)]
    for place, answer in enumerate(together):
        singles = [sample[place] for sample in alone]
        if any(single.shape[1:] != answer.shape[1:] for single in singles):
            return False
        if len(answer) != count or not _same(answer, np.concatenate(singles)):
            return False
    return True


def _same(batch: np.ndarray, singles: np.ndarray) -> bool:
    if kind(batch.dtype) != "float":
        return np.array_equal(batch, singles)
    scale = float(np.abs(singles).max(initial=0.0, where=np.isfinite(singles)))
    return np.allclose(batch, singles, rtol=0, atol=PROBE_TOLERANCE * scale, equal_nan=True)
