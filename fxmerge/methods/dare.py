"""DARE: drop most of what tuning changed at random, rescale the rest, add it up (Yu et al., ICML 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxmerge.bounds import Part
from fxmerge.methods.about import About
from fxmerge.methods.base import Job
from fxmerge.methods.task_vectors import TaskVectors
from fxmerge.methods.trunks import Trunks, Weights


@dataclass(frozen=True)
class Dare(TaskVectors):
    """θ = base + scale · Σ_k m_k ⊙ (θ_k − base) / density, m_k random: the sum of task arithmetic, in the mean."""

    name: ClassVar[str] = "dare"
    summary: ClassVar[str] = "the base plus the scaled sum of what tuning changed, most of it dropped at random"
    about: ClassVar[About] = About("Yu et al., ICML 2024, §3.2", parents="one base", widths=False, tuned=True)
    usual: ClassVar[float] = 0.4

    density: Part = 0.1
    """Share of each parent's changes that are kept; the paper drops nine in ten."""

    def direction(self, trunks: Trunks, job: Job) -> Weights:
        generator = torch.Generator().manual_seed(job.settings.seed)
        total = {name: torch.zeros_like(value) for name, value in trunks.origin.items()}
        for change in trunks.changes():
            for name, value in change.items():
                kept = torch.rand(value.shape, generator=generator, dtype=value.dtype) < self.density
                total[name] += torch.where(kept, value, 0.0) / self.density
        return total


DARE = Dare()
