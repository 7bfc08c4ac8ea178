"""Multiply factors into the weights that write what they multiply.

    linear(x, W, b) * 0.5              -->   linear(x, W / 2, b / 2)
    linear(x, W, b) * gamma            -->   linear(x, gamma W, gamma b)
    add(x, linear(y, W), alpha=2)      -->   x + linear(y, 2 W)

So a model that scales its residual branches, by a number or by learnt factors, lines up with one that does not. The
numbers of other parents are not looked at: what is left of a factor is nothing.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call, signature
from fxmerge.ir.program import Program, prune
from passes.operators import OPERATORS, Moved, Operators


@dataclass(frozen=True)
class _Factor:
    """A number, or a number for every index of an axis of a value."""

    numbers: Tensor
    axis: int | None = None

    def along(self, value: Tensor, axis: int | None) -> Tensor:
        """A tensor times the factor, in its own dtype."""
        shape = [1] * value.ndim
        if axis is not None:
            shape[axis] = -1
        return (value.double() * self.numbers.reshape(shape)).to(value.dtype)

    @property
    def positive(self) -> bool:
        return bool((self.numbers > 0).all())


def fold_factors(program: Program, operators: Operators = OPERATORS) -> Program:
    """`program` with every factor in the weights in front of it that no other call reads, as far as there are such."""
    graph, _ = program.copy_graph()
    work = _Fold(program, operators, dict(program.tensors), graph)
    for node in list(graph.nodes):
        if node.op == "call_function" and operators.pointwise(node) and isinstance(node.meta.get("val"), Tensor):
            work.number(node)
            work.tensor(node)
    if not work.folded:
        return program
    prune(graph)
    note = f"{program.task}: factors are part of {', '.join(dict.fromkeys(work.folded))}"
    return program.evolve(graph=graph, tensors=work.tensors, notes=(*program.notes, note))


@dataclass
class _Fold:
    program: Program
    operators: Operators
    tensors: dict[str, Tensor]
    graph: fx.Graph
    folded: list[str] = field(default_factory=list)

    def number(self, node: fx.Node) -> None:
        """Fold a factor that is an argument of the call, and put one in its place."""
        for name in sorted(self.operators.numbers(node)):
            found, value = self.operators.factor(node, name), Call.of(node).arguments[name]
            operands = [n for own, n in Call.of(node).operands if found and own in found.beside and n is not None]
            if found is None or value in (0, 1) or not operands or (value < 0 and found.power.denominator != 1):
                continue
            factor = _Factor(torch.tensor(float(value) ** float(found.power), dtype=torch.float64))
            if any(self.fold(operand, node, factor) for operand in operands):
                _give(node, name, type(value)(1))
                self._drop(node, operands[0])

    def tensor(self, node: fx.Node) -> None:
        """Fold a factor that is a tensor of the model."""
        operands = [n for _, n in Call.of(node).operands if n is not None]
        if len(operands) != 2 or not self.operators.scales_with(node, operands[:1]):
            return
        for held, data in (operands, operands[::-1]):
            value = self._held(held)
            if value is None or not all(self.operators.scales_with(node, [n]) for n in operands):
                continue
            if data.meta["val"].shape != node.meta["val"].shape or data.meta["val"].dtype != node.meta["val"].dtype:
                continue
            axes = [i - value.ndim + data.meta["val"].ndim for i, size in enumerate(value.shape) if size > 1]
            if len(axes) > 1:
                continue
            axis = axes[0] if axes else None
            if self.fold(data, node, _Factor(value.double().reshape(-1), axis)):
                node.replace_all_uses_with(data)
                return

    def _held(self, node: fx.Node) -> Tensor | None:
        """What a value is that moves alone make of a floating tensor of the model."""
        if node.op == "get_attr":
            value = self.tensors[str(node.target)].detach()
            return value if value.is_floating_point() else None
        moved = self.operators.moved(node) if node.op == "call_function" else None
        if moved is None or len(node.all_input_nodes) != 1 or (source := self._held(moved.source)) is None:
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: source)
        target: Any = node.target
        with torch.no_grad():
            found: Tensor = target(*args, **kwargs)
        return found

    def _drop(self, node: fx.Node, operand: fx.Node) -> None:
        """Take a call out that now gives what it is given."""
        given, found = operand.meta["val"], node.meta["val"]
        if node.all_input_nodes != [operand] or given.shape != found.shape or given.dtype != found.dtype:
            return
        value = torch.randn(given.shape, dtype=torch.float64)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: value)
        target: Any = node.target
        if torch.equal(target(*args, **kwargs), value):
            node.replace_all_uses_with(operand)

    # -- into the weights ------------------------------------------------------------------------------------

    def fold(self, node: fx.Node, reader: fx.Node, factor: _Factor) -> bool:
        """Multiply what `reader` alone reads of a node; whether weights could take it, of which none is tied."""
        scaled = self._scaled(node, reader, factor)
        if not scaled:
            return False
        for name, axis in scaled.items():
            self.tensors[name] = factor.along(self.tensors[name].detach(), axis)
            self.folded.append(name)
        return True

    def _scaled(self, node: fx.Node, reader: fx.Node, factor: _Factor) -> dict[str, int | None] | None:
        """The tensors that take the factor, each with the axis along which; None if that cannot be done."""
        if list(node.users) != [reader]:
            return None
        if node.target is operator.getitem:  # of the results that a call gives, laws and signatures speak of the first
            return self._scaled(node.all_input_nodes[0], node, factor) if node.args[1] == 0 else None
        if node.op == "get_attr":
            return {str(node.target): factor.axis} if self._is_free(node) else None
        if node.op != "call_function":
            return None
        given = [n for n in node.all_input_nodes if isinstance(n.meta["val"], Tensor)]
        operands = [n for n in given if n.meta["val"].is_floating_point()]
        own = [n for n in operands if n.op == "get_attr" and self._is_free(n)]
        if own and len(own) < len(operands) and self.operators.scales_with(node, own):
            return self._along(node, own, factor)
        moved = self.operators.moved(node)
        if moved is not None and not moved.cast:
            before = self._before(node, moved, factor)
            return None if before is None else self._scaled(moved.source, node, before)
        if self._passes(node, operands, factor):
            found: dict[str, int | None] = {}
            for operand in operands:
                inner = self._scaled(operand, node, factor) if self._is_alike(operand, node, factor) else None
                if inner is None:
                    return None
                found |= inner
            return found
        return None

    @staticmethod
    def _before(node: fx.Node, moved: Moved, factor: _Factor) -> _Factor | None:
        """The factor of what is moved; None where the axis along which it varies is none of that, in its order."""
        if factor.axis is None:
            return factor
        ordered = moved.turned is not None or moved.reshaped
        axis = moved.places[factor.axis] if ordered and moved.places else None
        sizes = moved.source.meta["val"].shape, node.meta["val"].shape
        same = axis is not None and sizes[0][axis] == sizes[1][factor.axis]
        return replace(factor, axis=axis) if same else None

    def _passes(self, node: fx.Node, operands: Collection[fx.Node], factor: _Factor) -> bool:
        """Whether a call gives the factor times what it gives if all its operands take the factor."""
        if not operands or not self.operators.pointwise(node):
            return False
        single = len(operands) == 1 and factor.positive and self.operators.keeps_factors(node)
        return single or self.operators.scales_with(node, operands)

    @staticmethod
    def _is_alike(operand: fx.Node, node: fx.Node, factor: _Factor) -> bool:
        """Whether an axis of the result is the same axis of the operand."""
        return factor.axis is None or operand.meta["val"].shape == node.meta["val"].shape

    def _along(self, node: fx.Node, own: Collection[fx.Node], factor: _Factor) -> dict[str, int | None] | None:
        """The axis of every tensor that is the axis of the result along which the factor varies."""
        if factor.axis is None:
            return {str(n.target): None for n in own}
        form = signature(self.operators.rules, node)
        if form is None:
            return None
        label, found = form.results[0][factor.axis], {}
        for term, (_, operand) in zip(form.operands, Call.of(node).operands, strict=True):
            if operand is not None and operand in own:
                if term is None or label not in term or label == "1":
                    return None
                found[str(operand.target)] = term.index(label)
        return dict(found)

    def _is_free(self, node: fx.Node) -> bool:
        """Whether a tensor is a trained one that is read once."""
        reads = Counter(n.target for n in node.graph.nodes if n.op == "get_attr")
        return node.target in self.program.parameters and reads[node.target] == 1 == len(node.users)


def _give(node: fx.Node, name: str, value: float) -> None:
    place = list(Call.of(node).arguments).index(name)
    if name in node.kwargs or place >= len(node.args):
        node.kwargs = {**node.kwargs, name: value}
    else:
        node.args = (*node.args[:place], value, *node.args[place + 1 :])
