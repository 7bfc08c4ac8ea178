"""How well untrained candidates do: their score on held-back inputs, for which the parents run once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job
from fxmerge.methods.student import targets_of
from fxmerge.methods.wanted import wanted
from fxmerge.training.fit import labels_of, score_labelled
from fxmerge.training.pool import Pool

Judge = Callable[[Program], float]
"""Score of what the loss compares, over tasks: 1 is perfect, 0 the best constant answer."""


@contextmanager
def judge(job: Job, supernet: SuperNet, own: bool = False) -> Iterator[Judge]:
    """Judge programs of a SuperNet on inputs that trials hold back; on all of them where there are too few to part.

    Every parent is compared on all tasks' inputs, as training does; with `own` on those of its own task alone, which
    are what a merged model without training is for.
    """
    apart = job.pools is not None and job.pools.triable
    held = job.pools.held() if job.pools is not None and apart else job.pool
    assert held is not None
    features = [each.feature for each in wanted(supernet, job.options.inner, job.options.loss)]
    tasks: list[tuple[Pool, list[str]]] = [(held, [feature.port for feature in features])]
    if own and job.pools is not None and apart:
        pools = [job.pools.held_of(k) or held for k in range(len(supernet.parents))]  # every row is of all, or has all
        ports = [[f.port for f in features if f.parent == k] for k in range(len(pools))]
        alone = [(pool, names) for pool, names in zip(pools, ports, strict=True) if names]
        tasks = alone or tasks
    with ExitStack() as stack:
        labels = []
        for pool, names in tasks:
            targets = targets_of(supernet.program.only(names), supernet, replace(job, pool=pool))
            labels.append(stack.enter_context(labels_of(pool, targets, job.settings)))

        def score(program: Program) -> float:
            found = [
                score_labelled(program.only(names).module, known, job.settings)
                for (_, names), known in zip(tasks, labels, strict=True)
            ]
            return over_tasks([sum(scores) / len(scores) for scores in found])

        yield score


def over_tasks(scores: Sequence[float]) -> float:
    """One score of those of all tasks: a task that is lost is not made good by another that is kept.

    One less the root of the mean square of their errors.
    """
    return 1 - math.sqrt(sum((1 - score) ** 2 for score in scores) / len(scores))
