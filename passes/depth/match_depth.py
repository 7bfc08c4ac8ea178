"""Write a parent with as many blocks as the template has.

too few    a block without effect behind each of those that others follow: a copy whose writers are zero
           x → block 1 → block 2 → …   -->   x → block 1 → (block 1, + 0) → block 2 → (block 2, + 0) → …
too many   those kept that miss least of what all of them do; what is lost is for training to make up

A residual stream is a sum of increments, so a block that adds nothing changes nothing. Where a norm stands on the
stream itself (post-norm) there are no such increments: there the copy's norms lose scale and shift, which the next norm
forgives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxmerge.coupling import Call, RuleSet
from fxmerge.ir.difference import differences, largest
from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program, Teacher, prune
from fxmerge.ir.wide import run_wide
from passes.depth.cover import best_cover, measured, spread
from passes.line_up.chains import Chain, Run, first_runs, same_runs
from passes.operators import Operators
from passes.supernet.maps import free
from passes.supernet.site import Sites
from passes.supernet.sites import SitesOf

EXACT = 1e-9
"""A difference below this share of an output's spread, in float64, is none."""


def match_depth(template: Program, other: Program, rules: RuleSet) -> Program | None:
    """`other` with the template's number of blocks; None if they are not made of the same blocks, or equally many.

    Heads may be other ones: what both begin with is brought to one number of blocks.
    The result computes what `other` does, or has `other` as its teacher.
    """
    known = Operators(rules)
    chain = Chain(other, known)
    steps = Chain(template, known).steps
    pairs = same_runs(steps, chain.steps) or first_runs(steps, chain.steps)
    unequal = [theirs for ours, theirs in pairs or () if ours.count != theirs.count]
    if pairs is None or not unequal or not all(chain.keeps_shape(run) for run in unequal):
        return None
    sites = other.get(SitesOf(rules))
    most: tuple[float, Program] | None = None
    for unit_norms in (False, True):
        made, notes, exact = _written(template, other, chain, sites, pairs, unit_norms)
        error = _difference(other, made) if exact else float("inf")
        if most is None or error < most[0]:
            most = (error, made.evolve(notes=(*other.notes, *notes)))
        if not exact or error <= EXACT:
            break
    assert most is not None
    error, made = most
    if error <= EXACT:
        return made.evolve(
            notes=(*made.notes, f"{other.task} computes what it did (difference {error:.1g} in float64)")
        )
    changed = "" if error == float("inf") else f", and copies of its blocks change what it computes (by {error:.1g})"
    why = f"{other.task} is of another depth than {template.task}{changed}: the original's outputs are trained for"
    return made.evolve(notes=(*made.notes, why), teacher=Teacher(other, why))


def _written(
    template: Program, other: Program, chain: Chain, sites: Sites, pairs: Sequence[tuple[Run, Run]], unit_norms: bool
) -> tuple[Program, list[str], bool]:
    """The parent with the template's counts, what is said, and whether nothing was left out."""
    work, exact = _Work(chain, sites, unit_norms), True
    for ours, run in pairs:
        if run.count < ours.count:
            work.lengthen(run, ours.count)
            work.notes.append(
                f"blocks in a row, {run.count} in {other.task} and {ours.count} in {template.task}: "
                f"{ours.count - run.count} copies that add nothing stand between them, evenly spread"
            )
        elif run.count > ours.count:
            exact = False
            kept, how = work.shorten(run, ours.count)
            numbers = ", ".join(str(block + 1) for block in kept)
            work.notes.append(
                f"blocks in a row, {run.count} in {other.task} and {ours.count} in {template.task}: "
                f"numbers {numbers} are kept, {how}"
            )
    return work.program(), work.notes, exact


class _Work:
    """A copy of a program under the knife."""

    def __init__(self, chain: Chain, sites: Sites, unit_norms: bool) -> None:
        self.chain, self.sites, self.unit_norms = chain, sites, unit_norms
        self.graph, self.where = chain.program.copy_graph()
        self.tensors = dict(chain.program.tensors)
        self.parameters = set(chain.program.parameters)
        self.notes: list[str] = []

    def program(self) -> Program:
        prune(self.graph)
        return self.chain.program.evolve(graph=self.graph, tensors=self.tensors, parameters=frozenset(self.parameters))

    # -- too many ------------------------------------------------------------------------------------------

    def shorten(self, run: Run, keep: int) -> tuple[list[int], str]:
        """Keep so many blocks of a run; which, and how they were chosen."""
        try:
            kept = best_cover(measured(self.chain, run), run.count, keep)
            inputs = "its own samples" if self.chain.program.samples else "random inputs, since it brings no samples"
            how = f"which miss least of all of them on {inputs}"
        except Exception as error:  # an operator without a form in float64 may fail in any way
            kept, how = spread(run.count, keep), f"evenly spread (they cannot be measured: {type(error).__name__})"
        if self._norms_stream(run):
            how += "; norms stand on its stream, so it is no sum of increments: the nearest block stands for its run"
        for block in range(run.count):
            if block not in kept:
                start, end = (self.where[self.chain.cuts[run.border(n)]] for n in (block, block + 1))
                end.replace_all_uses_with(start)
                self.where[self.chain.cuts[run.border(block + 1)]] = start
        return kept, how

    def _norms_stream(self, run: Run) -> bool:
        """Whether a norm's result goes on as the stream itself, inside a block (post-norm)."""
        steps = ((self.chain.cuts[n], self.chain.cuts[n + 1]) for n in range(run.first, run.border(1)))
        return any((norm := self.sites.operators.norm(end)) and norm.source is start for start, end in steps)

    # -- too few -------------------------------------------------------------------------------------------

    def lengthen(self, run: Run, count: int) -> None:
        """Blocks without effect behind those that there are, so many in all."""
        places = [*spread(count, run.count), count]
        for block in range(run.count):
            start, end = (self.chain.cuts[run.border(n)] for n in (block, block + 1))
            last = self.where[end]
            users = list(last.users)
            for _ in range(places[block + 1] - places[block] - 1):
                last = self._copy(run, block, start, end, last)
            for user in users:
                user.replace_input_with(self.where[end], last)

    def _copy(self, run: Run, block: int, start: fx.Node, end: fx.Node, before: fx.Node) -> fx.Node:
        """A copy of a block without effect, reading `before`."""
        idle = self._idle(run, block)
        copied = {start: before}
        place = before
        for node in self.chain.inside(start, end):
            with self.graph.inserting_after(place):
                if node.op == "get_attr":
                    place = self.graph.get_attr(self._tensor(str(node.target), idle))
                else:
                    place = self.graph.node_copy(node, lambda n: copied[n] if n in copied else self.where[n])
            place.meta = {key: value for key, value in node.meta.items() if key == "source"}
            copied[node] = place
        return copied[end]

    def _tensor(self, name: str, idle: dict[str, float]) -> str:
        """A tensor of the copy: the block's own, or one number where it must do nothing."""
        new = free(name, self.tensors)
        value = self.tensors[name].detach().clone()
        self.tensors[new] = torch.full_like(value, idle[name]) if name in idle else value
        if name in self.parameters:
            self.parameters.add(new)
        return new

    def _idle(self, run: Run, block: int) -> dict[str, float]:
        """The number that each tensor of a block holds when the block does nothing, where that is known."""
        found: dict[str, float] = {}
        for place in range(run.border(block), run.border(block + 1)):
            start, end = self.chain.cuts[place : place + 2]
            norm = self.sites.operators.norm(end)
            if self.sites.operators.sums(end) and start in end.all_input_nodes:
                for node in end.all_input_nodes:
                    found |= dict.fromkeys(self._writers(node, start), 0.0) if node is not start else {}
            elif norm is not None and norm.source is start and self.unit_norms:
                given = dict(Call.of(end).operands)
                for name, value in (("weight", 1.0), ("bias", 0.0)):
                    tensor = given.get(name)
                    if tensor is not None and tensor.op == "get_attr":
                        found[str(tensor.target)] = value
        return found

    def _writers(self, node: fx.Node, start: fx.Node) -> set[str]:
        """The parameters last on the way to a value: of the linear maps, and of what scales and shifts behind them."""
        found: set[str] = set()
        todo = [node]
        while todo:
            each = todo.pop()
            if each is start or each.op != "call_function":
                continue
            site = self.sites.sites.get(each)
            if site is not None:
                found |= {operand.root for operand in site.operands if operand.root in self.parameters}
            if site is None or not site.maps:
                todo += [n for n in each.all_input_nodes if n in self.chain.own]
        return found


def _difference(one: Program, two: Program) -> float:
    """The largest difference of an output, as a share of its spread, in float64 where the programs allow that."""
    inputs = probe(one)
    try:
        before, after = run_wide(one, inputs), run_wide(two, inputs)
    except Exception:  # an operator without a form in float64 may fail in any way
        with torch.no_grad():
            before, after = one.run(inputs), two.run(inputs)
    return largest(differences(before, after))
