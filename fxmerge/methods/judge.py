"""How well untrained candidates do: their score on held-back inputs, for which the parents run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job
from fxmerge.methods.student import targets_of
from fxmerge.methods.wanted import wanted
from fxmerge.training.fit import labels_of, score_labelled

Judge = Callable[[Program], float]
"""Mean score of what the loss compares: 1 is perfect, 0 the best constant answer."""


@contextmanager
def judge(job: Job, supernet: SuperNet) -> Iterator[Judge]:
    """Judge programs of a SuperNet on inputs that trials hold back; on all of them where there are too few to part."""
    held = job.pools.held() if job.pools is not None and job.pools.triable else job.pool
    assert held is not None
    job = replace(job, pool=held)
    ports = [each.feature.port for each in wanted(supernet, job.options.inner, job.options.loss)]
    targets = targets_of(supernet.program.only(ports), supernet, job)
    with labels_of(held, targets, job.settings) as labels:

        def score(program: Program) -> float:
            scores = score_labelled(program.only(ports).module, labels, job.settings)
            return sum(scores) / len(scores)

        yield score
