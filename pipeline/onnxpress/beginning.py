"""What a run begins with: the weights that may change, samples, the problem, the first state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import torch
from onnx import numpy_helper

from onnxpress.cost import Cost
from onnxpress.domain import no_domain_error, parse_domains
from onnxpress.inputs import parse_shapes
from onnxpress.job import EFFORTS, Job
from onnxpress.labels import read_labels
from onnxpress.problem import FEW_RESERVE, RESERVE, SURE, Problem, Progress, Tolerance
from onnxpress.samples import (
    Arrays,
    Samples,
    count,
    from_data,
    from_domains,
    load_data,
)
from onnxpress.sources import round_of, sources_of
from onnxpress.state import State
from onnxpress.step import matches
from onnxpress.verify import draws
from onnxpress_adapters.errors import AdapterError, MisuseError
from onnxpress_adapters.extras import extras
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.specs import InputSpec
from onnxpress_adapters.weights import Dense, WeightKey

if TYPE_CHECKING:
    from onnx import ModelProto

PASS_UNITS = 6.0
"""Work one pass over the fit set may take; larger sets are cut to it."""

FORWARD_MACS = 2.0e10
"""Multiply-adds of forward passes in a unit of work."""

FEWEST = 64
MOST_DRAWN = 8192


def free_weights(job: Job, model: ModelProto) -> frozenset[WeightKey]:
    """Choose the weights steps may touch.

    Raises:
        MisuseError: there are none.
    """
    weights = [weight for weight in prunable(model, tables=job.embeddings) if weight.elements]
    pressed = [weight.key for weight in weights if not weight.fixed]
    if not weights:
        raise MisuseError(
            f"{job.model} has no prunable weights (constants that MatMul, Gemm, Conv, "
            "ConvTranspose, LSTM, GRU or RNN multiply by); onnxpress cannot make it sparser"
        )
    if not pressed:
        raise MisuseError(
            f"none of the {len(weights)} prunable weights of {job.model} can be changed (of the "
            f"first, {weights[0].fixed}); press the floating-point model it was made from"
        )
    for pattern in (*job.include, *job.exclude):
        if not any(matches(key, pattern) for key in pressed):
            near = get_close_matches(pattern, [str(key) for key in pressed], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f", such as '{pressed[0]}'"
            raise MisuseError(f"no prunable weight matches '{pattern}'{hint}")
    kept = [
        key
        for key in pressed
        if (not job.include or any(matches(key, p) for p in job.include))
        and not any(matches(key, p) for p in job.exclude)
    ]
    if not kept:
        raise MisuseError("--include and --exclude together leave no weight to press")
    return frozenset(kept)


def samples_of(job: Job, inputs: Sequence[InputSpec]) -> Samples:
    """Load or draw the three sets."""
    shapes = parse_shapes(job.shape, inputs)
    if job.data is not None and job.domain:
        raise MisuseError("give --data or --domain, not both")
    if job.data is not None:
        judge = None if job.judge is None else load_data(job.judge, inputs, shapes)
        data = load_data(job.data, inputs, shapes)
        labels = None if job.labels is None else read_labels(job.labels, count(data))
        sources = None if job.sequence else sources_of(job.kept_apart, data, count(data))
        samples = from_data(
            data, job.seed, sequence=job.sequence, sources=sources, judge=judge, labels=labels
        )
        if job.sequence or job.sources is not None or sources is not None:
            return samples
        return replace(samples, seen=round_of(data))
    if job.judge is not None:
        raise MisuseError("--judge goes with --data; from a domain the judge draws its own inputs")
    if not job.domain:
        raise no_domain_error(inputs, str(job.model))
    domains = parse_domains(job.domain, inputs, shapes)
    size = draws(domains)
    return from_domains(domains, (min(MOST_DRAWN, 4 * size), size, size), job.seed)


def problem_of(
    job: Job,
    model: ModelProto,
    samples: Samples,
    tolerance: Tolerance | None,
    progress: Progress,
) -> Problem:
    """Import the network, prove a way to batch, and cut the sets to what can be afforded."""
    device = _device(job.device)
    effort = EFFORTS[job.effort]
    network, weights = import_network(model, tables=job.embeddings)
    reference = {key: value.to(device) for key, value in weights.items()}
    names = [spec.name for spec in network.inputs]
    probes = [torch.from_numpy(samples.fit[name][:64]).to(device) for name in names]
    network = network.proven(reference, probes)
    cost = Cost.of(network, reference, probes, effort)
    affordable = max(FEWEST, int(effort * PASS_UNITS * FORWARD_MACS / cost.macs))
    fit, choose = (
        _tensors(samples.fit, names, affordable),
        _tensors(samples.choose, names, max(FEWEST, affordable // 2)),
    )
    labels = None
    if samples.labels is not None:
        beside = zip(samples.labels, (fit, choose), strict=True)
        first, second = (torch.from_numpy(rows[: len(part[0])]).to(device) for rows, part in beside)
        labels = first, second
    judged = tuple(
        place
        for place, spec in enumerate(network.outputs)
        if spec.kind == "float"
        and (tolerance is None or not tolerance.outputs or spec.name in dict(tolerance.outputs))
    )
    if not judged:
        raise AdapterError(f"{job.model} has no floating-point output to hold a distance on")
    return Problem(
        network=network,
        reference=reference,
        fit=[value.to(device) for value in fit],
        choose=[value.to(device) for value in choose],
        judged=judged,
        tolerance=tolerance,
        device=device,
        seed=job.seed,
        effort=effort,
        share=_share(job, samples),
        labels=labels,
        progress=progress,
    )


def _share(job: Job, samples: Samples) -> float:
    """Say how much of the tolerance a search may use."""
    if job.data is None:
        return SURE
    return FEW_RESERVE if samples.sources is not None and samples.sources.few else RESERVE


def _tensors(arrays: Arrays, names: Sequence[str], most: int) -> list[torch.Tensor]:
    return [torch.from_numpy(arrays[name][:most]) for name in names]


def _device(name: str) -> torch.device:
    """Choose where the steps run.

    Raises:
        MisuseError: CUDA is asked for and torch sees none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise MisuseError(f"there is no device '{name}'; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MisuseError(
            "torch sees no CUDA device; leave out --device, or install a CUDA build of torch"
        )
    cuda = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def first_state(job: Job, model: ModelProto, problem: Problem, free: frozenset[WeightKey]) -> State:
    """Lay out the original weights as a state.

    Raises:
        AdapterError: the gradient of every free weight would have to pass through an operator
            torch does not run.
    """
    weights: dict[WeightKey, Dense] = {}
    zeros = entries = 0
    for weight in prunable(model, tables=job.embeddings):
        values = problem.reference.get(weight.key)
        if not weight.fixed and values is not None:
            weights[weight.key] = Dense(values, values != 0)
        else:
            array = numpy_helper.to_array(weight.tensor)
            zeros, entries = zeros + int((array == 0).sum()), entries + array.size
    blocked = problem.network.program.blocked
    adapting = {
        key: problem.reference[key]
        for key in extras(model, tables=job.embeddings)
        if key in problem.reference and key not in blocked
    }
    movable = frozenset(key for key in free & weights.keys() if key not in blocked)
    if not movable:
        names = ", ".join(sorted({blocked[key] for key in free if key in blocked}))
        raise AdapterError(
            f"no weight of {job.model} is optimisable: every gradient would have to pass through "
            f"{names}, which torch does not run; `onnxpress inspect` lists them"
            if names
            else f"no weight of {job.model} reaches a tensor made of the inputs"
        )
    return State(weights, adapting, movable, (zeros, entries))
