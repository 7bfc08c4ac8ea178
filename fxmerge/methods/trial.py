"""What is left to `auto` is tried for a few steps: the start of the maps, and how inputs are varied.

Every trial trains on a small share of the samples and is judged by samples that it has not seen, as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from fxmerge.errors import OptionError
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Init, Job
from fxmerge.methods.groups import groups_at_start
from fxmerge.methods.inits import find_init, tried_of
from fxmerge.methods.student import targets_of, train
from fxmerge.training.fit import score
from fxmerge.training.pool import Pool
from fxmerge.training.settings import silent

SHARE = 12
"""A trial takes one step in this many of the whole run."""
FEWEST = 20
CLEARLY = 0.98
"""Another kind of augmentation is taken if its error is below this share of the likeliest kind's."""

Start = Callable[[Job, Init], tuple[SuperNet, Program]]
"""Makes the SuperNet of a job as an init starts it, and the program of it that is trained."""


@dataclass(frozen=True)
class Begun:
    """What a method trains, once everything is decided."""

    init: str
    supernet: SuperNet
    program: Program
    job: Job
    groups: Mapping[str, str]
    """What its maps do to every space before they are trained."""


def begin(job: Job, start: Start) -> Begun:
    """The start and the augmentation that the user named, or the best ones."""
    trial = _Trial(job, start)
    init = trial.best_init() if job.options.init == "auto" else job.options.init
    job = with_best_augmentation(job, lambda kind: trial.error(init, kind))
    supernet, program = start(job, find_init(init))
    return Begun(init, supernet, program, job, groups_at_start(supernet))


def with_best_augmentation(job: Job, error: Callable[[str], float]) -> Job:
    """The job with the inputs varied in the likeliest way, unless another's error in a trial is clearly smaller."""
    pools = job.pools
    if pools is None or not pools.triable or len(pools.kinds) < 2:
        return job
    errors = {}
    for number, kind in enumerate(pools.kinds):
        job.progress(number, len(pools.kinds), f"try augmentation {kind}")
        errors[kind] = error(kind)
    likeliest = pools.kinds[0]
    best = min(errors, key=lambda kind: errors[kind] * (CLEARLY if kind == likeliest else 1))
    why = "none other is clearly better" if best == likeliest else "clearly better than the likeliest"
    told = ", ".join(f"{kind} {found:.3f}" for kind, found in errors.items())
    job.notes.append(f"augmentation {best}: {why} (error on held-back inputs after a trial: {told})")
    chosen = pools.pool(best)
    tried = {kind: round(found, 6) for kind, found in errors.items()}
    return replace(job, pool=replace(chosen, about={**chosen.about, "tried": tried}))


@dataclass(frozen=True)
class _Trial:
    job: Job
    start: Start
    tried: dict[tuple[str, str], float] = field(default_factory=dict)
    """Error by init and augmentation: no trial runs twice."""

    @property
    def steps(self) -> int:
        """Of one trial: never more than the run itself has."""
        return min(max(FEWEST, self.job.settings.steps // SHARE), max(1, self.job.settings.steps))

    def best_init(self) -> str:
        """Name of the start with the smallest reconstruction error."""
        likeliest = self.job.pools.kinds[0] if self.job.pools else ""
        names = tried_of(self.job.supernet)
        errors = {}
        for number, name in enumerate(names):
            self.job.progress(number, len(names), f"try init {name}")
            try:
                errors[name] = self.error(name, likeliest)
            except OptionError:
                if name == names[0]:
                    raise
                # Maps of this form cannot hold it.
        best = min(errors, key=lambda name: errors[name])
        self.job.notes.append(f"init {best}: smallest {self.said(errors)}")
        return best

    def pools(self, kind: str) -> tuple[Pool, Pool]:
        """What to train on and what to judge by; the whole pool for both where samples are too few to part."""
        job = self.job
        assert job.pool is not None
        if job.pools is None or not job.pools.triable:
            return job.pool, job.pool
        return job.pools.trial(kind, self.steps / max(job.settings.steps, 1)), job.pools.held()

    def error(self, init: str, kind: str) -> float:
        """Reconstruction error on held-back inputs after a trial: 1 is what the best constant answer gets."""
        if (init, kind) not in self.tried:
            self.tried[init, kind] = self._measured(init, *self.pools(kind))
        return self.tried[init, kind]

    def _measured(self, init: str, pool: Pool, held: Pool) -> float:
        settings = replace(self.job.settings, steps=self.steps)
        short = replace(self.job, pool=pool, settings=settings, progress=silent, state=None, notes=[], held=None)
        supernet, program = self.start(short, find_init(init))
        student, _ = train(program, supernet, short)
        scores = score(student.module, held, targets_of(student, supernet, replace(short, pool=held)), settings)
        return 1 - sum(scores) / len(scores)

    def said(self, errors: dict[str, float]) -> str:
        tried = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
        return f"reconstruction error after {self.steps} steps: {tried}"
