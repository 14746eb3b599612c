"""What a state puts into a model's file, and what the model's interface costs there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxpress.job import SMALLEST
from onnxpress_exporters.packable import SETTABLE, large_constants
from onnxpress_exporters.settable import settable

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from onnx import ModelProto

    from onnxpress.job import Job
    from onnxpress.problem import Problem
    from onnxpress.state import State
    from onnxpress_adapters.weights import WeightKey
    from onnxpress_exporters.write import Patched


def changed_by(
    state: State, job: Job, model: ModelProto, problem: Problem
) -> dict[WeightKey, np.ndarray]:
    """Give the constants to write anew.

    Args:
        state: the values.
        job: says what is wanted of the file.
        model: the original.
        problem: knows the original's values.
    """
    # A free weight without a change may still be smaller in another form; so may a large constant.
    others = large_constants(model) if job.recipe == SMALLEST else {}
    changed = {
        key: value.cpu().numpy()
        for key, value in state.tensors.items()
        if key in state.free or value is not problem.reference[key]
    }
    return {**others, **changed}


def told_of_frozen(model: ModelProto, patched: Patched) -> tuple[str, ...]:
    """Say which constants a caller could set before and cannot set now.

    Args:
        model: the original.
        patched: what is made of it.
    """
    lost = set(settable(model)) - set(settable(patched.model))
    if not lost:
        return ()
    return (
        f"{len(lost)} constants of the original are inputs as well, so that a caller may set them; "
        "in this file they are none, for onnxruntime folds nothing into one that may change "
        "(--no-freeze keeps them as they are)",
    )


def told_of_settable(patched: Patched, frozen: Callable[[], Patched]) -> tuple[str, ...]:
    """Say what --freeze would save, where constants stay unpacked because a caller may set them.

    Args:
        patched: the model.
        frozen: makes it with --freeze.
    """
    held = sum(reason == SETTABLE for reason in patched.reasons.values())
    if not held:
        return ()
    saved = patched.model.ByteSize() - frozen().model.ByteSize()
    return (
        f"{held} constants are inputs of the model as well, so that a caller may set them, and "
        f"stay unpacked; --freeze would save {saved:,} bytes, more with values of fewer bits",
    )
