"""FS-Merge: train merge and unmerge maps around the frozen parents, then fold (Kinderman et al., TMLR 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from fxmerge.ir.merge import Form
from fxmerge.ir.verify import GradientWatch
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.student import start_weights, train


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
        supernet = job.supernet.start(start_weights(job), form, job.settings.seed)
        for name in supernet.own:
            supernet.program.module.get_parameter(name).requires_grad_(name in supernet.program.parameters)
        watch = GradientWatch(supernet.maps())
        student = job.hoist(supernet.program).only(f.port for f in job.wanted())
        log = train(student, supernet, job)
        watch.close()
        return Outcome(
            supernet.program,
            init=job.options.init,
            log=log,
            trainable=sum(p.numel() for p in student.module.parameters() if p.requires_grad),
            unreached=tuple(watch.missing) + log.untouched,
        )


FOLDABLE = Foldable()
