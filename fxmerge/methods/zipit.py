"""ZipIt: the units of all parents zipped in pairs, also of one model, until one model's width is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxmerge.bounds import Count, Share
from fxmerge.errors import DataError
from fxmerge.ir.maps import Form
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.alignment.evidence import Features
from fxmerge.methods.alignment.heads import Heads, align_heads, told_of_heads
from fxmerge.methods.alignment.layout import Layout, Site
from fxmerge.methods.alignment.maps import aligned
from fxmerge.methods.alignment.matches import Similarity
from fxmerge.methods.alignment.solve import Alignment, Carriers
from fxmerge.methods.alignment.told import told
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.groups import groups_of
from fxmerge.methods.permute import Order


def zipped(common: Tensor, parent: Tensor, size: int, share: float, discount: float) -> list[list[int]]:
    """Groups of units, the most correlated pair of groups joined first, until `size` are left.

    `common` (n × n) are correlations and `parent` says whose each unit is. Joins that bring two units of one parent
    together count `discount` times as much, and are at most this share of all joins while others are left.
    """
    groups: list[list[int]] = [[i] for i in range(len(common))]
    close = common.clone().fill_diagonal_(-torch.inf)
    inside = parent[:, None] == parent[None, :]
    alive = torch.ones(len(common), dtype=torch.bool)
    joins = max(len(common) - size, 0)
    left = int(share * joins)
    for _ in range(joins):
        worth = torch.where(inside, close * torch.where(close > 0, discount, 1.0), close)
        allowed = worth if left > 0 else worth.masked_fill(inside, -torch.inf)
        best = int(allowed.argmax())
        if not torch.isfinite(allowed.reshape(-1)[best]):
            best = int(worth.argmax())  # every group has units of all parents already
        i, j = divmod(best, len(common))
        left -= bool(inside[i, j])
        groups[i] += groups[j]
        joined = torch.minimum(close[i], close[j])
        joined[[i, j]] = -torch.inf
        close[i], close[:, i] = joined, joined
        close[j], close[:, j] = -torch.inf, -torch.inf
        inside[i] |= inside[j]
        inside[:, i] = inside[i]
        alive[j] = False
    return [groups[i] for i in alive.nonzero()[:, 0].tolist()]


def still_alike(common: Tensor) -> Tensor:
    """Correlations (n × n), with units that never vary, which correlate with nothing, as close to each other as any.

    They cost nothing to join; left for last, units that matter would be joined in their place.
    """
    still = common.diagonal() == 0
    return torch.where(still[:, None] & still[None, :], common.diagonal().max(), common)


@dataclass(frozen=True)
class Zip(Order):
    """Groups of units where orders are free; heads and other owners are matched as wholes, one of each parent."""

    inside: float = 0.125
    discount: float = 0.3

    def __call__(self, site: Site, similarity: Similarity, owner: bool) -> Carriers:
        if owner or not site.movable or sum(site.sizes) < site.size:
            return super().__call__(site, similarity, owner)
        common = still_alike(torch.cat([torch.cat(list(row), 1) for row in similarity]))
        parent = torch.cat([torch.full((d,), k) for k, d in enumerate(site.sizes)])
        groups = zipped(common, parent, site.size, self.inside, self.discount)
        member = torch.zeros(site.size, len(common), dtype=torch.float64)
        for i, group in enumerate(groups):
            member[i, group] = 1.0
        return Carriers.of(torch.split(member, list(site.sizes), 1))


@dataclass(frozen=True)
class ZipIt:
    """M averages each group of units, U gives it to all of its members; tied across skip connections (§4)."""

    name: ClassVar[str] = "zipit"
    summary: ClassVar[str] = "zip the most correlated units of all parents, of one parent too, into one width"
    needs_data: ClassVar[bool] = True
    about: ClassVar[About] = About("Stoica et al., ICLR 2024, §4", groups=("permutation", "free"))

    inside: Share = 0.125
    """Largest share of joins inside one model."""
    discount: Share = 0.3
    """What a group's correlations are multiplied with each time it is joined."""
    heads: Heads = "respected"
    """Whether values are zipped within heads that are matched as wholes, or (free) across heads."""
    rows: Count = 1500
    """Inputs that are looked at, of all tasks together."""

    def __call__(self, job: Job) -> Outcome:
        net = self.start(job, "fixed")
        return Outcome(net.program, init=self.name, solved=frozenset(net.own))

    def start(self, job: Job, form: Form) -> SuperNet:
        """The SuperNet aligned, its maps in this form."""
        layout = Layout.of(job.supernet)
        if job.pool is None or not job.supernet.together:
            raise DataError(
                "zipit compares features on samples that all parents take, and these have inputs of their own",
                "choose --method permute --on weights",
            )
        features, alignment = Features.of(layout, job.pool, self.rows), Alignment(layout)
        decide = Zip(job.supernet.template, self.inside, self.discount)
        for root in layout.roots:
            align_heads(alignment, root, features.evidence(layout.tree(root)), decide, self.heads)
        net = aligned(alignment, form, job.settings.seed)
        job.notes.extend(told(self.name, layout, groups_of(net)))
        job.notes.extend(told_of_heads(self.name, alignment, self.heads))
        return net


ZIPIT = ZipIt()
