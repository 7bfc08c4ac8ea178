"""Programs from every kind of model file, told apart by what the file holds and not by its name."""

from __future__ import annotations

import inspect
import os
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fxmerge.capturing import capture
from fxmerge.capturing.refuse import refuse_random
from fxmerge.config.image_settings import NO_SETTINGS, ImageSettings
from fxmerge.errors import DataError, SourceError
from fxmerge.from_onnx.file import looks_like_onnx
from fxmerge.io.archives import Archive
from fxmerge.io.files import LARGEST_JSON
from fxmerge.io.guard import check_file
from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program
from fxmerge.messages import listed, nearest, printable
from fxmerge.samples import arrays
from fxmerge.samples.images import put_settings
from fxmerge.samples.load import LABELS, check_samples, load_samples
from fxmerge.samples.pretrained_cfg import asset_of
from fxmerge.sources import factory, huggingface
from fxmerge.sources.adapters import Adapter, is_adapter
from fxmerge.sources.bundle import GRAPH, INPUT_ASSETS, UNNAMED, load_bundle
from fxmerge.sources.checkpoint import Checkpoint, modules_in
from fxmerge.sources.importing import importable
from fxmerge.sources.onnx import load_onnx
from fxmerge.sources.pt2 import is_pt2, load_pt2
from fxmerge.sources.state_dict import check_weights, is_pickle, is_safetensors, read_weights
from fxmerge.sources.tokenizers import TOKENIZER, longest_in, with_longest

Inputs = str | Path | Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""Sample inputs: a file, a tensor for a single input, a tuple as forward takes it, or tensors by input name."""

KINDS = "a bundle, a .pt2, an .onnx, a state dict with --arch, or a folder in Hugging Face layout"


@dataclass(frozen=True)
class Where:
    """What a model is made of beside its file, as the user says."""

    arch: str | None = None
    weights: str | Path | None = None
    inputs: Inputs | None = None
    key: str | None = None
    ignore: tuple[str, ...] = ()
    allow_pickle: bool = False
    dynamic: tuple[str, ...] = ()
    batch_axis: int | None = None
    extensions: tuple[str, ...] = ()
    images: ImageSettings = NO_SETTINGS


def load(
    source: str | Path,
    *,
    arch: str | None = None,
    weights: str | Path | None = None,
    inputs: Inputs | None = None,
    task: str | None = None,
    key: str | None = None,
    ignore: Sequence[str] = (),
    allow_pickle: bool = False,
    dynamic: Sequence[str] = (),
    batch_axis: int | None = None,
    extensions: Sequence[str] = (),
    images: ImageSettings = NO_SETTINGS,
) -> Program:
    """The program of a model: a bundle, .pt2, .onnx, state dict with `arch`, Hugging Face folder, or a factory.

    `arch` builds the model that `weights` (or `source` itself) fill; `inputs` (any kind of samples) are traced with
    and kept as the program's samples. `key` says which of several weights of a checkpoint are meant, `ignore` names
    patterns of tensors that are none; `dynamic` and `batch_axis` are those of `fxmerge.capture`; `extensions` are
    `FILE:NAME`s that may read more operators of ONNX files; `images` says how images are read, in place of what the
    model says. The task is the file's stem unless the
    file or `task` names one.
    Raises `SourceError`, or `UnsafeFileError` if reading would execute code from the file.
    """
    path = Path(source)
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    given = Where(
        arch, weights, inputs, key, patterns, allow_pickle, tuple(dynamic), batch_axis, tuple(extensions), images
    )
    with ExitStack() as folders:
        for folder in _folders(str(source), given):
            folders.enter_context(importable(folder))
        program = _read(path, str(source), given)
    check_weights(program.tensors, program.parameters, str(source))
    program = put_settings(_with_beside(program, path) if not program.assets else program, images)
    if isinstance(inputs, str | Path) and not program.samples:
        samples = load_samples(inputs, program)
        program = program.evolve(samples=samples.inputs, notes=(*program.notes, *samples.notes))
    return program.evolve(task=task or (task_of(source) if program.task == UNNAMED else program.task))


def task_of(source: str | Path) -> str:
    """What the task of a source is called unless its file names it: the file's stem, or the factory's name."""
    path = Path(source)
    return path.stem if path.exists() else str(source).rpartition(":")[2]


def _folders(source: str, given: Where) -> list[Path]:
    """Where the code that the user names may import from: the working folder, and a Python file's own."""
    files = [text.rpartition(":")[0] for text in (source, given.arch or "")]
    return [Path.cwd(), *(Path(file).parent for file in files if file.endswith(".py") and Path(file).is_file())]


def _read(path: Path, source: str, given: Where) -> Program:
    kind = kind_of(path, source)
    if kind == "bundle" or kind == "pt2":
        _refuse_extras(path, given)
        program = load_bundle(path) if kind == "bundle" else load_pt2(path)
        refuse_random(program, probe(program))
        return program.evolve(samples={}) if given.inputs is not None else program
    if kind == "onnx":
        _refuse_extras(path, given)
        return load_onnx(path, extensions=given.extensions, batch_axis=given.batch_axis)
    if kind == "adapter":
        with TemporaryDirectory() as scratch:
            weights = Adapter.of(path).write(Path(scratch))
            return _huggingface(Path(scratch) / huggingface.CONFIG, weights.choosing(given.key, given.ignore), given)
    if kind == "folder" or kind == "config":
        config = path / huggingface.CONFIG if kind == "folder" else path
        if given.weights is None and kind == "config":
            raise SourceError(f"{path} is a config without weights", "add --weights FILE, or give the folder")
        weights = _weights(given) or Checkpoint(path, huggingface.read_folder(path))
        return _huggingface(config, weights.choosing(given.key, given.ignore), given)
    if kind == "factory":
        return _factory(source, _weights(given), given)
    found = _checkpoint(path, given)
    if isinstance(found, Program):
        return found
    if given.arch is None:
        raise SourceError(
            f"{path} is a state dict ({len(found.largest)} tensors): weights without a model",
            f"say what builds the model: fxmerge capture {path} --arch FACTORY ({factory.FORMS})",
        )
    if given.arch.endswith(".json") or Path(given.arch).is_dir():
        config = Path(given.arch) / huggingface.CONFIG if Path(given.arch).is_dir() else Path(given.arch)
        if not config.is_file():
            raise SourceError(f"--arch {config} does not exist", f"give {factory.FORMS}")
        return _huggingface(config, found, given)
    return _factory(given.arch, found, given)


def _refuse_extras(path: Path, given: Where) -> None:
    extras = {"--arch": given.arch, "--weights": given.weights, "--key": given.key, "--ignore": given.ignore}
    if used := [flag for flag, value in extras.items() if value]:
        raise SourceError(f"{path} holds its model and weights already", f"leave out {' and '.join(used)}")


def _checkpoint(path: Path, given: Where) -> Checkpoint | Program:
    """The weights in a file; a whole module in it, where that may be read, traced unless `arch` asks for weights."""
    found = read_weights(path, allow_pickle=given.allow_pickle)
    modules = modules_in(found if isinstance(found, nn.Module) else found.tree)
    if modules and given.arch is None:
        key, model, notes = _module(path, modules, given.key)
        where = f" (under {key!r})" if key else ""
        program = _trace(model, given, None, f"{path} is a pickled module{where}")
        return program.evolve(notes=(*program.notes, *notes))
    if modules:
        tree = {key: module.state_dict() for key, module in modules.items()}
        found = Checkpoint(path, tree.get("", tree))
    assert isinstance(found, Checkpoint)
    return found.choosing(given.key, given.ignore)


def _module(path: Path, modules: Mapping[str, nn.Module], key: str | None) -> tuple[str, nn.Module, list[str]]:
    """The module under `key`, or the first one; its key, and notes that say which others there are."""
    names = [name for name in modules if key is None or name == key or name.startswith(f"{key}.")]
    if not names:
        raise SourceError(
            f"{path} has no module under {key!r}{nearest(key or '', modules)}",
            f"it has {printable(listed(modules))}" if any(modules) else "leave --key out: the file is a module itself",
        )
    chosen, *others = names
    notes = [f"{path}: took the module under {chosen!r}"] if chosen else []
    if others:
        notes.append(f"{path} has other modules: {printable(listed(map(repr, others)))} (--key NAME takes them)")
    model = modules[chosen].eval()
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        model, notes = model.float(), [*notes, f"{path}: weights in half precision were read as float32"]
    return chosen, model, notes


def kind_of(path: Path, source: str) -> str:
    """What a source is: "bundle", "pt2", "onnx", "folder", "adapter", "config", "weights" or "factory".

    Raises `SourceError` for anything else.
    """
    if not os.path.lexists(path):
        if ":" in source:
            return "factory"
        raise SourceError(f"{path} does not exist", f"give {KINDS}")
    if os.path.isdir(path):
        if (path / huggingface.CONFIG).is_file():
            return "folder"
        if is_adapter(path):
            return "adapter"
        inside = printable(listed(sorted(p.name for p in path.iterdir()), 4))
        raise SourceError(
            f"{path} is a folder but no model: it has no {huggingface.CONFIG} (it has {inside})", f"give {KINDS}"
        )
    check_file(path)
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
    if looks_like_onnx(path, head):
        return "onnx"
    if head[:4] == b"PK\x03\x04":
        raise SourceError(f"{path} is truncated", "copy or write the file again")
    raise SourceError(f"{path} is no model fxmerge can read", f"give {KINDS}")


def _weights(given: Where) -> Checkpoint | None:
    """What is in the file of --weights, if that is given."""
    if given.weights is None:
        return None
    path = Path(given.weights)
    check_file(path, todo="give a state dict (.pt or .safetensors)")
    found = _checkpoint(path, replace(given, arch=given.arch or "weights"))
    assert isinstance(found, Checkpoint)
    return found


def _huggingface(config: Path, weights: Checkpoint, given: Where) -> Program:
    state, chosen = weights.named_like(huggingface.names_of(config, len(weights.largest)))
    model, notes = huggingface.build(config, state)
    assets = huggingface.assets_of(config.parent)
    program = _trace(model, given, huggingface.dummy_inputs(model, assets), str(config.parent))
    labels = huggingface.labels_of(config, program.outputs[0].shape[-1])
    notes = (*program.notes, *(note for note in chosen if "half precision" not in note), *notes)
    return program.evolve(labels=labels, notes=notes, assets=assets)


def _factory(arch: str, weights: Checkpoint | None, given: Where) -> Program:
    model, notes = factory.build(arch, weights)
    images = None
    if arch.startswith(("timm:", "torchvision:")):
        images = factory.image_inputs(model, given.images.taken)
    program = _trace(model, given, images, arch)
    assets = asset_of(getattr(model, "pretrained_cfg", None))
    program = program.evolve(notes=(*program.notes, *notes), assets=assets)
    return program if weights is None else _with_beside(program, weights.path)


def _trace(model: nn.Module, where: Where, dummies: Mapping[str, Tensor] | None, what: str) -> Program:
    """Capture on the arrays of `inputs`, which become the samples, or on random `dummies`, which do not."""
    inputs = where.inputs
    if inputs is not None and not (isinstance(inputs, str | Path) and Path(inputs).suffix not in arrays.SUFFIXES):
        given, notes = trace_inputs(inputs, model)
        program = capture(model, given, dynamic=where.dynamic, batch_axis=where.batch_axis)
        check_samples(program.samples, program, _named(inputs))
        return program.evolve(notes=(*program.notes, *notes))
    if dummies is None and inputs is not None:  # images, sound or text, which are read as a model takes them
        raise SourceError(
            f"{what}: its inputs are not known, and {inputs} holds no arrays that show them",
            f"trace it first: fxmerge capture WEIGHTS --arch {what} --inputs X.npz --out NAME.pt (arrays named like"
            " forward's parameters), then merge NAME.pt with the same --data",
        )
    if dummies is None:
        raise SourceError(
            f"{what}: its inputs are not known",
            "add --inputs FILE (to merge: --data TASK=FILE), an .npz with arrays named like forward's parameters",
        )
    program = capture(model, dict(dummies), dynamic=where.dynamic, batch_axis=where.batch_axis)
    shapes = "; ".join(f"{name} {tuple(value.shape)}" for name, value in dummies.items())
    return program.evolve(samples={}, notes=(*program.notes, f"traced with random inputs: {shapes}"))


def _named(inputs: Inputs) -> str:
    return str(inputs) if isinstance(inputs, str | Path) else "the samples"


def trace_inputs(inputs: Inputs, model: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Arrays by the names of the model's parameters, in the types models take, and notes."""
    notes: list[str] = []
    if isinstance(inputs, str | Path):
        held, cut = arrays.read_arrays(Path(inputs))
        found: dict[str, Any] = {name: value for name, value in held.items() if name not in LABELS}
        notes += cut
    else:
        found = {"": inputs} if isinstance(inputs, Tensor) else _by_name(inputs, model)
    where, takes = _named(inputs), factory.parameters_of(model)
    if len(found) == 1 and not found.keys() & takes.keys():
        found = {factory.first_parameter(model): next(iter(found.values()))}
    _check_names(found, takes, where)
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    given: dict[str, Tensor] = {}
    for name, value in found.items():
        tensor = arrays.as_tensor(value, f"{where}: {printable(name)}")
        if not tensor.numel():
            raise DataError(f"{where}: {printable(name)} is empty", "give at least one row")
        if tensor.dtype == torch.uint8 and tensor.ndim > 2:
            tensor = tensor.to(floats) / 255
            notes.append(f"{where}: {name} holds bytes; they were read as 0..1 (divided by 255)")
        elif tensor.is_floating_point():
            tensor = tensor.to(floats)
        elif tensor.dtype != torch.bool:
            tensor = tensor.to(torch.int64)
        given[name] = tensor
    return given, tuple(notes)


def _by_name(inputs: Mapping[str, Tensor] | Sequence[Tensor], model: nn.Module) -> dict[str, Any]:
    """Inputs by name; those of a tuple have the names of the parameters that they fill."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    names = list(factory.parameters_of(model))
    return {names[i] if i < len(names) else f"input {i}": value for i, value in enumerate(inputs)}


def _check_names(given: Mapping[str, Any], takes: Mapping[str, inspect.Parameter], where: str) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    unknown = [name for name in given if name not in takes]
    needed = [n for n, p in takes.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and n not in given]
    if unknown or needed:
        what = f"no array for {listed(needed)}" if needed else f"{printable(unknown[0])!r} is no parameter of forward"
        hint = nearest(needed[0], given) if needed else nearest(unknown[0], takes)
        raise DataError(
            f"{where}: {what} (found: {printable(listed(given))}){hint}",
            f"name the arrays like the parameters of forward: {listed(takes)}",
        )


def _with_beside(program: Program, path: Path) -> Program:
    """A program with the tokenizer.json and the like that lie beside its file."""
    found = _beside(path) if path.is_file() else {}
    if not found:
        return program
    note = f"with {listed(found)} from its folder"
    return program.evolve(assets={**program.assets, **found}, notes=(*program.notes, note))


def _beside(path: Path) -> dict[str, bytes]:
    """A tokenizer.json and the like that lie in a model's folder."""
    files = {name: path.parent / name for name in INPUT_ASSETS}
    found = {n: f.read_bytes() for n, f in files.items() if f.is_file() and f.stat().st_size <= LARGEST_JSON}
    if TOKENIZER in found:
        found[TOKENIZER] = with_longest(found[TOKENIZER], longest_in(path.parent))
    return {**huggingface.preprocessing_in(path.parent / huggingface.CONFIG), **found}
