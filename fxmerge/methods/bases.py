"""Which part of the parents' spaces side by side the merged model has: found from the parents alone, before merging.

Streams that may be turned get the principal components of all parents' streams; of every other space whole units are
kept: hidden units, heads with all that is in them, groups of keys and values; those that the readers would miss most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap
from fxmerge.ir.space import leaves
from fxmerge.ir.supernet import Place, Stream
from fxmerge.methods.map_nodes import Block, Merge, Unmerge, blocks_of
from fxmerge.methods.regress import Moments, beside_ones, eliminate, principal
from fxmerge.methods.scales import scales_of
from fxmerge.methods.seen import Part, Seen, beside, joined
from fxmerge.methods.walk import Values

Twins = tuple[fx.Node, ...]
"""Per parent: the node that does the same."""


class Bases:
    """Sets every merge map of a SuperNet."""

    def __init__(self, seen: Seen, balance: Sequence[float] = ()) -> None:
        self.seen, self.supernet = seen, seen.net
        supernet = self.supernet
        self.balance = tuple(balance) or (1.0,) * len(supernet.parents)
        maps = {name: m for name, m in supernet.program.maps.items() if isinstance(m, AxisMap)}
        self.blocks = {name: list(blocks_of(module, supernet.places[name])) for name, module in maps.items()}
        reads = [name for name, place in supernet.places.items() if self._selects(place, name)]
        self.targets = {name: self._targets(name) for name in reads}
        joins = [(n, m) for n in supernet.program.graph.nodes if (m := Merge.of(n)) and n.name in supernet.twins]
        self.written = {supernet.twins[n.name]: m.name for n, m in joins}
        self.apart = self._apart([m for _, m in joins])
        """Spaces that only stems write, each for its own task: all units of every parent have their place."""
        self.streams = {s: [self._twins(n) for n in (t.post or t.places)] for s, t in supernet.streams.items()}

        found = [scale for s, stream in supernet.streams.items() for scale in scales_of(supernet, s, stream)]
        self.scales = {scale.merge: scale.values for scale in found}
        """By merge map into a stream: every parent's factors of what is written there, that the map takes in."""
        self.bases: dict[str, list[Tensor]] = {}
        """By stream that may be turned: the merge matrix of every parent."""
        self.kept: dict[str, list[tuple[int, int]]] = {}
        """By other space: (parent, unit) of every merged unit."""

    def choose(self) -> frozenset[str]:
        """Set the merge maps; the spaces whose maps are left as they were."""
        values = self.seen.parents(self._wanted())
        self.bases = {s: self._basis(s, self.supernet.streams[s], spots, values) for s, spots in self.streams.items()}
        spaces = {b.space for n in self.targets for b in self.blocks[n]} - self.bases.keys() - self.apart
        self.kept = {space: self._kept(space, values) for space in sorted(spaces)}
        left, whole = set(), self._with_chosen()
        for name, place in self.supernet.places.items():
            for block in self.blocks[name] if place.role == "write" else ():
                if block.space in self.bases and block.plain:
                    block.set(self._into(name, block.space))
                elif block.space in self.kept:
                    block.set(block.selection(self.kept[block.space]))
                elif place.of in whole:
                    block.set(block.identity())
                elif block.space not in self.apart:
                    left.add(block.space)
        return frozenset(left)

    def _with_chosen(self) -> set[tuple[fx.Node | str, ...]]:
        """What is written in a chosen basis or with whole units along an axis: along the rest each unit stays there."""
        chosen = self.bases.keys() | self.kept.keys()
        return {
            place.of
            for name, place in self.supernet.places.items()
            if place.role == "write" and any(block.space in chosen for block in self.blocks[name])
        }

    # -- what to look at -----------------------------------------------------------------------------

    def _apart(self, joins: Sequence[Merge]) -> frozenset[str]:
        spaces = self.supernet.spaces
        assert spaces is not None
        summed, alone = set[str](), set[str]()
        for joined_by in joins:
            fits = all(len(own) <= len(block.merged) for block in self.blocks[joined_by.name] for own in block.own)
            by_one = len(joined_by.parents) < len(self.supernet.parents)
            (alone if by_one and fits else summed).update(block.space for block in self.blocks[joined_by.name])
        normed = {leaf.space for name in self.supernet.own for axis in spaces.tensors[name] for leaf in leaves(axis)}
        return frozenset(alone - summed - normed)

    def _selects(self, place: Place, name: str) -> bool:
        whole = place.role == "read" and all(isinstance(node, fx.Node) for node in place.of)
        half = any(Unmerge.half(node) for node in self.supernet.nodes_of(name))
        return whole and not half and any(block.space not in self.supernet.streams for block in self.blocks[name])

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
            parts = [self._part(values[k], node, centred=stream.centred) for k, node in enumerate(spot)]
            scales.append(torch.stack([joined(part).square().mean() for part in parts]))
            side = torch.cat(rows := beside(parts), 1)
            moments.append(side.T @ side / len(side))
        widths = [part.shape[1] for part in rows]
        scale = torch.stack(scales).mean(0).sqrt() / torch.tensor(self.balance, dtype=torch.float64)
        weights = torch.cat([1 / s.repeat(w) for s, w in zip(scale, widths, strict=True)])
        basis = _components(moments, weights, size - stream.centred)
        if not stream.centred:
            return [part / s for part, s in zip(torch.split(basis, widths, 1), scale, strict=True)]
        basis = beside_ones(size) @ basis
        found = [part / s for part, s in zip(torch.split(basis, widths, 1), scale, strict=True)]
        means = torch.zeros(len(found)) if stream.post else self._means(spots, values, scale, widths) / size**0.5
        return [part - part.mean(1, keepdim=True) + mean for part, mean in zip(found, means.tolist(), strict=True)]

    def _means(self, spots: Sequence[Twins], values: Sequence[Values], scale: Tensor, widths: Sequence[int]) -> Tensor:
        """What the parents' means over channels have in common, in units of a channel: norms alone do not see it."""
        moments, ones = [], [torch.full((width, 1), width**-0.5, dtype=torch.float64) for width in widths]
        for spot in spots:
            side = torch.cat(beside([self._part(values[k], n, ones[k]) for k, n in enumerate(spot)]), 1)
            moments.append(side.T @ side / len(side))
        share = _components(moments, 1 / scale, 1)[0] / scale
        return share / torch.tensor(widths).sqrt()

    def _into(self, name: str, space: str) -> list[Tensor]:
        """Per parent: the merge matrix of a map that writes into a stream; what scales it on the way scales by one."""
        bases = self.bases[space]
        return [b * g for b, g in zip(bases, self.scales[name], strict=True)] if name in self.scales else bases

    def around(self, name: str) -> list[Tensor] | None:
        """The basis of the stream that a map writes into, where the map holds more than that."""
        return self.bases[self.blocks[name][0].space] if name in self.scales else None

    # -- units -----------------------------------------------------------------------------------------

    def _kept(self, space: str, values: Sequence[Values]) -> list[tuple[int, int]]:
        """(parent, unit) of the units without which the results of those who read them can be told least."""
        blocks = [(name, block) for name in self.targets for block in self.blocks[name] if block.space == space]
        first = blocks[0][1]
        moments = [self._moments(name, block, values) for name, block in blocks]
        where = [(k, unit) for k, factors in enumerate(first.theirs) for unit in range(factors[0].size)]
        return [where[unit] for unit in eliminate(moments, first.units(), min(first.factors[0].size, len(where)))]

    def _moments(self, name: str, block: Block, values: Sequence[Values]) -> Moments:
        """Of what the readers see, each parent by its own scale, and of what they make of it, place by place.

        Of what they see alone where they look at several places (a kernel), or give others.
        """
        axis, twins = self.supernet.places[name].axis, _nodes(self.supernet.places[name])
        seen = beside([self._scaled(values[k], node, axis, k, block.own[k]) for k, node in enumerate(twins)])
        calls = [call for call in self.targets[name] if all(map(_is_matrix, call))]
        made = [part for call in calls for part in self._made(call, values)]
        if not made or len(calls) < len(self.targets[name]) or any(len(part) != len(seen[0]) for part in made):
            made = seen
        x, y = torch.cat(seen, 1), torch.cat(made, 1)
        moments = Moments.empty(x.shape[1], y.shape[1])
        moments.add(x, y)
        return moments

    def _made(self, call: Twins, values: Sequence[Values]) -> list[Tensor]:
        """What readers write: into a stream that is turned, what it will be there."""
        name = self.written[call]
        blocks = self.blocks[name]
        if len(blocks) != 1 or not blocks[0].plain or blocks[0].space not in self.bases:
            return beside([self._scaled(values[k], node, -1, k) for k, node in enumerate(call)])
        basis = self._into(name, blocks[0].space)
        parts = [self._part(values[k], n, m.T) for k, (n, m) in enumerate(zip(call, basis, strict=True))]
        return [torch.cat(self.seen.summed(parts))]

    def _part(self, values: Values, node: fx.Node, times: Tensor | None = None, *, centred: bool = False) -> Part:
        """Rows of a parent's stream, less their means or times a matrix."""
        found = self.seen.part(values.of(node), -1)
        if times is not None:
            found = [None if rows is None else rows @ times for rows in found]
        return [None if r is None else r - r.mean(1, keepdim=True) for r in found] if centred else found

    def _scaled(self, values: Values, node: fx.Node, axis: int, k: int, own: Tensor | None = None) -> Part:
        found = self.seen.part(values.of(node), axis)
        found = found if own is None else [None if rows is None else rows[:, own] for rows in found]
        scale = self.balance[k] / joined(found).square().mean().sqrt().clamp(min=1e-30)
        return [None if rows is None else rows * scale for rows in found]


def _components(moments: Sequence[Tensor], weights: Tensor, count: int) -> Tensor:
    """Principal components (rows) of weighted values whose second moments these are, every moment counting alike."""
    weighted = [weights[:, None] * moment * weights for moment in moments]
    return principal(torch.stack([m / m.diagonal().mean().clamp(min=1e-30) for m in weighted]).sum(0), count)


def _nodes(place: Place) -> Twins:
    assert all(isinstance(node, fx.Node) for node in place.of)
    return tuple(node for node in place.of if isinstance(node, fx.Node))


def _is_matrix(call: fx.Node) -> bool:
    """Whether nothing that a call reads beside its data has more than two axes."""
    return all(n.meta["val"].ndim < 3 for n in call.all_input_nodes if n.op == "get_attr")
