"""Running many samples at once through a graph that may have been made for one.

Four ways, fastest first:

- ``batch``: the model has a free batch dimension; samples are laid along it.
- ``rebatched``: the model hardwires a batch of 1; samples are laid along that dimension, and
  Reshape targets that begin with the hardwired 1 follow.
- ``vmap``: the graph is vectorised by ``torch.vmap``.
- ``loop``: one sample after the other.

The first two are guesses about what a dimension means, so none is used before it agreed with the
loop on probe samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError, MisuseError
from onnxpress_adapters.trace import Site, Trace, Value, stacked

if TYPE_CHECKING:
    from onnxpress_adapters.network import Network
    from onnxpress_adapters.specs import InputSpec
    from onnxpress_adapters.weights import WeightKey

Mode = Literal["batch", "rebatched", "vmap", "loop"]

AGREEMENT = 1e-4
"""Largest error, relative to an output's largest magnitude, at which a way is proven."""


@dataclass(frozen=True)
class Batching:
    """One way to run many samples.

    Attributes:
        mode: how, as the module says.
        input_axes: per input the dimension samples are laid along; None for an input all samples
            of a call share (an integer without a batch dimension: a sampling rate, say).
        output_axes: per output the dimension samples come back in.
    """

    mode: Mode
    input_axes: tuple[int | None, ...] = ()
    output_axes: tuple[int, ...] = ()

    def run(
        self,
        network: Network,
        weights: Mapping[WeightKey, Tensor],
        inputs: Sequence[Tensor],
        watch: Sequence[Site] = (),
    ) -> Trace:
        """Run samples ``[samples, *feed shape]``; what was met holds all, in any layout."""
        if not inputs:
            raise MisuseError("the model takes no inputs, so there are no samples to run it on")
        counts = {len(value) for value in inputs}
        if len(counts) != 1 or 0 in counts:
            raise MisuseError(
                f"every input needs the same number of samples, at least one, "
                f"not {', '.join(str(len(v)) for v in inputs)}"
            )
        if self.mode == "loop" or not self.shares(inputs):
            return _loop(network, weights, inputs, watch)
        if self.mode == "vmap":
            return self._vmap(network, weights, inputs, watch)
        return self._laid(network, weights, inputs, watch)

    def given(self, inputs: Sequence[Tensor]) -> list[Value]:
        """Turn samples into what one run of the graph takes, laid along its dimensions."""
        return [
            _shared(value) if axis is None else _lay(value, axis)
            for axis, value in zip(self.input_axes, inputs, strict=True)
        ]

    def shares(self, inputs: Sequence[Tensor]) -> bool:
        """Say whether the inputs to be shared are the same in all samples."""
        return all(
            axis is not None or bool((value == value[:1]).all())
            for axis, value in zip(self.input_axes, inputs, strict=True)
        )

    def _laid(
        self,
        network: Network,
        weights: Mapping[WeightKey, Tensor],
        inputs: Sequence[Tensor],
        watch: Sequence[Site],
    ) -> Trace:
        """Lay samples along a dimension of the model's own."""
        samples = len(inputs[0])
        rebatched = samples if self.mode == "rebatched" else 1
        trace = network.run(weights, self.given(inputs), watch=watch, rebatched=rebatched)
        outputs = []
        for axis, value in zip(self.output_axes, trace.outputs, strict=True):
            if value.ndim <= axis or value.shape[axis] % samples:
                raise AdapterError(
                    f"an output of shape {list(value.shape)} does not hold {samples} samples"
                )
            outputs.append(value.unflatten(axis, (samples, -1)).movedim(axis, 0))
        return replace(trace, outputs=tuple(outputs))

    def _vmap(
        self,
        network: Network,
        weights: Mapping[WeightKey, Tensor],
        inputs: Sequence[Tensor],
        watch: Sequence[Site],
    ) -> Trace:
        """Vectorise the graph over samples."""
        calls: list[int] = []
        steps: list[int] = []
        sizes: dict[tuple[tuple[str, ...], int], int] = {}

        def once(*mapped: Tensor) -> tuple[Tensor, ...]:
            rest = iter(mapped)
            given: list[Value] = [
                _shared(value) if axis is None else next(rest)
                for axis, value in zip(self.input_axes, inputs, strict=True)
            ]
            trace = network.run(weights, given, watch=watch)
            sizes.update(trace.sizes)
            calls[:] = [len(met) for met in trace.watched]
            steps[:] = [trace.steps]
            return (*trace.outputs, *(call for met in trace.watched for call in met))

        mapped = [v for a, v in zip(self.input_axes, inputs, strict=True) if a is not None]
        results: Any = torch.vmap(once)(*mapped)
        rest = iter(results[len(network.outputs) :])
        watched = tuple(tuple(next(rest) for _ in range(count)) for count in calls)
        return Trace(tuple(results[: len(network.outputs)]), watched, sizes, steps[0])


LOOP = Batching("loop")


def choose(
    network: Network, weights: Mapping[WeightKey, Tensor], probes: Sequence[Tensor]
) -> Batching:
    """Give the fastest way that equals the loop on two and on three of the probes.

    Two counts, because a count may be the size of a dimension by chance. Where the probes are all
    alike nothing would show that samples mix, and the loop is what remains, as it is for outputs
    that are no tensors of numbers.

    Args:
        network: any; its own batching is not used.
        weights: the reference weights.
        probes: one per input, ``[samples, *feed shape]``.
    """
    if any(spec.holds != "tensor" or spec.kind == "other" for spec in network.outputs):
        return LOOP
    samples = len(probes[0]) if probes else 0
    other = next((i for i in range(1, samples) if any((v[i] != v[0]).any() for v in probes)), None)
    if other is None:
        return LOOP
    picks = list(dict.fromkeys((0, other, samples - 1)))
    few = [value[picks] for value in probes]
    with torch.no_grad():
        expected = _loop(network, weights, few, ()).outputs
        for candidate in candidates(network):
            if all(
                _holds(candidate, network, weights, few, expected, count)
                for count in range(2, len(picks) + 1)
            ):
                return candidate
    return LOOP


def _holds(
    candidate: Batching,
    network: Network,
    weights: Mapping[WeightKey, Tensor],
    probes: Sequence[Tensor],
    expected: Sequence[Tensor],
    count: int,
) -> bool:
    """Say whether a way gives the first ``count`` samples what the loop gave them."""
    try:
        found = candidate.run(network, weights, [value[:count] for value in probes]).outputs
    except (AdapterError, RuntimeError):
        # A guess about the graph that does not hold: torch says so with a RuntimeError.
        return False
    return all(_agree(a[:count], b) for a, b in zip(expected, found, strict=True))


def candidates(network: Network) -> list[Batching]:
    """List the ways worth trying for a graph, fastest first."""
    inputs = network.inputs
    symbol = next((s.symbols[0] for s in inputs if s.symbols and s.symbols[0]), None)
    free = tuple(_axis(spec, symbol, fixed=False) for spec in inputs)
    laid = tuple(_axis(spec, symbol, fixed=True) for spec in inputs)
    mapped = tuple(None if _shareable(spec) else 0 for spec in inputs)
    back = tuple(_output_axis(spec.symbols, symbol) for spec in network.outputs)
    found: list[Batching] = []
    for mode, axes in (("batch", free), ("rebatched", laid)):
        usable = all(a is not None or _shareable(s) for a, s in zip(axes, inputs, strict=True))
        if usable and any(a is not None for a in axes):
            found.append(Batching("batch" if mode == "batch" else "rebatched", axes, back))
    if any(axis is not None for axis in mapped):
        found.append(Batching("vmap", mapped))
    return found


def _axis(spec: InputSpec, symbol: str | None, *, fixed: bool) -> int | None:
    """Guess the dimension of an input that counts samples, or None."""
    if spec.shape and (spec.shape[0] is None or (fixed and spec.shape[0] == 1)):
        return 0
    if symbol is not None and symbol in spec.symbols:
        return spec.symbols.index(symbol)
    return None


def _output_axis(symbols: Sequence[str | None], symbol: str | None) -> int:
    return symbols.index(symbol) if symbol is not None and symbol in symbols else 0


def _shareable(spec: InputSpec) -> bool:
    """Say whether an input is a single integer or truth value: a setting rather than data."""
    return spec.dtype.kind in "iub" and all(size == 1 for size in spec.shape)


def _shared(value: Tensor) -> Value:
    return value[0].detach().cpu().numpy()


def _lay(value: Tensor, axis: int) -> Tensor:
    """Turn ``[samples, *shape]`` into ``shape`` with dimension ``axis`` times samples."""
    moved = value.movedim(0, axis)
    return moved.flatten(axis, axis + 1)


def _loop(
    network: Network,
    weights: Mapping[WeightKey, Tensor],
    inputs: Sequence[Tensor],
    watch: Sequence[Site],
) -> Trace:
    """Run one sample after the other and stack."""
    traces = []
    for sample in range(len(inputs[0])):
        given: list[Value] = [
            value[sample].detach().cpu().numpy() if _shareable(spec) else value[sample]
            for spec, value in zip(network.inputs, inputs, strict=True)
        ]
        traces.append(network.run(weights, given, watch=watch))
    outputs = tuple(
        _stack([trace.outputs[place] for trace in traces], network.outputs[place].name)
        for place in range(len(network.outputs))
    )
    watched = tuple(
        stacked([call for trace in traces for call in trace.watched[place]])
        for place in range(len(watch))
    )
    return Trace(outputs, watched, traces[0].sizes, traces[0].steps)


def _stack(values: list[Any], name: str) -> Any:
    if not all(isinstance(value, Tensor) for value in values):
        return values  # sequences, maps or text: a list with what each sample gave
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise AdapterError(
            f"'{name}' has another shape for another sample ({sorted(shapes)[:2]}); "
            "fix the dynamic sizes so that every sample gives outputs of one shape"
        )
    return torch.stack(values)


def _agree(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.is_floating_point():
        return bool((expected == found).all())
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    error = float((expected - found).abs().max()) if expected.numel() else 0.0
    return error <= AGREEMENT * scale + 1e-12
