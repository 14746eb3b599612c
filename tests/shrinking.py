"""A model, its groups, and the law a shrunk one is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto
from onnx.numpy_helper import to_array

from hand_built import Array
from onnxpress_adapters.groups_find import find_groups
from onnxpress_adapters.network import import_network
from onnxpress_adapters.walk import constants
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.shrink import Shrunk, Subject, settle, shrink
from onnxpress_exporters.write import patch

Feed = Mapping[str, Array]
TIGHT = 1e-5
FUSED = 2e-2
"""How far onnxruntime's own rewriting may move an answer: it multiplies int8 weights otherwise."""


def subject_of(made: ModelProto, feed: Feed) -> Subject:
    """Import a model and find its groups on one feed."""
    network, reference = import_network(made)
    inputs = [
        torch.from_numpy(feed[spec.name]) if feed[spec.name].dtype.kind == "f" else feed[spec.name]
        for spec in network.inputs
    ]
    groups = find_groups(made, network, reference, inputs)
    return Subject(made, network, reference, groups, inputs)


def values_of(made: ModelProto) -> dict[WeightKey, Array]:
    """Give the constants of the main graph."""
    return {WeightKey((), name): to_array(tensor) for name, tensor in constants(made.graph)}


def halved(subject: Subject, seed: int = 0, share: float = 0.5) -> Array:
    """Choose a random half of the units of every group."""
    rng = np.random.default_rng(seed)
    chosen = []
    for group in subject.groups.groups:
        mask = np.zeros(group.units, bool)
        mask[rng.permutation(group.units)[: int(share * group.units)]] = True
        chosen.append(mask)
    return subject.groups.gone(chosen)


def answers(made: ModelProto, feed: Feed, *, rewritten: bool = False) -> list[Array]:
    """Ask onnxruntime on one thread; unless ``rewritten``, it runs the graph as it is.

    What it makes of a graph depends on its sizes, and sums in another order: two files that agree
    as they are may then differ by what one of them differs from itself.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not rewritten:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(answer) for answer in session.run(None, dict(feed))]


def apart(ours: Sequence[Array], theirs: Sequence[Array], scale: Sequence[Array]) -> float:
    """Give the largest error of any float output, relative to the largest entry of the scale."""
    worst = 0.0
    for one, other, size in zip(ours, theirs, scale, strict=True):
        assert one.shape == other.shape
        if one.dtype.kind == "f" and one.size:
            difference = float(np.abs(one.astype(np.float64) - other).max())
            worst = max(worst, difference / max(float(np.abs(size).max()), 1e-12))
        else:
            np.testing.assert_array_equal(one, other)
    return worst


def shrunk_like_masked(
    subject: Subject, feed: Callable[[int], Feed], gone: Array, within: float = TIGHT
) -> Shrunk:
    """Shrink, and hold the result to the masked model: sound, runnable, equal on a few feeds."""
    before = subject.model.SerializeToString()
    changed = settle(subject, values_of(subject.model), gone)
    masked = patch(subject.model, changed, "dense").model
    shrunk = shrink(subject, changed, gone)
    assert subject.model.SerializeToString() == before
    onnx.checker.check_model(shrunk.model, full_check=True)
    for seed in range(3):
        given = feed(seed)
        wanted, original = answers(masked, given), answers(subject.model, given)
        scale = [
            np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(wanted, original, strict=True)
        ]
        assert apart(answers(shrunk.model, given), wanted, scale) <= within
    fast = answers(shrunk.model, given, rewritten=True)
    assert apart(fast, wanted, scale) <= FUSED
    return shrunk
