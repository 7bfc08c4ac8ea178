"""Plans of their own: every writer of a stream by what it writes, every reader by the plans that meet in front of it.

    x = w_1 + w_2, read by r      -->      M_1 of T_1, M_2 of T_2, U of r from the mean of T_1 and T_2

As plans flow in Imfeld et al. 2024 (§4.2): at a sum the plans of both branches become one, by their mean, weighed by
what the branches amount to (`scalar`), or unit by unit (`matrix`). No group holds this: parents that are one another's
symmetries still come out exact where all writers find the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import Map
from fxmerge.ir.merge import NODES, fold
from fxmerge.ir.supernet import NAMED
from fxmerge.messages import listed
from fxmerge.methods.alignment.evidence import Spot, axis_blocks, look
from fxmerge.methods.alignment.layout import Layout
from fxmerge.methods.alignment.solve import Alignment, Carriers, Decision, again
from fxmerge.methods.map_nodes import Merge, Unmerge
from fxmerge.methods.regress import Rows
from fxmerge.training.pool import Pool

Streams = Literal["tied", "mean", "scalar", "matrix"]
Queries = Literal["joint", "equal", "separate"]


def untie(alignment: Alignment, pool: Pool, most: int, decide: Decision, streams: Streams, queries: Queries) -> None:
    """Give writers of streams, and of queries and keys, carriers of their own, as these two policies say."""
    layout = alignment.layout
    flows = [_Flow(layout, space) for space in _decided(alignment, "residual")] if streams != "tied" else []
    pairs = list(_decided(alignment, "query_key")) if queries != "joint" else []
    writers = {space: _writers(layout, space) for space in (*(flow.space for flow in flows), *pairs)}
    spots = [spot for found in writers.values() for spot in found.values() if spot is not None]
    amounts = [a for flow in flows if streams != "mean" for a in flow.amounts(by_unit=streams == "matrix")]
    look(layout, pool, most, [*spots, *amounts])
    own = {
        space: {held: again(alignment, space, spot.evidence(None), decide) if spot else {} for held, spot in of.items()}
        for space, of in writers.items()
    }
    for space in pairs:
        first = next((each for each in own[space].values() if each), {})
        for held, each in own[space].items():
            alignment.apart.setdefault(held, {}).update(first if queries == "equal" else each)
    for flow in flows:
        known = {held: each[flow.space, ()] for held, each in own[flow.space].items() if each}
        for key, carriers in flow.plans(known).items():
            alignment.apart.setdefault(key, {})[flow.space, ()] = carriers


def told_of_untied(name: str, alignment: Alignment) -> Iterator[str]:
    """Which spaces are carried otherwise at some places than at others, and which cannot be."""
    if found := [space for space in alignment.layout.sites if alignment.parted(space)]:
        yield (
            f"{name}: what writes and reads {listed(found, NAMED)} is carried by plans of its own, which no group has:"
            " no parent is exactly what it was"
        )
    if wider := [s for role in ("residual", "query_key") for s in _decided(alignment, role, wider=True)]:
        yield f"{name}: {listed(wider, NAMED)} keep one plan each, being wider than the template's"


def _decided(alignment: Alignment, role: str, *, wider: bool = False) -> Iterator[str]:
    """Spaces of a role that have been decided, nothing inside them; or those `wider` than the template's, whose units
    that it lacks stand in no one order."""
    layout, known = alignment.layout, {space for space, _ in alignment.carriers}
    for space, site in layout.sites.items():
        alone = space in known and site.movable and not layout.inside(space)
        if alone and site.role == role and wider == (site.size != site.sizes[layout.supernet.template]):
            yield space


def _writers(layout: Layout, space: str) -> dict[Map, Spot | None]:
    """The maps that write a space, and where the parents do; None where what they write is the same for all samples."""
    found: dict[Map, Spot | None] = {}
    blocks = axis_blocks(layout.supernet)
    for name, place in layout.supernet.places.items():
        for block in blocks[name] if place.role == "write" else ():
            if block.factors[-1].space == space:
                nodes = [node for node in place.of if isinstance(node, fx.Node) and _varies(node)]
                whole = len(nodes) == len(place.of)
                found[block.map] = Spot(tuple(nodes), place.axis, [block], [False]) if whole else None
    return found


def _varies(node: fx.Node) -> bool:
    """Whether a value depends on the inputs, on more than their sizes."""
    seen, todo = set[fx.Node](), [node]
    while todo:
        each = todo.pop()
        if each in seen or isinstance(each.meta.get("val"), int | torch.SymInt):
            continue
        if each.op == "placeholder":
            return True
        seen.add(each)
        todo += each.all_input_nodes
    return False


@dataclass
class _Amount:
    """Root mean squares of every parent's version of a value: of its units, or of all entries."""

    nodes: tuple[fx.Node, ...]
    axis: int | None
    squares: list[Tensor] = field(default_factory=list)
    count: int = 0

    def add(self, values: Sequence[Tensor], rows: Rows, batch: int) -> None:
        """More samples."""
        if self.axis is None:
            found = [value.detach().double().square().mean()[None] for value in values]
        else:
            found = [rows.of(value, self.axis, batch).square().mean(0) for value in values]
        self.squares = [a + b for a, b in zip(self.squares, found, strict=True)] if self.squares else found
        self.count += 1

    def of(self, k: int) -> Tensor:
        return (self.squares[k] / max(self.count, 1)).sqrt()


class _Flow:
    """How plans of one stream go through the trunk: from merge nodes, through sums, to unmerge nodes."""

    def __init__(self, layout: Layout, space: str) -> None:
        self.layout, self.space = layout, space
        self.net = layout.supernet
        self.maps: dict[str, Map] = {}
        for name, blocks in axis_blocks(self.net).items():
            for block in blocks:
                if block.factors[-1].space == space and block.plain:
                    self.maps[name] = block.map
        self.carried: dict[fx.Node, list[fx.Node]] = {}
        """By node of the trunk that carries the stream: its operands that do; none where it is written."""
        self.written: dict[fx.Node, Map] = {}
        self.weighed: dict[fx.Node, _Amount] = {}
        for node in self.net.program.graph.nodes:
            self._see(node)

    def _see(self, node: fx.Node) -> None:
        names = [str(each.target) for each in node.all_input_nodes if each.op == "get_attr"]
        if node.target is fold or Merge.of(node) is not None:
            merge = Merge.of(node)
            own = [merge.name] if merge else names
            if found := [self.maps[name] for name in own if name in self.maps and self.maps[name].kind != "unmerge"]:
                self.carried[node], self.written[node] = [], found[0]
            return
        operands = [each for each in node.all_input_nodes if each in self.carried]
        if operands and node.target not in NODES and self._has(node):
            self.carried[node] = operands

    def _has(self, node: fx.Node) -> bool:
        """Whether a value may carry the stream: it has an axis of its size, or is several values."""
        value = node.meta.get("val")
        return not isinstance(value, Tensor) or self.layout.sites[self.space].size in value.shape

    def amounts(self, by_unit: bool) -> Iterator[_Amount]:
        """What must be known of the branches that meet."""
        for operand in dict.fromkeys(each for met in self.carried.values() if len(met) > 1 for each in met):
            twins = self.net.twins.get(operand.name, ())
            if len(twins) == self.layout.count:
                self.weighed[operand] = _Amount(twins, self._axis(twins) if by_unit else None)
                yield self.weighed[operand]

    def _axis(self, twins: Sequence[fx.Node]) -> int | None:
        """Where the stream stands in the parents' values, unless another axis of them is as long."""
        found = set()
        for node, size in zip(twins, self.layout.sites[self.space].sizes, strict=True):
            shape = node.meta["val"].shape
            found.add(tuple(i for i, n in enumerate(shape) if isinstance(n, int) and n == size))
        only = found.pop()
        return only[0] if not found and len(only) == 1 else None

    def plans(self, known: Mapping[Map, Carriers]) -> dict[object, Carriers]:
        """By map, and by name of a tensor of the SuperNet's own: its carriers, from those of the writers."""
        at: dict[fx.Node, Carriers] = {}
        for node, operands in self.carried.items():
            if node in self.written:
                if self.written[node] in known:
                    at[node] = known[self.written[node]]
            elif parts := [each for each in operands if each in at]:
                at[node] = self._met(parts, at)
        for node in reversed(self.carried):  # what says nothing itself goes with what it meets
            if node not in at and (users := [user for user in node.users if user in at]):
                at[node] = at[users[0]]
        found: dict[object, list[Carriers]] = {}
        for node, held in self.written.items():
            if node in at:
                found.setdefault(held, []).append(at[node])
        for node in self.net.program.graph.nodes:
            unmerged = Unmerge.of(node)
            if unmerged is not None and unmerged.name in self.maps and unmerged.source in at:
                found.setdefault(self.maps[unmerged.name], []).append(at[unmerged.source])
            elif node in at and node not in self.written:
                for each in node.all_input_nodes:
                    if each.op == "get_attr" and str(each.target) in self.net.own:
                        found.setdefault(str(each.target), []).append(at[node])
        return {key: mixed(parts, [[1.0] * self.layout.count] * len(parts)) for key, parts in found.items()}

    def _met(self, parts: Sequence[fx.Node], at: Mapping[fx.Node, Carriers]) -> Carriers:
        plans = [at[each] for each in parts]
        if len(parts) == 1:
            return plans[0]
        if not all(each in self.weighed for each in parts):
            return mixed(plans, [[1.0] * self.layout.count] * len(parts))
        return mixed(plans, [[self.weighed[each].of(k) for k in range(self.layout.count)] for each in parts])


def mixed(plans: Sequence[Carriers], weights: Sequence[Sequence[Tensor | float]]) -> Carriers:
    """One plan from several: of parent k's units by `weights[i][k]`, a number or one for every unit."""
    to, back = [], []
    for k in range(len(plans[0].to)):
        shares = torch.stack(
            [torch.as_tensor(each[k], dtype=torch.float64).expand(plans[0].to[k].shape[1]) for each in weights]
        )
        total = shares.sum(0)
        shares = torch.where(total > 0, shares / total.clamp_min(1e-300), 1 / len(plans))
        there = _sum(plan.to[k] * share for plan, share in zip(plans, shares, strict=True))
        to.append(there / there.sum(1, keepdim=True).clamp_min(1e-300))
        back.append(_sum(share[:, None] * plan.back[k] for plan, share in zip(plans, shares, strict=True)))
    return Carriers(tuple(to), tuple(back))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)
