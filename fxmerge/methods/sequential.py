"""FS-Merge one parent after the other: two are merged, then what they became with the next (Kinderman et al. 2025).

    stage 1    M_0 W_0 U_0 + M_1 W_1 U_1
    stage 2    A (M_0 W_0 U_0 + M_1 W_1 U_1) B + M_2 W_2 U_2        A, B, M_2, U_2 trained

Folded or not, that is one SuperNet of all parents, whose maps of the first two are A M_k and U_k B: what is merged
stays as it is and moves as one. Each stage trains as often, on the loss of the tasks so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxmerge.errors import OptionError
from fxmerge.ir.maps import Form, Map
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.ir.verify import GradientWatch
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.groups import groups_at_start
from fxmerge.methods.inits import find_init
from fxmerge.methods.kept import train_or_keep
from fxmerge.methods.student import trainable, unreached
from fxmerge.training.settings import Log

EVEN = "average"
STARTS = ("average", "first", "permute", "transport", "rotate", "zipit")
"""Starts of which every parent has an equal share, and the template itself."""


def one_after_the_other(job: Job, form: Form) -> Outcome:
    """The SuperNet, its parents joined in their order, the template first.

    Raises `OptionError` for a start that gives parents no shares of their own.
    """
    init = EVEN if job.options.init == "auto" else job.options.init
    if init not in STARTS:
        raise OptionError(f"one parent after the other does not start from {init}", f"choose {', '.join(STARTS)}")
    net = job.supernet
    order = [net.template, *(k for k in range(len(net.parents)) if k != net.template)]
    supernet = find_init(init)(job, form)
    began = groups_at_start(supernet)
    blocks = [block for _, block in supernet.maps()]
    begun = [[block.matrix(k).detach().clone() for k in range(len(order))] for block in blocks]
    logs: list[Log] = []
    missed: list[str] = []
    count = 0
    steps = max(1, job.settings.steps // (len(order) - 1))
    for joined in range(2, len(order) + 1):
        share = 1.0 if init == "first" else len(order) / joined
        for block, matrices in zip(blocks, begun, strict=True):
            merges = block.kind == "merge" and not block.alone
            if joined > 2:
                block.join(order[: joined - 1], 1.0 if init == "first" else (joined - 1) / joined)
            for place, k in enumerate(order):
                new = place >= (joined - 1 if joined > 2 else 0)
                if new:
                    block.put(k, (share if place < joined else 0.0) * matrices[k] if merges else matrices[k])
                    _train(block, k, place < joined)
        job.progress(0, steps, f"{net.tasks[order[joined - 1]]} joins")
        log, found, trained = _stage(job, supernet, sorted(order[:joined]), steps)
        logs.append(log)
        missed += found
        count = max(count, trained)
    return Outcome(
        supernet.program,
        init=init,
        log=_all(logs),
        augmentation=job.pool.about if job.pool else {},
        trainable=count,
        unreached=tuple(missed),
        began=began,
    )


def _train(block: Map, k: int, on: bool) -> None:
    for parts in (block.dense, block.diagonals, block.lefts, block.rights):
        if k < len(parts):
            parts[k].requires_grad_(on)


def _stage(job: Job, supernet: SuperNet, group: Sequence[int], steps: int) -> tuple[Log, tuple[str, ...], int]:
    """Train on the loss of these parents alone; the log, what no gradient reached, and how many numbers train."""
    features = tuple(
        replace(each, parent=group.index(each.parent)) for each in supernet.features if each.parent in group
    )
    alone = replace(
        supernet,
        features=features,
        parents=tuple(supernet.parents[k] for k in group),
        inputs=tuple(supernet.inputs[k] for k in group),
    )
    short = replace(job, settings=replace(job.settings, steps=steps), state=None)
    watch = GradientWatch(supernet.maps())
    program: Program = job.hoist(supernet.program)
    student, log = train_or_keep(program, alone, short)
    watch.close()
    return log, unreached(student, log, short, watch), trainable(student)


def _all(logs: Sequence[Log]) -> Log:
    """One log of all stages."""
    last = logs[-1]
    return replace(
        last,
        losses=tuple(loss for log in logs for loss in log.losses),
        seconds=sum(log.seconds for log in logs),
        label_seconds=sum(log.label_seconds for log in logs),
    )
