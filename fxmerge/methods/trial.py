"""What is left to `auto` is tried for a few steps: the start of the maps, and how inputs are varied.

Every trial trains on a small share of the samples and is judged by samples that it has not seen, as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxmerge.errors import OptionError
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Init, Job
from fxmerge.methods.clock import FEWEST, NO_TRIALS, Clock, Pace
from fxmerge.methods.groups import groups_at_start
from fxmerge.methods.inits import find_init, tried_of
from fxmerge.methods.student import targets_of, train
from fxmerge.training.fit import labels_of, score_labelled
from fxmerge.training.pool import Pool
from fxmerge.training.resume import chosen
from fxmerge.training.settings import Settings, silent

SHARE = 12
"""A trial takes one step in this many of the whole run."""
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


def begin(job: Job, start: Start, budget: float | None = None) -> Begun:
    """The start and the augmentation that the user named, or the best ones.

    With a budget, in seconds, the job has the steps that it has time for, trials and all.
    """
    trial = _Trial(job, start)
    clock = None if budget is None else Clock.of(budget)
    if known := chosen(job.state, {"init": str, **CHOICES}):
        init = known["init"] if job.options.init == "auto" else job.options.init
        settings = recalled(job.settings, known, clock)
        job = lasting(replace(goes_on(job, known), settings=settings), settings.steps)
        supernet, program = start(job, find_init(init))
        return Begun(init, supernet, program, job, groups_at_start(supernet))
    if clock is not None and not trial.plan(clock):
        init = list(trial.starts)[-1]
        job.notes.append(f"init {init}: {NO_TRIALS}")
        supernet, program = trial.made(init)
    else:
        init = trial.best_init() if job.options.init == "auto" else job.options.init
        job = with_best_augmentation(job, lambda kind: trial.error(init, kind))
        supernet, program = start(job, find_init(init))
    if clock is not None:
        job = lasting(job, clock.most(lambda steps: trial.run(steps, job)))
    job = replace(job, settings=replace(job.settings, chosen={"init": init, **choices(job)}))
    return Begun(init, supernet, program, job, groups_at_start(supernet))


CHOICES: Mapping[str, type] = {"steps": int, "augmentation": str}


def choices(job: Job) -> dict[str, str | float]:
    """What every run goes on with when it was interrupted."""
    kind = job.pool.about.get("kind", "") if job.pool else ""
    return {"steps": job.settings.steps, "augmentation": str(kind)}


def lasting(job: Job, steps: int) -> Job:
    """The job of so many steps, with the pool that they read."""
    pool = job.pool
    if pool is not None and job.pools is not None:
        made = job.pools.pool(str(pool.about["kind"]), steps)
        pool = replace(made, about={**pool.about, **made.about})
    return replace(job, pool=pool, settings=replace(job.settings, steps=steps))


def goes_on(job: Job, known: Mapping[str, str | float]) -> Job:
    """The job with the inputs varied as they were before an interruption."""
    job.notes.append("goes on with what trials chose: " + ", ".join(f"{name} {value}" for name, value in known.items()))
    kind = known["augmentation"]
    return replace(job, pool=job.pools.pool(str(kind))) if job.pools and kind in job.pools.kinds else job


def recalled(settings: Settings, known: Mapping[str, str | float], clock: Clock | None) -> Settings:
    """The settings of an interrupted run: the steps that its budget had time for."""
    steps = settings.steps if clock is None else int(known["steps"])
    return replace(settings, steps=steps, chosen=known)


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
class _Started:
    """A start, and the values of its tensors and maps: other starts and training change them."""

    supernet: SuperNet
    program: Program
    values: Sequence[tuple[Tensor, Tensor]]
    seconds: float

    @torch.no_grad()
    def again(self) -> tuple[SuperNet, Program]:
        """As it was when it was made."""
        for tensor, value in self.values:
            tensor.copy_(value)
        return self.supernet, self.program


@dataclass
class _Trial:
    job: Job
    start: Start
    pace: Pace | None = None
    """Of the last trial."""

    def __post_init__(self) -> None:
        self.tried: dict[tuple[str, str], float] = {}
        """Error by init and augmentation: no trial runs twice."""
        self.starts: dict[str, _Started] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The starts that are tried."""
        return tried_of(self.job.supernet) if self.job.options.init == "auto" else (self.job.options.init,)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The likeliest kind of augmentation, and the others that there are."""
        return self.job.pools.kinds if self.job.pools else ("",)

    def plan(self, clock: Clock) -> bool:
        """Take as many steps as there is time for, by what the first trial takes; False if trials would take most."""
        self._plan(FEWEST)
        for name in self.names:
            try:
                self.made(name)
            except OptionError:
                if name == self.names[0]:
                    raise
        self.error(self.names[0], self.kinds[0])
        most = max(each.seconds for each in self.starts.values())
        steps, tried = clock.plan(lambda steps: self.run(steps, self.job), lambda steps: self.trials(steps) + most)
        self._plan(steps)
        self.tried.clear()
        return tried

    def _plan(self, steps: int) -> None:
        self.job = replace(self.job, settings=replace(self.job.settings, steps=steps))

    def run(self, steps: int, job: Job) -> float:
        """Seconds of the run itself."""
        assert self.pace is not None and job.pool is not None
        return self.pace.run(steps, job.pool, job.settings) + self.pace.compared(self.pools(self.kinds[0])[1])

    def trials(self, steps: int) -> float:
        """Seconds of all trials of a run of so many steps, once their starts are made."""
        assert self.pace is not None
        names, kinds = (len(each) if len(each) > 1 else 0 for each in (self.names, self.kinds))
        return (names + kinds) * self.pace.trial(self.steps_of(steps))

    def steps_of(self, whole: int) -> int:
        """Of one trial: never more than the run itself has."""
        return min(max(FEWEST, whole // SHARE), max(1, whole))

    @property
    def steps(self) -> int:
        return self.steps_of(self.job.settings.steps)

    def best_init(self) -> str:
        """Name of the start with the smallest reconstruction error."""
        errors = {}
        for number, name in enumerate(self.names):
            self.job.progress(number, len(self.names), f"try init {name}")
            try:
                errors[name] = self.error(name, self.kinds[0])
            except OptionError:
                if name == self.names[0]:
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

    def made(self, init: str) -> tuple[SuperNet, Program]:
        """A start that has not seen what trials are judged by; it is made once."""
        if init not in self.starts:
            begun = time.perf_counter()
            short = self._short(self.pools(self.kinds[0])[0])
            supernet, program = self.start(short, find_init(init))
            values = {id(t): t for each in (supernet.program, program) for t in _changing(each, supernet)}
            kept = [(tensor, tensor.detach().clone()) for tensor in values.values()]
            self.starts[init] = _Started(supernet, program, kept, time.perf_counter() - begun)
        return self.starts[init].again()

    def _short(self, pool: Pool) -> Job:
        settings = replace(self.job.settings, steps=self.steps)
        return replace(self.job, pool=pool, settings=settings, progress=silent, state=None, notes=[], held=None)

    def _measured(self, init: str, pool: Pool, held: Pool) -> float:
        supernet, program = self.made(init)
        short = self._short(pool)
        student, log = train(program, supernet, short)
        targets = targets_of(student, supernet, replace(short, pool=held))
        with labels_of(held, targets, short.settings) as labels:
            labels.measure(rows=None)
            begun = time.perf_counter()
            scores = score_labelled(student.module, labels, short.settings)
            self.pace = Pace.of(log, time.perf_counter() - begun)
        return 1 - sum(scores) / len(scores)

    def said(self, errors: dict[str, float]) -> str:
        tried = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
        return f"reconstruction error after {self.steps} steps: {tried}"


def _changing(program: Program, supernet: SuperNet) -> Iterator[Tensor]:
    """What starts and training set: not the parents' own tensors, which are their teachers' too."""
    for module in program.maps.values():
        yield from module.state_dict(keep_vars=True).values()
    yield from (t for name, t in program.tensors.items() if name not in program.origins or supernet.is_fresh(name))
