"""An ONNX file as a program: its nodes traced as calls of torch, and the result compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from fxmerge.capturing import capture
from fxmerge.errors import CaptureError, FxmergeError, SourceError
from fxmerge.from_onnx.file import OnnxFile, read_file
from fxmerge.from_onnx.graph import dtype_of
from fxmerge.from_onnx.metadata import TASKS, read_metadata
from fxmerge.from_onnx.module import OnnxModule
from fxmerge.from_onnx.own_constants import own_constants
from fxmerge.from_onnx.runtime import OnnxModel, compare_runs
from fxmerge.installed import known
from fxmerge.ir.difference import floor, require
from fxmerge.ir.program import Program, prune
from fxmerge.messages import listed, printable, reason

TOLERANCE = 1e-5
"""How far a program may be from ONNX Runtime, as a share of an output's spread."""

ROWS = 4
SIZES = (8, 64, 32, 16, 224, 128)
"""What a size that a file leaves open may be, tried in turn: lengths, then heights and widths."""


def load_onnx(path: Path, *, extensions: Sequence[str] = (), batch_axis: int | None = None) -> Program:
    """The program of an ONNX file; inputs, outputs and weights keep their names, and sizes that are open stay open.

    Raises `SourceError` for a file that cannot be read, naming operators that are not known, and `VerificationError`
    if the program is not what ONNX Runtime computes.
    """
    file = read_file(path)
    graph, shared = own_constants(file.graph)
    file = replace(file, graph=graph)
    module = OnnxModule(file, known(extensions).operators).eval()
    runtime = OnnxModel(path, strange=True)  # in a child first: what fills the memory does so there
    ports = _ports(file)
    sample = _sample(module, ports, path)
    program = _capture(module, sample, ports, batch_axis)
    found = compare_runs(runtime, program, sample)
    require(
        f"{path} as it was read is not what ONNX Runtime computes",
        found,
        max(TOLERANCE, floor(program)),
        "nothing was written; export the model in another way, and please report it",
    )
    shapes = "; ".join(f"{name} {tuple(value.shape)}" for name, value in sample.items())
    if shared:
        said = f"{printable(listed(shared, 3))}: one number throughout, shared by several nodes: a copy each"
        program = program.evolve(notes=(*program.notes, said))
    notes = (*program.notes, f"read from ONNX and equal to ONNX Runtime on random inputs: {shapes}")
    return program.evolve(samples={}, notes=notes, labels=_labels(file, runtime))


def _labels(file: OnnxFile, runtime: OnnxModel) -> tuple[str, ...] | None:
    """Class names, where fxmerge wrote the file for one task."""
    if TASKS not in file.metadata:
        return None
    written = read_metadata(file.metadata, runtime.outputs, file.path)
    return written.labels.get(written.tasks[0]) if len(written.tasks) == 1 else None


Ports = Mapping[str, tuple[torch.dtype, tuple[int | str, ...]]]
"""By name, the dtype and shape of each input; sizes that are open are names."""


def _ports(file: OnnxFile) -> Ports:
    found: dict[str, tuple[torch.dtype, tuple[int | str, ...]]] = {}
    for name, (kind, shape) in file.inputs.items():
        if not kind or shape is None:
            what = "is no tensor" if not kind else "has no shape that is said"
            raise SourceError(
                f"{file.path}: its input {printable(name)} {what}", "export it with tensors of said shapes"
            )
        found[name] = (dtype_of(kind), shape)
    if not found:
        raise SourceError(f"{file.path} takes no inputs", "give a model that computes something from its inputs")
    return found


def _sample(module: OnnxModule, ports: Ports, path: Path) -> dict[str, Tensor]:
    """Random inputs of declared shapes on which the module runs. Raises `SourceError` naming the node that does not."""
    at = ""
    failure: Exception = AssertionError()
    for size in SIZES:
        sample = _random(ports, size)
        try:
            with torch.no_grad():
                module(**{name: value.clone() for name, value in sample.items()})
            return sample
        except Exception as error:  # whatever torch or an extension's reader raises at sizes that do not fit
            at, failure = (at, failure) if at else (module.at, error)
        if all(isinstance(s, int) or axis == 0 for _, shape in ports.values() for axis, s in enumerate(shape)):
            break
    what, todo = reason(failure), ""
    if isinstance(failure, FxmergeError):
        what, todo = failure.what, failure.todo
    todo = todo or "export the model in another way"
    raise SourceError(f"{path}: its node {at} cannot be read: {what}", todo) from failure


def _random(ports: Ports, size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    firsts = {shape[0] for _, shape in ports.values() if shape and isinstance(shape[0], str)}
    for name, (dtype, shape) in ports.items():
        sizes = [s if isinstance(s, int) else ROWS if s in firsts else size for s in shape]
        if dtype.is_floating_point:
            found[name] = torch.randn(sizes, generator=generator).to(dtype)
        elif dtype.is_complex:
            found[name] = torch.randn(sizes, generator=generator, dtype=dtype)
        else:
            found[name] = torch.randint(0, 2, sizes, generator=generator).to(dtype)  # legal as token, mask and flag
    return found


def _capture(module: OnnxModule, sample: Mapping[str, Tensor], ports: Ports, batch_axis: int | None) -> Program:
    """Trace with the sizes open that the file leaves open; with less where that cannot be traced."""
    open_axes: dict[str, dict[int, Any]] = {
        name: {axis: Dim.DYNAMIC for axis, size in enumerate(shape) if isinstance(size, str) or axis == 0}
        for name, (_, shape) in ports.items()
    }
    program: Program | None = None
    if all(len(shape) > 0 for _, shape in ports.values()):
        with suppress(CaptureError):
            program = capture(module, dict(sample), dynamic_shapes=open_axes, batch_axis=batch_axis)
    if program is None:
        program = capture(module, dict(sample), batch_axis=batch_axis)
    graph, _ = program.copy_graph()
    prune(graph)  # what the file holds and only told sizes
    return program.evolve(graph=graph)
