"""Programs from every kind of model file, told apart by what the file holds and not by its name."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxmerge.errors import DataError, SourceError
from fxmerge.io import factory, huggingface
from fxmerge.io.archives import Archive
from fxmerge.io.bundle import GRAPH, INPUT_ASSETS, UNNAMED, load_bundle
from fxmerge.io.files import LARGEST_JSON
from fxmerge.io.pt2 import is_pt2, load_pt2
from fxmerge.io.state_dict import check_weights, is_pickle, is_safetensors, read_weights
from fxmerge.ir.capture import capture
from fxmerge.ir.program import Program
from fxmerge.messages import listed, nearest, printable
from fxmerge.samples import arrays
from fxmerge.samples.load import LABELS, check_samples, load_samples

KINDS = "a bundle, a .pt2, a state dict with --arch, or a folder in Hugging Face layout"


def load(
    source: str | Path,
    *,
    arch: str | None = None,
    weights: str | Path | None = None,
    inputs: str | Path | None = None,
    task: str | None = None,
    allow_pickle: bool = False,
) -> Program:
    """The program of a model: a bundle, .pt2, state dict with `arch`, Hugging Face folder, or a factory of the user's.

    `arch` builds the model that `weights` (or `source` itself) fill; `inputs` (any kind of samples) are traced with
    and kept as the program's samples. The task is the file's stem unless the file or `task` names one.
    Raises `SourceError`, or `UnsafeFileError` if reading would execute code from the file.
    """
    path = Path(source)
    program = _read(path, str(source), arch, weights, inputs, allow_pickle)
    check_weights(program.tensors, program.parameters, str(source))
    if inputs is not None and not program.samples:
        samples = load_samples(inputs, program)
        program = program.evolve(samples=samples.inputs, notes=(*program.notes, *samples.notes))
    if path.is_file() and not program.assets and (assets := _beside(path)):
        program = program.evolve(assets=assets, notes=(*program.notes, f"with {listed(assets)} from its folder"))
    stem = path.stem if path.exists() else str(source).rpartition(":")[2]
    return program.evolve(task=task or (stem if program.task == UNNAMED else program.task))


def _read(
    path: Path, source: str, arch: str | None, weights: str | Path | None, inputs: str | Path | None, allow_pickle: bool
) -> Program:
    kind = kind_of(path, source)
    if kind == "bundle" or kind == "pt2":
        if arch is not None or weights is not None:
            raise SourceError(f"{path} holds its model and weights already", "leave out --arch and --weights")
        program = load_bundle(path) if kind == "bundle" else load_pt2(path)
        return program.evolve(samples={}) if inputs is not None else program
    if kind == "folder" or kind == "config":
        config = path / huggingface.CONFIG if kind == "folder" else path
        if weights is None and kind == "config":
            raise SourceError(f"{path} is a config without weights", "add --weights FILE, or give the folder")
        state = _weights(Path(weights)) if weights is not None else huggingface.read_folder(path)
        return _huggingface(config, state, inputs)
    if kind == "factory":
        state_or_none = _weights(Path(weights)) if weights is not None else None
        return _factory(source, state_or_none, inputs)
    found = read_weights(path, allow_pickle=allow_pickle)
    if isinstance(found, nn.Module):
        return _trace(found, inputs, None, f"{path} is a pickled module")
    if arch is None:
        raise SourceError(
            f"{path} is a state dict ({len(found)} tensors): weights without a model",
            f"say what builds the model: fxmerge capture {path} --arch FACTORY ({factory.FORMS})",
        )
    if arch.endswith(".json") or Path(arch).is_dir():
        config = Path(arch) / huggingface.CONFIG if Path(arch).is_dir() else Path(arch)
        if not config.is_file():
            raise SourceError(f"--arch {config} does not exist", f"give {factory.FORMS}")
        return _huggingface(config, found, inputs)
    return _factory(arch, found, inputs)


def kind_of(path: Path, source: str) -> str:
    """What a source is: "bundle", "pt2", "folder", "config", "weights" or "factory", else a `SourceError`."""
    if not path.exists():
        if ":" in source:
            return "factory"
        raise SourceError(f"{path} does not exist", f"give {KINDS}")
    if path.is_dir():
        if (path / huggingface.CONFIG).is_file():
            return "folder"
        inside = printable(listed(sorted(p.name for p in path.iterdir()), 4))
        raise SourceError(
            f"{path} is a folder but no model: it has no {huggingface.CONFIG} (it has {inside})", f"give {KINDS}"
        )
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty", "copy or write the file again")
    if zipfile.is_zipfile(path):
        with Archive(path) as archive:
            names = archive.names
        return "bundle" if GRAPH in names else "pt2" if is_pt2(names) else "weights"
    if is_safetensors(path) or is_pickle(path):
        return "weights"
    with open(path, "rb") as stream:
        head = stream.read(64)
    if head.lstrip()[:1] == b"{" and path.stat().st_size <= LARGEST_JSON:
        return "config"
    if head[:4] == b"PK\x03\x04":
        raise SourceError(f"{path} is truncated", "copy or write the file again")
    raise SourceError(f"{path} is no model fxmerge can read", f"give {KINDS}")


def _weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise SourceError(f"--weights {path} does not exist", "give a state dict (.pt or .safetensors)")
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty", "copy or write the file again")
    state = read_weights(path)
    assert isinstance(state, dict)
    return state


def _huggingface(config: Path, state: Mapping[str, Tensor], inputs: str | Path | None) -> Program:
    model, notes = huggingface.build(config, state)
    program = _trace(model, inputs, huggingface.dummy_inputs(model), str(config.parent))
    labels = huggingface.labels_of(config, program.outputs[0].shape[-1])
    return program.evolve(labels=labels, notes=(*program.notes, *notes), assets=huggingface.assets_of(config.parent))


def _factory(arch: str, state: Mapping[str, Tensor] | None, inputs: str | Path | None) -> Program:
    model = factory.build(arch, state)
    images = factory.image_inputs(model) if arch.startswith(("timm:", "torchvision:")) else None
    return _trace(model, inputs, images, arch)


def _trace(model: nn.Module, inputs: str | Path | None, dummies: Mapping[str, Tensor] | None, what: str) -> Program:
    """Capture on the arrays of `inputs`, which become the samples, or on random `dummies`, which do not."""
    if inputs is not None and Path(inputs).suffix in arrays.SUFFIXES:
        given, notes = trace_inputs(Path(inputs), model)
        program = capture(model, given)
        check_samples(program.samples, program, str(inputs))
        return program.evolve(notes=(*program.notes, *notes))
    if dummies is None:
        raise SourceError(
            f"{what}: its inputs are not known",
            "add --inputs FILE: an .npz with arrays named like forward's parameters",
        )
    program = capture(model, dict(dummies))
    shapes = "; ".join(f"{name} {tuple(value.shape)}" for name, value in dummies.items())
    return program.evolve(samples={}, notes=(*program.notes, f"traced with random inputs: {shapes}"))


def trace_inputs(path: Path, model: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Arrays of a file by the names of the model's parameters, in the types models take, and notes."""
    found = {name: value for name, value in arrays.read_arrays(path).items() if name not in LABELS}
    takes = factory.parameters_of(model)
    if len(found) == 1 and not found.keys() & takes.keys():
        found = {factory.first_parameter(model): next(iter(found.values()))}
    _check_names(found, takes, path)
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    notes: list[str] = []
    given: dict[str, Tensor] = {}
    for name, value in found.items():
        tensor = arrays.as_tensor(value, f"{path}: {printable(name)}")
        if not tensor.numel():
            raise DataError(f"{path}: {printable(name)} is empty", "give at least one row")
        if tensor.dtype == torch.uint8 and tensor.ndim > 2:
            tensor = tensor.to(floats) / 255
            notes.append(f"{path}: {name} holds bytes; they were read as 0..1 (divided by 255)")
        elif tensor.is_floating_point():
            tensor = tensor.to(floats)
        elif tensor.dtype != torch.bool:
            tensor = tensor.to(torch.int64)
        given[name] = tensor
    return given, tuple(notes)


def _check_names(given: Mapping[str, Any], takes: Mapping[str, inspect.Parameter], path: Path) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    unknown = [name for name in given if name not in takes]
    needed = [n for n, p in takes.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and n not in given]
    if unknown or needed:
        what = f"no array for {listed(needed)}" if needed else f"{printable(unknown[0])!r} is no parameter of forward"
        hint = nearest(needed[0], given) if needed else nearest(unknown[0], takes)
        raise DataError(
            f"{path}: {what} (found: {printable(listed(given))}){hint}",
            f"name the arrays like the parameters of forward: {listed(takes)}",
        )


def _beside(path: Path) -> dict[str, bytes]:
    """A tokenizer.json and the like that lie in a model's folder."""
    files = {name: path.parent / name for name in INPUT_ASSETS}
    return {n: f.read_bytes() for n, f in files.items() if f.is_file() and f.stat().st_size <= LARGEST_JSON}
