"""Rotate: orthogonal maps where the group has them, orders elsewhere (generalised linear mode connectivity)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxmerge.ir.maps import Form
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.alignment import matches
from fxmerge.methods.alignment.layout import Layout, Site
from fxmerge.methods.alignment.maps import aligned
from fxmerge.methods.alignment.solve import Alignment, align
from fxmerge.methods.alignment.told import told
from fxmerge.methods.alignment.weights import descend
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.groups import groups_of
from fxmerge.methods.permute import Order

TURNED = ("orthogonal", "invertible")


@dataclass(frozen=True)
class Turn(Order):
    """A rotation where the group holds all of them; an order, with signs where they are free, elsewhere."""

    def _fit(self, site: Site, owner: bool) -> matches.Fit:
        return matches.rotation if site.group in TURNED and not owner else super()._fit(site, owner)


@dataclass(frozen=True)
class Rotate:
    """Procrustes on what may turn: queries and keys, values and outputs of every head, streams without scales.

    Heads are assigned by what their best rotations have in common, widths by order; a few sweeps of coordinate descent
    on the weights. A stream whose norms scale it takes an order alone, and that is said.
    """

    name: ClassVar[str] = "rotate"
    summary: ClassVar[str] = "turn the parents' heads and streams onto one another by Procrustes, then average; no data"
    needs_data: ClassVar[bool] = False
    about: ClassVar[About] = About(
        "generalised linear mode connectivity, NeurIPS 2025", groups=("permutation", "sign", "orthogonal")
    )

    sweeps: int = 5
    """Of coordinate descent over all spaces."""

    def __call__(self, job: Job) -> Outcome:
        net = self.start(job, "fixed")
        return Outcome(net.program, init=self.name, solved=frozenset(net.own))

    def start(self, job: Job, form: Form) -> SuperNet:
        """The SuperNet aligned, its maps in this form."""
        alignment = self.alignment(job)
        net = aligned(alignment, form, job.settings.seed)
        job.notes.extend(told(self.name, alignment.layout, groups_of(net)))
        return net

    def alignment(self, job: Job) -> Alignment:
        """The rotation, or order, of every space for every parent."""
        alignment = Alignment(Layout.of(job.supernet))
        turn = Turn(job.supernet.template)
        descend(
            alignment,
            alignment.layout.roots,
            lambda root, evidence: align(alignment, root, evidence, turn),
            self.sweeps,
        )
        return alignment


ROTATE = Rotate()
