"""The parents of a merge: programs as they are given, or read from their sources with what the user says of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fxmerge.compiler.figures import digest
from fxmerge.compiler.gates import check_names
from fxmerge.config import MergeConfig
from fxmerge.config.image_settings import IMAGE_OPTIONS
from fxmerge.errors import CaptureError, DataError, OptionError
from fxmerge.ir.program import Program
from fxmerge.ir.shapes import first_unsized
from fxmerge.messages import nearest
from fxmerge.result import ParentFacts
from fxmerge.samples.fit import fit_given
from fxmerge.samples.images import picture_port, preprocessing, put_settings
from fxmerge.samples.load import Reading, Samples, load_samples
from fxmerge.sources import load as sources
from fxmerge.sources.licenses import license_of

Parent = Program | str | Path


def load_parents(given: Sequence[Parent], config: MergeConfig, data: Any) -> list[Program]:
    """The programs of two or more parents; state dicts are traced on their task's samples in `data`.

    Raises `OptionError` for options that no parent can use, and for two parents of one name.
    """
    if len(given) < 2:
        raise OptionError(f"{len(given)} model given", "give two or more models to merge")
    for number, parent in enumerate(given):
        if not isinstance(parent, Program | str | Path):
            raise CaptureError(
                f"parent {number} is a {type(parent).__name__}, which is not traced",
                "give programs, fxmerge.capture(model, (x,), task=NAME), or paths of models",
            )
    tasks = [parent.task if isinstance(parent, Program) else sources.task_of(parent) for parent in given]
    _check_use(given, tasks, config)
    programs = [
        put_settings(parent, config.images(task))
        if isinstance(parent, Program)
        else _read(parent, task, config, _of_task(data, task, tasks))
        for parent, task in zip(given, tasks, strict=True)
    ]
    _check(programs, config)
    bare = any(not isinstance(parent, Program) and _is_bare(parent) for parent in given)
    if config.batch_axis is not None and not bare and not any(program.turned for program in programs):
        raise OptionError(
            f"--batch-axis {config.batch_axis}: every parent takes its batch on the first axis",
            "leave it out, or say it where the model is traced: fxmerge capture --batch-axis N",
        )
    return programs


BASE = "base"
"""Task of the model that the parents were tuned from: `--arch base=FACTORY` is for it alone."""


def load_base(source: str, config: MergeConfig, samples: Mapping[str, Any]) -> Program:
    """The model that the parents were tuned from; what holds no samples of its own is traced on these."""
    return _read(source, BASE, config, dict(samples) or None)


def samples_of(program: Program, value: Any, config: MergeConfig) -> Samples:
    """Samples of a parent, from tensors, from arrays as a file holds them, or from a file; without any, its own."""
    if value is None:
        return Samples(dict(program.samples))
    how = Reading(batch_axis=config.batch_axis, strict=config.strict_data, labels=False)
    if isinstance(value, np.ndarray | Tensor | Mapping):
        return fit_given(value, program, f"the samples of {program.task}", how)
    if not isinstance(value, str | Path):
        raise DataError(
            f"the samples of {program.task} are a {type(value).__name__}",
            "give a tensor or array, a dict of them by input name, or a path, or a dict of these by task",
        )
    return load_samples(value, program, how)


def facts_of(source: Parent, program: Program, joined: Program) -> ParentFacts:
    """What the result says of a parent: of where it came from, of itself, and of what stands for it in the merge."""
    where = None if isinstance(source, Program) else str(source)
    only = joined.teacher is not None and joined.teacher.only
    role: Literal["merged", "teacher"] = "teacher" if only else "merged"
    return ParentFacts(program.task, where, digest(source, program), program.count(), license_of(where), role)


def teacher_notes(lined: Sequence[Program], template: int) -> list[str]:
    """What to say of parents that take part as teachers only."""
    return [
        f"{each.task} is a teacher only, and what is done for it is distillation: the trunk is that of "
        f"{lined[template].task}, with a new head for {each.task} ({each.teacher.why})"
        for each in lined
        if each.teacher is not None and each.teacher.only
    ]


def _read(source: str | Path, task: str, config: MergeConfig, samples: Any) -> Program:
    """The program of a SOURCE. What holds no samples of its own, as a state dict, is traced on those of the task."""
    weights = _takes_weights(source)  # what is said for all parents is for those that can use it
    bare = _is_bare(source)
    return sources.load(
        source,
        arch=config.arch.get(task) or (config.arch.get("") if weights else None),
        key=config.key.get(task) or (config.key.get("") if weights else None),
        ignore=config.ignore if weights else (),
        inputs=samples if bare else None,
        allow_pickle=config.allow_pickle,
        batch_axis=config.batch_axis if bare else None,
        extensions=config.extension,
        images=config.images(task),
    )


def _is_bare(source: str | Path) -> bool:
    """Whether a source holds no trace, and is traced here."""
    return _takes_weights(source) or sources.kind_of(Path(source), str(source)) == "factory"


def _takes_weights(source: Parent) -> bool:
    return not isinstance(source, Program) and sources.kind_of(Path(source), str(source)) == "weights"


def _check_use(given: Sequence[Parent], tasks: Sequence[str], config: MergeConfig) -> None:
    """Every task that --arch and --key name is there, and what is said for all is of use to one."""
    images = {f"--{name.replace('_', '-')}": getattr(config, name) for name in IMAGE_OPTIONS}
    for flag, values in {"--arch": config.arch, "--key": config.key, **images}.items():
        known = [*tasks, BASE] if config.base else list(tasks)
        if wrong := [task for task in values if task and task not in known]:
            raise OptionError(
                f"{flag} {wrong[0]}=…: there is no task of that name{nearest(wrong[0], known)}",
                f"the tasks are {', '.join(tasks)}",
            )
    used = {"--arch": "" in config.arch, "--key": "" in config.key, "--ignore": bool(config.ignore)}
    idle = [flag for flag, is_given in used.items() if is_given]
    if idle and not any(_takes_weights(parent) for parent in given):
        raise OptionError(f"{idle[0]} is for weights, and every parent holds its model already", f"leave {idle[0]} out")


def by_task(data: Any, programs: Sequence[Program]) -> dict[str, Any]:
    """`data` as given to `merge`, by task; the key "" stands for every task."""
    if data is None or (isinstance(data, Mapping) and not data):
        return {}
    if not isinstance(data, Mapping):
        return {"": data}
    tasks = [program.task for program in programs]
    if set(data) <= {*tasks, ""}:
        return dict(data)
    names = {port.name for port in programs[0].inputs}
    if set(data) <= names | {name.partition(".")[0] for name in names}:  # nested inputs may be given as they are
        return {"": data}
    wrong = next(name for name in data if name not in tasks)
    raise DataError(f"there is no task named {wrong}{nearest(wrong, tasks)}", f"the tasks are {', '.join(tasks)}")


def _of_task(data: Any, task: str, tasks: Sequence[str]) -> Any:
    """The samples of a task in `data` as `merge` takes it: by task, or (by input, or one path) for all tasks."""
    if not isinstance(data, Mapping):
        return data
    if set(data) <= {*tasks, ""}:
        return data.get(task, data.get(""))
    return data


def _check(programs: Sequence[Program], config: MergeConfig) -> None:
    tasks = [program.task for program in programs]
    twice = next((t for t in tasks if tasks.count(t) > 1), None)
    if twice is not None:
        raise OptionError(
            f"two parents have the task name {twice}", "capture one of them with --task NAME, or rename its file"
        )
    if not 0 <= config.like < len(programs):
        raise OptionError(
            f"--like {config.like} of {len(programs)} parents", f"choose one from 0 to {len(programs) - 1}"
        )
    fixed = {program.rows: program.task for program in programs if program.rows is not None}
    if len(fixed) > 1:
        (few, one), (many, other), *_ = sorted(fixed.items())
        raise OptionError(
            f"{one} takes {few} rows at a time and {other} {many}", "capture both with samples of as many rows"
        )
    if config.gate:
        check_names(programs)
    _check_images(programs, config)
    for program in programs:
        for name in sorted(program.parameters):
            if not bool(program.tensors[name].isfinite().all()):
                raise DataError(f"{program.task}: {name} has NaN or infinite values", "merge a model that trained")


def _check_images(programs: Sequence[Program], config: MergeConfig) -> None:
    """What is said of images is said of parents that take some."""
    takes = {p.task for p in programs if picture_port(p.inputs, preprocessing(p.assets, p.task))}
    for name in IMAGE_OPTIONS:
        for task in getattr(config, name):
            if task not in takes and (task or not takes):
                flag = f"--{name.replace('_', '-')}"
                who = f"{task} takes no images" if task else "no parent takes images"
                raise OptionError(f"{flag} is for images, and {who}", f"leave {flag} out")


def unsized_in(programs: Sequence[Program]) -> CaptureError:
    """What to say of parents with values whose sizes depend on the data."""
    found = next((node for node in map(first_unsized, programs) if node is not None), None)
    at = f" (at {found.meta['source']})" if found is not None and "source" in found.meta else ""
    return CaptureError(
        f"a size depends on what the inputs hold, not on their shapes{at}",
        "compute all rows and choose with torch.where, in place of indexing with a mask",
    )
