"""PLeaS: align, then every layer by least squares on the parents' aligned activations (Nasery et al., CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from fxmerge.bounds import Amount, Count
from fxmerge.errors import OptionError
from fxmerge.ir.maps import AxisMap, Form
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import NAMED, SuperNet
from fxmerge.messages import listed
from fxmerge.methods.about import About
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.chains import Chain
from fxmerge.methods.goals import Goals, readers
from fxmerge.methods.groups import groups_at_start
from fxmerge.methods.kernels import Kernel
from fxmerge.methods.map_nodes import Merge, Unmerge, blocks_of
from fxmerge.methods.permute import PERMUTE
from fxmerge.methods.regress import Moments
from fxmerge.methods.rotate import ROTATE
from fxmerge.methods.sampled import Sampled, through
from fxmerge.methods.seen import Seen
from fxmerge.methods.transport import TRANSPORT
from fxmerge.methods.zipit import ZIPIT, ZipIt

ALIGNMENTS = {each.name: each for each in (PERMUTE, TRANSPORT, ROTATE, ZIPIT)}
PARTIAL = ZipIt(inside=0.0)
"""The most alike units of different parents are joined until as many are left as there is place for."""


@dataclass(frozen=True)
class Pleas:
    """W* = argmin ‖W x − Σ_k M_k y_k‖², x what the merged layers before it give, y_k what parent k writes there.

    M comes from an alignment. Where the merged model is wider than its parents (`--width-scale`), only so many units
    are matched as have to be, the others stand beside each other (partial matching, §3). Targets are taken behind norms
    of running statistics, whose shift takes the constant. Last features are read by least squares too, task by task.
    """

    name: ClassVar[str] = "pleas"
    summary: ClassVar[str] = "align, then every layer by least squares on the parents' aligned activations"
    needs_data: ClassVar[bool] = True
    about: ClassVar[About] = About("Nasery et al., CVPR 2025, §3", groups=("permutation", "sign", "free"))

    align: Literal["auto", "permute", "transport", "rotate", "zipit"] = "auto"
    """auto: orders, or partial matches where the merged model is wider than all parents."""
    ridge: Amount = 1e-3
    """Penalty of the regressions, as a share of the mean square of a feature."""
    rows: Count = 1500
    """Inputs that are looked at, of all tasks together."""

    def __call__(self, job: Job) -> Outcome:
        net, program = self.start(job, "fixed")
        return Outcome(program, init=self.name, solved=frozenset(net.own), groups=groups_at_start(net), behind=True)

    def plan(self, job: Job) -> Outcome:
        """The outcome before anything is solved."""
        return Outcome(job.supernet.start([1.0] * len(job.supernet.parents), "fixed").program, init=self.name)

    def start(self, job: Job, form: Form) -> tuple[SuperNet, Program]:
        """The SuperNet aligned, and its trunk folded, its layers solved."""
        if self.ridge < 0:
            raise OptionError(f"pleas: ridge {self.ridge:g} is below zero", "give a number from 0 on")
        wider = any(block.size > max(block.sizes) for _, block in job.supernet.maps())
        partial = wider and job.supernet.together  # which compares what all parents make of the same samples
        alignment = (PARTIAL if partial else PERMUTE) if self.align == "auto" else ALIGNMENTS[self.align]
        net = alignment.start(job, "fixed")
        assert job.pool is not None
        solved = _Walk(net, through(net, job.pool, self.rows), self.ridge)
        solved.run()
        if solved.kept:
            job.notes.append(f"pleas: aligned and averaged, not solved: {listed(solved.kept, NAMED)}")
        folded = job.fold_trunk(net.program)
        return net, folded.evolve(tensors={**folded.tensors, **solved.weights})


class _Walk:
    """The aligned SuperNet and the parents beside it; a layer is solved when the walk comes to it."""

    def __init__(self, net: SuperNet, batches: list[Sampled], ridge: float) -> None:
        self.seen = Seen.of(net, batches)
        self.net, self.ridge = self.seen.net, ridge
        net = self.net
        self.rows, self.merged, self.parents = self.seen.rows, self.seen.merged(), self.seen.parents()
        self.goals = Goals(net, net.program.tensors, kernels=False)
        joins = {n: m for n in net.program.graph.nodes if (m := Merge.of(n)) and len(m.parents) == len(net.parents)}
        found = {n: Kernel.of(n, net, every=True) for n in joins}
        self.kernels = {n: (joins[n], each) for n, each in found.items() if each is not None and self._twins(n)}
        self.kept = list(dict.fromkeys(_written(m, net) for n, m in joins.items() if n not in self.kernels))
        self.weights: dict[str, Tensor] = {}
        """By the template's names."""

    def run(self) -> None:
        for node, (_, kernel) in self.kernels.items():
            self.merged.hold(kernel.source)
            for k, theirs in enumerate(self._twins(node)):
                self.parents[k].hold(theirs)
        read = {node: u for node in self.net.program.graph.nodes if (u := Unmerge.of(node)) and self._is_last(node)}
        last = {node: (u, seen) for node, u in read.items() if (seen := self.goals.seen(u)) is not None}
        for unmerged, theirs in last.values():
            self.parents[unmerged.k].hold(theirs)
        for node in self.net.program.graph.nodes:
            if node.op == "output":
                break
            if node in last:
                self._read(*last[node])
            if node in self.kernels:
                self._solve(node, *self.kernels[node])
            self.merged.of(node)
            if node in self.kernels:
                self.merged.release(self.kernels[node][1].source)
                for k, theirs in enumerate(self._twins(node)):
                    self.parents[k].release(theirs)

    def _twins(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The parents' values of what a layer writes, behind its chain."""
        return self.net.twins.get(self.goals.chains[node].last.name, ())

    def _solve(self, node: fx.Node, merged: Merge, kernel: Kernel) -> None:
        if kernel.name in self.weights or len(kernel.biases) > 1:
            return
        chain, given = self.goals.chains[node], self.merged.of(kernel.source)
        features = [self.rows.of(kernel.features(x), merged.axis, i) for i, x in enumerate(given)]
        wanted, biased = self._wanted(node, merged, chain), bool(kernel.biases) or chain.bias is not None
        found = torch.zeros(kernel.shape[0], prod(kernel.shape[1:]), dtype=torch.float64)
        constant = torch.zeros(kernel.shape[0], dtype=torch.float64)
        for units, batches in self._told(merged):
            moments = Moments.empty(found.shape[1], len(units))
            for i in batches:
                moments.add(features[i], wanted[i][:, units])
            found[units], constant[units] = moments.ridge(self.ridge, biased)
        solved = kernel.solved(found, constant, given[0].dtype)
        self.weights |= solved
        if not kernel.biases and chain.bias is not None:
            name = str(chain.bias.target)
            moved = self.merged.tensors[name].double() + constant * chain.scale
            self.weights[name] = self.merged.tensors[name] = moved.to(self.merged.tensors[name].dtype)
            if chain.bias in self.merged.values:
                self.merged.again(chain.bias)
        self.merged.replaced[node] = lambda i: kernel.run(given[i], *solved.values())

    def _wanted(self, node: fx.Node, merged: Merge, chain: Chain) -> list[Tensor]:
        """Per batch, as rows: what the parents write, carried and put together; of one task's rows its parent alone."""
        slope = torch.where(chain.scale.abs() < 1e-6, torch.ones_like(chain.scale), chain.scale)
        axis_map, has = self._map(merged), self._has(merged)
        parts: list[list[Tensor | None]] = []
        for k, theirs in enumerate(self._twins(node)):
            rows = self.seen.part(self.parents[k].of(theirs), merged.axis)
            parts.append([None if own is None else axis_map.to_merged(own, k, 1) for own in rows])
        found = self.seen.summed(parts)
        if self.seen.trunk is not None:
            found = [goal * has.sum(0) for goal in found]
        return [(goal - chain.shift) / slope for goal in found]

    def _told(self, merged: Merge) -> list[tuple[Tensor, list[int]]]:
        """Merged units, and the batches that say what they should be: those of tasks whose parents have them."""
        tasks = [batch.task for batch in self.seen.batches]
        alike: dict[tuple[int, ...], list[int]] = {}
        for unit, has in enumerate(self._has(merged).T):
            of_all = all(task is None for task in tasks)
            alike.setdefault(() if of_all else tuple(has.nonzero()[:, 0].tolist()), []).append(unit)
        return [
            (torch.tensor(units), [i for i, task in enumerate(tasks) if task is None or task in parents])
            for parents, units in alike.items()
        ]

    def _has(self, merged: Merge) -> Tensor:
        """(parents, units) which parents have a merged unit."""
        axis_map = self._map(merged)
        eyes = [torch.eye(size, dtype=torch.float64) for size in axis_map.sizes]
        return torch.stack([axis_map.to_merged(eye, k, 0).abs().sum(1) > 0 for k, eye in enumerate(eyes)])

    def _map(self, merged: Merge) -> AxisMap:
        axis_map = self.net.program.maps[merged.name]
        assert isinstance(axis_map, AxisMap)
        return axis_map

    def _is_last(self, node: fx.Node) -> bool:
        """Whether tasks read their features here, each its own."""
        calls = readers(node)
        return (
            bool(calls) and not Unmerge.half(node) and not any(Merge.of(user) for call in calls for user in call.users)
        )

    def _read(self, unmerged: Unmerge, theirs: fx.Node) -> None:
        """U of what a task's head reads: ridge regression from the merged features to the parent's."""
        seen, given = self.parents[unmerged.k].of(theirs), self.merged.of(unmerged.source)
        module = self.net.program.maps[unmerged.name]
        assert isinstance(module, AxisMap)
        for block in blocks_of(module, self.net.places[unmerged.name]):
            moments = Moments.empty(len(block.merged), len(block.own[unmerged.k]))
            for i, (x, y) in enumerate(zip(given, seen, strict=True)):
                if x is None or y is None:
                    continue
                rows = self.rows.of(x, unmerged.axis, i), self.rows.of(y, unmerged.axis, i)
                moments.add(rows[0][:, block.merged], rows[1][:, block.own[unmerged.k]])
            block.set_one(unmerged.k, moments.ridge(self.ridge, False)[0])
        self.parents[unmerged.k].release(theirs)


def _written(merged: Merge, net: SuperNet) -> str:
    """What a merge node stands behind: the template's tensor that is written there, or the map where none is known."""
    todo = [call for k, call in zip(merged.parents, merged.calls, strict=True) if k == net.template]
    while todo:
        node = todo.pop(0)
        if node.op == "get_attr" and str(node.target) in net.program.origins:
            return net.program.origins[str(node.target)].name
        todo += [n for n in node.all_input_nodes if Unmerge.of(node) is None]
    return merged.name


PLEAS = Pleas()
