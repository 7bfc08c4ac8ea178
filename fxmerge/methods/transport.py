"""Transport: units matched softly, as mass that is moved from one parent's to another's, then averaged."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import ot
import torch
from torch import Tensor

from fxmerge.bounds import Amount
from fxmerge.errors import DataError
from fxmerge.methods.about import About
from fxmerge.methods.alignment.layout import Layout, Site
from fxmerge.methods.alignment.matches import Similarity
from fxmerge.methods.alignment.solve import Alignment, Carriers
from fxmerge.methods.alignment.untied import Queries, Streams, told_of_untied, untie
from fxmerge.methods.base import Job
from fxmerge.methods.permute import Order, Permute

SWEEPS = 5000
PLAIN = 0.005
"""Entropies above it keep exp(-cost / reg) within float64 for costs up to 1; below, ten times slower, in logarithms."""
TURNS = 20
"""Of a barycentre, at most."""


@dataclass(frozen=True)
class Plan(Order):
    """A plan from the template's units, or from those of the barycentre of three and more, to every parent's.

    Heads and other owners are matched as wholes.
    """

    reg: float = 0.08

    def __call__(self, site: Site, similarity: Similarity, owner: bool) -> Carriers:
        if owner or not site.movable or site.size != site.sizes[self.template]:
            return super().__call__(site, similarity, owner)
        plans = [torch.eye(site.size, dtype=torch.float64) / site.size for _ in site.sizes]
        for k in range(len(plans)):
            if k != self.template:
                plans[k] = transport_plan(distances(similarity, self.template, k), self.reg)
        if len(plans) > 2:
            plans = barycentre(similarity, plans, self.reg)
        return Carriers(tuple(shares(p) for p in plans), tuple(shares(p.T) for p in plans))


def shares(plan: Tensor) -> Tensor:
    """A plan with rows that sum to one."""
    return plan / plan.sum(1, keepdim=True)


def barycentre(similarity: Similarity, plans: Sequence[Tensor], reg: float) -> list[Tensor]:
    """Plans (d × d_k) from the units in the middle of all parents' to each parent's, from the plans given.

    A unit in the middle is the mean of what the plans bring to it (free support, Cuturi & Doucet 2014, algorithm 2).
    Parents take turns against the middle of the others, which their own units do not hold fast, until none gains.
    """
    found, count = list(plans), len(plans)
    for _ in range(TURNS):
        before = list(found)
        for k in range(count):
            ways = {i: shares(found[i]) / (count - 1) for i in range(count) if i != k}
            square = _sum(a @ similarity[i][j] @ b.T for i, a in ways.items() for j, b in ways.items()).diagonal()
            cost = apart(square, similarity[k][k].diagonal(), _sum(a @ similarity[i][k] for i, a in ways.items()))
            turned = transport_plan(cost, reg)
            if float((cost * (turned - found[k])).sum()) < -1e-9:
                found[k] = turned
        if all(new is old for new, old in zip(found, before, strict=True)):
            break
    return found


def distances(similarity: Similarity, a: int, b: int) -> Tensor:
    """Euclidean distances between the units of two parents, from what they have in common, over the largest of them.

    Of standardized features that is what their correlations say; of weights, of their rows as they stand.
    """
    return apart(similarity[a][a].diagonal(), similarity[b][b].diagonal(), similarity[a][b])


def apart(own: Tensor, other: Tensor, common: Tensor) -> Tensor:
    """Distances from squared lengths (n), (m) and inner products (n × m), over the largest of them."""
    found = (own[:, None] + other[None, :] - 2 * common).clamp_min(0.0).sqrt()
    return found / found.max().clamp_min(1e-30)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def transport_plan(cost: Tensor, reg: float) -> Tensor:
    """The plan between uniform masses that costs least, or with entropy `reg` (Cuturi 2013); rows and columns sum to
    the masses of their units."""
    masses = [np.full(n, 1 / n) for n in cost.shape]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where it stops before all digits are right
        if reg <= 0:
            plan = ot.emd(*masses, cost.numpy())
        else:
            method = "sinkhorn" if reg > PLAIN else "sinkhorn_log"
            plan = ot.sinkhorn(*masses, cost.numpy(), reg, method=method, numItermax=SWEEPS, stopThr=1e-9)
    return torch.from_numpy(np.ascontiguousarray(plan)).clamp_min(0.0)


@dataclass(frozen=True)
class Transport(Permute):
    """U = the plan with rows that sum to one, M = its transpose with rows that do, shared with the template's I.

    With unequal widths both are needed. Three parents and more are carried to their barycentre, two to the template's
    units; spaces that signs or turns would leave alike are still matched by order, as in the paper. `reg=0` is exact
    transport, an order at equal widths.
    """

    name: ClassVar[str] = "transport"
    summary: ClassVar[str] = "match units softly, by optimal transport between features or weights, then average"
    about: ClassVar[About] = About(
        "Imfeld et al., ICLR 2024; Singh and Jaggi, NeurIPS 2020", tuned=True, groups=("permutation", "free")
    )

    reg: Amount = 0.08
    """Entropy of the plans, as a share of the largest distance; 0 for exact transport."""

    streams: Streams = "tied"
    """Whether all that writes a residual stream has one plan, or each its own: then readers have the mean of the plans
    that meet, or one weighed by what the branches amount to (scalar), or so unit by unit (matrix)."""
    queries: Queries = "joint"
    """Whether one plan is made for queries and keys of a head, or each has its own (separate); equal: the queries' for
    both. Only one plan for both is a symmetry, where it is an order."""

    def decision(self, template: int) -> Order:
        return Plan(template, self.reg)

    def on_spaces(self, job: Job, layout: Layout) -> Alignment:
        alignment = super().on_spaces(job, layout)
        if self.streams == "tied" and self.queries == "joint":
            return alignment
        if self.on == "weights" or job.pool is None or not job.supernet.together:
            raise DataError(
                "plans of single writers are made from what these write on samples that all parents take",
                "leave out on=weights and give such samples; or leave out streams and queries",
            )
        decide = self.decision(job.supernet.template)
        untie(alignment, job.pool, self.rows, decide, self.streams, self.queries)
        job.notes.extend(told_of_untied(self.name, alignment))
        return alignment


TRANSPORT = Transport()
