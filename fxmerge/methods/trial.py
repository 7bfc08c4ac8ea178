"""`init = auto`: try every start for a few steps, keep the one that reconstructs the parents best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job
from fxmerge.methods.inits import INITS, find_init
from fxmerge.methods.student import targets_of, train
from fxmerge.training.fit import score, silent
from fxmerge.training.labels import Pool

SHARE = 12
"""A trial takes one step in this many of the whole run."""
FEWEST = 20
ROWS = 2048
"""Inputs a trial trains on; as many again are held back to choose by."""

Start = Callable[[tuple[float, ...]], tuple[SuperNet, Program]]
"""Makes the SuperNet that starts from these weights of the parents, and the program of it that is trained."""


def begin(job: Job, start: Start) -> tuple[str, SuperNet, Program]:
    """The start that the user named, or the best one: its name, the SuperNet and the program to train."""
    name = best_init(job, start) if job.options.init == "auto" else job.options.init
    return name, *start(find_init(name)(job.supernet))


def best_init(job: Job, start: Start) -> str:
    """Name of the start with the smallest reconstruction error on held-back inputs after a short trial of each."""
    assert job.pool is not None
    pool, held = _parts(job.pool, job.settings.batch_size)
    steps = max(FEWEST, job.settings.steps // SHARE)
    short = replace(job, pool=pool, settings=replace(job.settings, steps=steps), progress=silent, state=None)
    errors: dict[str, float] = {}
    for number, init in enumerate(INITS):
        job.progress(number, len(INITS), f"try init {init.name}")
        supernet, program = start(init(job.supernet))
        student, _ = train(program, supernet, short)
        scores = score(student.module, held, targets_of(student, supernet, replace(short, pool=held)), short.settings)
        errors[init.name] = 1 - sum(scores) / len(scores)
    best = min(errors, key=lambda name: errors[name])
    tried = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
    job.notes.append(f"init {best}: smallest reconstruction error after {steps} steps ({tried})")
    return best


def _parts(pool: Pool, batch: int) -> tuple[Pool, Pool]:
    """What trials train on, and what they are judged by: from both ends of the pool, all of it if it is small."""
    rows = min(ROWS, pool.rows // 2)
    if rows < batch:
        return pool, pool
    return pool.first(rows), Pool(tuple(value[-rows:] for value in pool.inputs))
