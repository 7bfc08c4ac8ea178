"""Task arithmetic: the sum of what tuning changed (Ilharco et al., ICLR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxmerge.methods.about import About
from fxmerge.methods.base import Job
from fxmerge.methods.task_vectors import TaskVectors
from fxmerge.methods.trunks import Trunks, Weights


@dataclass(frozen=True)
class TaskArithmetic(TaskVectors):
    """θ = base + scale · Σ_k (θ_k − base).

    From the parents' average the task vectors sum to zero, so it is the average then: it needs `base`.
    """

    name: ClassVar[str] = "task-arithmetic"
    summary: ClassVar[str] = "the base plus the scaled sum of what tuning changed (with --base; else it is the average)"
    about: ClassVar[About] = About("Ilharco et al., ICLR 2023, §4", parents="one base", widths=False, tuned=True)
    usual: ClassVar[float] = 0.4

    def direction(self, trunks: Trunks, job: Job) -> Weights:
        changes = trunks.changes()
        if trunks.base is None:
            return {name: torch.zeros_like(value) for name, value in changes[0].items()}
        return {name: torch.stack([change[name] for change in changes]).sum(0) for name in changes[0]}


TASK_ARITHMETIC = TaskArithmetic()
