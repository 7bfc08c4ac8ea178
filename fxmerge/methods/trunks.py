"""The parents' trunks as tensors of one shape, one beside the other: what element-wise methods combine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxmerge.errors import OptionError
from fxmerge.ir.maps import Form
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import NAMED, SuperNet
from fxmerge.messages import listed
from fxmerge.methods.base import Job

Weights = Mapping[str, Tensor]
"""Parameters of a trunk by the template's names, in float64."""


@dataclass(frozen=True)
class Trunks:
    """Every parent's trunk, written as the template's; stems and heads stay each task's own and are not among them."""

    supernet: SuperNet
    """At the average, as are its maps."""
    program: Program
    """Its trunk folded: what gets new tensors."""
    parents: tuple[Weights, ...]
    base: Weights | None
    """The model that the parents were tuned from, where the user gave it."""

    @classmethod
    def of(cls, job: Job, method: str, form: Form | None = None) -> Trunks:
        """Fold the trunk once for every parent, with that parent alone in it.

        Raises `OptionError` for parents of different shapes: element by element nothing of theirs corresponds.
        """
        net = job.supernet
        require_alike(net, method)
        count = len(net.parents)
        parents = []
        for k in range(count):
            alone = net.start([float(j == k) for j in range(count)])
            parents.append(trunk_of(job.fold_trunk(alone.program)))
        average = net.start([1.0] * count, form, job.settings.seed)
        program = job.fold_trunk(average.program)
        base = None if job.base is None else dict(job.base())
        if base is not None:
            missing = [n for n, value in parents[0].items() if n not in base or base[n].shape != value.shape]
            if missing:
                named = listed(missing, NAMED)
                job.notes.append(f"the base has no {named}: the parents' average stands for it there")
            base |= {n: _mean([p[n] for p in parents]) for n in missing}
        return cls(average, program, tuple(parents), base)

    @property
    def average(self) -> Weights:
        return {name: _mean([parent[name] for parent in self.parents]) for name in self.parents[0]}

    @property
    def origin(self) -> Weights:
        """What changes are counted from: the base, or else the parents' average."""
        return self.average if self.base is None else self.base

    def changes(self) -> list[Weights]:
        """Per parent: what tuning changed, its task vector."""
        origin = self.origin
        return [{name: value - origin[name] for name, value in parent.items()} for parent in self.parents]

    def holding(self, weights: Weights) -> Program:
        """The folded program with these in its trunk."""
        tensors = dict(self.program.tensors)
        for name, value in weights.items():
            tensors[name] = value.to(tensors[name].dtype)
        return self.program.evolve(tensors=tensors)


def require_alike(net: SuperNet, method: str) -> None:
    """Raise `OptionError` for parents of different shapes."""
    if any(size != block.size for _, block in net.maps() for size in block.sizes):
        raise OptionError(f"{method} takes parents of one shape, and these differ in width", "choose condense or auto")


def trunk_of(folded: Program) -> Weights:
    """The parameters that a folded program shares among its tasks; running statistics are not among them."""
    return {
        name: value.detach().double()
        for name, value in folded.tensors.items()
        if name in folded.parameters and name not in folded.origins and value.is_floating_point()
    }


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)
