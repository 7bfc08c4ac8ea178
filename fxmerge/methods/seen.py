"""What a closed form looks at: samples in batches, the SuperNet and the parents that run on them, values as rows.

Where tasks have inputs of their own, a batch is of one task, the SuperNet is one trunk (`OneTrunk`), and the other
parents have no value on that batch: beside a parent's rows theirs are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxmerge.errors import OptionError
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.one_trunk import OneTrunk
from fxmerge.methods.regress import MOST, Rows
from fxmerge.methods.sampled import Sampled
from fxmerge.methods.walk import Values

Part = Sequence[Tensor | None]
"""Rows of every batch; None where there are none."""


@dataclass(frozen=True)
class Seen:
    """Samples, and who runs on them."""

    net: SuperNet
    """As one trunk."""
    batches: Sequence[Sampled]
    rows: Rows
    trunk: OneTrunk | None = None

    @classmethod
    def of(cls, net: SuperNet, batches: Sequence[Sampled], program: Program | None = None, most: int = MOST) -> Seen:
        """With `program` what was made from the SuperNet runs in its place."""
        trunk = OneTrunk.of(net, program)
        shown = trunk.program if trunk else program
        found = net if shown is None else net.with_program(shown)
        return cls(found, batches, Rows([batch.masks for batch in batches], most), trunk)

    def merged(
        self,
        tensors: dict[str, Tensor] | None = None,
        kept: Iterable[fx.Node] = (),
        replaced: Mapping[fx.Node, Callable[[int], Tensor]] | None = None,
    ) -> Values:
        """The merged values, with other tensors or with values in the place of calls."""
        inputs, tasks = [batch.inputs for batch in self.batches], [batch.task for batch in self.batches]
        return Values(self.net.program, inputs, kept, replaced, tensors, self.trunk, tasks)

    def parents(self, kept: Sequence[Iterable[fx.Node]] = ()) -> list[Values]:
        """Every parent's values."""
        kept = kept or [()] * len(self.net.parents)
        inputs = [batch.inputs for batch in self.batches]
        return [Values(p, inputs, own) for p, own in zip(parents_of(self.net), kept, strict=True)]

    def part(self, values: Sequence[Tensor | None], axis: int) -> list[Tensor | None]:
        """The rows of every batch."""
        return [None if value is None else self.rows.of(value, axis, i) for i, value in enumerate(values)]

    def summed(self, parts: Sequence[Part]) -> list[Tensor]:
        """Per batch: the sum of the parents that have rows. Raises `OptionError` where these are of other places."""
        _require_alike(parts)
        return [torch.stack([part for part in own if part is not None]).sum(0) for own in zip(*parts, strict=True)]


def joined(part: Part) -> Tensor:
    """The rows of all batches that have any."""
    return torch.cat([rows for rows in part if rows is not None])


def beside(parts: Sequence[Part]) -> list[Tensor]:
    """Per parent the rows of all batches: zeros where only others have some.

    Raises `OptionError` where a row of one parent is not of the same place as that of another.
    """
    _require_alike(parts)
    found = []
    for part in parts:
        width = joined(part).shape[1]
        counts = [next(len(rows) for rows in own if rows is not None) for own in zip(*parts, strict=True)]
        whole = [torch.zeros(n, width).double() if rows is None else rows for n, rows in zip(counts, part, strict=True)]
        found.append(torch.cat(whole))
    return found


def _require_alike(parts: Sequence[Part]) -> None:
    for own in zip(*parts, strict=True):
        if len({len(rows) for rows in own if rows is not None}) > 1:
            raise OptionError(
                "parents have different widths along two axes of one value, so that no row of one belongs to a row of "
                "another",
                "choose --method permute, align or distill, or merge parents of one width",
            )


def parents_of(supernet: SuperNet) -> Iterable[Program]:
    """The parents, their inputs named as the SuperNet's."""
    for parent, names in zip(supernet.parents, supernet.inputs, strict=True):
        ports = tuple(replace(port, name=name) for port, name in zip(parent.inputs, names, strict=True))
        yield parent.evolve(inputs=ports)
