"""Compute the weights that a model computes from its parameters alone, once, and merge them as the weights they are.

    linear(x, v * (g / norm(v)))        -->   linear(x, w)          weight norm, other parametrizations
    linear(x, w + b @ a * s)            -->   linear(x, w')         low-rank adapters
    conv(x, w * mask), linear(x, w.float())                         pruning, weights kept in half precision
    linear(x, cat(q, k, v)), bmm(x, stack(w, w'))                   weights of several parts, experts
    linear(x, w.permute(0, 2, 1).reshape(12, 10))                   heads and their units in one axis

A mean of v and a mean of g make no mean of weights, and no map can stand between them; around w it can. Values that are
only moved, or side by side and added, stay where they are, and so does what no linear map takes: a norm's scale, say.
But where moves make one axis of several, a map along it is none along any axis of the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call, RuleSet, Signature, has_tensor, labels_of, signature
from fxmerge.ir.program import Program, prune
from passes.operators import Operators, is_random
from passes.spelling.cleanup import cleanup

Nodes: TypeAlias = Mapping[str, fx.Node]


def compute_weights(program: Program, rules: RuleSet, *, joined: bool = False) -> Program:
    """`program` with every weight that it computes from parameters as a parameter of its own, which a note names.

    With `joined` also those that moves make of one parameter by joining its axes: only a merge needs them so.
    """
    found = computed(program, rules, joined=joined)
    return program if found is None else found[0]


def computed(program: Program, rules: RuleSet, *, joined: bool = False) -> tuple[Program, Weights, Nodes] | None:
    """That program, and the node that computes each of its weights by the weight's new name; None if there are none."""
    if not any(Weights(program, rules, joined).found()):
        return None
    program = cleanup(program)  # what is computed twice is one weight
    weights = Weights(program, rules, joined)
    graph, where = program.copy_graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in weights.found():
        with graph.inserting_before(where[node]):
            made[node] = graph.get_attr(str(node.target))
        made[node].meta = {"by": "compute-weights", "source": node.meta.get("source")}
        where[node].replace_all_uses_with(made[node])
    prune(graph)
    left = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in left}
    for node, new in made.items():
        new.target = _name(node, {name: program.tensors[name] for name in weights.parameters[node]}, tensors)
        tensors[new.target] = weights.value(node)
    nodes = {str(new.target): node for node, new in made.items()}
    note = f"computed once and merged as plain weights: {', '.join(nodes)}"
    parameters = (program.parameters & left).union(nodes)
    done = program.evolve(graph=graph, tensors=tensors, parameters=parameters, notes=(*program.notes, note))
    return done, weights, nodes


@dataclass
class Weights:
    """Which values of a program are computed from its tensors alone, and what they are."""

    program: Program
    rules: RuleSet
    joined: bool = False
    parameters: dict[fx.Node, frozenset[str]] = field(default_factory=dict)
    """For every value that depends on tensors alone: the parameters it is computed from."""
    known: dict[fx.Node, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.operators = Operators(self.rules)
        for node in self.program.graph.nodes:
            below = [self.parameters.get(n) for n in node.all_input_nodes]
            if node.op == "get_attr":
                own = node.target in self.program.parameters
                self.parameters[node] = frozenset([str(node.target)]) if own else frozenset()
            elif node.op == "call_function" and None not in below and not is_random(node):
                self.parameters[node] = frozenset[str]().union(*(names for names in below if names))

    def found(self) -> Iterator[fx.Node]:
        """The computed weights, each once, in order."""
        done: set[fx.Node] = set()
        for user in self.program.graph.nodes:
            if user.op != "call_function" or user in self.parameters:
                continue
            for operand in dict.fromkeys(user.all_input_nodes):
                node = self.unmoved(operand)
                if node is not None and node not in done and self.is_weight(operand, node, user):
                    done.add(node)
                    yield node

    def unmoved(self, node: fx.Node) -> fx.Node | None:
        """The value that moves alone lead from to `node`, if something was computed to get it; or if they join axes."""
        last = node
        while node in self.parameters and (moved := self.operators.moved(node)) is not None:
            if moved.by or moved.cast:
                break
            node = moved.source
        if self.joined and node.op == "get_attr" and node is not last and self.joins_axes(last, node):
            return last
        is_computed = node.op == "call_function" and self.parameters.get(node) and isinstance(node.meta["val"], Tensor)
        return node if is_computed and (self.computes(node) or self.joins(node)) else None

    def joins(self, node: fx.Node) -> bool:
        """Whether a value is several parameters side by side."""
        return self.operators.moved(node) is None and len(self.parameters[node]) > 1

    def joins_axes(self, node: fx.Node, parameter: fx.Node) -> bool:
        """Whether an axis of `node`, a parameter moved, is several of the parameter's own, each of them whole."""
        shape = parameter.meta["val"].shape
        if sorted(n for n in node.meta["val"].shape if n > 1) == sorted(n for n in shape if n > 1):
            return False
        where = self._moved(node, parameter, torch.arange(shape.numel()).reshape(shape))
        lines = [where[tuple(slice(None) if i == axis else 0 for i in range(where.ndim))] for axis in range(where.ndim)]
        along = [
            [bool((own != own[0]).any()) for own in torch.unravel_index(line, shape)] for line in lines if len(line)
        ]
        whole = [sum(axes) == 1 for axes in zip(*along, strict=True)]
        return any(sum(moves and alone for moves, alone in zip(axes, whole, strict=True)) > 1 for axes in along)

    def _moved(self, node: fx.Node, parameter: fx.Node, value: Tensor) -> Tensor:
        """What `node` is when the parameter that it is a move of holds this value."""
        if node is parameter:
            return value
        moved = self.operators.moved(node)
        assert moved is not None
        inner = self._moved(moved.source, parameter, value)
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda n: inner if n is moved.source else self.value(n)
        )
        target: Any = node.target
        result: Tensor = target(*args, **kwargs)
        return result

    def computes(self, node: fx.Node) -> bool:
        """Whether a value is more than tensors moved and put side by side."""
        todo = [node]
        while todo:
            each = todo.pop()
            if each.op == "call_function" and has_tensor(each):
                if not self.operators.keeps(each) and not _fills(each):
                    return True
                todo.extend(each.all_input_nodes)
        return False

    def is_weight(self, operand: fx.Node, node: fx.Node, user: fx.Node) -> bool:
        """Whether a call multiplies data with a value and sums; or adds one that is no larger than its parameters."""
        rank = node.meta["val"].ndim
        sign = signature(self.rules, user)
        if sign is None and rank > 1:
            return True
        operands = [value for _, value in Call.of(user).operands]
        places = {i for i, value in enumerate(operands) if value is operand}
        if sign is not None and not self.operators.pointwise(user) and places <= sign.linear:
            return rank > 1 or self._contracts(sign, operands)
        size = sum(self.program.tensors[name].numel() for name in self.parameters[node])
        adds = operand in self.operators.joined(user) and self.computes(node) and node.meta["val"].numel() <= size
        return adds and rank > 0 and self.is_pointwise(node)

    def is_pointwise(self, node: fx.Node) -> bool:
        """Whether a value is computed entry by entry: a function of its own, such as a net on fixed places, is not."""
        if node.op != "call_function" or not has_tensor(node):
            return True
        own = self.operators.keeps(node) or self.operators.pointwise(node)
        return own and all(self.is_pointwise(n) for n in node.all_input_nodes)

    def _contracts(self, sign: Signature, operands: Sequence[fx.Node | None]) -> bool:
        """Whether a call sums products of tensors and data."""
        result = {part for label in sign.results[0] for part in labels_of(label)}
        own: set[str] = set()
        data: set[str] = set()
        for term, node in zip(sign.operands, operands, strict=False):
            if term is not None and node is not None:
                (own if node in self.parameters else data).update(p for label in term for p in labels_of(label))
        return bool((own & data) - result)

    def value(self, node: fx.Node) -> Any:
        """What a node computes, in the dtype of its tensors."""
        if node not in self.known:
            if node.op == "get_attr":
                self.known[node] = self.program.tensors[str(node.target)].detach()
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value)
                target: Any = node.target
                with torch.no_grad():
                    self.known[node] = target(*args, **kwargs)
        value = self.known[node]
        return value.contiguous() if isinstance(value, Tensor) else value


def _fills(node: fx.Node) -> bool:
    return not any(has_tensor(n) for n in node.all_input_nodes)


PARAMETRIZED = re.compile(r"(?:\.|^)parametrizations\.([^.]+)\.(?:original\d*|\d+\..*)$")
"""torch.nn.utils.parametrize keeps what a weight `x.w` is computed from as `x.parametrizations.w.original0` …"""
HALVES = re.compile(r"_(?:orig|v|g)$")
"""Older hooks keep it as `x.w_orig` (pruning, spectral norm) or as `x.w_g` and `x.w_v` (weight norm)."""


def _name(node: fx.Node, parameters: Mapping[str, Tensor], taken: Collection[str]) -> str:
    """What the model calls a weight that it computes: the name of the parameter that looks most like it, if free."""
    shape = node.meta["val"].shape
    largest = max(sorted(parameters), key=lambda name: (parameters[name].shape == shape, parameters[name].numel()))
    name = PARAMETRIZED.sub(lambda match: f".{match[1]}", largest).removeprefix(".")
    name = HALVES.sub("", name)
    if name == largest and parameters[largest].shape != shape:
        name = f"{largest}_computed"
    while name in taken:
        name += "_"
    return name
