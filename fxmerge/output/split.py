"""One task of a merged model as a model of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxmerge.errors import OptionError
from fxmerge.from_onnx.metadata import BY_TASK, GATE, TASKS, read_metadata, task_of
from fxmerge.from_onnx.runtime import OnnxModel, RuntimeFailure
from fxmerge.io.files import atomic_write
from fxmerge.ir.difference import Difference, differences, largest, require
from fxmerge.ir.program import Port
from fxmerge.messages import listed, nearest
from fxmerge.output.assets import pack, unpack
from fxmerge.output.parts import only, save_part

SIZES = ((3, 8), (2, 32), (1, 64), (1, 224))
"""Rows, and every other size that is free, that the part and the whole are compared at; those that the whole takes."""
TOLERANCE = 1e-5


def split(path: str | Path, task: str, out: str | Path, *, overwrite: bool = False) -> float:
    """Write what a merged model needs for one task; the largest difference of its outputs from the whole's.

    Inputs and outputs keep their names; metadata and files of other tasks are left out. Weights over 1.5 GB go beside.
    Raises `OptionError` for a task it does not have, and `VerificationError` if the part computes something else.
    """
    whole = OnnxModel(path, strange=True)
    known = read_metadata(whole.metadata, whole.outputs, path)
    if task not in known.tasks:
        raise OptionError(
            f"{path} has no task {task!r}{nearest(task, known.tasks)}", f"its tasks are {listed(known.tasks, 20)}"
        )
    names = [port.name for port in whole.outputs if task_of(port.name, known.tasks) == task]
    with atomic_write(out, overwrite=overwrite) as draft:
        save_part(_part(Path(path), names, _metadata(whole.metadata, task, path)), draft)
        found = _compared(OnnxModel(draft), whole, names)
        require(f"{task} alone is not what {path} computes", found, TOLERANCE, "nothing was written; please report it")
    return largest(found)


def _part(path: Path, outputs: Sequence[str], metadata: Mapping[str, str]) -> Any:
    import onnx

    part = only(path, None, outputs)
    part.producer_name = "fxmerge"
    onnx.helper.set_model_props(part, dict(metadata))
    return part


def _metadata(values: Mapping[str, str], task: str, path: str | Path) -> dict[str, str]:
    """What the whole says of itself, of this task alone."""
    assets = {name: files for name, files in unpack(values, path).items() if name == task}
    kept = {name: value for name, value in values.items() if not name.startswith("fxmerge.assets") and name != GATE}
    for name in BY_TASK:
        if name in kept:
            kept[name] = json.dumps({k: v for k, v in json.loads(kept[name]).items() if k == task})
    return {**kept, TASKS: json.dumps([task]), **pack(assets)}


def _compared(part: OnnxModel, whole: OnnxModel, names: Sequence[str]) -> dict[str, Difference]:
    """The outputs of both on random inputs, at the sizes that the whole takes."""
    found: list[dict[str, Difference]] = []
    failed: RuntimeFailure | None = None
    for sizes in SIZES:
        given = dict(_inputs(whole.inputs, *sizes))
        try:
            expected = whole.run(given)
        except RuntimeFailure as error:
            failed = error
            continue
        found.append(differences({name: expected[name] for name in names}, part.run(given)))
    if not found:
        assert failed is not None
        raise failed
    return {name: max((each[name] for each in found), key=lambda d: d.relative) for name in names}


def _inputs(ports: Sequence[Port], rows: int, other: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for port in ports:
        sizes = enumerate(port.shape)
        shape = [size if isinstance(size, int) else rows if axis == 0 else other for axis, size in sizes]
        if port.dtype.is_floating_point:
            yield port.name, torch.randn(shape, generator=generator).to(port.dtype)
        else:  # 0 and 1: legal as token, mask and flag
            yield port.name, torch.randint(0, 2, shape, generator=generator).to(port.dtype)
