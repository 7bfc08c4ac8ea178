"""Rotate: orthogonal maps where the group has them, orders elsewhere (generalised linear mode connectivity)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fxmerge.bounds import Count
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.alignment import matches
from fxmerge.methods.alignment.layout import TURNED, Layout, Site
from fxmerge.methods.alignment.norms import turning
from fxmerge.methods.alignment.planes import turn_planes, turning_planes
from fxmerge.methods.alignment.solve import Alignment
from fxmerge.methods.base import Job
from fxmerge.methods.permute import Order, Permute

SWEEPS = 3
"""Of planes and units in turn, at most: heads are matched anew once their planes are turned."""


@dataclass(frozen=True)
class Turn(Order):
    """A rotation where the group holds all of them; an order, with signs where they are free, elsewhere."""

    def _fit(self, site: Site, owner: bool) -> matches.Fit:
        if site.group not in TURNED or owner:
            return super()._fit(site, owner)
        return matches.centred_rotation if site.centred else matches.rotation


@dataclass(frozen=True)
class Rotate(Permute):
    """Procrustes on what may turn: queries and keys, values and outputs of every head, residual streams.

    Scales and shifts of norms are folded into what reads them first, so that a pre-norm stream takes any rotation
    (beside the vector of ones, where its norms subtract the mean). Heads are assigned by what their best rotations have
    in common, widths by order: by features on samples, or by a few sweeps of coordinate descent on the weights. A
    stream whose norms cannot be folded takes an order alone, and that is said. Planes of rotary positions turn by one
    angle for queries and keys.
    """

    name: ClassVar[str] = "rotate"
    summary: ClassVar[str] = "turn the parents' heads and streams onto one another by Procrustes, then average"
    about: ClassVar[About] = About(
        "generalised linear mode connectivity, NeurIPS 2025",
        tuned=True,
        groups=("permutation", "sign", "rotary", "orthogonal"),
    )

    sweeps: Count = 5
    """Of coordinate descent over all spaces."""

    def layout(self, supernet: SuperNet) -> Layout:
        return turning(supernet)

    def alignment(self, job: Job) -> Alignment:
        layout = self.layout(job.supernet)
        planes = turning_planes(layout)
        found = self.on_spaces(job, replace(layout, aside=planes))
        for sweep in range(SWEEPS if planes else 0):
            turned = turn_planes(found, planes)
            if turned is None and sweep:
                break
            net = turned.net if turned else job.supernet
            known = found.planes | (turned.spaces if turned else frozenset())
            found = self.on_spaces(replace(job, supernet=net), replace(layout, supernet=net))
            found.planes = known
        return found

    @property
    def turns(self) -> bool:
        return True

    @property
    def most_sweeps(self) -> int:
        return self.sweeps

    def decision(self, template: int) -> Order:
        return Turn(template)


ROTATE = Rotate()
