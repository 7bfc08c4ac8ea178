"""Align: every parent's units carried by learned elements of their groups, until the line between parents is flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from fxmerge.errors import OptionError
from fxmerge.ir.maps import Form
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.alignment.layout import Layout
from fxmerge.methods.alignment.learned import Elements
from fxmerge.methods.alignment.line import Line
from fxmerge.methods.alignment.maps import aligned
from fxmerge.methods.alignment.norms import turning
from fxmerge.methods.alignment.solve import Alignment
from fxmerge.methods.alignment.told import groups_by, told
from fxmerge.methods.base import Job, Outcome, Trained
from fxmerge.methods.permute import PERMUTE
from fxmerge.methods.rotate import ROTATE
from fxmerge.methods.student import targets_of
from fxmerge.methods.wanted import Loss, wanted
from fxmerge.training.fit import fit, score
from fxmerge.training.optimizers import adamw
from fxmerge.training.settings import Group, Log

RATE = 3e-3
STARTS = ("average", "permute", "rotate")
SHARE = {1: 100, 2: 60}
"""Of the steps, in percent, by the number of stages: those of the first."""
STEADY = 0.25
"""Scores of an order are ahead by what this share of all steps, all in one direction, would make up for."""
FLAT = torch.finfo(torch.float32).eps
"""An error halfway, as a share of the answers' variance, that leaves nothing to learn."""


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
        init, found, trainable = self._learned(job)
        net = self._aligned(job, found.alignment, "fixed")
        return Outcome(
            net.program,
            init=init,
            log=found.log,
            augmentation=job.pool.about if job.pool else {},
            trainable=trainable,
            solved=frozenset(net.own),
            groups=net.groups,
            chosen={"start": init, "halfway": [round(error, 6) for error in found.errors]},
        )

    def plan(self, job: Job) -> Outcome:
        """The outcome before any training."""
        start = Alignment(turning(job.supernet))
        return Outcome(aligned(start, "fixed").program, self.init, trainable=_count(Elements(start)))

    def start(self, job: Job, form: Form) -> SuperNet:
        """The SuperNet aligned, its maps in this form."""
        return self._aligned(job, self._learned(replace(job, state=None))[1].alignment, form)

    def _aligned(self, job: Job, alignment: Alignment, form: Form) -> SuperNet:
        net = aligned(alignment, form, job.settings.seed)
        net = replace(net, groups=groups_by(alignment, net))
        job.notes.extend(told(self.name, alignment.layout, net.groups))
        return net

    def _learned(self, job: Job) -> tuple[str, _Trained, int]:
        """What it starts from, what training made of that, and how many numbers were trained."""
        settings = replace(job.settings, steps=self.steps, lr=self.lr or RATE, optimizer=adamw, weight_decay=0.0)
        job = replace(job, options=self, settings=settings)
        layout = turning(job.supernet)
        starts = {name: begun(name, job, layout) for name in (STARTS if self.init == "auto" else (self.init,))}
        errors = {name: _Course(job, start).error() for name, start in starts.items()}
        best = min(errors, key=errors.__getitem__)
        course = _Course(job, starts[best])
        found = course.run(errors[best])
        before = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
        job.notes.append(f"align: error halfway between the parents {found.errors[-1]:.3f}, before training {before}")
        if found.log and not found.errors[-1] < errors[best]:
            job.notes.append(f"align: training found nothing better than {best}, which is kept")
        return best, found, _count(course.elements) if found.log else 0


def begun(name: str, job: Job, layout: Layout) -> Alignment:
    """The alignment that another method finds, on spaces that are known."""
    if name not in STARTS:
        raise OptionError(f"align does not start from {name}", f"give --init auto, {', '.join(STARTS)}")
    if name == "rotate":
        return ROTATE.on_spaces(job, layout)
    return Alignment(layout, PERMUTE.alignment(job).carriers if name == "permute" else {})


def joined(logs: Sequence[Log]) -> Log | None:
    """One log of several runs, one after the other."""
    if not logs:
        return None
    seconds = sum(log.seconds for log in logs)
    rate = sum(log.samples_per_second * log.seconds for log in logs) / max(seconds, 1e-9)
    losses = tuple(loss for log in logs for loss in log.losses)
    return replace(logs[-1], losses=losses, seconds=seconds, samples_per_second=rate, untouched=())


@dataclass(frozen=True)
class _Trained:
    alignment: Alignment
    log: Log | None
    errors: tuple[float, ...]
    """Halfway between the parents: before training, and after each of its stages."""


class _Course:
    """The training of one alignment."""

    def __init__(self, job: Job, start: Alignment) -> None:
        self.job, self.start = job, start
        program = job.hoist(aligned(start, "fixed").program)
        ports = [each.feature.port for each in wanted(job.supernet, job.options.inner, job.options.loss)]
        self.student = program.only(ports)
        self.elements = Elements(start, margin=job.settings.lr * job.settings.steps * STEADY)
        self.line = Line(self.elements, self.student, job.settings.seed)

    def run(self, before: float) -> _Trained:
        """Turns first, then orders too: a step of an order is a leap, so that is kept only where it leads down."""
        turns, orders = self.elements.turns, self.elements.orders
        stages = {"turns": turns, "orders": (*turns, *orders)} if turns and orders else {"all": (*turns, *orders)}
        logs: list[Log] = []
        errors, total = [before], self.job.settings.steps
        for number, (stage, parameters) in enumerate(stages.items()):
            steps = total - sum(log.steps for log in logs) if number else -(-total * SHARE[len(stages)] // 100)
            if errors[-1] < FLAT or not parameters or steps < 1:
                break
            kept = [p.detach().clone() for p in parameters]
            logs.append(self._fit(stage, parameters, steps))
            errors.append(self.error())
            if not errors[-1] < errors[-2]:
                errors[-1] = errors[-2]
                with torch.no_grad():
                    for parameter, value in zip(parameters, kept, strict=True):
                        parameter.copy_(value)
        with torch.no_grad():
            alignment = self.elements() if errors[-1] < before else self.start
        return _Trained(alignment, joined(logs), tuple(errors))

    def _fit(self, stage: str, parameters: Sequence[nn.Parameter], steps: int) -> Log:
        job = self.job
        assert job.pool is not None
        state = job.state.with_name(f"{job.state.stem}-{stage}{job.state.suffix}") if job.state else None
        targets = targets_of(self.student, job.supernet, job)
        settings = replace(job.settings, steps=steps)
        return fit(self.line, [Group(tuple(parameters), decay=False)], job.pool, targets, settings, job.progress, state)

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
