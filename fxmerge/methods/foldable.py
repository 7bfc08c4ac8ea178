"""FS-Merge: train merge and unmerge maps around the frozen parents, then fold (Kinderman et al., TMLR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxmerge.errors import OptionError
from fxmerge.ir.maps import Form
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.ir.verify import GradientWatch
from fxmerge.methods.about import About
from fxmerge.methods.base import Init, Job, Outcome, Trained
from fxmerge.methods.inits import FromAverage
from fxmerge.methods.kept import train_or_keep
from fxmerge.methods.polish import polished
from fxmerge.methods.sequential import one_after_the_other
from fxmerge.methods.student import student_of, trainable, unreached
from fxmerge.methods.trial import begin

WIDE = 256
"""From this merged width on, maps are diagonal plus low rank unless asked otherwise: full ones cost too much."""
RANK = 12


@dataclass(frozen=True)
class Foldable(Trained):
    """K frozen parents, trainable M and U of every writer and reader, untied; norms train beside them.

    Loss: for every parent, what the SuperNet's unmerged final features miss of that parent's own (§4.2).
    """

    name: ClassVar[str] = "foldable"
    summary: ClassVar[str] = "train M and U around the frozen parents, fold into one model (FS-Merge)"
    needs_data: ClassVar[bool] = True
    about: ClassVar[About] = About("Kinderman et al., TMLR 2025, §4", trained=True, groups=("free",))

    rank: int | None = None
    """Rank of M and U beside their diagonals, 0 for none; None for dense ones in narrow models and `RANK` in wide."""
    full: bool = False
    """Dense M and U."""
    polish: int | None = None
    """Steps of training of all weights after the fold."""
    sequential: bool = False
    """Merge two parents, then what they became with the next: the loss is over the tasks so far."""
    budget: float | None = None
    """Seconds that trials and training may take together, in place of a number of steps."""

    excluding: ClassVar[tuple[tuple[tuple[str, ...], str], ...]] = (
        (("sequential", "budget"), "a budget is of one run, and there is one for every parent"),
    )

    def __call__(self, job: Job) -> Outcome:
        if self.sequential and len(job.supernet.parents) > 2:
            outcome = one_after_the_other(job, self.form(job.supernet))
            net = job.supernet.with_program(outcome.program)
            return polished(job, outcome, net, self.name, self.polish) if self.polish else outcome
        begun = begin(job, self.start, self.budget)
        watch = GradientWatch(begun.supernet.maps())
        student, log = train_or_keep(begun.program, begun.supernet, begun.job)
        watch.close()
        outcome = Outcome(
            begun.supernet.program,
            init=begun.init,
            log=log,
            augmentation=begun.job.pool.about if begun.job.pool else {},
            trainable=trainable(student),
            unreached=unreached(student, log, begun.job, watch),
            began=begun.groups,
        )
        return polished(begun.job, outcome, begun.supernet, self.name, self.polish) if self.polish else outcome

    def plan(self, job: Job) -> Outcome:
        """The outcome before any training."""
        supernet, program = self.start(job, FromAverage())
        return Outcome(supernet.program, self.init, trainable=trainable(student_of(program, supernet, job)))

    def start(self, job: Job, init: Init) -> tuple[SuperNet, Program]:
        """The SuperNet with maps that start there, and the program that is trained."""
        supernet = init(job, self.form(job.supernet))
        return supernet, job.hoist(supernet.program)

    def form(self, supernet: SuperNet) -> Form:
        """How maps hold their matrices. Raises `OptionError` if that would leave merged units that nobody writes."""
        if self.full:
            return "full"
        if self.rank is None:
            widest = max((block.size for _, block in supernet.maps()), default=0)
            return "full" if widest <= WIDE else RANK
        if self.rank == 0 and (units := supernet.unwritten()):
            raise OptionError(
                f"with --rank 0 nothing would fill {units} units of the wider model: no parent has them",
                "give --rank 1 or more, or --full, or leave out --width-scale",
            )
        return self.rank


FOLDABLE = Foldable()
