"""A worker that opens an ONNX file in ONNX Runtime and runs it once: what crashes or fills the memory does so there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KINDS = {"float": "float32", "double": "float64"}


def run(request: dict[str, Any], data: bytes) -> Iterator[tuple[Any, bytes]]:
    """One answer if the model can be opened; it is then run on zeros, every dynamic size one, come what may."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(request["path"], options, providers=["CPUExecutionProvider"])
    yield {"opened": True}, b""
    fed = {}
    for value in session.get_inputs():
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        if not hasattr(np, KINDS.get(kind, kind)):
            return  # no input that fxmerge fills
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        fed[value.name] = np.zeros(shape, dtype=getattr(np, KINDS.get(kind, kind)))
    try:
        session.run(None, fed)
    except MemoryError:
        raise
    except Exception as error:
        if "alloc" in str(error).lower():
            raise MemoryError from error
