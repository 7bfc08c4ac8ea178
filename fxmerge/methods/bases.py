"""Which part of the parents' spaces side by side the merged model has: found from the parents alone, before merging.

Streams that may be turned get the principal components of all parents' streams; of every other space whole units are
kept: hidden units, heads with all that is in them, groups of keys and values; those that the readers would miss most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import Place, Stream, SuperNet
from fxmerge.methods.map_nodes import Block, Merge, Unmerge, blocks_of
from fxmerge.methods.regress import Moments, beside_ones, eliminate, principal, rows_of, thinned
from fxmerge.methods.walk import Batch, Values

Twins = tuple[fx.Node, ...]
"""Per parent: the node that does the same."""


class Bases:
    """Sets every merge map of a SuperNet."""

    def __init__(self, supernet: SuperNet, batches: Sequence[Batch], balance: Sequence[float] = ()) -> None:
        self.supernet, self.batches = supernet, batches
        self.balance = tuple(balance) or (1.0,) * len(supernet.parents)
        maps = {name: m for name, m in supernet.program.maps.items() if isinstance(m, AxisMap)}
        self.blocks = {name: list(blocks_of(module, supernet.places[name])) for name, module in maps.items()}
        reads = [name for name, place in supernet.places.items() if self._selects(place, name)]
        self.targets = {name: self._targets(name) for name in reads}
        self.streams = {s: [self._twins(n) for n in (t.post or t.places)] for s, t in supernet.streams.items()}

        self.bases: dict[str, list[Tensor]] = {}
        """By stream that may be turned: the merge matrix of every parent."""
        self.kept: dict[str, list[tuple[int, int]]] = {}
        """By other space: (parent, unit) of every merged unit."""

    def choose(self) -> frozenset[str]:
        """Set the merge maps; the spaces whose maps are left as they were."""
        values = [Values(p, self.batches, w) for p, w in zip(parents_of(self.supernet), self._wanted(), strict=True)]
        self.bases = {s: self._basis(s, self.supernet.streams[s], spots, values) for s, spots in self.streams.items()}
        spaces = {b.space for n in self.targets for b in self.blocks[n]} - self.bases.keys()
        self.kept = {space: self._kept(space, values) for space in sorted(spaces)}
        left = set()
        for name, place in self.supernet.places.items():
            for block in self.blocks[name] if place.role == "write" else ():
                if block.space in self.bases and block.plain:
                    block.set(self.bases[block.space])
                elif block.space in self.kept:
                    block.set(block.selection(self.kept[block.space]))
                else:
                    left.add(block.space)
        return frozenset(left)

    # -- what to look at -----------------------------------------------------------------------------

    def _selects(self, place: Place, name: str) -> bool:
        whole = place.role == "read" and all(isinstance(node, fx.Node) for node in place.of)
        return whole and any(block.space not in self.supernet.streams for block in self.blocks[name])

    def _targets(self, name: str) -> list[Twins]:
        """The parents' calls that read the axis of an unmerge map, where what they write is merged."""
        found: dict[Twins, None] = {}
        for node in self.supernet.nodes_of(name):
            for call in node.users if Unmerge.of(node) else ():
                for user in call.users:
                    if Merge.of(user) and user.name in self.supernet.twins:
                        found[self.supernet.twins[user.name]] = None
        return list(found)

    def _twins(self, ours: fx.Node) -> Twins:
        return self.supernet.twins[self.supernet.trunk[ours]]

    def _wanted(self) -> list[list[fx.Node]]:
        """Per parent: the values that are looked at."""
        twins = [t for spots in self.streams.values() for t in spots]
        for name, calls in self.targets.items():
            twins += [_nodes(self.supernet.places[name]), *calls]
        return [[t[k] for t in twins] for k in range(len(self.supernet.parents))]

    # -- streams ---------------------------------------------------------------------------------------

    def _basis(self, space: str, stream: Stream, spots: Sequence[Twins], values: Sequence[Values]) -> list[Tensor]:
        """Principal components of the parents' streams side by side, each place and each parent by its own scale."""
        spaces = self.supernet.spaces
        assert spaces is not None
        size, scales, moments = spaces.spaces[space].size, [], []
        for spot in spots:
            rows = [self._rows(values[k].of(node), stream) for k, node in enumerate(spot)]
            scales.append(torch.stack([part.square().mean() for part in rows]))
            side = torch.cat(rows, 1)
            moments.append(side.T @ side / len(side))
        widths = [part.shape[1] for part in rows]
        scale = torch.stack(scales).mean(0).sqrt() / torch.tensor(self.balance, dtype=torch.float64)
        weights = torch.cat([1 / s.repeat(w) for s, w in zip(scale, widths, strict=True)])
        moments = [weights[:, None] * moment * weights for moment in moments]
        second = torch.stack([moment / moment.diagonal().mean().clamp(min=1e-30) for moment in moments]).sum(0)
        basis = principal(second, size - stream.centred)
        basis = beside_ones(size) @ basis if stream.centred else basis
        parts = [part / s for part, s in zip(torch.split(basis, widths, 1), scale, strict=True)]
        return [part - part.mean(1, keepdim=True) for part in parts] if stream.centred else parts

    def _rows(self, values: Sequence[Tensor], stream: Stream) -> Tensor:
        rows = torch.cat([thinned(rows_of(value, -1), len(self.batches)) for value in values])
        return rows - rows.mean(1, keepdim=True) if stream.centred else rows

    # -- units -----------------------------------------------------------------------------------------

    def _kept(self, space: str, values: Sequence[Values]) -> list[tuple[int, int]]:
        """(parent, unit) of the units without which the results of those who read them can be told least."""
        blocks = [(name, block) for name in self.targets for block in self.blocks[name] if block.space == space]
        first = blocks[0][1]
        moments = [self._moments(name, block, values) for name, block in blocks]
        where = [(k, unit) for k, factors in enumerate(first.theirs) for unit in range(factors[0].size)]
        return [where[unit] for unit in eliminate(moments, first.units(), min(first.factors[0].size, len(where)))]

    def _moments(self, name: str, block: Block, values: Sequence[Values]) -> Moments:
        """Of what the readers see, and of what they make of it; of what they see alone where rows do not match."""
        place = self.supernet.places[name]
        nodes = _nodes(place)
        moments: Moments | None = None
        for i in range(len(self.batches)):
            seen = [rows_of(values[k].of(n)[i], place.axis)[:, block.own[k]] for k, n in enumerate(nodes)]
            made = [rows_of(values[k].of(n)[i], -1) for call in self.targets[name] for k, n in enumerate(call)]
            made = made if made and all(len(rows) == len(seen[0]) for rows in made) else seen
            x, y = (thinned(torch.cat(part, 1), len(self.batches)) for part in (seen, made))
            moments = moments or Moments.empty(x.shape[1], y.shape[1])
            moments.add(x, y)
        assert moments is not None
        return moments


def _nodes(place: Place) -> Twins:
    assert all(isinstance(node, fx.Node) for node in place.of)
    return tuple(node for node in place.of if isinstance(node, fx.Node))


def parents_of(supernet: SuperNet) -> Iterator[Program]:
    """The parents, their inputs named as the SuperNet's."""
    for parent, names in zip(supernet.parents, supernet.inputs, strict=True):
        ports = tuple(replace(port, name=name) for port, name in zip(parent.inputs, names, strict=True))
        yield parent.evolve(inputs=ports)
