"""Knowledge distillation: one model of one model's size, all weights trained on the same loss and data (baseline)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.base import Init, Job, Outcome, Trained
from fxmerge.methods.inits import FromAverage, folded
from fxmerge.methods.kept import train_or_keep
from fxmerge.methods.student import student_of, trainable, unreached
from fxmerge.methods.trial import begin


@dataclass(frozen=True)
class Distill(Trained):
    """The trunk is folded first and all of its weights train; a full matrix per task reads its final features out."""

    name: ClassVar[str] = "distill"
    summary: ClassVar[str] = "train all weights of one model on the parents' features (baseline)"
    needs_data: ClassVar[bool] = True
    about: ClassVar[About] = About(
        "Hinton et al. 2015; on features: Romero et al. 2015", trained=True, teachers=True, groups=("free",)
    )

    budget: float | None = None
    """Seconds that trials and training may take together, in place of a number of steps."""

    def __call__(self, job: Job) -> Outcome:
        begun = begin(job, self.start, self.budget)
        student, log = train_or_keep(begun.program, begun.supernet, begun.job)
        return Outcome(
            begun.program,
            init=begun.init,
            log=log,
            augmentation=begun.job.pool.about if begun.job.pool else {},
            trainable=trainable(student),
            unreached=unreached(student, log, begun.job),
            groups=begun.groups,
            began=begun.groups,
            behind=True,
        )

    def plan(self, job: Job) -> Outcome:
        """The outcome before any training."""
        supernet, trunk = self.start(job, FromAverage())
        return Outcome(trunk, self.init, trainable=trainable(student_of(trunk, supernet, job)))

    def start(self, job: Job, init: Init) -> tuple[SuperNet, Program]:
        """The SuperNet with maps that start there, and its trunk, folded."""
        return folded(job, init)


DISTILL = Distill()
