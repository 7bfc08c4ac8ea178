"""Solve a SuperNet from front to back: every map is fitted to what the merged prefix really delivers.

    unmerge(x, U, k)                 U: ridge regression from the merged x to what parent k sees there
    x + merge([W_k unmerge(y)], M)   corrected: ridge regression from y to what the stream should be, less what it is

What a parent sees, and what a stream should be, come from the parents' own values; biases take the constants. A
correction is written into U where all readers of y are matrices that only write here (the least change that does it,
M W side by side having full rank), otherwise into M, drawn to the basis that was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.merge import NODES
from fxmerge.ir.space import Leaf
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.bases import Bases, parents_of
from fxmerge.methods.map_nodes import Block, Merge, Unmerge
from fxmerge.methods.probe import matrix_of, multiplies, sums
from fxmerge.methods.regress import Moments, rows_of, thinned
from fxmerge.methods.walk import Batch, Values

FULL = 1e-6
"""Directions that maps reach by less than this share count as not reached: what a norm subtracts needs nothing."""


class Prefix:
    """The walk: merged values as far as they are solved, the parents' beside them."""

    def __init__(self, supernet: SuperNet, bases: Bases, batches: Sequence[Batch], ridge: float) -> None:
        self.supernet, self.bases, self.blocks, self.batches, self.ridge = supernet, bases, bases.blocks, batches, ridge
        self.post = {supernet.trunk[n]: space for space, stream in supernet.streams.items() for n in stream.post}
        """By name of a norm whose result goes on as the stream: the stream."""
        self.tensors = self._own_tensors()
        self.merged = Values(supernet.program.evolve(tensors=self.tensors), batches)
        self.parents = [Values(parent, batches) for parent in parents_of(supernet)]
        self.shifts: dict[tuple[str, int], Tensor] = {}
        """By unmerge map and parent: what the parent sees besides U times the merged value."""
        self.solved: set[tuple[str, int]] = set()
        for node in supernet.program.graph.nodes:
            for k, theirs in self._asked(node):
                self.parents[k].hold(theirs)
            for needed in self._behind(node):
                self.merged.hold(needed)

    def solve(self) -> dict[str, Tensor]:
        """Walk once; the SuperNet's tensors with the biases that the maps need."""
        for node in self.supernet.program.graph.nodes:
            if node.op == "output":
                break
            unmerged, merged = Unmerge.of(node), Merge.of(node)
            if unmerged and (unmerged.name, unmerged.k) not in self.solved:
                self._read(node, unmerged)
            if merged:
                for call in merged.calls:
                    self.merged.of(call)
                self._shift(merged)
                self._correct(node, merged)
            self.merged.of(node)
            if node.name in self.post:
                self._fit_norm(node)
            for needed in self._behind(node):
                self.merged.release(needed)
            for k, theirs in self._asked(node):
                self.parents[k].release(theirs)
        return self.tensors

    # -- what is looked at -----------------------------------------------------------------------------

    def _behind(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """What is computed anew when a node is solved, and what that needs."""
        if node.name in self.post:
            return tuple(node.all_input_nodes)
        merged = Merge.of(node)
        return merged.behind if merged else ()

    def _asked(self, node: fx.Node) -> list[tuple[int, fx.Node]]:
        """The parents' values that are asked for at a node."""
        unmerged = Unmerge.of(node)
        if unmerged:
            return [(unmerged.k, theirs)] if (theirs := self._seen(unmerged)) is not None else []
        total = self._total(node)
        name = node.name if node.name in self.post else self._goal(total).name if total else ""
        return list(enumerate(self.supernet.twins.get(name, ())))

    def _seen(self, unmerged: Unmerge) -> fx.Node | None:
        """What the parent itself has where the SuperNet unmerges for it."""
        source = unmerged.source
        while inner := Unmerge.of(source):
            source = inner.source
        twins = self.supernet.twins.get(source.name)
        if twins is not None:
            return twins[unmerged.k]
        theirs = self.supernet.places[unmerged.name].of[unmerged.k]
        return theirs if isinstance(theirs, fx.Node) else None

    def _total(self, node: fx.Node) -> fx.Node | None:
        """The sum in which what a merge node writes joins another value of the trunk."""
        if Merge.of(node) is None or len(_readers(node)) != 1:
            return None
        (total,) = _readers(node)
        other = self._other(total, node)
        if total.target in NODES or total.name not in self.supernet.twins or other is None:
            return None
        return total if other.op == "call_function" and sums(total, node) else None

    def _goal(self, total: fx.Node) -> fx.Node:
        """Where the parents show what a sum should be: a norm forgives its size, so behind one that follows."""
        return next((user for user in _readers(total) if user.name in self.post), total)

    def _other(self, total: fx.Node, node: fx.Node) -> fx.Node | None:
        """The other operand of a sum of two values of one shape."""
        others = [n for n in total.all_input_nodes if n is not node and isinstance(n.meta.get("val"), Tensor)]
        shapes = {n.meta["val"].shape for n in (node, total, *others) if isinstance(n.meta.get("val"), Tensor)}
        return others[0] if len(others) == 1 and len(shapes) == 1 else None

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
            axes, node = spaces.tensors[name], nodes[name]
            if len(axes) != 1 or not isinstance(axes[0], Leaf):
                continue
            if axes[0].space in net.streams:
                tensors[name] = torch.ones_like(tensors[name]) if multiplies(node) else torch.zeros_like(tensors[name])
            elif axes[0].space in self.bases.kept and node.name in net.twins:
                own = [p.tensors[str(n.target)] for p, n in zip(net.parents, net.twins[node.name], strict=True)]
                kept = [own[k][unit] for k, unit in self.bases.kept[axes[0].space]]
                tensors[name] = torch.stack(kept).to(tensors[name].dtype)
        return tensors

    def _fit_norm(self, node: fx.Node) -> None:
        """Fit scale and shift of a norm whose result goes on as the stream, coordinate by coordinate."""
        own = [n for n in node.all_input_nodes if n.op == "get_attr" and n.target in self.supernet.own]
        if any(len(n.users) > 1 for n in own):
            return
        bases, twins = self.bases.bases[self.post[node.name]], self.supernet.twins[node.name]
        goals = [torch.cat([rows_of(v, -1) for v in self.parents[k].of(n)]) @ bases[k].T for k, n in enumerate(twins)]
        goal, given = torch.stack(goals).sum(0), torch.cat([rows_of(v, -1) for v in self.merged.of(node)])
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
        theirs = self._seen(unmerged)
        if theirs is None:
            return
        k, name = unmerged.k, unmerged.name
        self.solved.add((name, k))
        seen, given = self.parents[k].of(theirs), self.merged.of(unmerged.source)
        readers = _readers(node)
        biased = bool(readers) and all(self._bias(call) is not None for call in readers)
        shift = torch.zeros(node.meta["val"].shape[unmerged.axis], dtype=torch.float64)
        for block in self.blocks[name]:
            moments = Moments.empty(len(block.merged), len(block.own[k]))
            for x, y in zip(given, seen, strict=True):
                rows = rows_of(x, unmerged.axis)[:, block.merged], rows_of(y, unmerged.axis)[:, block.own[k]]
                moments.add(*(thinned(part, len(self.batches)) for part in rows))
            matrix, shift[block.own[k]] = moments.ridge(self.ridge, biased)
            block.set_one(k, matrix)
        if biased:
            self.shifts[name, k] = shift

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
            self._add(bias, rows_of(change, merged.axis).mean(0))
            self.merged.again(call)

    def _add(self, bias: fx.Node, change: Tensor) -> None:
        name = str(bias.target)
        self.tensors[name] = self.merged.tensors[name] = self.tensors[name] + change.to(self.tensors[name].dtype)
        self.merged.again(bias)

    # -- writers ---------------------------------------------------------------------------------------

    def _correct(self, node: fx.Node, merged: Merge) -> None:
        """Write what the stream should be, less what is there already, instead of what the maps alone would write."""
        total, blocks = self._total(node), self.blocks[merged.name]
        alone = sum(n.target is node.target for n in self.supernet.nodes_of(merged.name)) == 1
        if total is None or not alone or len(blocks) != 1:
            return
        basis = torch.cat([blocks[0].map.dense[k].detach().double() for k in merged.parents], 1)
        if len(basis) < node.meta["val"].shape[merged.axis]:
            return
        rest = self._missing(node, merged, total, basis)
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

    def _missing(self, node: fx.Node, merged: Merge, total: fx.Node, basis: Tensor) -> list[Tensor]:
        """Per batch: what the stream should be, less what is there and what the maps write."""
        other = self._other(total, node)
        assert other is not None
        written, there = [self.merged.of(call) for call in merged.calls], self.merged.of(other)
        twins = self.supernet.twins[self._goal(total).name]
        wanted = [self.parents[k].of(twins[k]) for k in merged.parents]
        found = []
        for i in range(len(self.batches)):
            goal, y = (torch.cat([rows_of(v[i], merged.axis) for v in side], 1) for side in (wanted, written))
            found.append((goal - y) @ basis.T - rows_of(there[i], merged.axis))
        return found

    def _correct_readers(self, merged: Merge, basis: Tensor, rest: list[Tensor], biased: bool) -> Tensor | None:
        """The constant, once the U in front of the calls are changed; None where they cannot be."""
        shown = [u for call in merged.calls for n in call.all_input_nodes if (u := Unmerge.of(n))]
        names, sources = {u.name for u in shown}, {u.source for u in shown}
        if len(shown) != len(merged.calls) or len(names) != 1 or len(sources) != 1:
            return None
        nodes = [n for n in self.supernet.nodes_of(shown[0].name) if Unmerge.of(n)]
        blocks = self.blocks[shown[0].name]
        if len(nodes) != len(shown) or any(len(_readers(n)) != 1 for n in nodes) or len(blocks) != 1:
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
        for x, missing in zip(self.merged.of(source), rest, strict=True):
            rows = rows_of(x, shown[0].axis)
            moments.add(thinned(rows, len(self.batches)), thinned(missing, len(self.batches)))
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
            y = torch.cat([rows_of(values[i], merged.axis) for values in written], 1)
            moments.add(thinned(y, len(self.batches)), thinned(missing, len(self.batches)))
        change, constant = moments.ridge(self.ridge, biased)
        widths = [len(block.own[k]) for k in merged.parents]
        for k, part in zip(merged.parents, torch.split(basis + change, widths, 1), strict=True):
            block.set_one(k, part)
        return constant


def _readers(node: fx.Node) -> list[fx.Node]:
    """The calls that read a value."""
    return [user for user in node.users if user.op != "output"]


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _along(vector: Tensor, like: Tensor, axis: int) -> Tensor:
    """A vector as a value that lies along one axis."""
    shape: list[Any] = [1] * like.ndim
    shape[axis] = len(vector)
    return vector.to(like.dtype).reshape(shape)
