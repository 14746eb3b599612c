"""Where a pressed file comes from, as entries of its metadata that go with it.

The entries hold neither dates nor paths, so that the same run gives the same bytes. A digest is of
the values a model computes with, whatever form they are written in, so ``densify`` keeps it true.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from re import fullmatch
from typing import TYPE_CHECKING, Any

from onnx import numpy_helper

from onnxpress import __version__
from onnxpress.verdict import percent
from onnxpress_adapters import walk
from onnxpress_exporters.densify import densify

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxpress.verdict import Decision

PREFIX = "onnxpress."
NUMBER = r"(\d[\d.]*(?:e[+-]?\d+)?|inf|nan)"
FORMS = {
    "version": r"([\w.+-]{1,40})",
    "recipe": r"sha256:([0-9a-f]{64})",
    "original": r"sha256:([0-9a-f]{64})",
    "weights": r"sha256:([0-9a-f]{64})",
    "distance": f"{NUMBER}, at most {NUMBER}",
    "distance_absolute": f"{NUMBER}, at most {NUMBER}",
    "samples": r"(\d{1,18}) to fit, (\d{1,18}) to choose, (\d{1,18}) to judge",
    "seed": r"(\d{1,40})",
}
"""The entries in their order, by what follows the prefix, and how each reads."""


@dataclass(frozen=True)
class Provenance:
    """What made a file; digests are SHA-256, in hexadecimal.

    Attributes:
        version: of onnxpress.
        recipe: digest of the steps as they ran.
        original: digest of the weights of the original (``weights_digest``).
        weights: likewise of the pressed model.
        distance: the largest share of an output's variance, and its 95 % upper bound.
        distance_absolute: the sum of the mean squared errors, and its 95 % upper bound.
        samples: how many were there to fit, to choose and to judge.
        seed: the only source of chance.
    """

    version: str
    recipe: str
    original: str
    weights: str
    distance: tuple[float, float]
    distance_absolute: tuple[float, float]
    samples: tuple[int, int, int]
    seed: int

    @classmethod
    def of(
        cls,
        original: ModelProto,
        pressed: ModelProto,
        decision: Decision,
        steps: str,
        samples: tuple[int, int, int],
        seed: int,
    ) -> Provenance:
        """Say where a pressed model comes from.

        Args:
            original: as ``read_model`` gives it.
            pressed: in any form.
            decision: of the judge.
            steps: the chain, every sparsity fixed.
            samples: how many were there to fit, to choose and to judge.
            seed: of the run.
        """
        return cls(
            version=__version__,
            recipe=hashlib.sha256(steps.encode()).hexdigest(),
            original=weights_digest(original),
            weights=weights_digest(densify(pressed)),
            distance=decision.relative,
            distance_absolute=decision.absolute,
            samples=samples,
            seed=seed,
        )

    @classmethod
    def read(cls, model: ModelProto) -> Provenance | None:
        """Read the entries of a model; None where one is missing or is none of ours."""
        found = {}
        known = {entry.key: entry.value for entry in model.metadata_props}
        for name, form in FORMS.items():
            match = fullmatch(form, known.get(PREFIX + name, ""))
            if match is None:
                return None
            found[name] = match.groups()
        try:
            low, high = (float(text) for text in found["distance"])
            low_absolute, high_absolute = (float(text) for text in found["distance_absolute"])
        except ValueError:  # such as 1.2.3
            return None
        fit, choose, judge = (int(text) for text in found["samples"])
        return cls(
            version=found["version"][0],
            recipe=found["recipe"][0],
            original=found["original"][0],
            weights=found["weights"][0],
            distance=(low, high),
            distance_absolute=(low_absolute, high_absolute),
            samples=(fit, choose, judge),
            seed=int(found["seed"][0]),
        )

    def stamp(self, model: ModelProto) -> None:
        """Write the entries into a model, in place of those of an earlier run; all others stay."""
        fit, choose, judge = self.samples
        values = {
            "version": self.version,
            "recipe": f"sha256:{self.recipe}",
            "original": f"sha256:{self.original}",
            "weights": f"sha256:{self.weights}",
            "distance": _bounded(self.distance),
            "distance_absolute": _bounded(self.distance_absolute),
            "samples": f"{fit} to fit, {choose} to choose, {judge} to judge",
            "seed": str(self.seed),
        }
        ours = {PREFIX + name for name in FORMS}
        kept = [entry for entry in model.metadata_props if entry.key not in ours]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        for name, value in values.items():
            model.metadata_props.add(key=PREFIX + name, value=value)

    def __str__(self) -> str:
        """Say it in one line, digests by their first eight digits."""
        at_most = percent(self.distance[1])
        return (
            f"pressed by onnxpress {self.version} from weights {self.original[:8]}: "
            f"{percent(self.distance[0])} of the variance, at most {at_most}, on "
            f"{self.samples[2]:,} samples; seed {self.seed}, recipe {self.recipe[:8]}"
        )

    def json(self) -> dict[str, Any]:
        """Give the fields; what is not finite is None."""
        pairs = {
            name: [value if isfinite(value) else None for value in getattr(self, name)]
            for name in ("distance", "distance_absolute")
        }
        return {**vars(self), **pairs, "samples": list(self.samples)}

    def changed(self, model: ModelProto) -> bool:
        """Say whether a model with these entries holds other weights than were written with them.

        Args:
            model: as ``read_model`` gives it.
        """
        return weights_digest(model) != self.weights


def weights_digest(model: ModelProto) -> str:
    """Give the SHA-256 digest of all constants of a model: names, types, shapes and values.

    The order of constants in the file and the kind of node or list that holds them make no
    difference, because another form may change both.

    Args:
        model: dense, all data inline; strings do not count.
    """
    digests = []
    for _, graph in chain(walk.graphs(model), walk.functions(model)):
        for name, tensor in walk.constants(graph):
            head = f"{name}\0{tensor.data_type}\0{list(tensor.dims)}\0"
            one = hashlib.sha256(head.encode())
            one.update(numpy_helper.to_array(tensor).tobytes())
            digests.append(one.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _bounded(values: tuple[float, float]) -> str:
    value, upper = values
    return f"{value:.6g}, at most {upper:.6g}"
