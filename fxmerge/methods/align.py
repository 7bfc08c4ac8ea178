"""Align: every parent's units carried by learned elements of their groups, until the line between parents is flat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fxmerge.errors import OptionError
from fxmerge.ir.maps import Form
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.alignment.layout import Layout
from fxmerge.methods.alignment.learned import Elements
from fxmerge.methods.alignment.line import Line
from fxmerge.methods.alignment.maps import aligned
from fxmerge.methods.alignment.solve import Alignment
from fxmerge.methods.alignment.told import told
from fxmerge.methods.base import Job, Outcome, Trained
from fxmerge.methods.groups import groups_of
from fxmerge.methods.permute import PERMUTE
from fxmerge.methods.rotate import ROTATE
from fxmerge.methods.student import targets_of
from fxmerge.methods.wanted import Loss, wanted
from fxmerge.training.fit import Group, Log, fit, score
from fxmerge.training.optimizers import adamw

RATE = 3e-3
STARTS = ("average", "permute", "rotate")
FLAT = 1e-5
"""An error halfway that leaves nothing to learn."""


@dataclass(frozen=True)
class Align(Trained):
    """M = [C_k/K], U = [C_kᵀ], C_k a trained element of the exact group of every space, for all parents.

    The loss is that of the weights at a random place between the aligned parents, against the parents' own answers
    (learned matching of generalised linear mode connectivity, §4; all sides at once). Turns start from Procrustes,
    orders from assignments; heads keep the order that these find.
    """

    name: ClassVar[str] = "align"
    summary: ClassVar[str] = "train each parent's orders and turns until the line between the parents is flat"
    needs_data: ClassVar[bool] = True
    about: ClassVar[About] = About(
        "Theus et al., NeurIPS 2025, generalised linear mode connectivity",
        trained=True,
        groups=("permutation", "sign", "orthogonal"),
    )

    init: str = "auto"
    """average, permute or rotate; auto: the one with the smallest error halfway on held-back inputs."""
    steps: int = 300
    lr: float | None = RATE
    weight_decay: float = 0.0
    loss: Loss = "auto"

    def __call__(self, job: Job) -> Outcome:
        found = self._learned(job)
        net = self._aligned(job, found, "fixed")
        return Outcome(
            net.program,
            init=found.init,
            log=found.log,
            augmentation=job.pool.about if job.pool else {},
            trainable=found.trainable,
            solved=frozenset(net.own),
            chosen={"start": found.init, "halfway": [round(e, 6) for e in found.errors]},
        )

    def plan(self, job: Job) -> Outcome:
        """The outcome before any training."""
        start = Alignment(Layout.of(job.supernet))
        return Outcome(aligned(start, "fixed").program, self.init, trainable=_count(Elements(start)))

    def start(self, job: Job, form: Form) -> SuperNet:
        """The SuperNet aligned, its maps in this form."""
        return self._aligned(job, self._learned(replace(job, state=None)), form)

    def _aligned(self, job: Job, found: _Found, form: Form) -> SuperNet:
        net = aligned(found.alignment, form, job.settings.seed)
        job.notes.extend(told(self.name, found.alignment.layout, groups_of(net)))
        return net

    def _learned(self, job: Job) -> _Found:
        settings = replace(job.settings, steps=self.steps, lr=self.lr or RATE, optimizer=adamw, weight_decay=0.0)
        job = replace(job, options=self, settings=settings)
        starts = {name: begun(name, job) for name in (STARTS if self.init == "auto" else (self.init,))}
        errors = {name: _Course(job, start).error() for name, start in starts.items()}
        best = min(errors, key=errors.__getitem__)
        course = _Course(job, starts[best])
        found = course.run(best, errors[best])
        told_errors = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
        job.notes.append(
            f"align: error halfway between the parents {found.errors[-1]:.3f}, before training {told_errors}"
        )
        return found


def begun(name: str, job: Job) -> Alignment:
    """The alignment that another method finds."""
    if name not in STARTS:
        raise OptionError(f"align does not start from {name}", f"give --init auto, {', '.join(STARTS)}")
    if name == "average":
        return Alignment(Layout.of(job.supernet))
    return PERMUTE.alignment(job) if name == "permute" else ROTATE.alignment(job)


@dataclass(frozen=True)
class _Found:
    alignment: Alignment
    init: str
    log: Log | None
    trainable: int
    errors: tuple[float, ...]
    """Halfway between the parents, before training and after."""


class _Course:
    """The training of one alignment."""

    def __init__(self, job: Job, start: Alignment) -> None:
        self.job, self.start = job, start
        program = job.hoist(aligned(start, "fixed").program)
        ports = [each.feature.port for each in wanted(job.supernet, job.options.inner, job.options.loss)]
        self.student = program.only(ports)
        self.elements = Elements(start)
        self.line = Line(self.elements, self.student, job.settings.seed)

    def run(self, name: str, before: float) -> _Found:
        job, elements = self.job, self.elements
        assert job.pool is not None
        parts = (Group(elements.turns, decay=False), Group(elements.orders, decay=False))
        if before < FLAT or not _count(elements):
            return _Found(self.start, name, None, 0, (before,))
        targets = targets_of(self.student, job.supernet, job)
        log = fit(
            self.line, [p for p in parts if p.parameters], job.pool, targets, job.settings, job.progress, job.state
        )
        after = self.error()
        with torch.no_grad():
            alignment = elements() if after < before else self.start
        if not after < before:
            job.notes.append(f"align: training found nothing better than {name}, which is kept")
        return _Found(alignment, name, log, _count(elements), (before, min(after, before)))

    @torch.no_grad()
    def error(self) -> float:
        """Halfway between the parents, on held-back inputs where there are some: 1 is what the best constant gets."""
        job, count = self.job, len(self.job.supernet.parents)
        pools = job.pools
        pool = pools.held() if pools is not None and pools.triable else job.pool
        assert pool is not None
        self.line.place = (1 / count,) * count
        targets = targets_of(self.student, job.supernet, replace(job, pool=pool))
        scores = score(self.line, pool, targets, job.settings)
        self.line.place = None
        return 1 - sum(w * s for w, s in zip(targets.weights, scores, strict=True)) / sum(targets.weights)


def _count(elements: Elements) -> int:
    return sum(p.numel() for p in elements.parameters())


ALIGN = Align()
