"""Transport: units matched softly, as mass that is moved from one parent's to another's, then averaged."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import ot
import torch
from torch import Tensor

from fxmerge.methods.about import About
from fxmerge.methods.alignment.layout import Site
from fxmerge.methods.alignment.matches import Similarity
from fxmerge.methods.alignment.solve import Carriers
from fxmerge.methods.permute import Order, Permute

SWEEPS = 5000


@dataclass(frozen=True)
class Plan(Order):
    """A plan from the template's units to every other parent's; heads and other owners are matched as wholes."""

    reg: float = 0.08

    def __call__(self, site: Site, similarity: Similarity, owner: bool) -> Carriers:
        movable = site.group not in ("identity", "rotary")
        if owner or not movable or site.size != site.sizes[self.template]:
            return super().__call__(site, similarity, owner)
        to, back = [], []
        for k in range(len(site.sizes)):
            plan = torch.eye(site.size, dtype=torch.float64)
            if k != self.template:
                plan = transport_plan(distances(similarity, self.template, k), self.reg)
            to.append(plan / plan.sum(1, keepdim=True))
            back.append((plan / plan.sum(0)).T)
        return Carriers(tuple(to), tuple(back))


def distances(similarity: Similarity, a: int, b: int) -> Tensor:
    """Euclidean distances between the units of two parents, from what they have in common, over the largest of them.

    Of standardized features that is what their correlations say; of weights, of their rows as they stand.
    """
    own, other = (similarity[k][k].diagonal() for k in (a, b))
    square = own[:, None] + other[None, :] - 2 * similarity[a][b]
    found = square.clamp_min(0.0).sqrt()
    return found / found.max().clamp_min(1e-30)


def transport_plan(cost: Tensor, reg: float) -> Tensor:
    """The plan between uniform masses that costs least, or with entropy `reg` (Cuturi 2013); rows and columns sum to
    the masses of their units."""
    masses = [np.full(n, 1 / n) for n in cost.shape]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where it stops before all digits are right
        if reg <= 0:
            plan = ot.emd(*masses, cost.numpy())
        else:
            plan = ot.sinkhorn(*masses, cost.numpy(), reg, method="sinkhorn_log", numItermax=SWEEPS, stopThr=1e-10)
    return torch.from_numpy(np.ascontiguousarray(plan)).clamp_min(0.0)


@dataclass(frozen=True)
class Transport(Permute):
    """U = the plan with rows that sum to one, M = its transpose with rows that do, shared with the template's I.

    With unequal widths both are needed. All parents are carried to the template's units; spaces that signs or turns
    would leave alike are still matched by order, as in the paper. `reg=0` is exact transport, an order at equal widths.
    """

    name: ClassVar[str] = "transport"
    summary: ClassVar[str] = "match units softly, by optimal transport between features or weights, then average"
    about: ClassVar[About] = About(
        "Imfeld et al., ICLR 2024; Singh and Jaggi, NeurIPS 2020", tuned=True, groups=("permutation", "free")
    )

    reg: float = 0.08
    """Entropy of the plans, as a share of the largest distance; 0 for exact transport."""

    def decision(self, template: int) -> Order:
        return Plan(template, self.reg)


TRANSPORT = Transport()
