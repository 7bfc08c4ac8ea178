"""The SuperNet solved instead of trained: a closed form in two walks, every choice an exact M and U."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fxmerge.bounds import Amount, Count, Positive
from fxmerge.errors import OptionError
from fxmerge.ir.supernet import NAMED, SuperNet
from fxmerge.messages import listed
from fxmerge.methods.about import About
from fxmerge.methods.balance import best_balance
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.bases import Bases
from fxmerge.methods.closed_form import ClosedForm
from fxmerge.methods.groups import groups_of
from fxmerge.methods.prefix import Prefix
from fxmerge.methods.regress import MOST
from fxmerge.methods.sampled import through
from fxmerge.methods.seen import Seen

TRIED = 250
"""Inputs that are looked at to choose a balance."""
PLACES = 20
"""Of every input so many tokens, or places of a picture, on average at most: a trial needs fewer than the result."""


@dataclass(frozen=True)
class Condense(ClosedForm):
    """The parents side by side are one wide network; it is compressed to one model's width, space by space.

    Streams get principal components, other spaces whole units; readers and writers follow by ridge regression through
    the already merged prefix. Related: neuron interpolation (arXiv 2507.00037), pruning of the stacked ensemble
    (2605.22350), SliceGPT; here for every graph that the analysis knows, and folded exactly.
    """

    name: ClassVar[str] = "condense"
    summary: ClassVar[str] = "compress the parents side by side to one width in closed form, without training"
    needs_data: ClassVar[bool] = True
    about: ClassVar[About] = About(groups=("permutation", "orthogonal", "free"))

    ridge: Amount = 1e-2
    """Penalty of the regressions, as a share of the mean square of a feature."""
    rows: Count = 1500
    """Inputs that are looked at, of all tasks together."""
    balance: tuple[Positive, ...] = ()
    """Per parent: the size of its streams before a common basis is taken; one for each when empty."""

    def __call__(self, job: Job) -> Outcome:
        net, program = self.start(job)
        about = job.pool.about if job.pool else {}
        return Outcome(
            program, init=self.name, augmentation=about, solved=_changed(job.supernet, net), groups=groups_of(net)
        )

    def plan(self, job: Job) -> Outcome:
        """The outcome before anything is solved."""
        return Outcome(job.supernet.start([1.0] * len(job.supernet.parents), "fixed").program, init=self.name)

    def _solved(self, job: Job, kernels: bool) -> tuple[SuperNet, dict[str, Tensor]]:
        balance = self.balance or best_balance(
            job, lambda short, tried: replace(self, rows=TRIED, balance=tried).start(short)
        )
        return replace(self, balance=balance)._solved_with(job, kernels)

    def _solved_with(self, job: Job, kernels: bool) -> tuple[SuperNet, dict[str, Tensor]]:
        count = len(job.supernet.parents)
        if self.balance and len(self.balance) != count:
            raise OptionError(f"{len(self.balance)} numbers to balance {count} parents", "give one for every parent")
        net = job.supernet.start([1.0] * count, "fixed")
        assert job.pool is not None
        seen = Seen.of(net, through(net, job.pool, self.rows), most=min(MOST, PLACES * self.rows))
        bases = Bases(seen, self.balance)
        left = bases.choose()
        if left:
            spaces = "a space that calls write" if len(left) == 1 else f"{len(left)} spaces that calls write"
            what = f"what {named} write" if (named := _writers(net, left)) else spaces
            job.notes.append(f"condense: no closed form for {what}: it is averaged")
        prefix = Prefix(seen, bases, self.ridge, kernels)
        tensors = prefix.solve()
        return net.with_program(net.program.evolve(tensors=tensors)), prefix.weights


def _writers(supernet: SuperNet, spaces: Iterable[str]) -> str:
    """The tensors that write spaces, by the template's names."""
    assert supernet.spaces is not None
    found = sorted({use.tensor for each in spaces for use in supernet.spaces.spaces[each].writers})
    return listed(found, NAMED) if found else ""


def _changed(before: SuperNet, after: SuperNet) -> frozenset[str]:
    """The SuperNet's own tensors that are no longer the parents' average."""
    average = {name: own.average([1.0] * len(before.parents)) for name, own in before.own.items()}
    now = after.program.tensors
    return frozenset(name for name, value in average.items() if not torch.equal(now[name].to(value.dtype), value))


CONDENSE = Condense()
