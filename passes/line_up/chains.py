"""The blocks of a program: what is computed from one value that everything passes through to the next such value.

    x → … → [c0] → attention, + → [c1] → perceptron, + → [c2] → … → [cn] → … → output          cuts in brackets

Behind a cut nothing that was computed from inputs and parameters is read, but for the cut itself. Two blocks do the
same thing if they have one digest, whatever their sizes. What all blocks read (masks, positions) stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise

from torch import Tensor, fx

from fxmerge.coupling import has_tensor
from fxmerge.ir.program import Program
from passes.line_up.digests import StructureOf
from passes.operators import OPERATORS, Operators

BESIDE = 2
"""So many values may stand beside a chain at most."""


@dataclass(frozen=True)
class Run:
    """`count` blocks in a row that do the same thing, each of them `period` steps from cut to cut."""

    first: int
    """Number of the cut at which it begins."""
    period: int
    count: int

    def border(self, block: int) -> int:
        """Number of the cut before a block."""
        return self.first + block * self.period


@dataclass(frozen=True)
class Chain:
    """A program as steps from cut to cut."""

    program: Program
    operators: Operators = OPERATORS

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        return {node: number for number, node in enumerate(self.program.graph.nodes)}

    @cached_property
    def _depends(self) -> tuple[set[fx.Node], set[fx.Node]]:
        """The values that depend on inputs, and those that depend on parameters."""
        data, trained = set(), set()
        for node in self.program.graph.nodes:
            if node.op == "placeholder" or any(n in data for n in node.all_input_nodes):
                data.add(node)
            own = node.op == "get_attr" and node.target in self.program.parameters
            if own or any(n in trained for n in node.all_input_nodes):
                trained.add(node)
        return data, trained

    @cached_property
    def own(self) -> set[fx.Node]:
        """The values that are computed from inputs and parameters together."""
        data, trained = self._depends
        return {n for n in data & trained if n.op == "call_function" and has_tensor(n)}

    @cached_property
    def _group(self) -> tuple[frozenset[fx.Node], list[fx.Node]]:
        """What stands beside the cuts, and the cuts, in order."""
        last = {n: max((self.order[user] for user in n.users), default=-1) for n in self.own}
        groups: dict[frozenset[fx.Node], list[fx.Node]] = {}
        live: set[fx.Node] = set()
        for node, place in self.order.items():
            live = {n for n in live if last[n] > place}
            if node in self.own and last[node] > place:
                if len(live) <= BESIDE and isinstance(node.meta.get("val"), Tensor):
                    groups.setdefault(frozenset(live), []).append(node)
                live.add(node)
        return max(groups.items(), key=lambda group: len(group[1]), default=(frozenset(), []))

    @property
    def cuts(self) -> list[fx.Node]:
        """The values that everything behind them passes through, in order."""
        return self._group[1]

    @property
    def beside(self) -> frozenset[fx.Node]:
        """What all blocks read beside the cut in front of them: a bias of attention, what an encoder gives."""
        return self._group[0]

    @cached_property
    def steps(self) -> list[bytes]:
        """A digest of what is done from every cut to the next."""
        pairs = pairwise(self.cuts)
        return [self._digest(start, end) for start, end in pairs]

    def keeps_shape(self, run: Run) -> bool:
        """Whether the value is of one shape before and behind every block of a run, so that blocks can come and go."""
        cuts = (self.cuts[run.border(block)] for block in range(run.count + 1))
        return len({tuple(cut.meta["val"].shape) for cut in cuts}) == 1

    def inside(self, start: fx.Node, end: fx.Node) -> list[fx.Node]:
        """The calls between two cuts, the last cut among them, and the tensors that only they read; in order."""
        first, last = self.order[start], self.order[end]
        found = {n for n, place in self.order.items() if first < place <= last and n in self.own}
        data, trained = self._depends
        for node in reversed(list(self.order)):
            apart = node in trained - data or (not has_tensor(node) and node.op == "call_function")
            if node not in found and apart and node.users and all(user in found for user in node.users):
                found.add(node)
        for node in self.order:  # sizes that are read off what is inside
            if not has_tensor(node) and any(n in found for n in node.all_input_nodes) and self.order[node] <= last:
                found.add(node)
        return [n for n in self.order if n in found]

    def _digest(self, start: fx.Node, end: fx.Node) -> bytes:
        structure = self.program.get(StructureOf(self.operators))
        known = {start: b"start", **dict.fromkeys(self.beside, b"beside")}
        for node in self.inside(start, end):
            found = structure.described.get(node)
            if found is None or node.op != "call_function":
                continue
            below = [known.get(n, structure.hashes[n]) for n in found.operands]
            text = repr((found.description, found.commutes)).encode()
            parts = sorted(below) if found.commutes else below
            known[node] = blake2b(text + b"|".join(parts), digest_size=16).digest()
        shapes = [tuple(node.meta["val"].shape) for node in (start, end)]
        return known[end] + (b"" if shapes[0] == shapes[1] else b"reshaped")


def runs(steps: Sequence[bytes]) -> list[Run]:
    """The steps as runs of repeated ones, as long as possible each, from the first."""
    found, place = [], 0
    while place < len(steps):
        best = Run(place, 1, 1)
        for period in range(1, (len(steps) - place) // 2 + 1):
            count = _repeats(steps, place, steps[place : place + period])
            if count > 1 and count * period > best.count * best.period:
                best = Run(place, period, count)
        found.append(best)
        place += best.period * best.count
    return found


def same_runs(one: Sequence[bytes], two: Sequence[bytes]) -> list[tuple[Run, Run]] | None:
    """Both as runs of the same blocks, in pairs; None if they are not made of the same blocks in one order."""
    for swapped, (a, b) in enumerate(((one, two), (two, one))):
        mine = runs(a)
        theirs = _counted(b, [a[run.first : run.first + run.period] for run in mine])
        if theirs is not None:
            pairs = list(zip(mine, theirs, strict=True))
            return [(y, x) for x, y in pairs] if swapped else pairs
    return None


def first_runs(one: Sequence[bytes], two: Sequence[bytes]) -> list[tuple[Run, Run]] | None:
    """`same_runs` of as many steps as both begin with; None if that is not one."""
    best: tuple[int, list[tuple[Run, Run]]] = (0, [])
    for swapped, (a, b) in enumerate(((one, two), (two, one))):
        for end in range(len(a), 0, -1):
            mine = runs(a[:end])
            theirs = _counted(b, [a[run.first : run.first + run.period] for run in mine], whole=False)
            if theirs is not None:
                pairs = list(zip(theirs, mine, strict=True) if swapped else zip(mine, theirs, strict=True))
                best = max(best, (sum(run.period * run.count for pair in pairs for run in pair), pairs), key=_length)
                break
    return best[1] or None


def _length(found: tuple[int, list[tuple[Run, Run]]]) -> int:
    return found[0]


def _counted(steps: Sequence[bytes], units: Sequence[Sequence[bytes]], *, whole: bool = True) -> list[Run] | None:
    """How often each of the units stands in a row; None if the steps are anything else (`whole`), or begin so."""
    found, place = [], 0
    for unit in units:
        count = _repeats(steps, place, unit)
        if not count:
            return None
        found.append(Run(place, len(unit), count))
        place += count * len(unit)
    return found if place == len(steps) or not whole else None


def _repeats(steps: Sequence[bytes], place: int, unit: Sequence[bytes]) -> int:
    count, size = 0, len(unit)
    while list(steps[place + count * size : place + (count + 1) * size]) == list(unit):
        count += 1
    return count
