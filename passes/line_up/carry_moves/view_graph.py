"""A graph under construction in which a move costs nothing: values are forms, written out where a call needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx

from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from passes.line_up.carry_moves.dynamic_sizes import Sizes, measure
from passes.line_up.carry_moves.moved_view import Atom, Form, Group, Size, size
from passes.operators import Operators

aten = torch.ops.aten

Value: TypeAlias = "Form | list[Form] | fx.Node | int | float | bool"


@dataclass
class Writer:
    """`graph` is made of the calls of `program` one by one; `node` is the one at hand."""

    program: Program
    operators: Operators
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    """What each node of the program has become."""
    sizes: Sizes = field(default_factory=Sizes)
    uniform: dict[fx.Node, int] = field(default_factory=dict)
    """Integer constants of the program that hold one number everywhere."""
    node: fx.Node = field(init=False)
    _written: dict[Form, fx.Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.measured = measure(self.program)

    def form(self, node: Any) -> Form | None:
        """The form of a tensor of the program."""
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        return value if isinstance(value, Form) else None

    def add(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call, whose operands are nodes of the new graph; it is from where the call at hand is from."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {key: self.node.meta[key] for key in ("source", "by") if key in self.node.meta}
        return node

    def copy(self, node: fx.Node) -> fx.Node:
        """The same call on operands that are written out."""
        args, kwargs = self.arguments((node.args, node.kwargs))
        return self.add(node.target, *args, **kwargs)

    def arguments(self, value: Any) -> Any:
        """Arguments of the program as arguments in the new graph."""
        return fx.node.map_arg(value, self.tensor)

    def tensor(self, node: fx.Node) -> Any:
        value = self.values[node]
        return self.write(value) if isinstance(value, Form) else value

    def source(self, node: fx.Node, measured: Sequence[Size]) -> Form:
        """The result of a new call as a form of itself."""
        for axis, length in enumerate(measured):
            self.sizes.learn(length, lambda axis=axis: self.add(aten.sym_size.int, node, axis))  # type: ignore[misc]
        axes = tuple(one_atom(length) for length in measured)
        return Form(node, axes, axes)

    def write(self, form: Form) -> fx.Node:
        """A value written out: its source reshaped into atoms, permuted, reshaped; each where it is needed."""
        if form not in self._written:
            self._written[form] = self._write(form.coalesced())
        return self._written[form]

    def _write(self, form: Form) -> fx.Node:
        if form.is_source:
            return form.source
        atoms, order = form.atoms(), [atom for group in form.out for atom in group]
        if atoms == order:
            return self._reshape(form.source, form.out)
        node = form.source
        if any(len(group) != 1 for group in form.axes):
            node = self._reshape(node, [(atom,) for atom in atoms])
        node = self.add(aten.permute.default, node, [atoms.index(atom) for atom in order])
        return node if all(len(group) == 1 for group in form.out) else self._reshape(node, form.out)

    def _reshape(self, node: fx.Node, groups: Sequence[Group]) -> fx.Node:
        sizes = [self.sizes.argument(size(group), self.graph) for group in groups]
        if sizes.count(None) > 1:
            raise LineUpError(
                f"the sizes of a move cannot be told apart, at {self.node.meta.get('source') or 'an unknown line'}",
                "trace the model with a fixed size there (dynamic_shapes)",
            )
        return self.add(aten.reshape.default, node, [-1 if length is None else length for length in sizes])


def one_atom(length: Size) -> Group:
    """An axis that is not known to consist of factors."""
    return () if length == (1, 1) else (Atom(length),)
