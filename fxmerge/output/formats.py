"""Formats as values: how one is written, and how what was written is read back to be compared with the model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fxmerge.errors import FxmergeError
from fxmerge.from_onnx.metadata import TASKS
from fxmerge.from_onnx.runtime import OnnxModel, compare_runs
from fxmerge.io.files import atomic_write
from fxmerge.io.tensor_files import write_tensors, written_by_torch
from fxmerge.ir.difference import Difference, floor, require
from fxmerge.ir.port import Runnable
from fxmerge.ir.program import Program
from fxmerge.messages import listed
from fxmerge.output.assets import pack
from fxmerge.output.card import model_card
from fxmerge.output.onnx import export_onnx, retrace
from fxmerge.output.task_folders import EXACT, HEADS, WEIGHTS, write_task_folder, write_weights
from fxmerge.pipeline.format import Content, Format
from fxmerge.sources.bundle import load_bundle, save_bundle
from fxmerge.sources.said import SAID, said_of


def save_model(
    content: Content,
    out: str | Path,
    *,
    opset: int | None = None,
    overwrite: bool = False,
    samples: Mapping[str, Tensor] | None = None,
    tolerance: float = 1e-4,
    chosen: Format | None = None,
) -> dict[str, Difference]:
    """Write a model, in the format of its suffix unless one is chosen, and read it back: differences by output.

    Raises `VerificationError` if one exceeds `tolerance` of the output's spread; then nothing is written.
    """
    chosen = format_of(out) if chosen is None else chosen
    with atomic_write(out, overwrite=overwrite) as part:
        chosen.write(content, part, opset)
        found = compare_runs(chosen.read(part, content.program), content.program, samples, fewest=chosen.fewest)
        require(
            f"{chosen.suffix or 'the folder'}, read back, is not the folded model",
            found,
            max(tolerance, floor(content.program)),
            "nothing was written; write it in another format, or with another --opset, and please report it",
        )
    return found


def format_of(out: str | Path, more: Sequence[Format] = ()) -> Format:
    """The format of a path, by its suffix: a built-in one or one of `more`; a folder for a path without a known one."""
    suffix = Path(out).suffix
    return next((each for each in (*FORMATS, *more) if each.suffix == suffix), FOLDER)


# -- what is written, and read -----------------------------------------------------------------------------


def _write_onnx(content: Content, path: Path, opset: int | None) -> None:
    metadata = {**content.metadata, **pack(content.assets)}
    export_onnx(content.program, path, opset=opset, metadata=metadata, rules=content.rules)


def _write_pt2(content: Content, path: Path, opset: int | None) -> None:
    exported = retrace(content.program, content.rules)
    with warnings.catch_warnings(), written_by_torch(path) as file:
        warnings.simplefilter("ignore")  # it warns of weights that share storage
        torch.export.save(exported, file, extra_files=_said(content))


@dataclass(frozen=True)
class _Exported:
    """A program of torch.export, its inputs and outputs by the names that the format does not keep."""

    module: torch.nn.Module
    program: Program

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = self.module(*(inputs[port.name] for port in self.program.inputs))
        return {port.name: value for port, value in zip(self.program.outputs, values, strict=True)}


def _read_pt2(path: Path, program: Program) -> Runnable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the order in which it reads weights
        return _Exported(torch.export.load(path).module(), program)


def _write_bundle(content: Content, path: Path, opset: int | None) -> None:
    said = {name: text.encode() for name, text in _said(content).items()}
    save_bundle(content.program.evolve(assets={**content.program.assets, **said}), path)


def _said(content: Content) -> dict[str, str]:
    """What a merged model says of itself, as a file by its name; nothing of a model alone."""
    if TASKS not in content.metadata:
        return {}
    return {SAID: said_of(content.program, {**content.metadata, **pack(content.assets)}).decode()}


def _write_weights(content: Content, path: Path, opset: int | None) -> None:
    write_tensors(_contiguous(content.program), path, content.metadata)


def _read_weights(path: Path, program: Program) -> Runnable:
    return program.evolve(tensors=load_file(path))


def _write_folder(content: Content, path: Path, opset: int | None) -> None:
    path.mkdir(exist_ok=True)
    config = content.program.assets.get("config.json") if find_spec("transformers") else None
    write_weights(content.program, path, config, content.metadata)
    for name, data in content.program.assets.items():
        (path / name).write_bytes(data)
    classes = {}
    for task, files in content.assets.items() if config is not None else ():
        try:
            if "config.json" in files:
                classes[task], gap, own = write_task_folder(content.program, path, task, files, content.samples)
                if own:
                    content.notes.append(f"folder {task}: {listed(own)} in units of the merged model, not the parent's")
                if gap > EXACT:
                    content.notes.append(f"folder {task}: {classes[task]} rounds otherwise, by {gap:.1e} of the spread")
        except FxmergeError as error:
            content.notes.append(f"no folder {task}: {error.what}; {error.todo}")
    inputs = [port.name for port in content.program.inputs]
    (path / "fxmerge.json").write_text(json.dumps(content.described, indent=2), encoding="utf-8")
    (path / "README.md").write_text(model_card(content.described, classes, inputs), encoding="utf-8")


def _read_folder(path: Path, program: Program) -> Runnable:
    found = load_file(path / WEIGHTS)
    if (path / HEADS).is_file():
        found |= load_file(path / HEADS)
    return program.evolve(tensors=found)


def _contiguous(program: Program) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in program.tensors.items()}


ONNX = Format(".onnx", _write_onnx, lambda path, program: OnnxModel(path))
FOLDER = Format("", _write_folder, _read_folder)
FORMATS = (
    ONNX,
    Format(".pt2", _write_pt2, _read_pt2, fewest=2),
    Format(".pt", _write_bundle, lambda path, program: load_bundle(path)),
    Format(".safetensors", _write_weights, _read_weights),
    FOLDER,
)
"""Every format that a model can be written in."""
