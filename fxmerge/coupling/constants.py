"""Values of a program that depend on no input and no parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling.rule import RuleSet
from fxmerge.ir.program import Program


class Constants:
    """Which values depend on no input and no parameter, and their numbers at the sizes of `program.hints`."""

    def __init__(self, program: Program, rules: RuleSet, transformed: frozenset[str]) -> None:
        self.program, self.rules = program, rules
        self._values: dict[fx.Node, Tensor | None] = {}
        self._held: set[fx.Node] = set()
        for node in program.graph.nodes:
            if node.op == "get_attr":
                constant = node.target not in transformed and node.target not in program.maps
            elif node.op == "call_function":
                constant = bool(self._fills(node)) or all(
                    n in self._held or isinstance(n.meta.get("val"), int | float | bool) for n in node.all_input_nodes
                )
            else:
                constant = False
            if constant:
                self._held.add(node)

    def _fills(self, node: fx.Node) -> str:
        rule = self.rules.find(node)
        return rule.fills if rule is not None else ""

    def holds(self, node: fx.Node) -> bool:
        return node in self._held

    def zero(self, node: fx.Node) -> bool:
        """Whether a value is a constant that is zero everywhere."""
        value = self.value(node)
        return value is not None and not bool(value.count_nonzero())

    def value(self, node: fx.Node) -> Tensor | None:
        """The numbers of a constant; None for other values, and for constants without numbers (meta tensors)."""
        if node not in self._held:
            return None
        if node not in self._values:
            with torch.no_grad(), torch.device("cpu"):
                self._values[node] = self._compute(node)
        return self._values[node]

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            tensor = self.program.tensors[str(node.target)]
            return None if tensor.is_meta else tensor.detach()
        fills, fake = self._fills(node), node.meta.get("val")
        if fills == "blank" and isinstance(fake, Tensor):
            return torch.zeros(fake.shape, dtype=fake.dtype)
        missing = False

        def known(argument: fx.Node) -> Any:
            nonlocal missing
            fake = argument.meta.get("val")
            if isinstance(fake, int | float | bool):
                return fake
            value = torch.zeros(fake.shape, dtype=fake.dtype) if fills else self.value(argument)  # type: ignore[union-attr]
            missing |= value is None
            return value

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known)
        if missing or fake is None:
            return None
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        return node.target(*args, **kwargs)  # type: ignore[operator]
