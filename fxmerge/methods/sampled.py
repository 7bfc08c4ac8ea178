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


def of_each_task(job: Job, rows: int) -> list[Sampled]:
    """At most so many samples of every task, as they were given; rows of all tasks where inputs are each task's own."""
    assert job.pools is not None and job.pool is not None
    program = job.supernet.program
    if not job.supernet.together:
        return of_pool(job.pool, program, rows)
    found = []
    for k, samples in enumerate(job.pools.samples):
        given = job.supernet.given(k, samples)
        stored = [given[port.name].to(port.dtype) for port in program.inputs]
        if program.rows is not None and len(stored[0]) < program.rows:
            stored = [value[torch.arange(program.rows) % len(value)] for value in stored]
        found += of_pool(Pool.of(stored, job.pool.masks), program, rows, k)
    return found


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
    net = job.supernet
    if net.together:
        return of_each_task(job, rows)
    assert job.pools is not None and job.pool is not None
    ports, found = {port.name: port for port in net.program.inputs}, []
    masks = {net.program.inputs[i].name for i in job.pool.masks}
    for k, samples in enumerate(job.pools.samples):
        names, given = net.inputs[k], net.given(k, samples)
        own = Pool.of([given[name].to(ports[name].dtype) for name in names])
        for part in some(own, rows, net.program.rows):
            inputs = dict(zip(names, part, strict=True))
            found.append(Sampled(inputs, [value for name, value in inputs.items() if name in masks], k))
    return found
