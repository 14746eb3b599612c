"""One converter per ONNX operator, by family; ``load`` gives the table of all of them."""

from onnxpress_adapters.ops import (
    activation,
    cast,
    conv,
    elementwise,
    indexing,
    linear,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    shape,
    softmax,
)
from onnxpress_adapters.registry import REGISTRY, Registry

FAMILIES = (
    activation,
    cast,
    conv,
    elementwise,
    indexing,
    linear,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    shape,
    softmax,
)


def load() -> Registry:
    """Give the table of converters; importing the families above has filled it."""
    return REGISTRY
