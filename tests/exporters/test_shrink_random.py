"""Random networks lose random units, and answer as the masked ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from hand_built import Array
from onnxpress_adapters.axes import Role
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.shrink import Subject, shrink
from onnxpress_exporters.write import patch
from random_networks import network
from shrinking import TIGHT, answers, apart, halved, shrunk_like_masked, subject_of, values_of

SEEDS = range(80)


def some(subject: Subject, seed: int) -> Array:
    """Mark a random share of the units of most groups."""
    rng = np.random.default_rng(seed)
    gone = halved(subject, seed, rng.choice([0.2, 0.5, 0.8]))
    for group in subject.groups.groups:
        if rng.random() < 0.3:
            gone[group.first : group.first + group.units] = False
    return gone


def without_weights(subject: Subject, gone: Array) -> dict[WeightKey, Array]:
    """Zero the weights that make units, and no bias: what a step that prunes weights may leave."""
    values = values_of(subject.model)
    changed: dict[WeightKey, Array] = {}
    for group in subject.groups.groups:
        leaving = gone[group.first : group.first + group.units]
        for member in group.members:
            if member.role & Role.MADE:
                array = changed.setdefault(member.key, values[member.key].copy())
                places = (member.units >= 0) & leaving[member.units]
                np.moveaxis(array, member.axis, 0)[places] = 0
    return changed


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_without_random_units(seed: int) -> None:
    case = network(seed)
    subject = subject_of(case.model, case.feed())
    shrunk_like_masked(subject, case.feed, some(subject, seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_whose_units_lost_their_weights(seed: int) -> None:
    """What is left of them is a constant where nothing else comes in; where it does, they stay."""
    case = network(seed)
    subject = subject_of(case.model, case.feed())
    gone = some(subject, seed)
    changed = without_weights(subject, gone)
    shrunk = shrink(subject, changed, gone)
    assert set(np.flatnonzero(gone & ~shrunk.removed)) == set(shrunk.stays)
    onnx.checker.check_model(shrunk.model, full_check=True)
    pruned = patch(case.model, changed, "dense").model
    for place in range(2):
        feed = case.feed(place)
        wanted = answers(pruned, feed)
        assert apart(answers(shrunk.model, feed), wanted, wanted) <= TIGHT


def test_random_networks_have_groups_and_constants_that_stay() -> None:
    """The seeds are worth running: most have groups, and some units cannot leave."""
    found = [subject_of(case.model, case.feed()) for case in map(network, SEEDS)]
    assert sum(bool(subject.groups.groups) for subject in found) > len(SEEDS) / 2
    stays = 0
    for seed, subject in zip(SEEDS, found, strict=True):
        gone = some(subject, seed)
        stays += bool(shrink(subject, without_weights(subject, gone), gone).stays)
    assert 0 < stays < len(SEEDS) / 2
