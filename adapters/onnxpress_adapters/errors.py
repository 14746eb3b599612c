"""The errors every floor of onnxpress raises.

One root, one child per stage. A message says what is wrong, where (model, node, tensor) and what to
do next; context is added on the way up with ``add_note``. Results that are merely bad news ("the
distance is too large") are data in a report, not errors.
"""

from typing import ClassVar


class OnnxpressError(Exception):
    """Anything onnxpress has to say to its user.

    ``exit_code`` is what the command line exits with: 1, the work failed; 2, the call was wrong.
    """

    exit_code: ClassVar[int] = 1


class MisuseError(OnnxpressError):
    """The call itself is wrong: an unknown name, a wrong shape, a flag that does not fit."""

    exit_code: ClassVar[int] = 2


class AdapterError(OnnxpressError):
    """A model cannot be read or cannot be run in torch."""


class BrokenModelError(AdapterError):
    """The file is not a sound ONNX model: missing, empty, torn, hostile or inconsistent."""


class UnsupportedOperatorError(AdapterError):
    """The model uses operators onnxpress has no converter for; the message lists all of them."""


class StepError(OnnxpressError):
    """A step of the pipeline cannot do what it was asked to."""


class SparsityError(StepError):
    """A sparsity or a count of weights lies outside what is possible."""


class ExportError(OnnxpressError):
    """A pressed model cannot be written, or onnxruntime refuses it."""
