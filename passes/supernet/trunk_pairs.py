"""What two programs have in common: all of it, or all but their heads.

    template   x → trunk → F → its head            other   x → trunk → F → another head

Both are walked from F, so that a head may be any calls at all. F is the last value that everything passes through in
both, and that both heads read by linear calls, which then take their maps in; else simply the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from torch import fx

from fxmerge.coupling import RuleSet
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from passes.line_up.chains import Chain
from passes.line_up.pairs import Pairs, line_up, pair_values
from passes.operators import Operators
from passes.supernet.site import Sites
from passes.supernet.sites import SitesOf

HEAD = 0.5
"""A head holds less than this share of a program's weights, tables of words aside; what holds more is no head."""


@dataclass(frozen=True)
class TrunkPairs:
    """Node of another parent for every node of the template that it has, and the weights in heads that part."""

    pairs: Pairs
    apart: int = 0


def trunk_pairs(template: Program, other: Program, rules: RuleSet) -> TrunkPairs:
    """`line_up`; where the heads part, of the trunks. Raises its `LineUpError` where more than heads part."""
    operators = Operators(rules)
    try:
        return TrunkPairs(line_up(template, other, operators))
    except LineUpError as error:
        ends = _ends(template, other, operators, rules)
        if ends is None:
            raise
        apart = [_behind(each, end, rules) for each, end in zip((template, other), ends, strict=True)]
        if any(part >= HEAD * whole for part, whole in apart):
            raise
        try:
            pairs = pair_values(template, other, [ends], operators)
        except LineUpError:
            raise error from None
    named = {port.name: node for node, port in zip(other.placeholders, other.inputs, strict=True)}
    inputs = zip(template.placeholders, template.inputs, strict=True)
    beside = {node: named[port.name] for node, port in inputs if node not in pairs and port.name in named}
    return TrunkPairs({**beside, **pairs}, sum(part for part, _ in apart))


def _ends(template: Program, other: Program, operators: Operators, rules: RuleSet) -> tuple[fx.Node, fx.Node] | None:
    """The last values that both trunks compute alike."""
    ours, theirs = Chain(template, operators), Chain(other, operators)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours.steps, theirs.steps, strict=False)))
    cuts = list(zip(ours.cuts[: same + 1], theirs.cuts[: same + 1], strict=True))
    sites = [program.get(SitesOf(rules)) for program in (template, other)]
    for pair in reversed(cuts):
        if all(_is_read(end, found) for end, found in zip(pair, sites, strict=True)):
            return pair
    return cuts[-1] if cuts else None


def _is_read(end: fx.Node, sites: Sites) -> bool:
    """Whether nothing but linear calls reads a value."""
    found = (sites.sites.get(user) for user in end.users)
    return all(site is not None and site.kind == "linear" for site in found)


def _behind(program: Program, end: fx.Node, rules: RuleSet) -> tuple[int, int]:
    """How many weights are used behind a value only, and in all; without tables in which rows are looked up."""
    operators = Operators(rules)
    before, todo = {end}, [end]
    while todo:
        new = [n for n in todo.pop().all_input_nodes if n not in before]
        before.update(new)
        todo += new
    count = {True: 0, False: 0}
    for node in program.graph.nodes:
        own = node.op == "get_attr" and node.target in program.parameters
        if own and not any(operators.looks_up(user) for user in node.users):
            count[node in before] += program.tensors[str(node.target)].numel()
    return count[False], sum(count.values())
