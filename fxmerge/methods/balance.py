"""How much each parent counts in the closed form: chosen by how well the merge does, untrained, on held-back inputs.

Equal sizes of the parents' streams are not neutral: who is favoured then follows from where the variance lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job
from fxmerge.methods.judge import judge
from fxmerge.training.settings import silent

Balance = tuple[float, ...]
Solve = Callable[[Job, Balance], tuple[SuperNet, Program]]

STEPS = (1.3, 2.5)
"""Every parent is tried with its streams this much larger; the second with the best of the first alone."""
FEWEST = 16
"""With fewer held-back inputs a task nothing is chosen."""
CLEARLY = 0.98
"""Unequal sizes are taken if their error is below this share of that of equal ones."""
ENOUGH = 0.98
"""At this score nothing else is tried."""


def best_balance(job: Job, solve: Solve) -> Balance:
    """The size of every parent's streams; one for each where there are too few samples to choose by."""
    count, pools = len(job.supernet.parents), job.pools
    equal = (1.0,) * count
    if pools is None or not pools.triable or not job.supernet.streams:
        return equal
    short = replace(job, pool=pools.trial(pools.kinds[0], 1.0), progress=silent, notes=[])
    if pools.held_back < FEWEST:
        return equal
    with judge(job, job.supernet, own=True) as score:
        scores = {equal: score(solve(short, equal)[1])}
        for step in STEPS if scores[equal] < ENOUGH else ():
            best = max(scores, key=lambda tried: scores[tried])
            raised = range(count) if step == STEPS[0] else [k for k in range(count) if best[k] > 1]
            for k in raised:
                tried = tuple(step if i == k else 1.0 for i in range(count))
                job.progress(len(scores), count + len(STEPS), f"closed form, parents at {_told(tried)}")
                scores[tried] = score(solve(short, tried)[1])
                if count == 2 and _clearly_better(scores[tried], scores[equal]):
                    break  # of two parents the other one larger is the same the other way
    best = max(scores, key=lambda tried: scores[tried])
    best = best if _clearly_better(scores[best], scores[equal]) else equal
    told = ", ".join(f"{_told(tried)} {score:.3f}" for tried, score in scores.items())
    job.notes.append(
        f"condense: parents at {_told(best)}, the best score of the untrained merge on held-back inputs ({told})"
    )
    return best


def _clearly_better(score: float, than: float) -> bool:
    return 1 - score < CLEARLY * (1 - than)


def _told(balance: Balance) -> str:
    return " : ".join(f"{each:g}" for each in balance)
