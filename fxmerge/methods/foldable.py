"""FS-Merge: train merge and unmerge maps around the frozen parents, then fold (Kinderman et al., TMLR 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from fxmerge.ir.merge import Form
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.ir.verify import GradientWatch
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.student import train
from fxmerge.methods.trial import begin


@dataclass(frozen=True)
class Foldable:
    """K frozen parents, trainable M and U of every writer and reader, untied; norms train beside them.

    Loss: for every parent, what the SuperNet's unmerged final features miss of that parent's own (§4.2).
    """

    name: str = "foldable"
    summary: str = "train M and U around the frozen parents, fold into one model (FS-Merge, Kinderman et al. 2025)"
    needs_data: bool = True

    def __call__(self, job: Job) -> Outcome:
        form: Form = "full" if job.options.rank is None else job.options.rank

        def start(weights: tuple[float, ...]) -> tuple[SuperNet, Program]:
            supernet = job.supernet.start(weights, form, job.settings.seed)
            return supernet, job.hoist(supernet.program)

        init, supernet, hoisted = begin(job, start)
        watch = GradientWatch(supernet.maps())
        student, log = train(hoisted, supernet, job)
        watch.close()
        return Outcome(
            supernet.program,
            init=init,
            log=log,
            trainable=sum(p.numel() for p in student.module.parameters() if p.requires_grad),
            unreached=tuple(watch.missing) + log.untouched,
        )


FOLDABLE = Foldable()
