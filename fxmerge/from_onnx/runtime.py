"""Run an ONNX file in ONNX Runtime, and measure how far it is from a program."""

from __future__ import annotations

import glob
import importlib
import math
import os
import shlex
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxmerge.errors import SourceError, VerificationError
from fxmerge.io.child import ChildError, ask
from fxmerge.io.files import weights_beside
from fxmerge.io.guard import check_file, reading
from fxmerge.ir.difference import Difference, difference, largest
from fxmerge.ir.port import Runnable
from fxmerge.ir.program import Port, Program
from fxmerge.ir.row_blocks import Block, in_blocks
from fxmerge.messages import printable

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class RuntimeFailure(VerificationError):
    """ONNX Runtime stopped while running a model."""


def run_onnx(path: str | Path, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name of the model at `path` on `inputs`, in ONNX Runtime on the CPU."""
    return OnnxModel(path).run(inputs)


class OnnxModel:
    """An ONNX file opened in ONNX Runtime."""

    def __init__(self, path: str | Path, *, device: str = "cpu", strange: bool = False) -> None:
        """`strange`: the file may be anyone's, so it is opened and run in a child process first."""
        self.path = path
        if not os.path.lexists(path):
            raise SourceError(f"{path}: no such file", "give the path of an ONNX model")
        check_file(Path(path), todo="give the path of an ONNX model")
        _check_kind(Path(path))
        if strange:
            _try(Path(path))
        try:
            self.session = onnx_session(str(path), device=device)
        except Exception as error:  # ONNX Runtime has one exception class per status, with no common base
            lost = ".data" in str(error) and not weights_beside(path).is_file()
            todo = f"copy its weights too, to {weights_beside(path)}" if lost else "give an ONNX model"
            raise SourceError(f"{path}: ONNX Runtime cannot open it: {_line(error)}", todo) from error
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    @property
    def inputs(self) -> tuple[Port, ...]:
        return tuple(_port(value, self.path) for value in self.session.get_inputs())

    @property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(_port(value, self.path) for value in self.session.get_outputs())

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name; entries of `inputs` that the model does not take are ignored."""
        block = self._block(inputs)
        if block is not None:
            forward = in_blocks(lambda *values: tuple(self._once(values).values()), block)
            values = forward(*(inputs[port.name].detach().cpu() for port in self.inputs))
            return dict(zip((port.name for port in self.outputs), values, strict=True))
        return self._once([inputs[port.name] for port in self.inputs])

    def _block(self, inputs: Mapping[str, Tensor]) -> Block | None:
        """How to cut rows for a model with a fixed batch; None where they fit as they are."""
        sizes = {p.name: p.shape[0] for p in self.inputs if p.shape}
        other = [name for name, size in sizes.items() if isinstance(size, int) and len(inputs[name]) != size]
        rows = {sizes[name] for name in other}
        if len(rows) != 1:
            return None
        [count] = rows
        with_rows = tuple(port.name in other for port in self.inputs)
        axes = tuple(0 if p.shape and p.shape[0] == count else None for p in self.outputs)
        return Block(int(count), True, with_rows, axes)

    def _once(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        fed = {port.name: value.detach().cpu().numpy() for port, value in zip(self.inputs, inputs, strict=True)}
        names = [port.name for port in self.outputs]
        try:
            values = self.session.run(names, fed)
        except Exception as error:  # see above
            shown = ", ".join(f"{name} {list(value.shape)}" for name, value in fed.items())
            raise RuntimeFailure(f"ONNX Runtime cannot run the model on {shown}: {_line(error)}") from error
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def onnx_session(model: str | bytes, *, device: str = "cpu", folder: Path | None = None) -> Any:
    """A session of ONNX Runtime for a file, or for a model in memory whose weights beside it lie in `folder`."""
    onnxruntime = _library()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised as well
    options.intra_op_num_threads = torch.get_num_threads()
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
    providers = ["CUDAExecutionProvider"] * (device == "cuda") + ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model, options, providers=providers)


def compare_onnx(path: str | Path, program: Program, inputs: Mapping[str, Tensor] | None = None) -> float:
    """Largest difference between the ONNX file and `program`, relative to each output's spread (`compare_runs`)."""
    return largest(compare_runs(OnnxModel(path), program, inputs))


def compare_runs(
    model: Runnable, program: Program, inputs: Mapping[str, Tensor] | None = None, *, fewest: int = 1
) -> dict[str, Difference]:
    """How far what a written model computes is from `program`, by output, over several batch sizes and lengths.

    `inputs` (rows first) gives realistic values; random ones are made where it is absent or lacks an input.
    Infinite where one side is not a number and the other is, or where shapes differ.
    Raises `RuntimeFailure` (exit code 3) if ONNX Runtime cannot run the model at one of the sizes.
    """
    given = inputs or program.samples
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {port.name: [] for port in program.outputs}
    with torch.no_grad():
        for sizes in _probe_sizes(program, given, fewest):
            fed = {port.name: _values(port, program, sizes, given) for port in program.inputs}
            expected, got = program.run(fed), model.run(fed)
            for name, found in pairs.items():
                found.append((expected[name], got[name]))
    return {name: _over_all(found) for name, found in pairs.items()}


def _over_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> Difference:
    """One output at all sizes, measured by its spread over them: one row alone may have none."""
    for one, other in pairs:
        if one.shape != other.shape:
            return difference(one, other)
    flat = [torch.cat([side.detach().cpu().reshape(-1) for side in sides]) for sides in zip(*pairs, strict=True)]
    return difference(*flat)


def _library() -> Any:
    """The onnxruntime module. Its telemetry leaves a file in the temporary folder when first imported: not in ours."""
    if "onnxruntime" not in sys.modules:
        before = os.environ.get("TMPDIR")
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["TMPDIR"] = scratch
            try:
                importlib.import_module("onnxruntime").disable_telemetry_events()
            finally:
                os.environ.pop("TMPDIR")
                if before is not None:
                    os.environ["TMPDIR"] = before
    return sys.modules["onnxruntime"]


def _try(path: Path) -> None:
    """Open the model and run it once in a child, so that what would crash or fill this process does so there."""
    beside = [file for file in path.parent.glob(f"{glob.escape(path.name)}*") if file.is_file()]
    try:
        size = sum(file.stat().st_size for file in beside)
        for _ in ask("fxmerge.from_onnx.trial:run", {"path": str(path.absolute())}, size=size):
            pass
    except ChildError as error:
        raise SourceError(f"{path}: ONNX Runtime cannot open it: {_line(error)}", "give an ONNX model") from error


def _check_kind(path: Path) -> None:
    """Raise `SourceError` with what writes it as ONNX, if a file is a model of another kind."""
    if not zipfile.is_zipfile(path):
        return
    with reading(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if "bundle.json" in names or any(name.endswith("/archive_format") for name in names):
        out = path.with_suffix(".onnx")
        while out.exists():
            out = out.with_stem(f"{out.stem}_")
        kind = "a bundle" if "bundle.json" in names else "an archive of torch.export"
        command = shlex.join(["fxmerge", "export", str(path), "--out", str(out)])
        raise SourceError(f"{path} is no ONNX model but {kind}", f"write it as ONNX first: {command}")


def _port(value: Any, path: str | Path) -> Port:
    """An input or output of a session. Raises `SourceError` if it is no tensor that torch knows."""
    if value.type not in _DTYPES:
        raise SourceError(
            f"{path}: {printable(value.name)} is of the type {printable(value.type)}", "give a model that takes tensors"
        )
    shape = tuple(size if isinstance(size, int | str) else f"size{axis}" for axis, size in enumerate(value.shape))
    return Port(value.name, shape, _DTYPES[value.type])


def _line(error: BaseException) -> str:
    """The part of an ONNX Runtime error that speaks of the model, on one line."""
    text = " ".join(str(error).split())
    return (text.rsplit("Status Message: ", 1)[-1].rsplit("was false. ", 1)[-1] or type(error).__name__)[:300]


def _probe_sizes(program: Program, given: Mapping[str, Tensor], fewest: int) -> list[dict[str, int]]:
    """Sizes of the dynamic axes to compare at: those of the samples, shorter ones, and one row."""
    largest = _sample_sizes(program, given)
    tried: list[dict[str, int]] = []
    for rows, share in ((3, 1.0), (1, 1.0), (5, 0.4), (2, 0.7)):
        sizes = {}
        for name, size in largest.items():
            low, high = program.ranges.get(name, (1, 1 << 30))
            # one row is tried although tracing itself needs two: the written model promises any batch
            wish, low = (rows, fewest) if name.startswith("batch") else (math.ceil(size * share), low)
            sizes[name] = min(max(wish, low), high)
        if sizes not in tried:
            tried.append(sizes)
    return tried


def _sample_sizes(program: Program, given: Mapping[str, Tensor]) -> dict[str, int]:
    """Each dynamic size as the samples have it (longer ones may not be legal), or as the program was traced."""
    sizes = {name: program.hints[name] for port in program.inputs for name in port.dynamic if name in program.hints}
    for port in program.inputs:
        sample = given.get(port.name)
        if sample is not None and sample.ndim == len(port.shape):
            sizes |= {s: n for s, n in zip(port.shape, sample.shape, strict=True) if isinstance(s, str) and s in sizes}
    return sizes


def _values(port: Port, program: Program, sizes: Mapping[str, int], given: Mapping[str, Tensor]) -> Tensor:
    """Values of one input at these sizes: cut or tiled from `given`, else random but legal."""
    node = next(n for n, p in zip(program.placeholders, program.inputs, strict=True) if p.name == port.name)
    traced = node.meta["val"].shape
    shape = [sizes.get(s, t) if isinstance(s, str) else s for s, t in zip(port.shape, traced, strict=True)]
    sample = given.get(port.name)
    if sample is not None and sample.ndim == len(shape) and all(sample.shape):
        return _tile(sample.detach().to(device="cpu", dtype=port.dtype), shape)
    generator = torch.Generator().manual_seed(0)
    if port.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(port.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(port.dtype)  # 0 and 1: legal as token, mask and flag


def _tile(sample: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape):
        if sample.shape[axis] != size:
            sample = sample.index_select(axis, torch.arange(size) % sample.shape[axis])
    return sample.contiguous()
