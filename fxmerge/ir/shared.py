"""Values of a merged model that the outputs of all tasks are computed from, from the first block on.

input → block 0 ─┬→ block 1 → norm ─┬→ head of a
                 │                  └→ head of b         behind block 0, and behind block 1
                 └ as few other values as possible pass beside it
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from fxmerge.ir.program import Program
from fxmerge.ir.reach import behind, reached
from fxmerge.ir.row_blocks import is_batch
from fxmerge.ir.shown import shape_of
from fxmerge.ir.space import AxisExpr, Leaf, Spaces, leaves

WIDEST = 1 << 14
"""Features of a row at most."""


@dataclass(frozen=True)
class SharedPlace:
    """A value that all tasks go through: (rows, …, features, …), its axes in any order."""

    after: str
    """The block behind which it is."""
    node: fx.Node
    rows: int
    """The axis of the rows."""
    features: int
    """The axis of the features, which are units of the merged model."""
    shape: tuple[int | str, ...]

    @property
    def others(self) -> tuple[int, ...]:
        """Every other axis: tokens, pixels, frames."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in (self.rows, self.features))

    @property
    def size(self) -> int | str:
        """The number of features."""
        return self.shape[self.features]


def shared_places(
    program: Program, tasks: Sequence[str], spaces: Spaces, blocks: Sequence[tuple[str, Collection[str]]]
) -> list[SharedPlace]:
    """The places behind these blocks (name, parameters), in order; behind the first parameters where there are none.

    Outputs of the program are "TASK.OUTPUT". A block that no value of all tasks follows has no place.
    """
    return _Shared(program, tasks, spaces).behind(blocks)


class _Shared:
    def __init__(self, program: Program, tasks: Sequence[str], spaces: Spaces) -> None:
        self.program, self.spaces = program, spaces
        self.nodes = list(program.graph.nodes)
        self.number = {node: i for i, node in enumerate(self.nodes)}
        self.data = reached(program.placeholders)
        self.of_all = self._of_all(tasks)
        self.places = {node: found for node in self.nodes if (found := self._place(node)) is not None}
        self.crossing = self._crossing()

    def behind(self, blocks: Sequence[tuple[str, Collection[str]]]) -> list[SharedPlace]:
        uses = self._uses()
        first = min((n for numbers in uses.values() for n in numbers), default=len(self.nodes))
        found: list[SharedPlace] = []
        for name, parameters in blocks:
            own = [n for parameter in uses if _is_of(parameter, parameters) for n in uses[parameter]]
            place = self._behind(min(own), max(own), uses) if own else None
            if place is not None and all(place != other.node for other in found):
                found.append(self._named(place, name))
        if not found and (node := next((n for n in self.places if self.number[n] >= first), None)) is not None:
            found.append(self._named(node, "the first parameters"))
        return found

    def _named(self, node: fx.Node, name: str) -> SharedPlace:
        rows, features, shape = self.places[node]
        return SharedPlace(name, node, rows, features, shape)

    def _behind(self, first: int, last: int, uses: Mapping[str, Sequence[int]]) -> fx.Node | None:
        """Where the fewest values cross between a block and the next: the last of them that the block made."""
        after = min((n for numbers in uses.values() for n in numbers if n > last), default=len(self.nodes) - 1)
        cut = min(range(last, after), key=lambda number: (self.crossing[number] or len(self.nodes), -number))
        live = (
            node
            for node in self.places
            if first <= self.number[node] <= cut and any(self.number[user] > cut for user in node.users)
        )
        return max(live, key=lambda node: self.number[node], default=None)

    def _of_all(self, tasks: Sequence[str]) -> set[fx.Node]:
        """The nodes that some output of every task is computed from."""
        ancestors: dict[str, set[fx.Node]] = {task: set() for task in tasks}
        for port, node in zip(self.program.outputs, self.program.result, strict=True):
            for task in tasks:
                if port.name.startswith(f"{task}."):
                    ancestors[task] |= behind([node])
        return set.intersection(*ancestors.values()) if ancestors else set()

    def _place(self, node: fx.Node) -> tuple[int, int, tuple[int | str, ...]] | None:
        """Axis of the rows, axis of the features, and shape, of a value that all tasks go through and can be pooled."""
        value = node.meta.get("val")
        if node.op != "call_function" or node not in self.of_all or node not in self.data:
            return None
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        shape, axes = shape_of(self.program, node), self.spaces.axes.get(node, ())
        rows = [axis for axis, size in enumerate(shape) if is_batch(size)]
        wide = [a for a, axis in enumerate(axes) if a not in rows and _is_merged(axis, self.spaces)]
        if len(rows) != 1 or not wide or len(axes) != len(shape):
            return None
        features = max(wide, key=lambda axis: int(value.shape[axis]))
        if not isinstance(shape[features], int) or int(shape[features]) > WIDEST:
            return None
        return rows[0], features, shape

    def _uses(self) -> dict[str, list[int]]:
        """By parameter: the places of the calls in which it meets data, whatever is done to it before."""
        found: dict[str, list[int]] = {}
        for node in self.nodes:
            if node.op == "get_attr" and node.target in self.program.parameters:
                found[str(node.target)] = [self.number[user] for user in reached([node], self.data) & self.data]
        return {name: numbers for name, numbers in found.items() if numbers}

    def _crossing(self) -> list[int]:
        """Behind every node: how many values that can be pooled are read later on."""
        change = [0] * (len(self.nodes) + 1)
        for node in self.places:
            change[self.number[node]] += 1
            change[max(self.number[user] for user in node.users)] -= 1
        found, total = [], 0
        for step in change[:-1]:
            total += step
            found.append(total)
        return found


def _is_merged(axis: AxisExpr, spaces: Spaces) -> bool:
    """Whether an axis is units of the model, not of its inputs or outputs."""
    if isinstance(axis, Leaf) and not axis.space:
        return False
    roles = {spaces.spaces[leaf.space].role for leaf in leaves(axis) if leaf.space in spaces.spaces}
    return bool(roles) and not roles & {"input", "output", "vocabulary"}


def _is_of(name: str, parameters: Collection[str]) -> bool:
    """Whether a tensor of a merged model is a parameter of a parent, or a numbered part of one."""
    head, _, number = name.rpartition("_")
    return name in parameters or (number.isdigit() and head in parameters)
