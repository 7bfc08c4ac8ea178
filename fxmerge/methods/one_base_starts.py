"""Which starts are the best untrained: for parents of one base there are many more than are worth a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxmerge.errors import FxmergeError
from fxmerge.methods.base import Init, Job
from fxmerge.methods.inits import ONE_BASE, folded
from fxmerge.methods.judge import judge
from fxmerge.training.settings import silent

NEED_BASE = ("task-arithmetic", "dare")
"""From the parents' average they are the average, and that with noise."""


def best_of_one_base(job: Job) -> tuple[str, ...]:
    """The start for parents of one base that is better than the average untrained, by name; none without a base."""
    if job.near is None or not job.near.shared:
        return ()
    inits = [init for init in ONE_BASE if job.base is not None or init.name not in NEED_BASE]
    best, told = best_untrained(job, inits)
    said = "none is better than the average" if best == "average" else f"{best} beside the average"
    job.notes.append(f"starts for parents of one base: {said} ({told})")
    return () if best == "average" else (best,)


def best_untrained(job: Job, inits: Sequence[Init]) -> tuple[str, str]:
    """The name of the best start by its score on held-back inputs, and all scores in words."""
    short = replace(job, progress=silent, notes=[])
    scores = {}
    with judge(job, job.supernet, own=True) as score:
        for number, init in enumerate(inits):
            job.progress(number, len(inits), f"start {init.name}, untrained")
            try:
                scores[init.name] = score(folded(short, init)[1])
            except FxmergeError as error:  # as for parents that differ in width: others are there
                job.notes.append(f"start {init.name} is left out: {error.what}")
    best = max(scores, key=lambda name: scores[name], default=inits[0].name)
    told = ", ".join(f"{name} {found:.3f}" for name, found in scores.items())
    return best, f"score on each task's held-back inputs, untrained: {told}"
