"""One converter per ONNX operator, by family; ``load`` gives the table of all of them."""

from onnxpress_adapters.ops import (
    activation,
    attention,
    cast,
    columns,
    conv,
    determinant,
    dropout,
    elementwise,
    grid,
    indexing,
    integer,
    linear,
    loss,
    microsoft_attention,
    microsoft_fused,
    microsoft_grouped,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    regions,
    resize,
    rotary,
    shape,
    signal,
    softmax,
    state,
)
from onnxpress_adapters.registry import REGISTRY, Registry

FAMILIES = (
    activation,
    attention,
    cast,
    columns,
    conv,
    determinant,
    dropout,
    elementwise,
    grid,
    indexing,
    integer,
    linear,
    loss,
    microsoft_attention,
    microsoft_fused,
    microsoft_grouped,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    regions,
    resize,
    rotary,
    shape,
    signal,
    softmax,
    state,
)


def load() -> Registry:
    """Give the table of converters; importing the families above has filled it."""
    return REGISTRY
