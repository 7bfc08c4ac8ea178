"""Models in half precision, read in float32: half precision keeps three digits, and merging adds up many products."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fxmerge.capturing import capture
from fxmerge.errors import CaptureError
from fxmerge.ir.program import Program

HALF = (torch.float16, torch.bfloat16)
NOTE = "weights in half precision were read as float32"


def capture_in_float32(model: nn.Module, inputs: Any, **options: Any) -> Program:
    """`capture`, of a copy in float32 if the model has weights in half precision; a note says so.

    A model that cannot be traced so, because it casts to half precision itself, is captured as it is.
    """
    if not any(tensor.dtype in HALF for tensor in (*model.parameters(), *model.buffers())):
        return capture(model, inputs, **options)
    try:
        wide: nn.Module = copy.deepcopy(model)._apply(_wider)  # type: ignore[no-untyped-call]
        program = capture(wide, tree_map(_wider, inputs), **options)
    except (CaptureError, RuntimeError):
        return capture(model, inputs, **options)
    return program.evolve(notes=(*program.notes, NOTE))


def _wider(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value
