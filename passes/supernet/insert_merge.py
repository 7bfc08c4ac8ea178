"""Join K parents into one SuperNet: merge nodes behind their writers, unmerge nodes before their readers.

    y_k = writer_k(x_k)            x_k = unmerge(x, U, k)     y = merge([writer_1(x_1) … writer_K(x_K)], M)

The SuperNet runs the graph of one parent, the template; only the calls in which parameters meet data exist once per
parent. Parameters that no linear call takes (norm scales, say) become trainable tensors of the SuperNet itself.
Heads stay per task. So do stems, where parents take different inputs: the trunk then stands once per task, with the
same weights. `passes.supernet.state` draws which node becomes what.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from fxmerge.coupling import RuleSet
from fxmerge.errors import LineUpError, OptionError
from fxmerge.ir.merge import head, merge, unmerge
from fxmerge.ir.program import Program, prune
from fxmerge.ir.shown import shape_of
from fxmerge.ir.space import leaves
from fxmerge.ir.supernet import SuperNet
from passes.line_up.pairs import Pairs, line_up
from passes.operators import Operators
from passes.supernet.blocks import Blocks
from passes.supernet.join import join, takes_one_input, unlike_sizes
from passes.supernet.maps import Maps
from passes.supernet.resize import widen
from passes.supernet.settle_constants import settle_constants
from passes.supernet.site import Sites, axes_of
from passes.supernet.sites import SitesOf
from passes.supernet.stand_in import pairs_of, sites_of
from passes.supernet.state import State
from passes.supernet.trunk_pairs import trunk_pairs


def insert_merge(
    parents: Sequence[Program],
    rules: RuleSet,
    template: int = 0,
    width_scale: float | None = None,
    until: str = "",
) -> SuperNet:
    """The SuperNet of `parents` (programs that line up) with the sizes of parent `template`, times `width_scale`.

    Every map starts as the average: M_k = I/K, U_k = I (rectangular where widths differ). Behind the block `until`
    every task has its own part, with that parent's weights; without it the tasks' heads alone are their own.
    Raises `LineUpError` where the parents part, or where nothing can be merged.
    """
    state = _state(tuple(parents), rules, template, width_scale, until)
    together = takes_one_input(state)
    sizes = () if together else _sizes_of_one(state)
    settled = settle_constants(state, rules, apart=not together)
    if any(new is not old for new, old in zip(settled.parents, state.parents, strict=True)):
        state = _state(settled.parents, rules, template, width_scale, until)
    state.apart, state.notes = settled.apart, (*_inputs_of_one(state), *sizes, *_heads_of_one(state), *settled.notes)
    made = join(state)
    made = replace(made, parts=Blocks(state.first.get(SitesOf(rules))).parts(until))
    return replace(made, program=_said(made.program)) if until else made


def taking_all_inputs(parents: Sequence[Program], template: int, rules: RuleSet) -> Program:
    """The template, with an input for every constant in whose place another parent takes one."""
    first = parents[template]
    for parent in parents:
        if len(parent.inputs) <= len(first.inputs):
            continue
        known = {port.name: port for port in parent.inputs}
        own = dict(zip(parent.placeholders, parent.inputs, strict=True))
        pairs = trunk_pairs(parent, first, rules).pairs
        found = {own[a].name: b for a, b in pairs.items() if a in own and a.op != b.op}
        graph, where = first.copy_graph()
        ports = list(first.inputs)
        for name, node in found.items():
            with graph.inserting_before(next(iter(graph.nodes))):
                new = graph.placeholder(re.sub(r"\W", "_", name))
            where[node].replace_all_uses_with(new)
            ports.insert(0, replace(known[name], shape=shape_of(first, node)))
        prune(graph)
        first = first.evolve(graph=graph, inputs=tuple(ports))
    return first


def _inputs_of_one(state: State) -> tuple[str, ...]:
    """A note for every input that some parents do not take: they keep the constant in its place."""
    ports = dict(zip(state.first.placeholders, state.first.inputs, strict=True))
    return tuple(
        f"{parent.task} takes no {ports[ours].name}: it keeps the constant that it has instead, and inputs of its own"
        for parent, pairs in zip(state.parents, state.pairs, strict=True)
        for ours, theirs in pairs.items()
        if ours in ports and theirs.op != "placeholder"
    )


def _sizes_of_one(state: State) -> tuple[str, ...]:
    """A note for every tensor that gives parents inputs of their own, though they could be given the same ones."""
    if len({tuple((port.shape, port.dtype) for port in parent.inputs) for parent in state.parents}) > 1:
        return ()
    notes = []
    for operand in unlike_sizes(state):
        found = zip(state.parents, state.fixed_sizes(operand), strict=True)
        sizes = " and ".join(f"{' × '.join(map(str, own))} in {parent.task}" for parent, own in found)
        notes.append(f"{operand.root} has axes that no map brings together, {sizes}: each task has inputs of its own")
    return tuple(dict.fromkeys(notes))


def _heads_of_one(state: State) -> tuple[str, ...]:
    """A note for every parent whose head is made of other calls than the template's."""
    return tuple(
        f"the head of {parent.task} is another one than that of {state.parents[state.template].task}: "
        "what is shared ends in front of both"
        for parent, back in zip(state.parents, state.back, strict=True)
        if not _only_teaches(parent) and any(node not in back for node in parent.result)
    )


def _said(program: Program) -> Program:
    """The program with a note on the maps that stand between trunk and tails as matrices: no weight takes them in."""
    kept: dict[str, None] = {}
    for node in program.graph.nodes:
        if node.target is unmerge and not all(_takes_maps(user) for user in node.users):
            kept[str(node.meta.get("source", node.args[0]))] = None
    if not kept:
        return program
    note = f"behind {', '.join(kept)} every task has a matrix of its own: no weight that follows could take its map in"
    return program.evolve(notes=(*program.notes, note))


def _takes_maps(reader: fx.Node) -> bool:
    """Whether an unmerge map in front of this node folds into its weights, or is there to look at only."""
    return reader.op == "output" or any(user.target in (head, merge) for user in reader.users)


def _only_teaches(parent: Program) -> bool:
    return parent.teacher is not None and parent.teacher.only


def _pairs(first: Program, template: Program, parent: Program, rules: RuleSet) -> Pairs:
    """Node of a parent for every node of the template that it has, `first` at the merged model's sizes."""
    if not _only_teaches(parent):
        return trunk_pairs(first, parent, rules).pairs
    names = pairs_of(template, parent)
    return {ours: names[own] for ours, own in line_up(first, template, Operators(rules)).items()}


def _unpaired(sites: Sites, pairs: Sequence[Pairs]) -> frozenset[fx.Node]:
    """The calls of the template that a parent with a head of its own does not make."""
    calls = (n for n in sites.program.graph.nodes if n.op == "call_function" and sites.values[n] == "data")
    return frozenset(node for node in calls if any(node not in own for own in pairs))


def _without(sites: Sites, heads: frozenset[fx.Node]) -> Sites:
    """The sites where these calls are part of the tail: spaces that only they write are nobody's but a task's."""
    if not heads:
        return sites
    tail = sites.tail | heads
    trunk = (n for n, value in sites.values.items() if value == "data" and n not in tail and n in sites.spaces.axes)
    known = {leaf.space for node in trunk for axis in axes_of(sites.spaces.axes[node]) for leaf in leaves(axis)}
    return replace(sites, tail=tail, mergeable=sites.mergeable & known)


def _state(parents: Sequence[Program], rules: RuleSet, template: int, width_scale: float | None, until: str) -> State:
    """Parents that line up, with their sites and the maps that these need."""
    first = taking_all_inputs(parents, template, rules)
    first = first if width_scale is None else widen(first, rules, width_scale)
    pairs = [_pairs(first, parents[template], parent, rules) for parent in parents]
    sites = first.get(SitesOf(rules))
    if not sites.mergeable:
        raise LineUpError(
            f"{first.task} has no inner space that its parameters write: there is nothing to merge",
            "merge models with at least one hidden layer",
        )
    if until:
        taught = next((parent.task for parent in parents if _only_teaches(parent)), None)
        if taught is not None:
            raise OptionError(
                f"{taught} teaches only, and has no blocks that could stay apart",
                "leave --share-until, --max-size, --keep and --curve out",
            )
        sites = replace(sites, tail=Blocks(sites).tail(until))
    sites = _without(sites, _unpaired(sites, pairs))
    others = tuple(
        sites_of(parents[template], parent, rules) if _only_teaches(parent) else parent.get(SitesOf(rules))
        for parent in parents
    )
    return State(first, tuple(parents), template, pairs, sites, others, Maps(first, sites, others, pairs))
