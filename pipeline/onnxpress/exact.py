"""The true distance of every neighbour, fast: only what a removed weight changes is computed.

``neighbours.rises`` runs the whole network once for every weight. Here layers whose surroundings
allow it take a short way (``ways.py``); the others still go through the whole network.

Everything is computed in float64. At the original network itself a rise is the square of a small
difference of outputs, and float32 leaves few digits of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onnxpress.cost import NODE_MACS
from onnxpress.memory import ran_out
from onnxpress.neighbours import added, rises
from onnxpress.objective import Objective
from onnxpress.ways import Met, Way
from onnxpress_adapters.errors import OnnxpressError
from onnxpress_adapters.weights import WeightKey

PROBES = 8
"""Samples on which a short way is held against the whole network before it is used."""

PROBED = 5
"""Weights of a layer that are tried there."""

AGREEMENT = 1e-7
"""Largest difference there, as a share of the largest rise."""

NOTHING = 1e-12
"""A difference of rises that is none, as a share of the power of the outputs."""

SAME = 1e-3
"""Largest difference between outputs in float32 and in float64, as a share of the largest."""


def exact_rises(
    objective: Objective, tensors: Mapping[WeightKey, Tensor], keys: Sequence[WeightKey]
) -> dict[WeightKey, Tensor]:
    """Measure by how much d on the fit set rises at every neighbour, as ``neighbours.rises`` does.

    Args:
        objective: d and its scales; d is summed over the judged outputs, as steps minimise it.
        tensors: the network whose neighbours are wanted, laid over the reference.
        keys: the weights whose entries are set to zero, one at a time.

    Returns:
        Key to a float64 tensor of the weight's shape; exactly zero where the entry is zero already
        or changes no output.

    Source:
        seeds/sparsification_mathematics.md, "Sparsity graph" and "The Algorithm", step 1. FACTS
        section 4 for the closed forms of the last two layers.
    """
    precise = precise_of(objective)
    if precise is None:
        return rises(objective, tensors, keys)
    laid = {key: _double(value) for key, value in tensors.items()}
    ways = ways_of(precise, laid, keys)
    found = rises(precise, laid, [key for key in keys if key not in ways])
    found |= {key: torch.zeros_like(laid[key], dtype=torch.float64) for key in ways}
    fit, samples = precise.problem.fit, len(precise.problem.fit[0])

    def part(start: int, stop: int) -> dict[WeightKey, Tensor]:
        inputs = [value[start:stop] for value in fit]
        with torch.no_grad():
            met = Met.of(precise, laid, inputs, _wanted(precise, start, stop), samples)
            assert met is not None  # or there would be no ways
            return {key: way.rises(met) for key, way in ways.items()}

    for some in objective.batch.parts(samples, part) if ways else ():
        for key, rise in some.items():
            found[key] += rise
    return {key: found[key] for key in keys}


def exact_macs(
    objective: Objective, tensors: Mapping[WeightKey, Tensor], keys: Sequence[WeightKey]
) -> dict[WeightKey, float]:
    """Count the multiply-adds that one neighbour costs on one sample, by weight.

    Args:
        objective: as for ``exact_rises``.
        tensors: likewise.
        keys: likewise.
    """
    cost, precise = objective.cost, precise_of(objective)
    whole = cost.macs + cost.nodes * NODE_MACS / len(objective.problem.fit[0])
    if precise is None:
        return dict.fromkeys(keys, whole)
    ways = ways_of(precise, {key: _double(value) for key, value in tensors.items()}, keys)
    return {key: ways[key].macs if key in ways else whole for key in keys}


def precise_of(objective: Objective) -> Objective | None:
    """Give the same d computed in float64; None where the graph cannot do that."""
    memo, problem = objective.problem.memo, objective.problem
    if "precise" not in memo:
        wide = replace(
            problem,
            reference={key: _double(value) for key, value in problem.reference.items()},
            fit=[_double(value) for value in problem.fit],
            choose=[_double(value) for value in problem.choose],
        )
        made = replace(objective, problem=wide, targets=None, chosen=None)
        memo["precise"] = _with_targets(made, objective)
    found = memo["precise"]
    return found if isinstance(found, Objective) else None


def ways_of(
    precise: Objective, tensors: Mapping[WeightKey, Tensor], keys: Sequence[WeightKey]
) -> dict[WeightKey, Way]:
    """Find the short ways there are, each tried once on a few samples.

    Args:
        precise: as ``precise_of`` gives it.
        tensors: in float64, laid over the reference.
        keys: the weights wanted.
    """
    known = precise.problem.memo.setdefault("ways", {})
    assert isinstance(known, dict)
    missing = [key for key in keys if key not in known]
    if missing:
        layers = {layer.key: layer for layer in precise.problem.network.layers}
        few = [value[:PROBES] for value in precise.problem.fit]
        wanted = _wanted(precise, 0, PROBES)
        with torch.no_grad():
            met = Met.of(precise, tensors, few, wanted, len(few[0]))
            if met is not None and not precise.problem.network.batching.shares(precise.problem.fit):
                met = None  # a setting that is the same in these few, and not in all
            for key in missing:
                way = None if met is None or key not in layers else Way.of(met.whole, layers[key])
                holds = met is not None and way is not None and _holds(way, met, precise, few)
                known[key] = way if holds else None
    return {key: known[key] for key in keys if known[key] is not None}


def _holds(way: Way, met: Met, precise: Objective, inputs: Sequence[Tensor]) -> bool:
    """Say whether a short way agrees with the whole network, for some weights of the layer."""
    key = way.layer.key
    held = torch.nonzero(met.tensors[key].reshape(-1)).reshape(-1)
    places = held[torch.linspace(0, max(0, len(held) - 1), min(PROBED, len(held))).long()]
    base = [met.whole.tensor(name) for name in precise.problem.network.program.main.outputs]
    outputs = precise.outputs(met.tensors, inputs)
    off = [
        met.residuals[place].reshape(value.shape)
        for place, value in zip(precise.problem.judged, outputs, strict=True)
    ]
    truth = added(precise, met.tensors, key, places, inputs, outputs, off) / len(inputs[0])
    try:
        ours = way.rises(met).reshape(-1)[places]
    except (OnnxpressError, RuntimeError) as error:
        if ran_out(error):
            raise
        return False  # a guess about the graph that does not hold: torch says so
    power = sum(
        float(value.square().sum()) * met.shares[place]
        for place, value in enumerate(base)
        if place in met.shares and value is not None
    )
    allowed = AGREEMENT * float(truth.abs().max() if len(truth) else 0.0) + NOTHING * power
    return bool(((ours - truth).abs() <= allowed).all())


def _with_targets(made: Objective, objective: Objective) -> Objective | None:
    """Let the reference answer in float64; None where it cannot, or answers something else."""
    try:
        with torch.no_grad():
            answers = made.reference([value[:1] for value in made.problem.fit])
            known = objective.reference([value[:1] for value in objective.problem.fit])
            for ours, theirs in zip(answers, known, strict=True):
                if float((ours - theirs).abs().max()) > SAME * float(theirs.abs().max()):
                    return None
            kept = None if objective.targets is None else made.reference(made.problem.fit)
    except (OnnxpressError, RuntimeError) as error:
        if ran_out(error):
            raise
        return None  # an operator that insists on float32
    return replace(made, targets=None if kept is None else tuple(kept))


def _wanted(precise: Objective, start: int, stop: int) -> list[Tensor]:
    """Give what the reference answers to some of the fit set."""
    if precise.targets is not None:
        return [value[start:stop] for value in precise.targets]
    return precise.reference([value[start:stop] for value in precise.problem.fit])


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value
