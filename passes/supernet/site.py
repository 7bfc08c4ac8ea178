"""Where parameters meet data, as values: the call, its operands, and what each axis of them does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx

from fxmerge.coupling import has_tensor
from fxmerge.ir.program import Program
from fxmerge.ir.space import AxisExpr, Spaces, leaves
from passes.operators import Operators

Role = Literal["write", "read"]
Value = Literal["size", "constant", "parameter", "data"]


@dataclass(frozen=True)
class AxisUse:
    """What one axis of a parameter does at a site: it writes, or reads, axis `axis` of the value `on`.

    `axis` is None where the parameter's axis is spread over several axes of the operand (heads × width, say).
    """

    role: Role
    on: fx.Node
    axis: int | None


@dataclass(frozen=True)
class Operand:
    """A parameter where it meets data: `node` is the operand of the call, reached from tensor `root` by moves alone."""

    node: fx.Node
    root: str
    uses: tuple[AxisUse | None, ...]
    """Per axis of the root tensor."""
    covers: tuple[Tensor | None, ...]
    """Per axis of the root: the positions that reach the operand, None for all."""
    places: tuple[int | None, ...]
    """Per axis of the root: the operand's axis it became, None if it became several."""
    dynamic: bool = False
    """Whether the moves depend on a dynamic size (rows picked for the positions of a sequence, say)."""

    def whole(self, axes: Iterable[int]) -> bool:
        """Whether all positions of the given root axes reach the operand, each once and in order."""
        return all(self.covers[axis] is None for axis in axes)


@dataclass(frozen=True)
class Site:
    """A call in which parameters meet data. `linear`: the result is linear in the parameters together.

    `inner`: they are linear maps inside the operator, which runs once, on the parents' weights folded into one.
    """

    node: fx.Node
    operands: tuple[Operand, ...]
    kind: Literal["linear", "inner", "additive", "direct"]

    @property
    def maps(self) -> bool:
        """Whether the parameters write and read spaces as linear maps."""
        return self.kind in ("linear", "inner")


@dataclass(frozen=True)
class Sites:
    values: Mapping[fx.Node, Value]
    sites: Mapping[fx.Node, Site]
    mergeable: frozenset[str]
    """Spaces that parameters write and that are not only outputs: each parent has its own basis of them."""
    tail: frozenset[fx.Node]
    """Nodes that belong to one task: its head and all that follows."""
    spaces: Spaces
    program: Program
    operators: Operators

    def merged_axes(self, node: fx.Node) -> tuple[int, ...]:
        """Axes of a value that lie, at least in part, in a mergeable space."""
        axes = self.spaces.axes.get(node, ())
        return tuple(i for i, axis in enumerate(axes) if self.is_merged(axis))

    def is_merged(self, axis: AxisExpr) -> bool:
        """Whether an axis lies in a mergeable space; sizes of one, which share a space, count only by themselves."""
        found = list(leaves(axis))
        own = [leaf for leaf in found if leaf.size > 1] or found
        return any(leaf.space in self.mergeable for leaf in own)


def axes_of(found: Iterable[Any]) -> Iterator[AxisExpr]:
    """The axes of a value, or of all values of a call that gives several."""
    for each in found:
        yield from each if isinstance(each, tuple) else (each,)


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensor operands of a call in the order of its arguments, repeats included."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(n) if has_tensor(n) else None)
    return found
