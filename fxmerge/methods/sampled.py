"""Samples in batches for what is computed from them at once, each batch with the task it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job
from fxmerge.methods.some import some
from fxmerge.training.pool import Pool


@dataclass(frozen=True)
class Sampled:
    """Inputs by the SuperNet's names."""

    inputs: Mapping[str, Tensor]
    masks: Sequence[Tensor]
    """Those of them that are 1 at real tokens and 0 at padding."""
    task: int | None = None
    """None where a row is of all tasks at once."""


def of_pool(pool: Pool, program: Program, rows: int, task: int | None = None) -> list[Sampled]:
    """At most so many rows of a pool."""
    names = [port.name for port in program.inputs]
    return [
        Sampled(dict(zip(names, part, strict=True)), [part[i] for i in pool.masks], task)
        for part in some(pool, rows, program.rows)
    ]


def through(net: SuperNet, pool: Pool, rows: int) -> list[Sampled]:
    """At most so many rows of a pool: of all tasks at once, or, where inputs are each task's own, task by task."""
    if net.together:
        return of_pool(pool, net.program, rows)
    names = [port.name for port in net.program.inputs]
    return [
        Sampled(
            {name: value for name, value in zip(names, part, strict=True) if name in own},
            [part[i] for i in pool.masks if names[i] in own],
            k,
        )
        for part in some(pool, rows, net.program.rows)
        for k, own in enumerate(net.inputs)
    ]


def as_given(job: Job, rows: int) -> list[Sampled]:
    """At most so many samples of every task, as they were given: of its own inputs alone where tasks have such."""
    assert job.pools is not None and job.pool is not None
    program, found = job.supernet.program, []
    masks = {program.inputs[i].name for i in job.pool.masks}
    for k, samples in enumerate(job.pools.samples):
        given = job.supernet.given(k, samples)
        ports = [port for port in program.inputs if port.name in given]
        stored = [given[port.name].to(port.dtype) for port in ports]
        if program.rows is not None and len(stored[0]) < program.rows:
            stored = [value[torch.arange(program.rows) % len(value)] for value in stored]
        for part in some(Pool.of(stored), rows, program.rows):
            inputs = {port.name: value for port, value in zip(ports, part, strict=True)}
            found.append(Sampled(inputs, [value for name, value in inputs.items() if name in masks], k))
    return found
