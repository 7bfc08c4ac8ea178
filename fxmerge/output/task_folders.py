"""A folder for each task beside the trunk's, which the parents' own class of transformers loads.

    merged/model.safetensors                             what all tasks share
    merged/heads.safetensors                             everything else, by task
    merged/sst2/model-00001-of-00002.safetensors         the shared file (a hard link where the disk has them)
    merged/sst2/model-00002-of-00002.safetensors         the task's own weights
    merged/sst2/model.safetensors.index.json, config.json, tokenizer.json, …

A folder is left only if the class loads it without a missing or a misfit tensor, and computes what the merged model
computes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fxmerge.capturing.inputs import flatten
from fxmerge.errors import VerificationError
from fxmerge.from_onnx.runtime import compare_runs
from fxmerge.io.tensor_files import write_tensors
from fxmerge.ir.difference import largest
from fxmerge.ir.merge import UNFOLDED
from fxmerge.ir.program import Program
from fxmerge.messages import listed
from fxmerge.sources import huggingface
from fxmerge.sources.huggingface import COUNTER

CONFIG, WEIGHTS, HEADS = "config.json", "model.safetensors", "heads.safetensors"
SHARED, OWN = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
EXACT, TOLERANCE = 1e-5, 1e-4
"""Shares of an output's spread: up to the first a class computes the same, up to the second it rounds otherwise."""
Files = Mapping[str, bytes]


def write_weights(program: Program, path: Path, config: bytes | None, metadata: Mapping[str, str]) -> None:
    """The trunk's weights, without what its class makes itself, and all others in a file of their own."""
    names = {name for name in program.tensors if name not in program.origins}
    tensors = {name: value.detach().contiguous().clone() for name, value in program.tensors.items()}
    if config is not None and (known := class_names(config, len(program.tensors))):
        counters = _counters(known)
        tensors, names = counters | tensors, names & known | counters.keys()
    trunk = {name: value for name, value in tensors.items() if name in names}
    others = {name: value for name, value in tensors.items() if name not in names}
    write_tensors(trunk or others, path / WEIGHTS, {"format": "pt", **metadata})
    if trunk and others:
        write_tensors(others, path / HEADS, {"format": "pt"})


def write_task_folder(
    program: Program, path: Path, task: str, files: Files, samples: Mapping[str, Tensor]
) -> tuple[str, float, list[str]]:
    """Write the folder of a task, beside weights that are written already.

    Returns the name of the class that loads it, its difference from the merged model by an output's spread, and the
    outputs that it gives in units of the merged model, where that has the parent's (hidden states).

    Raises `FxmergeError`, and leaves no folder, if the parent's class cannot hold what the merged model computes.
    """
    folder = path / task
    folder.mkdir()
    try:
        _write(program, folder, task, files)
        return _check(program, folder, task, samples)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _unfolded(program: Program) -> list[str]:
    """Matrices of a merged model that folded into no weight: no class has a name for them."""
    return sorted(name for name in program.parameters if name.startswith(UNFOLDED))


def _alone(program: Program, task: str) -> Program:
    return program.only([port.name for port in program.outputs if port.name.startswith(f"{task}.")], inputs=True)


def _write(program: Program, folder: Path, task: str, files: Files) -> None:
    config = json.loads(files[CONFIG])
    tied = _tied_names(files[CONFIG], len(program.tensors))
    names = {name for group in tied for name in group}
    mine = {name: value for name, value in program.tensors.items() if name in names}
    for name in (name for name in program.tensors if name.startswith(f"{task}.")):
        plain = name.removeprefix(f"{task}.")
        others = [other for group in tied if plain in group for other in group if other != plain]
        if plain not in mine:
            mine[plain] = program.tensors[name]
        elif len(others) == 1:  # a table that the parent has for both ends, and the merged model for each its own
            mine[others[0]] = program.tensors[name]
            config["tie_word_embeddings"] = False
    for group in tied if config.get("tie_word_embeddings") is False else ():
        held = next((mine[name] for name in group if name in mine), None)
        mine |= {} if held is None else {name: held for name in group if name not in mine}
    mine = _counters(names) | mine
    shared = _names(folder.parent / WEIGHTS)
    own = {name for name in mine if name not in program.tensors and not name.endswith(COUNTER)}
    whole = shared <= names and not shared & own
    alone = {n: v.detach().contiguous().clone() for n, v in mine.items() if not whole or n not in shared}
    if whole and alone:
        _link(folder.parent / WEIGHTS, folder / SHARED)
        write_tensors(alone, folder / OWN, {"format": "pt"})
        size = sum(value.numel() * value.element_size() for value in mine.values())
        where = {**dict.fromkeys(sorted(shared), SHARED), **dict.fromkeys(sorted(alone), OWN)}
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    elif whole:
        _link(folder.parent / WEIGHTS, folder / WEIGHTS)
    else:
        write_tensors(alone, folder / WEIGHTS, {"format": "pt"})
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links
        shutil.copyfile(source, target)


class _Loaded:
    """A model of transformers that answers as the merged one does, for its task."""

    def __init__(self, model: nn.Module, task: str, merged: Program, given: Mapping[str, Tensor]) -> None:
        self.model, self.task, self.inputs = model, task, {port.name for port in merged.inputs}
        found, wanted = self._run(given), merged.run(given)
        self.rows = {name: _rows(value, wanted[name]) for name, value in found.items() if name in wanted}
        """By output: the axis on which the class has the batch, which is the first one of the merged model."""

    def run(self, inputs: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        found = self._run(inputs).items()
        return {name: value.movedim(axis, 0) if (axis := self.rows.get(name)) else value for name, value in found}

    @torch.no_grad()
    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name.removeprefix(f"{self.task}."): value for name, value in inputs.items() if name in self.inputs}
        return {f"{self.task}.{name}": value for name, value in flatten(self.model(**given))}


def _rows(value: Tensor, wanted: Tensor) -> int:
    return next((axis for axis in range(value.ndim) if value.movedim(axis, 0).shape == wanted.shape), 0)


def _check(program: Program, folder: Path, task: str, samples: Mapping[str, Tensor]) -> tuple[str, float, list[str]]:
    mine = _alone(program, task)
    model, _ = huggingface.build(folder / CONFIG, huggingface.read_folder(folder))
    given = {port.name: samples[port.name] for port in mine.inputs if port.name in samples}
    found = compare_runs(_Loaded(model, task, mine, given), mine, given)
    unlike = [name for name, gap in found.items() if not largest({name: gap}) <= TOLERANCE]
    alike = {name: gap for name, gap in found.items() if name not in unlike}
    if not all(_unfolded(mine.only([name])) for name in unlike):
        raise VerificationError(f"its class computes something else, by {largest(found):.2g} of the spread", "use ONNX")
    if not alike:
        raise VerificationError(
            f"its class has no place for {listed(_unfolded(mine), 3)}, which folded into no weight",
            "end the trunk behind another block (--share-until), or use ONNX",
        )
    return type(model).__name__, largest(alike), [name.removeprefix(f"{task}.") for name in unlike]


def _counters(names: Collection[str]) -> dict[str, Tensor]:
    """What batch norms count while they train: anew from zero."""
    return {name: torch.zeros((), dtype=torch.long) for name in names if name.endswith(COUNTER)}


def class_names(config: bytes, tensors: int) -> frozenset[str]:
    return frozenset(name for group in _tied_names(config, tensors) for name in group)


def _tied_names(config: bytes, tensors: int) -> list[list[str]]:
    """What the class that a config.json names calls its tensors."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / CONFIG
        file.write_bytes(config)
        return huggingface.tied_names(file, tensors)


def _names(file: Path) -> frozenset[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return frozenset(opened.keys())
