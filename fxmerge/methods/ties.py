"""TIES: trim what tuning changed, elect a sign, average those who agree (Yadav et al., NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxmerge.bounds import Part
from fxmerge.methods.about import About
from fxmerge.methods.base import Job
from fxmerge.methods.task_vectors import TaskVectors
from fxmerge.methods.trunks import Trunks, Weights


@dataclass(frozen=True)
class Ties(TaskVectors):
    """θ = base + scale · the disjoint mean of the trimmed task vectors."""

    name: ClassVar[str] = "ties"
    summary: ClassVar[str] = "the base plus what tuning changed, trimmed, where the parents agree on its sign"
    about: ClassVar[About] = About(
        "Yadav et al., NeurIPS 2023, Algorithm 1", parents="one base", widths=False, tuned=True
    )
    usual: ClassVar[float] = 1.0

    density: Part = 0.2
    """Share of each parent's changes that are kept: the largest of its whole trunk."""

    def direction(self, trunks: Trunks, job: Job) -> Weights:
        kept = [trimmed(change, self.density) for change in trunks.changes()]
        sides = {name: torch.stack([change[name] for change in kept]) for name in kept[0]}
        majority = torch.stack([sign_of_sum(side).sum() for side in sides.values()]).sum().sign()
        return {name: elected(side, majority) for name, side in sides.items()}


def trimmed(change: Weights, density: float) -> Weights:
    """The largest entries of all tensors together, zero elsewhere."""
    sizes = torch.cat([value.abs().reshape(-1) for value in change.values()])
    kept = max(1, round(density * len(sizes)))
    least = sizes.kthvalue(len(sizes) - kept + 1).values
    return {name: torch.where(value.abs() >= least, value, 0.0) for name, value in change.items()}


def elected(side: Tensor, majority: Tensor) -> Tensor:
    """Over the first axis: the mean of the entries with the sign of their sum (the majority's, where that is zero)."""
    sign = sign_of_sum(side)
    sign = torch.where(sign == 0, majority, sign)
    agree = (side.sign() == sign) & (side != 0)
    return torch.where(agree, side, 0.0).sum(0) / agree.sum(0).clamp(min=1)


def sign_of_sum(side: Tensor) -> Tensor:
    """Over the first axis; zero where entries cancel, as changes from the average of all do, up to rounding."""
    total = side.sum(0)
    return torch.where(total.abs() <= 1e-9 * side.abs().sum(0), 0.0, total).sign()


TIES = Ties()
