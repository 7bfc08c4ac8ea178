"""Knowledge distillation: one model of one model's size, all weights trained on the same loss and data (baseline)."""

from __future__ import annotations

from dataclasses import dataclass

from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.student import start_weights, train


@dataclass(frozen=True)
class Distill:
    """The trunk is folded first and all of its weights train; a full matrix per task reads its final features out."""

    name: str = "distill"
    summary: str = "train all weights of one model on the parents' features (baseline)"
    needs_data: bool = True

    def __call__(self, job: Job) -> Outcome:
        supernet = job.supernet.start(start_weights(job), "full", job.settings.seed)
        trunk = job.fold_trunk(supernet.program)
        student = trunk.only(f.port for f in supernet.feature_ports())
        log = train(student, supernet, job)
        return Outcome(
            trunk,
            init=job.options.init,
            log=log,
            trainable=sum(p.numel() for p in student.module.parameters() if p.requires_grad),
            unreached=log.untouched,
        )


DISTILL = Distill()
