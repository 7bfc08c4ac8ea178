"""Train the folded weights, from the best of several starts: the last stage of a merge."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job, Outcome, Stage
from fxmerge.methods.clock import Clock
from fxmerge.methods.kept import train_or_keep
from fxmerge.methods.search import Search
from fxmerge.methods.starts import Start, frozen
from fxmerge.methods.student import trainable, unreached
from fxmerge.methods.trial import CHOICES, choices, goes_on, lasting, recalled, with_best_augmentation
from fxmerge.training.resume import chosen


def polish(job: Job, starts: Sequence[Start], steps: int, clock: Clock | None = None) -> Outcome:
    """The best of the starts, trained for so many steps; where there is nothing to choose it is simply trained.

    With a clock the steps are those that it has the time for, trials and all.
    """
    with ExitStack() as stack:
        search = Search(job, starts, steps, stack)
        if known := chosen(job.state, {"start": str, "optimizer": str, "lr": float, **CHOICES}):
            best, job = search.recalled(known), goes_on(job, known)
            settings = recalled(best.settings(job.settings, steps), known, clock)
        else:
            if clock is not None:
                search.plan(clock)
            best = search.best()
            if not search.hurried:
                job = with_best_augmentation(job, lambda kind: search.varied(best, kind))
            if clock is not None:
                steps = clock.most(search.run)
            settings = best.settings(job.settings, steps)
            own: dict[str, str | float] = {"start": best.start.name, "optimizer": best.optimizer, "lr": best.rate}
            settings = replace(settings, chosen=own | choices(replace(job, settings=settings)))
    supernet, program = best.start.supernet, best.start.program
    before = frozen(program)
    job = lasting(replace(job, settings=settings), settings.steps)
    student, log = train_or_keep(program, supernet, job)
    return Outcome(
        program,
        init=best.start.name,
        log=log,
        augmentation=job.pool.about if job.pool else {},
        trainable=trainable(student),
        unreached=unreached(student, log, job),
        stages=(Stage(best.start.name, before), Stage("polish", program)),
        groups=best.start.groups,
        began=best.start.groups,
        behind=True,
        mixed=best.start.mixed,
        chosen={"start": best.start.name, "optimizer": best.optimizer, "lr": best.rate, "tried": search.said()},
    )


def polished(job: Job, outcome: Outcome, supernet: SuperNet, name: str, steps: int) -> Outcome:
    """What a method made, folded and trained on; its own facts stand beside."""
    found = polish(replace(job, state=None), [Start.of(job, name, supernet)], steps)
    missed = (*outcome.unreached, *found.unreached)
    return replace(found, init=outcome.init, trainable=outcome.trainable, unreached=missed, began=outcome.began)
