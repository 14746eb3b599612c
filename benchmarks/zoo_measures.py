"""Inputs of a zoo model, and what a pressed file is worth: the same for us and for every rival.

Needs numpy, onnx and onnxruntime alone, so that it also runs in a rival's own environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

CALIBRATION, FEWEST_CALIBRATION, CALIBRATION_BYTES = 2048, 16, 2e8
EVALUATION, FEWEST_EVALUATION, EVALUATION_BYTES = 512, 12, 1e8

CLASSIFIERS = (
    "mnist_fc_256x4",
    "mnist_relu_9_200",
    "mnist_8_cntk",
    "convnet_maxpool",
    "cifar_base_kw",
    "cifar_wide_kw",
    "cifar_resnet_2b",
    "cifar10_medium_nhwc",
    "sri_resnet_a",
    "vit_pgd_2_3_16",
)
"""The zoo's different classifiers with 100 or more labelled inputs.

Three more have as many, and are one of these in another form: mnist_12_float16, mnist_opt_wonnx and
cifar_resnet_2b_qdq_int8.
"""


def calibration_count(entry: Any) -> int:
    """Say how many inputs a model is pressed with: fewer where each is large."""
    most = min(CALIBRATION, int(CALIBRATION_BYTES / max(_bytes_each(entry), 1)))
    return max(FEWEST_CALIBRATION, most)


def evaluation_count(entry: Any) -> int:
    """Say how many inputs of the other split a pressed model is measured on."""
    most = min(EVALUATION, int(EVALUATION_BYTES / max(_bytes_each(entry), 1)))
    return max(FEWEST_EVALUATION, most)


def save_calibration(entry: Any, path: Path) -> int:
    """Write the calibration inputs for ``--data`` and say how many there are."""
    feeds = entry.inputs(calibration_count(entry), "calibration")
    arrays: dict[str, Any] = {name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]}
    np.savez(path, **arrays)
    return len(feeds)


def zeros_and_elements(model: Any) -> tuple[int, int]:
    """Count over the prunable weights of a dense ModelProto, by the zoo's own yardstick."""
    arrays = [np.asarray(found[0]) for found in import_module("prunable").weights(model).values()]
    return sum(int((a == 0).sum()) for a in arrays), sum(a.size for a in arrays)


def worth(entry: Any, original: Any, plain: Any, pressed: Any) -> Mapping[str, Any]:
    """Measure a pressed model on the evaluation inputs.

    Args:
        entry: of the zoo.
        original: as ModelProto.
        plain: the pressed model with every weight dense, as ModelProto.
        pressed: the pressed model as it was written: a path or a ModelProto.

    Returns:
        Distance, score (None where the model is none of ``CLASSIFIERS``) and the sparsity that was
        reached: what is left of the nonzeros, as a share of the original's elements. So a rewritten
        graph with more or fewer elements gains nothing by that.
    """
    zoo = import_module("zoo")
    zeros, elements = zeros_and_elements(plain)
    run = zoo.make_run(pressed)
    held_out = entry.inputs(evaluation_count(entry), "evaluation")
    found = zoo.distances(entry.session(), run, held_out)
    return {
        "sparsity": 1 - (elements - zeros) / zeros_and_elements(original)[1],
        "distance": found["relative"],
        "per_output": found["per_output"],
        "score": entry.score(run) if entry.name in CLASSIFIERS else None,
        "evaluation": len(held_out),
    }


def _bytes_each(entry: Any) -> int:
    return sum(array.nbytes for array in entry.inputs(1, "calibration")[0].values())
