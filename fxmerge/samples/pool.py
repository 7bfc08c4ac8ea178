"""The pool of a merge: unlabeled inputs of all tasks, augmented, made block by block as they are read.

    tasks take the same inputs     one table of all tasks' samples; a table a shape where shapes differ and no mask
                                   says what padding would be
    every task its own inputs      one table, row beside row: a new row of every task at a time

Rows of tokens keep their own length: a block is as long as its longest row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fxmerge.errors import DataError
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.samples import token_rows
from fxmerge.samples.augment import Maker, candidates, recipe
from fxmerge.samples.continued import Continued, Text
from fxmerge.samples.places import columns
from fxmerge.samples.rows import Samples, rows_of
from fxmerge.samples.varied import Beside, Varied, masks_of
from fxmerge.samples.written import Writer
from fxmerge.training.pool import Pool, Table
from fxmerge.training.settings import Progress

ROWS = 48_000
"""Rows after augmentation, unless asked otherwise."""
BLOCK_BYTES = 1 << 26
"""Inputs made at a time at most, unless one batch takes more."""
BATCHES = 4
"""Batches in a block, where they are small enough."""
ENOUGH = 8
"""With fewer samples of a task nothing is tried."""
PART = 400
"""Rows that a parent writes at a time."""
READ = 6
"""Times that a written row is read: more often it is learnt by heart, less often it costs more than it teaches."""
WRITTEN = "written"
"""The kind of pool of which the parents write most."""
HELD = 256
"""Samples of a task that a trial is judged by at most."""
TELLING, VARIED = 64, 512
"""Fewer held-back samples than the first are varied to so many rows of all tasks."""


@dataclass(frozen=True)
class Recipe:
    """What the user can say about the pool."""

    kind: str = "auto"
    rows: int | None = None
    batch: int = 64
    seed: int = 0
    steps: int = 600
    """Of the run, as far as is known."""


@dataclass(frozen=True)
class Pools:
    """The pools that can be made from the samples of a merge: one for each way to vary them."""

    supernet: SuperNet
    samples: Sequence[Samples]
    """Of every parent, by its own input names."""
    recipe: Recipe
    progress: Progress | None = None
    """Told what takes long."""

    @cached_property
    def own(self) -> list[tuple[str, ...]]:
        """What the inputs of every task may be."""
        found = []
        for k, (parent, own) in enumerate(zip(self.supernet.parents, self.samples, strict=True)):
            names = zip(self.supernet.inputs[k], parent.inputs, strict=True)
            found.append(candidates(parent.inputs, own, {port.name for name, port in names if name in self.fixed}))
        return found

    @cached_property
    def fixed(self) -> frozenset[str]:
        """The inputs, by the SuperNet's names, that are columns of a table."""
        return columns(self.supernet, self.samples)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds to choose from, the likeliest first: the user's, or what the inputs may be."""
        if self.recipe.kind != "auto":
            return (self.recipe.kind,)
        return (WRITTEN, *self._varied) if self.writers else self._varied

    @cached_property
    def _varied(self) -> tuple[str, ...]:
        """The kinds that vary samples, the likeliest first, and none."""
        varied = [kinds[:-1] or kinds for kinds in self.own]
        joined = ("+".join(sorted({part for kinds in varied for part in kinds[n].split("+")})) for n in (0, -1))
        return tuple(dict.fromkeys([*(kind.replace("none+", "") for kind in joined), "none"]))

    @cached_property
    def writers(self) -> dict[int, Writer]:
        """By parent: those that can write more text for all."""
        if not self.supernet.together or len({_shape(own) for own in self.samples}) > 1:
            return {}
        found = {k: Writer.of(self.supernet, k, own) for k, own in enumerate(self.samples)}
        return {k: writer for k, writer in found.items() if writer is not None}

    @cached_property
    def written(self) -> tuple[Text, ...]:
        """What the parents write, from samples that are not held back, so that it serves trials too."""
        if not self.writers:
            raise DataError("no parent can write text", "choose another --augment")
        made = []
        for k, writer in self.writers.items():
            own = self.samples[k]
            held = _held(own) if self.triable else 0
            rest = {name: value[held:] for name, value in own.items()}
            size, told = min(PART, self.recipe.rows or PART), partial(self._told, writer.program.task)
            made.append(Text(writer, rest, partial(self.supernet.given, k), size, self.recipe.seed + k, told))
        return tuple(made)

    def _told(self, task: str, done: int, rows: int) -> None:
        if self.progress is not None:
            self.progress(done, rows, f"{task} writes text")

    def _continued(self, samples: Sequence[Samples], steps: int) -> Pool:
        """Samples of every task, and as much text of every writer as is read READ times in so many steps."""
        given = [self.supernet.given(k, own) for k, own in enumerate(samples)]
        joined = {name: torch.cat([own[name] for own in given]) for name in given[0]}
        each = self.recipe.rows or steps * self.recipe.batch / (READ * len(self.written))
        stretches = max(1, math.ceil(each / self.written[0].size))
        program, block = self.supernet.program, self._block(given)
        table = Continued(joined, self.written, stretches, program, block, self.recipe.seed)
        about = {"kind": WRITTEN, "steps": ["written-by-parents"], "pool": table.rows, "samples": rows_of(joined)}
        masks = [i for i, port in enumerate(program.inputs) if port.name in table.masks]
        return Pool((table,), tuple(masks), about, read=1 if self.recipe.rows else READ)

    def pool(self, kind: str, steps: int | None = None) -> Pool:
        """The pool of a kind, of all samples, for a run of so many steps."""
        if kind == WRITTEN:
            return self._continued(self.samples, steps or self.recipe.steps)
        return self._pool(self.samples, kind, 0 if self.recipe.kind == "none" else self.recipe.batch)

    @property
    def triable(self) -> bool:
        """Whether there are samples enough to hold some back."""
        return min(map(rows_of, self.samples)) >= ENOUGH

    def trial(self, kind: str, share: float) -> Pool:
        """A pool for a trial of `share` of the steps: of as small a share of the samples, so each is seen as often.

        None of the samples that `held` gives are in it.
        """
        few = []
        for own in self.samples:
            held, rest = _held(own), rows_of(own) - _held(own)
            kept = min(rest, max(8, round(rest * share)))
            few.append({name: value[held : held + kept] for name, value in own.items()})
        if kind == WRITTEN:
            return self._continued(few, round(self.recipe.steps * share))
        return self._pool(few, kind, self.recipe.batch)

    @property
    def held_back(self) -> int:
        """How many samples of a task are held back from trials: of the task with fewest."""
        return min(map(_held, self.samples))

    def held(self) -> Pool:
        """Samples that no trial trains on, to judge trials by: as they are, or varied where they are few.

        A handful says too little: of a good start it praises whatever changes least.
        """
        return self._judging(range(len(self.samples)))

    def held_of(self, k: int) -> Pool | None:
        """The same of task k alone; None where every task has inputs of its own, so that no row is of one alone."""
        return self._judging([k]) if self.supernet.together else None

    def _judging(self, tasks: Sequence[int]) -> Pool:
        chosen = [self.samples[k] for k in tasks]
        few = [{name: value[: _held(own)] for name, value in own.items()} for own in chosen]
        if self.held_back >= TELLING or self.recipe.kind == "none" or self._varied[0] == "none":
            return self._pool(few, "none", tasks=tasks)
        recipe = replace(self.recipe, kind="auto", rows=VARIED)
        return replace(self, recipe=recipe)._pool(few, self._varied[0], tasks=tasks)

    def _pool(self, samples: Sequence[Samples], kind: str, fewest: int = 0, tasks: Sequence[int] | None = None) -> Pool:
        """The pool of a kind, of samples of these tasks: of all, if there are no `tasks`."""
        which = range(len(samples)) if tasks is None else tasks
        given = [self.supernet.given(k, own) for k, own in zip(which, samples, strict=True)]
        names = [port.name for port in self.supernet.program.inputs]
        if self.supernet.together:
            groups = [(group, kind) for group in alike(given)]
        else:
            groups = [([own], self._part(k, kind)) for k, own in enumerate(given)]
        sizes = [sum(map(rows_of, group)) for group, _ in groups]
        total, block = sum(sizes), self._block(given)
        made = []
        for (group, own), size in zip(groups, sizes, strict=True):
            share = len(group) / len(given) if self.supernet.together else 1.0
            plain = size if self.supernet.together else max(sizes)
            wanted = max(plain, math.ceil(fewest * share)) if kind == "none" else round(ROWS * share)
            rows = max(1, round(self.recipe.rows * share) if self.recipe.rows else wanted)
            made.append(
                Varied(Maker(group, own, self.fixed), self.supernet.program, rows, block, self.recipe.seed, own)
            )
        tables: tuple[Table, ...] = tuple(made) if self.supernet.together else (Beside(tuple(made), names),)
        masks = {name for table in made for name in table.masks}
        steps = [] if kind == "none" else list(recipe(kind, min(map(rows_of, given))))
        about = {"kind": kind, "steps": steps, "pool": sum(table.rows for table in tables), "samples": total}
        return Pool(tables, tuple(i for i, name in enumerate(names) if name in masks), about)

    def _part(self, k: int, kind: str) -> str:
        """The part of a kind that was found for the inputs of task k; "none" where there is no such part."""
        if self.recipe.kind != "auto":
            return kind
        own = {part for each in self.own[k] for part in each.split("+")}
        return "+".join(part for part in kind.split("+") if part in own) or "none"

    def _block(self, tasks: Sequence[Samples]) -> int:
        """Rows of a block: some batches, as long as their inputs stay small."""
        row = sum(value[0].numel() * value.element_size() for task in tasks for value in task.values())
        return self.recipe.batch * max(1, min(BATCHES, BLOCK_BYTES // max(1, row * self.recipe.batch)))


def _held(samples: Samples) -> int:
    """How many samples of a task are held back in a trial."""
    return min(HELD, max(2, rows_of(samples) // 4))


def alike(tasks: Sequence[Samples]) -> list[list[Samples]]:
    """The tasks by the shape of their rows; rows of tokens whose padding a mask marks get one length."""
    groups: dict[Any, list[Samples]] = {}
    if len({_shape(task) for task in tasks}) > 1:
        tasks = token_rows.pad_alike(tasks)
    for task in tasks:
        groups.setdefault(_shape(task), []).append(task)
    return list(groups.values())


def _shape(task: Samples) -> Any:
    return tuple((name, tuple(value.shape[1:])) for name, value in task.items())


def pool_of(program: Program, inputs: Mapping[str, Tensor]) -> Pool:
    """Inputs by name as a pool in the order of the program's ports, in the ports' dtypes."""
    masks = masks_of(inputs)
    stored = [inputs[port.name].to(port.dtype).contiguous() for port in program.inputs]
    return Pool.of(stored, tuple(i for i, port in enumerate(program.inputs) if port.name in masks))
