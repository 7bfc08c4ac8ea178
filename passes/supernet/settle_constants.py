"""Decide what becomes of constants in which the parents differ, so that none of them is dropped without a word.

in a task's own head                                    -->   each task keeps its own
before the first weights                                -->   each task has inputs of its own, and keeps its own
a factor behind a linear map, or in front of linear maps   -->   the template's; what is left goes into the weights
a guard against dividing by zero, a mask's large number    -->   the template's
anything else in the trunk that all tasks share         -->   `LineUpError`: one graph cannot serve both
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call, RuleSet
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from passes.line_up.constants import Difference, differences
from passes.operators import Operators
from passes.spelling.compute_weights import compute_weights
from passes.supernet.site import Site, Sites
from passes.supernet.state import State

TINY, SMALLEST, APART = 1e-2, 1e-4, 1e3
"""A number below TINY guards a division; two such may differ by the factor APART, or as they like below SMALLEST."""
HUGE = 1e3
"""A mask's number is below minus this."""


@dataclass(frozen=True)
class Settled:
    """The parents with the constants that one graph can have, what is to be said, and whether each needs its own."""

    parents: tuple[Program, ...]
    notes: tuple[str, ...] = ()
    apart: bool = False


def settle_constants(state: State, rules: RuleSet, *, apart: bool) -> Settled:
    """Settle every difference of the parents of a `State`; `apart` if tasks have inputs of their own anyway."""
    parents, notes = list(state.parents), []
    stem, known = _stem(state.sites), state.sites.operators
    for k, parent in enumerate(parents):
        if k == state.template:
            continue
        tasks = state.parents[state.template].task, parent.task
        found = [d for d in differences(state.first, parent, state.pairs[k], known) if _matters(d, state.sites)]
        shared = [d for d in found if not _readers(d.node) <= state.sites.tail and not _is_harmless(d, known)]
        apart = apart or any(_readers(d.node) <= stem | state.sites.tail for d in shared)
        factors: list[Difference] = []
        for each in found:
            said = each.said(*tasks)
            if each in shared and apart:
                notes.append(f"{said}: each task keeps its own, and has inputs of its own")
            elif each not in shared:
                kept = "the merged model has the first" if _is_harmless(each, known) else "each task keeps its own"
                notes.append(f"{said}: {kept}")
            elif _ratio(each, known) is not None:
                factors.append(each)
                notes.append(f"{said}: the merged model has the first, the weights of {parent.task} the rest")
            else:
                raise _refused(said)
        if factors and not apart:
            parents[k] = _absorbed(parent, state.others[k], factors, rules, tasks)
    return Settled(tuple(parents), tuple(dict.fromkeys(notes)), apart)


def _refused(said: str) -> LineUpError:
    return LineUpError(f"one graph cannot serve both: {said}", "merge models that agree in it")


# -- where a constant is, and whether it matters ---------------------------------------------------------


def _matters(each: Difference, sites: Sites) -> bool:
    """Whether no map and no average takes care of a difference: fixed tables and statistics have theirs."""
    if each.node.op != "get_attr":
        return bool(sites.values[each.node] != "parameter")
    return sites.values[each.node] == "constant" and each.node.target not in sites.spaces.transformed


def _readers(node: fx.Node) -> set[fx.Node]:
    """The call itself; of a tensor, the first calls behind it in which it meets anything."""
    if node.op == "call_function":
        return {node}
    found: set[fx.Node] = set()
    for user in node.users:
        found |= _readers(user)
    return found


def _stem(sites: Sites) -> set[fx.Node]:
    """Calls that no parameter has reached yet: what every task does to its own inputs."""
    found: set[fx.Node] = set()
    for node in sites.program.graph.nodes:
        if node.op == "call_function" and node not in sites.sites:
            below = [n for n in node.all_input_nodes if sites.values[n] == "data" and n.op == "call_function"]
            if sites.values[node] in ("data", "constant") and all(n in found for n in below):
                found.add(node)
    return found


def _is_harmless(each: Difference, operators: Operators) -> bool:
    if isinstance(each.ours, Tensor):
        return False
    a, b = each.ours, each.theirs
    guards = 0 < a < TINY and 0 < b < TINY and (max(a, b) <= SMALLEST or max(a / b, b / a) <= APART)
    factor = guards and operators.factor(each.node, each.name) is not None
    return (guards and not factor) or (a < -HUGE and b < -HUGE)


def _ratio(each: Difference, operators: Operators) -> float | None:
    """What the parent's value is to be multiplied by before the template's factor; None if it is no factor."""
    if each.node.op == "get_attr" or not each.ours or not each.theirs:
        return None
    factor, ratio = operators.factor(each.node, each.name), each.theirs / each.ours
    if factor is None or (ratio < 0 and factor.power.denominator != 1):
        return None
    return float(ratio ** float(factor.power))


# -- a factor into the weights ---------------------------------------------------------------------------


def _absorbed(
    parent: Program, sites: Sites, factors: Collection[Difference], rules: RuleSet, tasks: tuple[str, str]
) -> Program:
    """`parent` with the template's factors, and weights that make up for it."""
    graph, where = parent.copy_graph()
    work = _Absorb(sites, graph, where)
    for each in factors:
        node, factor, ratio = each.other, sites.operators.factor(each.other, each.name), _ratio(each, sites.operators)
        assert factor is not None and ratio is not None
        beside = [n for name, n in Call.of(node).operands if name in factor.beside and n is not None]
        if not (any(work.before(n, node, ratio) for n in beside) or (factor.whole and work.behind(node, ratio))):
            raise _refused(each.said(*tasks))
        _set(where[node], each.name, each.ours)
    return compute_weights(parent.evolve(graph=graph), rules).evolve(notes=parent.notes)


def _set(node: fx.Node, name: str, value: float) -> None:
    place = list(Call.of(node).arguments).index(name)
    if name in node.kwargs or place >= len(node.args):
        node.kwargs = {**node.kwargs, name: value}
    else:
        node.args = (*node.args[:place], value, *node.args[place + 1 :])


@dataclass
class _Absorb:
    """Multiplies weights in a copy of a parent's graph."""

    sites: Sites
    graph: fx.Graph
    where: dict[fx.Node, fx.Node]
    scaled: dict[tuple[fx.Node, fx.Node], fx.Node] = field(default_factory=dict)
    """By call and operand of the parent: what the call takes now."""

    @cached_property
    def reads(self) -> Counter[str]:
        """In how many places each tensor is read."""
        return Counter(operand.root for site in self.sites.sites.values() for operand in site.operands)

    def before(self, node: fx.Node, reader: fx.Node, ratio: float, *, dry: bool = False) -> bool:
        """Multiply what `reader` reads of `node` by weights in front of it; whether that could be done."""
        if list(node.users) != [reader] or node.op != "call_function":
            return False
        if not dry and not self.before(node, reader, ratio, dry=True):
            return False
        site, known = self.sites.sites.get(node), self.sites.operators
        if site is not None and site.kind == "linear":
            return self._scale(site, None, ratio, dry)
        data = [n for n in node.all_input_nodes if self.sites.values[n] in ("data", "parameter")]
        if len(data) > 1 and known.scales_with(node, data):
            owned = site.operands if site is not None else ()
            rest = [n for n in data if n not in {o.node for o in owned}]
            return all(self.before(n, node, ratio, dry=dry) for n in rest) and (
                site is None or self._scale(site, None, ratio, dry)
            )
        through = known.moved(node) is not None or known.scales_with(node, data)
        through = through or (ratio > 0 and known.keeps_factors(node))
        return through and len(data) == 1 and site is None and self.before(data[0], node, ratio, dry=dry)

    def behind(self, node: fx.Node, ratio: float) -> bool:
        """Multiply what linear maps read of `node` by their weights; whether all that read it are such."""
        todo: list[Site] = []
        for user in node.users:
            site = self.sites.sites.get(user)
            reads = site is not None and any(
                u and u.role == "read" and u.on is node for o in site.operands for u in o.uses
            )
            if site is None or site.kind != "linear" or not reads:
                return False
            todo.append(site)
        return bool(todo) and all(self._scale(s, node, ratio, dry) for dry in (True, False) for s in todo)

    def _scale(self, site: Site, read: fx.Node | None, ratio: float, dry: bool) -> bool:
        """Multiply the parameters of a call: all of them, or those that read a value; not if others read them too."""
        if any(self.reads[operand.root] > 1 for operand in site.operands):
            return False
        for operand in site.operands:
            reads = read is None or any(use is not None and use.on is read for use in operand.uses)
            if reads and not dry:
                key = (site.node, operand.node)
                weight, user = self.scaled.get(key, self.where[operand.node]), self.where[site.node]
                with self.graph.inserting_before(user):
                    self.scaled[key] = self.graph.call_function(torch.ops.aten.mul.Tensor, (weight, ratio))
                user.replace_input_with(weight, self.scaled[key])
        return True
