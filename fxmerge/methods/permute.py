"""Permute: the units of all parents in one order, then averaged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from fxmerge.bounds import Count
from fxmerge.errors import DataError
from fxmerge.ir.maps import Form
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.alignment import matches
from fxmerge.methods.alignment.evidence import Features
from fxmerge.methods.alignment.heads import Heads, align_heads, told_of_heads
from fxmerge.methods.alignment.layout import TURNED, Layout, Site
from fxmerge.methods.alignment.maps import aligned
from fxmerge.methods.alignment.matches import Similarity
from fxmerge.methods.alignment.solve import Alignment, Carriers, align, scores
from fxmerge.methods.alignment.told import groups_by, told
from fxmerge.methods.alignment.weights import SWEEPS, descend, same
from fxmerge.methods.base import Job, Outcome

SIGNED = ("signed_permutation", *TURNED)
"""Groups that hold every change of signs beside every order."""


@dataclass(frozen=True)
class Order:
    """One order for all parents, with signs where the group has them; heads and other owners move as wholes."""

    template: int

    def __call__(self, site: Site, similarity: Similarity, owner: bool) -> Carriers:
        fit = self._fit(site, owner)
        return Carriers.of(matches.universe(similarity, site.size, self.template, fit))

    def score(self, site: Site, similarity: Tensor, owner: bool) -> float:
        return float((self._fit(site, owner)(similarity) * similarity).sum())

    def _fit(self, site: Site, owner: bool) -> matches.Fit:
        if site.group in SIGNED:
            return matches.permutation if owner else matches.signed_permutation
        return matches.permutation if site.group == "permutation" else matches.identity


@dataclass(frozen=True)
class Permute:
    """M = [I/K, P_k/K], U = [I; P_kᵀ], tied: an order of every parent's units, found from features or from weights.

    Features: their correlation over samples, assignment of heads by assignments inside (Verma & Elbayad 2024).
    """

    name: ClassVar[str] = "permute"
    summary: ClassVar[str] = (
        "put the parents' units in one order, then average (Git Re-Basin 2023, Verma & Elbayad 2024); data optional"
    )
    needs_data: ClassVar[bool] = False
    about: ClassVar[About] = About(
        "Ainsworth et al., ICLR 2023, §3; Verma & Elbayad 2024", tuned=True, groups=("permutation", "sign")
    )

    on: Literal["auto", "activations", "weights"] = "auto"
    """What units are compared by; auto: activations where there are samples that all parents take."""
    residual: Literal["auto", "identity", "matched"] = "auto"
    """Whether residual streams are put in order too; auto: where that holds on samples it was not found on."""
    heads: Heads = "respected"
    """Whether values keep their head; free: units go where they fit best, which attention does not allow."""
    rows: Count = 1500
    """Inputs that are looked at, of all tasks together."""

    def __call__(self, job: Job) -> Outcome:
        alignment = self.alignment(job)
        net = self._aligned(job, alignment, "fixed")
        return Outcome(net.program, init=self.name, solved=frozenset(net.own), groups=net.groups)

    def start(self, job: Job, form: Form) -> SuperNet:
        """The SuperNet aligned, its maps in this form."""
        return self._aligned(job, self.alignment(job), form)

    def _aligned(self, job: Job, alignment: Alignment, form: Form) -> SuperNet:
        net = aligned(alignment, form, job.settings.seed)
        net = replace(net, groups=groups_by(alignment, net))
        job.notes.extend(told(self.name, alignment.layout, net.groups))
        job.notes.extend(told_of_heads(self.name, alignment, self.heads))
        return net

    @property
    def turns(self) -> bool:
        """Whether units are turned, not only put in order."""
        return False

    @property
    def most_sweeps(self) -> int:
        """Of coordinate descent over all spaces."""
        return SWEEPS

    def decision(self, template: int) -> Order:
        """How a space is aligned."""
        return Order(template)

    def alignment(self, job: Job) -> Alignment:
        """What every space of every parent is carried by."""
        return self.on_spaces(job, self.layout(job.supernet))

    def layout(self, supernet: SuperNet) -> Layout:
        """The spaces, and what they allow."""
        return Layout.of(supernet)

    def on_spaces(self, job: Job, layout: Layout) -> Alignment:
        """The alignment of spaces that are known."""
        alignment, order = Alignment(layout), self.decision(job.supernet.template)
        together = job.pool is not None and job.supernet.together
        if self.on == "activations" and not together:
            raise DataError(
                "activations are compared on samples that all parents take, and there are none",
                "give --data and parents with the same inputs, or --on weights",
            )
        if self.on == "weights" or not together:
            roots = [r for r in layout.roots if self.residual != "identity" or layout.sites[r].role != "residual"]
            descend(
                alignment,
                roots,
                lambda root, evidence: align_heads(alignment, root, evidence, order, self.heads),
                self.most_sweeps,
            )
            return alignment
        assert job.pool is not None
        features = Features.of(layout, job.pool, self.rows, turns=self.turns)
        for root in layout.roots:
            self._root(alignment, root, features, order)
        beside = [root for root in layout.roots if features.beside(root, layout)]
        for _ in range(self.most_sweeps if beside else 0):  # each was decided with the others where they stood then
            before = alignment.everything
            for root in beside:
                self._root(alignment, root, features, order)
            if all(same(before.get(key), now.to) for key, now in alignment.everything.items()):
                break
        return alignment

    def _root(self, alignment: Alignment, root: str, features: Features, order: Order) -> None:
        layout = alignment.layout
        spaces = layout.tree(root)
        site = layout.sites[root]
        if site.role == "residual" and self.residual == "identity":
            return
        if site.role == "residual" and self.residual == "auto" and not self._holds(layout, root, features, order):
            return
        align_heads(alignment, root, features.evidence(spaces), order, self.heads)

    def _holds(self, layout: Layout, root: str, features: Features, order: Order) -> bool:
        """Whether an order found on one half of the samples is better than none on the other."""
        tried = Alignment(layout)
        align(tried, root, features.evidence([root], 0), order)
        judge = features.evidence([root], 1)
        return scores(layout, judge, root, tried.of(root, ())) > scores(
            layout, judge, root, Alignment(layout).of(root, ())
        )


PERMUTE = Permute()
