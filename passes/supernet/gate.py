"""A gate: one more output of a merged model, the task that a row belongs to.

x  -->  x,  softmax(W · mean of x over tokens or pixels + b)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Port, Program
from fxmerge.ir.shared import SharedPlace
from fxmerge.ir.shown import shape_of
from passes.supernet.fold_merge import unused

aten = torch.ops.aten


def show_pooled(program: Program, places: Mapping[str, SharedPlace], mask: str | None) -> Program:
    """The program with nothing but these values as its outputs, (rows, features), padding left out of their means."""
    pooled = _Pooled(program, mask)
    nodes = {name: pooled.add(place) for name, place in places.items()}
    last = next(iter(reversed(pooled.graph.nodes)))
    last.args = (tuple(nodes.values()),)
    ports = tuple(_port(name, program, place, place.size) for name, place in places.items())
    made = program.evolve(graph=pooled.graph, outputs=ports)
    return made.only([port.name for port in ports], inputs=True)


def add_gate(
    program: Program, place: SharedPlace, mask: str | None, weight: Tensor, bias: Tensor, name: str
) -> Program:
    """The program with the output `name`: probabilities (rows, tasks), from the weights (tasks, features)."""
    pooled = _Pooled(program, mask)
    feature = pooled.add(place)
    dtype = place.node.meta["val"].dtype
    taken = {*program.tensors, *program.aliases}
    tensors = {unused(f"{name}.{w}", taken): value.to(dtype) for w, value in (("weight", weight), ("bias", bias))}
    with pooled.graph.inserting_after(feature):
        attributes = [pooled.graph.get_attr(target) for target in reversed(tensors)][::-1]
    scores = pooled.call(attributes[-1], aten.linear.default, feature, *attributes)
    answer = pooled.call(scores, aten.softmax.int, scores, 1)
    last = next(iter(reversed(pooled.graph.nodes)))
    last.args = ((*last.args[0], answer),)
    return program.evolve(
        graph=pooled.graph,
        tensors={**program.tensors, **tensors},
        parameters=program.parameters | tensors.keys(),
        outputs=(*program.outputs, _port(name, program, place, len(bias))),
    )


class _Pooled:
    """A copy of a program's graph to which means are added."""

    def __init__(self, program: Program, mask: str | None) -> None:
        self.graph, self.where = program.copy_graph()
        self.program, self.mask = program, mask

    def call(self, after: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self.graph.inserting_after(after):
            node = self.graph.call_function(target, args, kwargs)
        node.meta["by"] = "gate"
        return node

    def add(self, place: SharedPlace) -> fx.Node:
        """(rows, features): the mean over every other axis, over real tokens alone where the mask has that axis."""
        value = self.where[place.node]
        others, tokens = list(place.others), self._tokens(place)
        if tokens is not None:
            others.remove(tokens)
        if others:
            value = self.call(value, aten.mean.dim, value, others, True)
        if tokens is not None:
            value = self._real_mean(value, place, tokens)
        for axis in sorted(place.others, reverse=True):
            value = self.call(value, aten.squeeze.dim, value, axis)
        return value if place.rows < place.features else self.call(value, aten.permute.default, value, [1, 0])

    def _real_mean(self, value: fx.Node, place: SharedPlace, tokens: int) -> fx.Node:
        """mean(x)  -->  sum(x · mask) / max(sum(mask), 1), the mask brought to the axes of x"""
        mask, dtype = self._placeholder(), place.node.meta["val"].dtype
        real = self.call(value, aten._to_copy.default, mask, dtype=dtype)
        if place.rows > tokens:
            real = self.call(real, aten.permute.default, real, [1, 0])
        for axis in range(len(place.shape)):
            if axis not in (place.rows, tokens):
                real = self.call(real, aten.unsqueeze.default, real, axis)
        kept = self.call(real, aten.mul.Tensor, value, real)
        total = self.call(kept, aten.sum.dim_IntList, kept, [tokens], True)
        count = self.call(total, aten.sum.dim_IntList, real, [tokens], True)
        least = self.call(count, aten.clamp_min.default, count, 1)
        return self.call(least, aten.div.Tensor, total, least)

    def _tokens(self, place: SharedPlace) -> int | None:
        """The axis of a value that the mask is along."""
        if self.mask is None:
            return None
        shape = next(port.shape for port in self.program.inputs if port.name == self.mask)
        return next((axis for axis in place.others if place.shape[axis] == shape[1]), None)

    def _placeholder(self) -> fx.Node:
        names = [port.name for port in self.program.inputs]
        assert self.mask is not None
        return self.where[self.program.placeholders[names.index(self.mask)]]


def _port(name: str, program: Program, place: SharedPlace, size: int | str) -> Port:
    return Port(name, (shape_of(program, place.node)[place.rows], size), place.node.meta["val"].dtype)
