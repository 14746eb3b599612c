"""The model a state makes, and what its interface costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxpress.job import SMALLEST
from onnxpress_exporters.packable import SETTABLE, large_constants
from onnxpress_exporters.write import Patched, patch

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxpress.job import Job
    from onnxpress.problem import Problem
    from onnxpress.state import State


def made_of(
    state: State, job: Job, model: ModelProto, problem: Problem, *, freeze: bool
) -> Patched:
    """Put a state's values into a copy of the model.

    Args:
        state: the values, and how they are stored.
        job: says in which form.
        model: the original.
        problem: knows the original's values.
        freeze: whether weights may be packed that are inputs as well.
    """
    # A free weight without a change may still be smaller in another form; so may a large constant.
    others = large_constants(model) if job.recipe == SMALLEST else {}
    changed = {
        key: value.cpu().numpy()
        for key, value in state.tensors.items()
        if key in state.free or value is not problem.reference[key]
    }
    return patch(model, {**others, **changed}, job.written, state.storage, freeze=freeze)


def told_of_settable(
    patched: Patched, state: State, job: Job, model: ModelProto, problem: Problem
) -> tuple[str, ...]:
    """Say what --freeze would save, where constants stay unpacked because a caller may set them."""
    held = sum(reason == SETTABLE for reason in patched.reasons.values())
    if not held:
        return ()
    frozen = made_of(state, job, model, problem, freeze=True).model
    saved = patched.model.ByteSize() - frozen.ByteSize()
    return (
        f"{held} constants are inputs of the model as well, so that a caller may set them, and "
        f"stay unpacked; --freeze would save {saved:,} bytes, more with values of fewer bits",
    )
