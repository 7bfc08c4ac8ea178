"""Solve a SuperNet from front to back: every map is fitted to what the merged prefix really delivers.

    unmerge(x, U, k)                 U: ridge regression from the merged x to what parent k sees there, drawn to the
                                 regression from the x that there would be without the errors made so far
    x + merge([W_k unmerge(y)], M)   corrected: ridge regression from y to what the stream should be, less what it is

What a parent sees, and what a stream should be, come from the parents' own values; biases take the constants. A
correction is written into U where all readers of y are matrices that only write here (the least change that does it,
M W side by side having full rank), otherwise into M, drawn to the basis that was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap
from fxmerge.ir.space import Leaf, pieces
from fxmerge.methods.bases import Bases
from fxmerge.methods.goals import Goals, readers
from fxmerge.methods.kernels import Kernel
from fxmerge.methods.map_nodes import Block, Merge, Unmerge
from fxmerge.methods.probe import matrix_of, multiplies
from fxmerge.methods.regress import Moments
from fxmerge.methods.seen import Seen, joined
from fxmerge.methods.walk import Values

LAST = 0.1
"""Share of the penalty where tasks read their final features: no error made there is made worse by what follows."""
FULL = 1e-6
"""Directions that maps reach by less than this share count as not reached: what a norm subtracts needs nothing."""
EXACT = 1e-6
"""Penalty of the regressions that know no error of a prefix: those that the others are drawn to."""


class Prefix:
    """The walk: merged values as far as they are solved, the parents' beside them."""

    def __init__(self, seen: Seen, bases: Bases, ridge: float, kernels: bool = False) -> None:
        self.supernet, self.bases, self.blocks = seen.net, bases, bases.blocks
        self.samples, self.rows, self.ridge = seen, seen.rows, ridge
        self.tensors = self._own_tensors()
        self.goals = Goals(seen.net, self.tensors, kernels)
        self.merged = seen.merged(self.tensors)
        self.parents = seen.parents()
        self.weights: dict[str, Tensor] = {}
        """By the template's names: the kernels that were solved as a whole."""
        self.shifts: dict[tuple[str, int], Tensor] = {}
        """By unmerge map and parent: what the parent sees besides U times the merged value."""
        self.solved: set[tuple[str, int]] = set()
        self.ideal, self.told = self._ideal()
        for node in seen.net.program.graph.nodes:
            for k, theirs in self.goals.asked(node):
                self.parents[k].hold(theirs)
            for needed in self.goals.behind(node):
                self.merged.hold(needed)

    def solve(self) -> dict[str, Tensor]:
        """Walk once; the SuperNet's tensors with the biases that the maps need."""
        for node in self.supernet.program.graph.nodes:
            if node.op == "output":
                break
            if node in self.told:
                self.ideal.of(node)
                for k, theirs in enumerate(self.supernet.twins[node.name]):
                    self.parents[k].release(theirs)
            unmerged, merged = Unmerge.of(node), Merge.of(node)
            if unmerged:
                if (unmerged.name, unmerged.k) not in self.solved:
                    self._read(node, unmerged)
                self.ideal.release(unmerged.source)
            if merged:
                for call in merged.calls:
                    self.merged.of(call)
                self._shift(merged)
                if node not in self.goals.kernels:
                    self._correct(node, merged)
            self.merged.of(node)
            if merged and node in self.goals.kernels:
                self._solve_kernel(node, merged, self.goals.kernels[node])
            if node.name in self.goals.post:
                self._fit_norm(node)
            for needed in self.goals.behind(node):
                self.merged.release(needed)
            for k, theirs in self.goals.asked(node):
                self.parents[k].release(theirs)
        return self.tensors

    def _ideal(self) -> tuple[Values, frozenset[fx.Node]]:
        """The merged values if every call wrote what the bases make of the parents' own: without errors of a prefix.

        With the merge nodes that any unmerge map is told from: what only says which row is taken has no reader.
        """
        net = self.supernet
        joins = {n: m for n in net.program.graph.nodes if (m := Merge.of(n)) and n.name in net.twins}
        sources = [u.source for n in net.program.graph.nodes if (u := Unmerge.of(n))]
        written = {node: partial(self._written, node, merged) for node, merged in joins.items()}
        ideal = self.samples.merged(self.tensors, sources, written)
        told = frozenset(node for node in ideal.order if node in joins)
        for node in told:
            for k, theirs in enumerate(net.twins[node.name]):
                self.parents[k].hold(theirs)
        return ideal, told

    def _written(self, node: fx.Node, merged: Merge, batch: int) -> Tensor:
        """What the bases make on a batch of what the parents write where a merge node stands."""
        axis_map, twins = self._map(merged), self.supernet.twins[node.name]
        own = {k: self.parents[k].of(twins[k])[batch] for k in self._writers(merged)}
        parts = [axis_map.to_merged(value, k, merged.axis) for k, value in own.items() if value is not None]
        return torch.stack(parts).sum(0)

    def _writers(self, merged: Merge) -> Sequence[int]:
        """The parents whose values a merge node stands for: of a stem each task's own, in its copy."""
        return range(len(self.parents)) if self.samples.trunk else merged.parents

    def _map(self, merged: Merge) -> AxisMap:
        axis_map = self.supernet.program.maps[merged.name]
        assert isinstance(axis_map, AxisMap)
        return axis_map

    # -- norms -----------------------------------------------------------------------------------------

    def _own_tensors(self) -> dict[str, Tensor]:
        """Norms of turned streams scale by one and shift by nothing: what reads them absorbs the parents'.

        Along a space of which whole units are kept, every unit brings its own scale, shift and statistics.
        """
        net = self.supernet
        tensors, spaces = dict(net.program.tensors), net.spaces
        assert spaces is not None
        nodes = {n.target: n for n in net.program.graph.nodes if n.op == "get_attr"}
        for name in net.own:
            axes = [axis for axis in spaces.tensors[name] if axis.size > 1]
            if len(axes) == 1 and isinstance(axes[0], Leaf) and axes[0].space in net.streams:
                tensors[name] = (
                    torch.ones_like(tensors[name]) if multiplies(nodes[name]) else torch.zeros_like(tensors[name])
                )
            elif (kept := self._unit_by_unit(name)) is not None:
                tensors[name] = kept
        return tensors

    def _unit_by_unit(self, name: str) -> Tensor | None:
        """A tensor of which every merged unit, along the one axis that has such, has what it has in its own parent."""
        net, kept, theirs = self.supernet, self.bases.kept, self.supernet.names.get(name)
        if net.spaces is None or theirs is None:
            return None
        axes = net.spaces.tensors[name]
        along = [i for i, axis in enumerate(axes) if all(p.factors[0].space in kept for p in pieces(axis))]
        own = [p.tensors[each] for p, each in zip(net.parents, theirs, strict=True)]
        if len(along) != 1 or any(each.ndim != len(axes) for each in own):
            return None
        (axis,) = along
        value, *own = (each.movedim(axis, 0) for each in (net.program.tensors[name], *own))
        ours = pieces(axes[axis])
        parts = [pieces(s.tensors[each][axis]) for s, each in zip(net.parents_spaces, theirs, strict=True)]
        if len({each.shape[1:] for each in (value, *own)}) > 1 or any(len(each) != len(ours) for each in parts):
            return None
        found = torch.empty_like(value)
        for i, piece in enumerate(ours):
            for index, (k, unit) in zip(piece.index, kept[piece.factors[0].space], strict=True):
                place = parts[k][i].index[unit]
                if place.shape != index.shape:
                    return None
                found[index] = own[k][place].to(value.dtype)
        return found.movedim(0, axis).contiguous()

    def _fit_norm(self, node: fx.Node) -> None:
        """Fit scale and shift of a norm whose result goes on as the stream, coordinate by coordinate."""
        own = [n for n in node.all_input_nodes if n.op == "get_attr" and n.target in self.supernet.own]
        if any(len(n.users) > 1 for n in own):
            return
        bases, twins = self.bases.bases[self.goals.post[node.name]], self.supernet.twins[node.name]
        seen = [self.samples.part(self.parents[k].of(n), -1) for k, n in enumerate(twins)]
        goals = [[None if rows is None else rows @ bases[k].T for rows in own] for k, own in enumerate(seen)]
        goal = torch.cat(self.samples.summed(goals))
        given = joined(self.samples.part(self.merged.of(node), -1))
        centred = given - given.mean(0)
        scale = (centred * (goal - goal.mean(0))).sum(0) / centred.square().sum(0).clamp(min=1e-30)
        for tensor in own:
            fitted = scale if multiplies(tensor) else goal.mean(0) - scale * given.mean(0)
            name = str(tensor.target)
            self.tensors[name] = self.merged.tensors[name] = fitted.to(self.tensors[name].dtype)
            self.merged.again(tensor)
        self.merged.again(node)

    # -- readers ---------------------------------------------------------------------------------------

    def _read(self, node: fx.Node, unmerged: Unmerge) -> None:
        theirs = self.goals.seen(unmerged)
        if theirs is None or Unmerge.half(node):
            return
        k, name = unmerged.k, unmerged.name
        self.solved.add((name, k))
        seen, sources = self.parents[k].of(theirs), [v.of(unmerged.source) for v in (self.ideal, self.merged)]
        calls = readers(node)
        biased = bool(calls) and all(self._bias(call) is not None for call in calls)
        last = not any(Merge.of(user) for call in calls for user in call.users)
        strength = self.ridge * (LAST if last else 1.0)
        shift = torch.zeros(node.meta["val"].shape[unmerged.axis], dtype=torch.float64)
        for block in self.blocks[name]:
            ideal, real = (self._moments(unmerged.axis, block, k, source, seen) for source in sources)
            matrix, shift[block.own[k]] = real.ridge(strength, biased, ideal.ridge(EXACT, biased)[0])
            block.set_one(k, matrix)
        if biased:
            self.shifts[name, k] = shift

    def _moments(
        self, axis: int, block: Block, k: int, given: Sequence[Tensor | None], seen: Sequence[Tensor | None]
    ) -> Moments:
        """Of what parent k sees along a block of an axis, beside the merged values that it is told from."""
        moments = Moments.empty(len(block.merged), len(block.own[k]))
        for i, (x, y) in enumerate(zip(given, seen, strict=True)):
            if x is not None and y is not None:
                moments.add(self.rows.of(x, axis, i)[:, block.merged], self.rows.of(y, axis, i)[:, block.own[k]])
        return moments

    def _bias(self, call: fx.Node) -> fx.Node | None:
        """The tensor that a parent's call adds to what it writes, if nothing else uses it."""
        joined = next((m for user in call.users if (m := Merge.of(user))), None)
        if joined is None or joined.folds is None:
            return None
        given: list[fx.Node] = []
        fx.node.map_arg((call.args, call.kwargs), lambda n: given.append(n) if _is_tensor(n) else None)
        for weight in joined.folds.weights:
            node = given[weight.position]
            if node.op == "get_attr" and node.meta["val"].ndim == 1 and len(node.users) == 1:
                return node
        return None

    def _shift(self, merged: Merge) -> None:
        """Let biases take what the regressions found besides U."""
        for call in merged.calls:
            bias = self._bias(call)
            found = {n: u for n in call.all_input_nodes if (u := Unmerge.of(n)) and (u.name, u.k) in self.shifts}
            if bias is None or not found:
                continue
            zeros = {n: torch.zeros_like(self.merged.of(n)[0]) for n in found}
            moved = {n: zeros[n] + _along(self.shifts[u.name, u.k], zeros[n], u.axis) for n, u in found.items()}
            with torch.no_grad():
                change = self.merged.value(call, 0, moved) - self.merged.value(call, 0, zeros)
            self._add(bias, change.movedim(merged.axis, -1).reshape(-1, change.shape[merged.axis]).double().mean(0))
            self.merged.again(call)

    def _add(self, bias: fx.Node, change: Tensor) -> None:
        name = str(bias.target)
        self.tensors[name] = self.merged.tensors[name] = self.tensors[name] + change.to(self.tensors[name].dtype)
        self.merged.again(bias)

    # -- writers ---------------------------------------------------------------------------------------

    def _correct(self, node: fx.Node, merged: Merge) -> None:
        """Write what the stream should be, less what is there already, instead of what the maps alone would write."""
        blocks = self.blocks[merged.name]
        alone = sum(n.target is node.target for n in self.supernet.nodes_of(merged.name)) == 1
        if self.goals.totals[node] is None or self.goals.chains[node].last is not node or not alone or len(blocks) != 1:
            return
        if len(merged.parents) < len(self.supernet.parents):
            return
        basis = torch.cat([blocks[0].map.dense[k].detach().double() for k in merged.parents], 1)
        if len(basis) < node.meta["val"].shape[merged.axis]:
            return
        written = [self.merged.of(call) for call in merged.calls]
        rest = [
            goal - torch.cat([self.rows.of(values[i], merged.axis, i) for values in written], 1) @ basis.T
            for i, goal in enumerate(self._wanted(node, merged))
        ]
        biased = all(self._bias(call) is not None for call in merged.calls)
        constant = self._correct_readers(merged, basis, rest, biased)
        if constant is None:
            constant = self._correct_writer(merged, blocks[0], basis, rest, biased)
        if biased:
            matrices = torch.cat([blocks[0].map.dense[k].detach().double() for k in merged.parents], 1)
            least = torch.linalg.pinv(matrices, rtol=FULL) @ constant
            widths = [len(blocks[0].own[k]) for k in merged.parents]
            for call, part in zip(merged.calls, torch.split(least, widths), strict=True):
                bias = self._bias(call)
                assert bias is not None
                self._add(bias, part)
        for needed in dict.fromkeys(n for call in merged.calls for n in (*call.all_input_nodes, call)):
            if needed in merged.calls or Unmerge.of(needed):
                self.merged.again(needed)

    def _wanted(self, node: fx.Node, merged: Merge) -> list[Tensor]:
        """Per batch, as rows: what a merge node should write, less what is there already."""
        chain, other, axis = self.goals.chains[node], self.goals.other(node), merged.axis
        axis_map, twins = self._map(merged), self.supernet.twins[self.goals.goal(node)]
        basis = self.bases.around(merged.name) if other is not None else None
        found = []
        for i in range(len(self.samples.batches)):
            own = {k: self.parents[k].of(twins[k])[i] for k in self._writers(merged)}
            rows = {k: self.rows.of(value, axis, i) for k, value in own.items() if value is not None}
            into = [axis_map.to_merged(v, k, 1) if basis is None else v @ basis[k].T for k, v in rows.items()]
            goal = torch.stack(into).sum(0)
            if other is not None:
                goal = goal - self.rows.of(self.merged.of(other)[i], axis, i)
                goal = (goal - chain.shift) / _nonzero(chain.scale)
            found.append(goal)
        return found

    def _correct_readers(self, merged: Merge, basis: Tensor, rest: list[Tensor], biased: bool) -> Tensor | None:
        """The constant, once the U in front of the calls are changed; None where they cannot be."""
        shown = [u for call in merged.calls for n in call.all_input_nodes if (u := Unmerge.of(n))]
        names, sources = {u.name for u in shown}, {u.source for u in shown}
        if len(shown) != len(merged.calls) or len(names) != 1 or len(sources) != 1:
            return None
        nodes = [n for n in self.supernet.nodes_of(shown[0].name) if Unmerge.of(n)]
        blocks = self.blocks[shown[0].name]
        if len(nodes) != len(shown) or any(len(readers(n)) != 1 for n in nodes) or len(blocks) != 1:
            return None
        found = [matrix_of(call, n, self._given(call)) for call, n in zip(merged.calls, nodes, strict=True)]
        parts = [part for part in found if part is not None]
        source, block = next(iter(sources)), blocks[0]
        if len(parts) < len(found) or len(block.merged) < source.meta["val"].shape[shown[0].axis]:
            return None
        widths = [len(block.own[k]) for k in merged.parents]
        writers = torch.split(basis, [len(part) for part in parts], 1)
        side = torch.cat([writer @ part for writer, part in zip(writers, parts, strict=True)], 1)
        moments = Moments.empty(len(block.merged), len(basis))
        for i, (x, missing) in enumerate(zip(self.merged.of(source), rest, strict=True)):
            moments.add(self.rows.of(x, shown[0].axis, i), missing)
        change, constant = moments.ridge(self.ridge, biased)
        least = torch.linalg.pinv(side, rtol=FULL) @ change
        for k, part in zip(merged.parents, torch.split(least, widths), strict=True):
            block.set_one(k, block.map.dense[k].double() + part)
        return constant

    def _given(self, call: fx.Node) -> dict[fx.Node, Any]:
        """The values of what a call reads on the first batch."""
        return {n: self.merged.of(n)[0] for n in call.all_input_nodes}

    def _correct_writer(self, merged: Merge, block: Block, basis: Tensor, rest: list[Tensor], biased: bool) -> Tensor:
        """The constant, once M is changed."""
        written = [self.merged.of(call) for call in merged.calls]
        moments = Moments.empty(basis.shape[1], len(basis))
        for i, missing in enumerate(rest):
            moments.add(torch.cat([self.rows.of(values[i], merged.axis, i) for values in written], 1), missing)
        change, constant = moments.ridge(self.ridge, biased)
        widths = [len(block.own[k]) for k in merged.parents]
        for k, part in zip(merged.parents, torch.split(basis + change, widths, 1), strict=True):
            block.set_one(k, part)
        return constant

    # -- kernels ---------------------------------------------------------------------------------------

    def _solve_kernel(self, node: fx.Node, merged: Merge, kernel: Kernel) -> None:
        """Solve a merged call as a whole, where that comes nearer to what it should write than its maps do."""
        chain, axis, given = self.goals.chains[node], merged.axis, self.merged.of(kernel.source)
        if len(kernel.biases) > 1 or kernel.name in self.weights:
            return
        moments, before = Moments.empty(prod(kernel.shape[1:]), kernel.shape[0]), 0.0
        for i, goal in enumerate(self._wanted(node, merged)):
            moments.add(self.rows.of(kernel.features(given[i]), axis, i), goal)
            before += float((self.rows.of(self.merged.of(node)[i], axis, i) - goal).square().sum())
        biased = bool(kernel.biases) or chain.bias is not None
        maps = {name: m for name, m in self.merged.program.maps.items() if isinstance(m, AxisMap)}
        by_maps = kernel.folded(self.tensors, maps, merged.parents)
        found, constant = moments.ridge(self.ridge, biased, by_maps)
        if moments.error(found, constant) > before:
            return
        solved = kernel.solved(found, constant, given[0].dtype)
        self.weights |= solved
        if not kernel.biases and chain.bias is not None:
            self._add(chain.bias, constant * chain.scale)
        self.merged.replaced[node] = lambda i: kernel.run(given[i], *solved.values())
        self.merged.again(node)


def _nonzero(scale: Tensor) -> Tensor:
    """Scales to divide by: none is nearly zero."""
    least = 1e-3 * float(scale.abs().mean()) + 1e-30
    return torch.where(scale.abs() < least, torch.full_like(scale, least), scale)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _along(vector: Tensor, like: Tensor, axis: int) -> Tensor:
    """A vector as a value that lies along one axis."""
    shape: list[Any] = [1] * like.ndim
    shape[axis] = len(vector)
    return vector.to(like.dtype).reshape(shape)
