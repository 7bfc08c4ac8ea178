"""What only a look inside shows of a merge: what each block keeps, and where answers differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.mixing import Mixed, mixing
from fxmerge.samples.rows import Samples, chunks, rows_at_once, rows_of

ROWS, SHOWN = 128, 4
"""Rows of a task that blocks are compared on at most, and answers that are shown."""


@dataclass(frozen=True)
class Insight:
    """What a report looks at beside the result."""

    supernet: SuperNet
    mixed: tuple[Mixed, ...]
    samples: tuple[Samples, ...] | None
    """By parent: rows that nothing was trained on, where there are enough."""

    @classmethod
    def of(cls, net: SuperNet, mixed: tuple[Mixed, ...], samples: Sequence[Samples] | None) -> Insight:
        """`mixed`: by the maps that the result came from, or none for what the SuperNet's hold now."""
        return cls(net, mixed or mixing(net), None if samples is None else tuple(samples))

    def given(self, merged: Program, rows: int = 1) -> list[Mapping[str, Tensor]]:
        """The inputs of the merged model, then those of every parent: the first rows of their samples."""
        assert self.samples is not None
        own = [{name: value[:rows] for name, value in each.items()} for each in self.samples]
        ours = {name: value for k, each in enumerate(own) for name, value in self.supernet.given(k, each).items()}
        return [ours, *own]


# -- blocks ------------------------------------------------------------------------------------------------


@torch.no_grad()
def blocks(merged: Program, insight: Insight) -> dict[str, list[float | None]]:
    """By block, for every parent: one less the alignment of what comes out of it with what comes out of the parent's.

    Linear CKA (Kornblith et al., ICML 2019): 0 is the same up to a rotation and a scale, 1 is unrelated. None for a
    parent that has no such block.
    """
    net, samples = insight.supernet, insight.samples
    ends = _ends(net, {node.name for node in merged.graph.nodes})
    if samples is None or not ends:
        return {}
    found: dict[str, list[float | None]] = {name: [] for name in ends}
    for k, parent in enumerate(net.parents):
        rows = {name: value[:ROWS] for name, value in samples[k].items()}
        own = merged.only([f"{parent.task}.{port.name}" for port in parent.outputs], inputs=True)
        here = {end: net.copies[end][k] if end in net.copies else end for end in ends.values()}
        ours = _values(own, net.given(k, rows), set(here.values()))
        twins = {end: net.twins[end][k].name for end in ends.values() if end in net.twins and k in net.merged}
        theirs = _values(parent, rows, set(twins.values()))
        for name, end in ends.items():
            one, two = ours.get(here[end]), theirs.get(twins.get(end, ""))
            found[name].append(None if one is None or two is None else 1 - alignment(one, two))
    return found


def _ends(net: SuperNet, known: set[str]) -> dict[str, str]:
    """By block that is shared: the merged model's node that goes on from it to the next one."""
    template = net.parents[net.template]
    owner = {name: part.name for part in net.parts if not part.apart for name in part.parameters}
    ends: dict[str, str] = {}
    current = last = ""
    for node in template.graph.nodes:
        read = {owner.get(str(each.target)) for each in node.all_input_nodes if each.op == "get_attr"} - {None}
        new = next((name for name in read if name != current and name not in ends), None)
        if new is not None:
            if current and last:
                ends[current] = last
            current, last = str(new), ""
        name = net.trunk.get(node, "")
        if current and name in known and name in net.twins and _is_real(node):
            last = name
    if current and last:
        ends[current] = last
    return ends


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1


class _Reader(fx.Interpreter):
    def __init__(self, program: Program, names: set[str]) -> None:
        super().__init__(program.module)
        self.names, self.found = names, {}  # type: ignore[var-annotated]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.found[n.name] = value
        return value


def _values(program: Program, inputs: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """Values of nodes by their names, where a program takes these inputs and no others."""
    reader = _Reader(program, names)
    reader.run(*(inputs[port.name].to(port.dtype) for port in program.inputs))
    return reader.found


def alignment(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two values whose first axis counts the same rows."""
    x, y = (v.detach().double().flatten(1) for v in (a, b))
    x, y = x - x.mean(0), y - y.mean(0)
    one, two = x @ x.T, y @ y.T
    return float((one * two).sum() / (one.norm() * two.norm()).clamp_min(1e-300))


# -- answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Apart:
    """A row on which merged model and parent differ much, by how many spreads of the parent's output."""

    inputs: Mapping[str, Tensor]
    merged: Tensor
    parent: Tensor
    by: float


@torch.no_grad()
def furthest(merged: Program, insight: Insight, k: int, given: Program) -> list[Apart]:
    """The rows of a task on which the answers differ most: of its first output, the worst first."""
    assert insight.samples is not None
    net, samples, port = insight.supernet, insight.samples[k], given.outputs[0].name
    own = merged.only([f"{given.task}.{port}"], inputs=True)
    ours, theirs = [], []
    for part in chunks(samples, rows_at_once(given)):
        ours.append(own.run(net.given(k, part))[f"{given.task}.{port}"].float())
        theirs.append(given.run(part)[port].float())
    if len({value.shape[1:] for value in theirs}) > 1 or len(torch.cat(theirs)) != rows_of(samples):
        return []
    a, b = torch.cat(ours), torch.cat(theirs)
    gaps = (a - b).flatten(1).pow(2).mean(1).sqrt() / b.std().clamp_min(1e-12)
    return [
        Apart({n: v[i] for n, v in samples.items()}, a[i], b[i], float(gaps[i]))
        for i in gaps.argsort(descending=True)[:SHOWN].tolist()
    ]
