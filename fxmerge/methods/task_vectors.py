"""Base plus a scale times a merged task vector: what `task-arithmetic`, `ties` and `dare` have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from fxmerge.ir.maps import Form
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.judge import judge
from fxmerge.methods.trunks import Trunks, Weights

Scaled = Callable[[float], Program]

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
"""What is tried: the grids of the papers, 0 to 1 (task arithmetic) and .8 to 1.8 (TIES)."""


@dataclass(frozen=True)
class TaskVectors:
    """θ = base + scale · τ, where the method says how the parents' task vectors θ_k − base become one τ."""

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    usual: ClassVar[float]
    """The paper's scale where there are no samples to choose one by."""

    base: str | None = None
    """The model that the parents were fine-tuned from, a SOURCE as they are; the parents' average if there is none."""
    scale: float | Literal["auto"] = "auto"
    """Of the merged task vector; auto chooses by the score on held-back samples where there are samples."""

    def __call__(self, job: Job) -> Outcome:
        _, program = self.start(job)
        return Outcome(program, init=self.name, solved=frozenset(job.supernet.own))

    def start(self, job: Job, form: Form | None = None) -> tuple[SuperNet, Program]:
        """The SuperNet, and its trunk folded with the merged weights in it."""
        trunks = Trunks.of(job, self.name, form)
        origin, direction = trunks.origin, self.direction(trunks, job)
        cancelled = not any(bool(value.any()) for value in direction.values())
        if trunks.base is None:
            rest = ", where they cancel: it is the average" if cancelled else ""
            job.notes.append(f"{self.name} without --base counts changes from the parents' average{rest}")
        if cancelled:
            return trunks.supernet, trunks.holding(origin)

        def at(scale: float) -> Program:
            return trunks.holding({name: value + scale * direction[name] for name, value in origin.items()})

        return trunks.supernet, at(self._chosen(job, trunks, at))

    def direction(self, trunks: Trunks, job: Job) -> Weights:
        """The merged task vector τ."""
        raise NotImplementedError

    def _chosen(self, job: Job, trunks: Trunks, at: Scaled) -> float:
        if self.scale != "auto":
            return self.scale
        if job.pool is None:
            job.notes.append(f"{self.name}: scale {self.usual:g}, as published; with samples it is chosen by them")
            return self.usual
        with judge(job, trunks.supernet, own=True) as score:
            scores = {scale: score(at(scale)) for scale in SCALES}
        best = max(scores, key=lambda scale: scores[scale])
        told = ", ".join(f"{scale:g} {found:.3f}" for scale, found in scores.items())
        job.notes.append(f"{self.name}: scale {best:g}, the best score on held-back inputs ({told})")
        return best
