"""A SuperNet of parents that line up: one trunk for all, or one behind every task's stem, then heads and features."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fxmerge.errors import LineUpError
from fxmerge.ir.program import Port, Program, target_name
from fxmerge.ir.shown import shape_of
from fxmerge.ir.space import leaves
from fxmerge.ir.supernet import SuperNet
from passes.supernet.heads import Heads
from passes.supernet.resize import resize
from passes.supernet.site import Operand
from passes.supernet.state import State
from passes.supernet.streams import streams
from passes.supernet.trunk import Trunk


def join(state: State) -> SuperNet:
    """Build the SuperNet in a `State` that holds nothing but parents and maps yet.

    Raises `LineUpError` where a trunk of its own cannot be written at the template's widths.
    """
    if not state.apart:
        return _shared(state)
    try:
        return _apart(state)
    except GuardOnDataDependentSymNode:
        raise
    except (RuntimeError, ValueError) as error:  # an operator met a size it cannot take
        tasks = " and ".join(parent.task for parent in state.parents)
        raise LineUpError(
            f"{tasks} have inputs of their own, and their trunk cannot be written at one width",
            "merge models of one width",
        ) from error


def takes_one_input(state: State) -> bool:
    """Whether all parents can be given the same tensors: inputs of one shape and type, tables of one length."""
    ports = {tuple((p.shape, p.dtype) for p in parent.inputs) for parent in state.parents}
    order = state.first.placeholders
    straight = all(
        pairs.get(ours) in (None, theirs)
        for parent, pairs in zip(state.parents, state.pairs, strict=True)
        for ours, theirs in zip(order, parent.placeholders, strict=False)
    )
    return len(ports) == 1 and straight and not unlike_sizes(state)


def unlike_sizes(state: State) -> list[Operand]:
    """The tensors of the trunk that parents have at different sizes along an axis that no map changes."""
    sites = [s for n, s in state.sites.sites.items() if s.kind != "direct" and n not in state.sites.tail]
    return [operand for site in sites for operand in site.operands if not state.same_size(operand)]


def _shared(state: State) -> SuperNet:
    first = state.first
    trunk = Trunk(state, first, {n: n for n in first.graph.nodes})
    trunk.build([state.graph.placeholder(str(n.target)) for n in first.placeholders])
    names = tuple(port.name for port in first.inputs)
    made = _finish(state, first.inputs, Heads(trunk).results(), (names,) * len(state.parents))
    return replace(made, **_paired(state, trunk.where))


def _apart(state: State) -> SuperNet:
    """Every task has inputs, stem, trunk and head of its own; all trunks have the same weights."""
    ports: list[Port] = []
    starts: list[list[fx.Node]] = []
    for k, parent in enumerate(state.parents):
        own = [Port(f"{parent.task}.{p.name}", state.named(k, p.shape), p.dtype) for p in parent.inputs]
        starts.append([state.graph.placeholder(re.sub(r"\W", "_", f"in{k}_{port.name}")) for port in own])
        ports += own
    results: list[tuple[Port, fx.Node]] = []
    trunks: list[Trunk] = []
    for k, parent in enumerate(state.parents):
        source, where = resize(parent, state.others[k], _sizes(state, k))
        trunk = Trunk(state, source, {ours: where[theirs] for ours, theirs in state.pairs[k].items()}, only=k)
        trunk.build(starts[k])
        results += Heads(trunk).results()
        trunks.append(trunk)
    names = tuple(tuple(f"{parent.task}.{p.name}" for p in parent.inputs) for parent in state.parents)
    made = _finish(state, tuple(ports), results, names)
    first = trunks[0].where
    common = [n for n in first if all(n in trunk.where for trunk in trunks)]
    alike = {first[n].name: tuple(trunk.where[n].name for trunk in trunks) for n in common}
    copies = {name: own for name, own in alike.items() if len(set(own)) == len(trunks)}
    return replace(made, copies=copies, **_paired(state, first))


def _paired(state: State, where: Mapping[fx.Node, fx.Node]) -> dict[str, Any]:
    """What stands where in a trunk: by the template's nodes, and by its own the parents'."""
    names = {ours: node.name for ours, node in where.items()}
    paired = {ours: name for ours, name in names.items() if all(ours in pairs for pairs in state.pairs)}
    twins = {name: tuple(pairs[ours] for pairs in state.pairs) for ours, name in paired.items()}
    return {"streams": streams(state.sites), "trunk": names, "twins": twins}


def _sizes(state: State, k: int) -> dict[str, int]:
    """Size in the template of every mergeable space of parent k."""
    sizes: dict[str, int] = {}
    sites, theirs = state.sites, state.others[k].spaces
    for ours, other in state.pairs[k].items():
        for a, b in zip(sites.spaces.axes.get(ours, ()), theirs.axes.get(other, ()), strict=False):
            pair = (list(leaves(a)), list(leaves(b))) if not isinstance(a, tuple) else ([], [])
            if len(pair[0]) == len(pair[1]):
                sizes.update({y.space: x.size for x, y in zip(*pair, strict=True) if x.space in sites.mergeable})
    return sizes


def _finish(
    state: State, inputs: tuple[Port, ...], results: Iterable[tuple[Port, fx.Node]], names: tuple[tuple[str, ...], ...]
) -> SuperNet:
    found = list(results)
    for feature in state.features.values():
        shape = state.named(feature.parent, shape_of(state.parents[feature.parent], feature.node))
        found.append((Port(feature.port, shape, feature.node.meta["val"].dtype), state.feature_nodes[feature.port]))
    state.graph.output(tuple(node for _, node in found))
    ranges, hints = _sizes_of(state)
    program = Program(
        graph=state.graph,
        tensors=state.tensors,
        inputs=inputs,
        outputs=tuple(port for port, _ in found),
        parameters=frozenset(state.trainable),
        maps=state.maps.modules,
        origins=state.origins,
        task="+".join(parent.task for parent in state.parents),
        notes=tuple(dict.fromkeys(note for parent in state.parents for note in parent.notes))
        + state.notes
        + _untied(state),
        ranges=ranges,
        hints=hints,
    )
    picking = {target_name(n.target) for parent in state.parents for n in parent if state.sites.operators.looks_up(n)}
    program = program.evolve()
    return SuperNet(
        program,
        state.parents,
        state.template,
        tuple(state.features.values()),
        state.own,
        {name: place for name, place in state.maps.places.items() if name in program.maps},
        names,
        state.sites.spaces,
        tuple(sites.spaces for sites in state.others),
        _mapless(state),
        names=state.maps.names(),
        lookups=frozenset(picking),
        partly=frozenset(_partly(state)),
    )


def _partly(state: State) -> Iterator[str]:
    """The tensors that maps meet behind the moves that pick a part of them."""
    for site in state.sites.sites.values():
        for operand in site.operands if site.kind != "direct" else ():
            if not operand.whole(axis for axis, use in enumerate(operand.uses) if use is not None):
                yield operand.root


def _mapless(state: State) -> dict[str, str]:
    """The SuperNet's own parameters that an operator without a rule reads, or that do more than scale along a space."""
    spaces = state.sites.spaces
    opaque = {each.parameter: f"{each.operator} has no rule" for each in spaces.opaque}
    summed = {(use.tensor, use.axis) for s in spaces.spaces.values() for use in (*s.readers, *s.writers)}
    found = {}
    for name in state.own:
        merged = [i for i, axis in enumerate(spaces.tensors[name]) if state.sites.is_merged(axis) and axis.size > 1]
        if name in opaque:
            found[name] = opaque[name]
        elif len(merged) > 1 or any((name, axis) in summed for axis in merged):
            found[name] = "no map can stand on it"
    return found


def _sizes_of(state: State) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """The ranges of the dynamic sizes, as all parents that have them allow, and the sizes to look at them with."""
    ranges: dict[str, tuple[int, int]] = {}
    hints: dict[str, int] = {}
    for k, parent in enumerate(state.parents):
        for size, (low, high) in parent.ranges.items():
            name = str(state.named(k, (size,))[0])
            before = ranges.get(name, (low, high))
            ranges[name] = max(low, before[0]), min(high, before[1])
        if state.apart:
            hints.update({str(state.named(k, (size,))[0]): value for size, value in parent.hints.items()})
    hints = hints or dict(state.first.hints)
    return ranges, {name: min(max(size, ranges.get(name, (size, size))[0]), ranges.get(name, (size, size))[1])
                    for name, size in hints.items()}  # fmt: skip


def _untied(state: State) -> tuple[str, ...]:
    """A note for every tensor that the template uses in two roles, and the merged model holds twice."""
    roles: dict[str, set[tuple[str | None, ...]]] = {}
    for node, site in state.sites.sites.items():
        for operand in site.operands:
            found = tuple(use.role if use else None for use in operand.uses)
            roles.setdefault(operand.root, set()).add((*found, "head" if node in state.sites.tail else "trunk"))
    return tuple(
        f"{name} was tied and is untied: it is written in one place and read in another"
        for name, uses in roles.items()
        if len(uses) > 1
    )
