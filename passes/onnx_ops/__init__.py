"""How operators of ONNX files are read, one file a family: each is written as calls of torch."""

from passes.onnx_ops import (
    attention,
    convolution,
    indexing,
    layout,
    linear,
    norms,
    pointwise,
    recurrent,
    reduction,
)

ONNX_OPERATORS = [
    *pointwise.OPERATORS,
    *linear.OPERATORS,
    *convolution.OPERATORS,
    *norms.OPERATORS,
    *layout.OPERATORS,
    *indexing.OPERATORS,
    *reduction.OPERATORS,
    *attention.OPERATORS,
    *recurrent.OPERATORS,
]
"""The operators that come with fxmerge."""

__all__ = ["ONNX_OPERATORS"]
