"""The pool of a merge: unlabeled inputs of all tasks, augmented, made block by block as they are read.

    tasks take the same inputs     one table of all tasks' samples; a table a shape where shapes differ and no mask
                                   says what padding would be
    every task its own inputs      one table, row beside row: a new row of every task at a time

Rows of tokens keep their own length: a block is as long as its longest row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fxmerge.errors import DataError
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.samples import token_rows
from fxmerge.samples.augment import Maker, candidates, recipe
from fxmerge.samples.written import ROWS as ROWS_WRITTEN
from fxmerge.samples.written import Writer
from fxmerge.training.pool import Inputs, Pool, Table, digest
from fxmerge.training.settings import Progress

Samples = dict[str, Tensor]

ROWS = 48_000
"""Rows after augmentation, unless asked otherwise."""
BLOCK_BYTES = 1 << 26
"""Inputs made at a time at most, unless one batch takes more."""
BATCHES = 4
"""Batches in a block, where they are small enough."""
ENOUGH = 8
"""With fewer samples of a task nothing is tried."""
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
        return [candidates(p.inputs, own) for p, own in zip(self.supernet.parents, self.samples, strict=True)]

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
    def written(self) -> dict[int, Samples]:
        """What the parents write, by parent: of samples that are not held back, so it serves trials too."""
        if not self.writers:
            raise DataError("no parent can write text", "choose another --augment")
        made = {}
        for k, writer in self.writers.items():
            own = self.samples[k]
            held = _held(own) if self.triable else 0
            rest = {name: value[held:] for name, value in own.items()}
            told = partial(self._told, writer.program.task)
            made[k] = writer.write(rest, self.recipe.rows or ROWS_WRITTEN, self.recipe.seed + k, told)
        return made

    def _told(self, task: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total, f"{task} writes text")

    def _with_written(self, samples: Sequence[Samples]) -> list[Samples]:
        """Samples of every task, and what its parent wrote."""
        return [
            {name: torch.cat([value, self.written[k][name]]) for name, value in own.items()}
            if k in self.written
            else own
            for k, own in enumerate(samples)
        ]

    def pool(self, kind: str) -> Pool:
        """The pool of a kind, of all samples."""
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
        if kind == WRITTEN:
            pool = self._pool(self._with_written(samples), "none", fewest)
            about = {"kind": kind, "steps": ["written-by-parents"], "samples": sum(map(rows_of, samples))}
            return replace(pool, about={**pool.about, **about})
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
            made.append(Varied(Maker(group, own), self.supernet.program, rows, block, self.recipe.seed, own))
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


def rows_of(samples: Mapping[str, Tensor]) -> int:
    return max((value.shape[0] for value in samples.values() if value.ndim), default=0)


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


def masks_of(inputs: Mapping[str, Tensor]) -> set[str]:
    """The inputs that are 1 at real tokens and 0 at padding."""
    return {name for group in token_rows.groups(inputs) if (name := token_rows.layout_of(group).mask)}


@dataclass(frozen=True)
class Varied:
    """Rows of one kind made from the samples of some tasks: the samples themselves, then new ones, shuffled.

    Every block has a generator of its own, so it has the same bits whenever it is made.
    """

    maker: Maker
    program: Program
    rows: int
    block: int
    seed: int
    kind: str
    plan: tuple[Tensor, Tensor, Tensor] = field(init=False)
    """Per row: the sample, the one mixed with it, and whether the sample is taken as it is."""
    masks: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        total = sum(self.maker.rows)
        if self.kind == "none":
            first = second = torch.arange(self.rows) % total
            kept = torch.ones(self.rows, dtype=torch.bool)
        else:
            own = torch.arange(total if 2 * total <= self.rows else 0)
            first, second = (torch.cat([own, self.maker.draw(self.rows - len(own), generator)]) for _ in range(2))
            kept = torch.arange(self.rows) < len(own)
        order = torch.randperm(self.rows, generator=generator)
        object.__setattr__(self, "plan", (first[order], second[order], kept[order]))
        every = torch.arange(total)[:: -(-total // 2048)]
        object.__setattr__(self, "masks", frozenset(masks_of(self.maker.take(every))))

    def named(self, number: int) -> Samples:
        """A block by input names, in the program's dtypes."""
        first, second, kept = (value[number * self.block : (number + 1) * self.block] for value in self.plan)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number + 1) % (1 << 63))
        rows = self.maker.take(first)
        if not bool(kept.all()):
            for name, value in self.maker.make(first[~kept], second[~kept], generator).items():
                rows[name][~kept] = value
        ports = {port.name: port for port in self.program.inputs}
        rows = {name: value.to(ports[name].dtype) for name, value in rows.items()}
        return _trimmed(rows, self.masks, self.program)

    def read(self, number: int) -> Inputs:
        rows = self.named(number)
        return tuple(rows[port.name].contiguous() for port in self.program.inputs)

    def identity(self) -> Any:
        sums = [digest(task[name]) for task in self.maker.tasks for name in self.maker.kinds]
        return [self.kind, self.rows, self.block, self.seed, sums]


@dataclass(frozen=True)
class Beside:
    """Tables of tasks that have inputs of their own, row beside row."""

    tables: tuple[Varied, ...]
    names: Sequence[str]

    @property
    def rows(self) -> int:
        return min(table.rows for table in self.tables)

    @property
    def block(self) -> int:
        return min(table.block for table in self.tables)

    def read(self, number: int) -> Inputs:
        rows = {name: value for table in self.tables for name, value in table.named(number).items()}
        return tuple(rows[name].contiguous() for name in self.names)

    def identity(self) -> Any:
        return [table.identity() for table in self.tables]


def _trimmed(rows: Samples, masks: frozenset[str], program: Program) -> Samples:
    """Rows without the places at their end that are padding in all of them, where the length is free."""
    for mask in masks:
        port = next(port for port in program.inputs if port.name == mask)
        length = port.shape[1]
        real = (rows[mask] != 0).any(0).nonzero()
        if not isinstance(length, str) or not len(real):
            continue
        longest = max(int(real.max()) + 1, program.ranges.get(length, (1, 0))[0])
        for other in program.inputs:
            if other.name in rows:
                for axis, size in enumerate(other.shape):
                    if size == length and rows[other.name].shape[axis] > longest:
                        rows[other.name] = rows[other.name].narrow(axis, 0, longest)
    return rows
