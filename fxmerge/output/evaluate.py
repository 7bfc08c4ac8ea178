"""Measure a merged ONNX model on labeled or unlabeled samples, alone or against its parents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fxmerge.config.image_settings import ImageSettings
from fxmerge.errors import DataError
from fxmerge.ir.program import Program
from fxmerge.messages import unknown
from fxmerge.output.merged_file import MergedFile
from fxmerge.output.scores import Score, add_outputs, agreement
from fxmerge.output.truth import truth_of
from fxmerge.samples.images import put_settings
from fxmerge.samples.load import Reading, load_samples
from fxmerge.samples.load import Samples as Loaded
from fxmerge.samples.rows import rows_of
from fxmerge.sources.load import load
from fxmerge.stages import Stages

Samples = Mapping[str, Tensor]


def evaluate(
    model: str | Path,
    data: Mapping[str, str],
    *,
    parents: Sequence[str | Path | Program] = (),
    device: str = "cpu",
    limit: int | None = None,
    strict_data: bool = False,
    allow_pickle: bool = False,
    metric: Mapping[str, str] | None = None,
    images: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    stages: Stages | None = None,
) -> dict[str, Any]:
    """Figures per task of the merged model at `model`, run by ONNX Runtime: what `eval --json` prints.

    `data`: a path of samples by task; the key "" serves every task. With labels there is an accuracy, of the output
    that holds class scores; with the task's parent there are figures of every output, and an agreement, the share of
    samples in which both choose the same class, where an output holds class scores (`metric` says so where nothing
    else does). With a gate there is a `gate_accuracy`, the share of samples whose task it names, and, with labels, a
    `routed_accuracy`, in which a sample that it takes for another task's counts as wrong; `answer_accuracy` is that of
    what it mixes of all tasks. A decoder, whose output at a
    token depends on no later one, has a perplexity in place of an accuracy.
    """
    metric = metric or {}
    stages = stages or Stages()
    with stages("load"):
        merged = MergedFile(model, device)
        loaded = [p if isinstance(p, Program) else load(p, allow_pickle=allow_pickle) for p in parents]
        teachers = {program.task: program for program in loaded}
    for name in [*data, *teachers, *(task for said in images.values() for task in said)]:
        if name and name not in merged.tasks:
            raise unknown("task", name, merged.tasks)
    names = [port.name for port in merged.onnx.outputs]
    for name in metric:
        if name and name not in (*merged.tasks, *names):
            raise unknown("task or output", name, [*merged.tasks, *names])
    notes = [note for given, program in zip(parents, loaded, strict=True) if (note := merged.stranger(given, program))]
    rows = []
    for task in merged.tasks:
        path = data.get(task, data.get(""))
        if path is None:
            continue
        with stages(f"eval {task}") as tell:
            parent = teachers.get(task)
            takes = put_settings(parent or merged.shell(task), ImageSettings.of(images, task))
            samples = _read(path, takes, parent is None, Reading(limit, strict=strict_data))
            notes += samples.notes
            truth = truth_of(merged, task, parent, samples, metric)
            compared: dict[str, Score] = {}
            for first, part in _chunks(samples.inputs, merged.rows_at_once(task)):
                ours, named, mixed = merged.answer(task, part)
                theirs = None if parent is None else _run(parent, part)
                if parent is not None and theirs is not None:
                    add_outputs(compared, parent, part, ours, theirs, metric)
                truth.add(part, ours, theirs, first, named, mixed)
                tell(first + rows_of(part), samples.rows, "")
            rows.append(
                {
                    "task": task,
                    "samples": samples.rows,
                    **_skipped(samples),
                    **_kept(compared),
                    **truth.figures(),
                }
            )
            notes += [note for score in compared.values() for note in score.notes(task)]
    return {"model": str(model), "device": device, "tasks": rows, "notes": list(dict.fromkeys(notes))}


def _skipped(samples: Loaded) -> dict[str, int]:
    """How many broken parts of the samples were left out, where some were."""
    return {"skipped": samples.skipped} if samples.skipped else {}


def _read(path: str, takes: Program, alone: bool, how: Reading) -> Loaded:
    """Samples as the parent takes them; an older ONNX file, `alone`, knows its inputs, but no tokenizer."""
    try:
        return load_samples(path, takes, how)
    except DataError as error:
        if alone and "tokenizer" in error.what:
            raise DataError(
                error.what, f"give --parent SOURCE: the tokenizer of {takes.task} is in its bundle"
            ) from error
        raise


def _kept(compared: Mapping[str, Score]) -> dict[str, Any]:
    """The agreement of a task, None where no output holds class scores, and the figures of every output."""
    found = list(compared.values())
    return {"agreement": agreement(found), "outputs": [score.figures() for score in found]} if found else {}


def _run(program: Program, samples: Samples) -> dict[str, Tensor]:
    with torch.no_grad():
        return program.run(samples)


def _chunks(samples: Samples, size: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
    rows = rows_of(samples)
    for first in range(0, rows, size):
        yield first, {n: v[first : first + size] if v.ndim and len(v) == rows else v for n, v in samples.items()}
