"""The default: the best of several starts, folded, then trained whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from fxmerge.errors import FxmergeError
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.base import Job, Outcome, Trained
from fxmerge.methods.clock import Clock
from fxmerge.methods.groups import groups_at_start
from fxmerge.methods.inits import FromAverage, find_init, folded, starts_of
from fxmerge.methods.one_base_starts import best_of_one_base, best_untrained
from fxmerge.methods.polish import polish
from fxmerge.methods.starts import Start
from fxmerge.methods.student import student_of, trainable
from fxmerge.methods.wanted import Loss
from fxmerge.training.optimizers import Choice


@dataclass(frozen=True)
class Auto(Trained):
    """Closed form, average and each parent as starts; optimizer, rate and augmentation by short trials.

    All trials are judged on held-back inputs; what a user names is not searched (see `polish`).
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = (
        "the best of several starts (closed form, average, each parent), folded, then all weights trained (default)"
    )
    needs_data: ClassVar[bool] = True
    about: ClassVar[About] = About(trained=True, teachers=True, groups=("permutation", "orthogonal", "free"))

    excluding: ClassVar[tuple[tuple[tuple[str, ...], str], ...]] = (
        (("steps", "polish"), "here all training follows the fold, and each says how long it is"),
    )

    init: str = "auto"
    """One start, or several joined by "+": condense, average, first, parent1, …; "parents" is each of them."""
    steps: int = 2500
    lr: float | None = None
    optimizer: Choice = "auto"
    loss: Loss = "auto"
    base: str | None = None
    """The model that the parents were fine-tuned from, for starts that count changes from it."""
    polish: int | None = None
    """The same as `steps`, by the name it has where training comes before the fold too; 0: the start is the result."""
    budget: float | None = None
    """Seconds that trials and training may take together, in place of a number of steps."""

    def __call__(self, job: Job) -> Outcome:
        steps = self.steps if self.polish is None else self.polish
        if steps == 0:
            init = find_init(self._untrained(job) if self.init == "auto" else self.init)
            net, program = folded(job, init)
            return Outcome(program, init=init.name, groups=groups_at_start(net))
        clock = None if self.budget is None else Clock.of(self.budget)
        return polish(job, list(self._starts(job)), steps, clock)

    def plan(self, job: Job) -> Outcome:
        """The outcome before anything is tried."""
        start = Start.of(job, self.init, FromAverage()(job, "full"))
        return Outcome(start.program, self.init, trainable=trainable(student_of(start.program, start.supernet, job)))

    def _untrained(self, job: Job) -> str:
        """The closed form, or for parents of one base what is better."""
        if job.near is None or not job.near.shared:
            return "condense"
        names = ("condense", "average", *best_of_one_base(job))
        best, told = best_untrained(job, [find_init(name) for name in names])
        job.notes.append(f"{best} is the result: {told}")
        return best

    @staticmethod
    def _alike(supernet: SuperNet) -> set[str]:
        """Starts that are the same as others that there are."""
        alone = len(supernet.merged) == 1
        found = {f"parent{k}" for k in range(len(supernet.parents)) if k not in supernet.merged}
        return found | ({"first", "condense"} if alone else set())

    def _starts(self, job: Job) -> Iterator[Start]:
        named = starts_of(self.init, len(job.supernet.parents), job.supernet.template)
        if self.init == "auto":
            named = tuple(name for name in named if name not in self._alike(job.supernet))
            named += best_of_one_base(job)
        for number, name in enumerate(named):
            job.progress(number, len(named), f"start {name}")
            try:
                supernet, program = folded(job, find_init(name))
                start = Start.of(job, name, supernet, program, groups_at_start(supernet))
            except Exception as error:
                if len(named) == 1 or isinstance(error, FxmergeError):
                    raise
                # Others are there: one that cannot be made costs quality, and is said, but stops nothing.
                what = f"{type(error).__name__}: {error}".splitlines()[0]
                job.notes.append(f"start {name} could not be made and is left out ({what}); please report it")
            else:
                yield start


AUTO = Auto()
