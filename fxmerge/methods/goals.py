"""What every node of a SuperNet should give, told from the parents' nodes that do the same.

unmerge(x, U, k)      what parent k sees there
merge(…) + x          the parents' sum, behind a norm that follows (it forgives its size), less the x that is there
merge(…)              what the parents write
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx

from fxmerge.ir.merge import NODES
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.chains import Chain
from fxmerge.methods.kernels import Kernel
from fxmerge.methods.map_nodes import Merge, Unmerge
from fxmerge.methods.probe import sums


class Goals:
    """Knows the graph alone, no values of data."""

    def __init__(self, supernet: SuperNet, tensors: Mapping[str, Tensor], kernels: bool) -> None:
        self.supernet = supernet
        self.post = {supernet.trunk[n]: space for space, stream in supernet.streams.items() for n in stream.post}
        """By name of a norm whose result goes on as the stream: the stream."""
        joins = {n: m for n in supernet.program.graph.nodes if (m := Merge.of(n))}
        self.chains = {n: Chain.of(n, m.axis, tensors) for n, m in joins.items()}
        solved = [n for n, m in joins.items() if n.name in supernet.twins and len(m.parents) == len(supernet.parents)]
        found = {n: Kernel.of(n, supernet) for n in solved} if kernels else {}
        self.kernels = {n: kernel for n, kernel in found.items() if kernel is not None}
        self.totals = {n: self._total(n) for n in joins}

    def behind(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """What is computed anew when a node is solved, and what that needs."""
        if node.name in self.post:
            return tuple(node.all_input_nodes)
        merged, other = Merge.of(node), self.other(node)
        return (*merged.behind, *((other,) if other is not None else ())) if merged else ()

    def asked(self, node: fx.Node) -> list[tuple[int, fx.Node]]:
        """The parents' values that are asked for at a node."""
        unmerged = Unmerge.of(node)
        if unmerged:
            return [(unmerged.k, theirs)] if (theirs := self.seen(unmerged)) is not None else []
        wanted = node.name in self.post or node in self.kernels or self.totals.get(node) is not None
        return list(enumerate(self.supernet.twins.get(self.goal(node), ()))) if wanted else []

    def seen(self, unmerged: Unmerge) -> fx.Node | None:
        """What the parent itself has where the SuperNet unmerges for it."""
        source = unmerged.source
        while inner := Unmerge.of(source):
            source = inner.source
        twins = self.supernet.twins.get(source.name)
        if twins is not None:
            return twins[unmerged.k]
        theirs = self.supernet.places[unmerged.name].of[unmerged.k]
        return theirs if isinstance(theirs, fx.Node) else None

    def goal(self, node: fx.Node) -> str:
        """Name of the node at which the parents show what a written value should come to."""
        total = self.totals.get(node)
        if total is None:
            return node.name
        return next((user for user in readers(total) if user.name in self.post), total).name

    def other(self, node: fx.Node) -> fx.Node | None:
        """What is there already where a written value is added."""
        total = self.totals.get(node)
        return None if total is None else _other(total, self.chains[node].last)

    def _total(self, node: fx.Node) -> fx.Node | None:
        """The sum in which what a merge node writes joins another value of the trunk that is known by then."""
        last = self.chains[node].last
        if len(readers(last)) != 1:
            return None
        (total,) = readers(last)
        other = _other(total, last)
        if total.target in NODES or total.name not in self.supernet.twins or other is None:
            return None
        return total if other.op == "call_function" and other < last and sums(total, last) else None


def readers(node: fx.Node) -> list[fx.Node]:
    """The calls that read a value."""
    return [user for user in node.users if user.op != "output"]


def _other(total: fx.Node, node: fx.Node) -> fx.Node | None:
    """The other operand of a sum of two values of one shape."""
    others = [n for n in total.all_input_nodes if n is not node and isinstance(n.meta.get("val"), Tensor)]
    shapes = {n.meta["val"].shape for n in (node, total, *others) if isinstance(n.meta.get("val"), Tensor)}
    return others[0] if len(others) == 1 and len(shapes) == 1 else None
