"""Pair the nodes of parents that do the same thing, whatever their sizes and the code they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import fx

from fxmerge.coupling import has_tensor
from fxmerge.coupling.constants import Constants
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program, target_name
from passes.line_up.digests import Described, Structure, StructureOf, borders, input_names
from passes.operators import OPERATORS, Operators

Pairs = Mapping[fx.Node, fx.Node]
"""Node of another parent for every node of the template."""


def line_up(template: Program, other: Program, operators: Operators = OPERATORS) -> Pairs:
    """Node of `other` for every node of `template` that an output needs.

    Both graphs are walked together from their outputs. Operators, operands and their axes must agree; sizes, numbers
    that depend on them and the order of the operands of a sum may differ. Where one takes more inputs than the other,
    an input may be paired with a constant. Raises `LineUpError` at the first place, in
    the order of computation, where they part.
    """
    if len(template.outputs) != len(other.outputs):
        raise LineUpError(
            f"{template.task} has {len(template.outputs)} outputs and {other.task} has {len(other.outputs)}",
            "merge models with the same outputs",
        )
    return pair_values(template, other, list(zip(template.result, other.result, strict=True)), operators)


def pair_values(
    template: Program,
    other: Program,
    roots: Sequence[tuple[fx.Node, fx.Node]],
    operators: Operators = OPERATORS,
    *,
    bare: bool = False,
) -> Pairs:
    """`line_up` for what these pairs of values are computed from, whatever else the two programs do.

    `bare`: tensors of the models that calls could do without are left out, whoever has them.
    """
    pairs = _Pairs(template, other, operators, bare)
    pairs.compare(roots)
    for a, b in roots:
        pairs.match(a, b)
    pairs.match_sizes()
    return pairs.found


class _Pairs:
    """The walk: explicit stacks, because a deep model is deeper than Python's recursion limit."""

    def __init__(self, template: Program, other: Program, operators: Operators, bare: bool = False) -> None:
        self.template, self.other = template, other
        inputs = [[port.name for port in program.inputs] for program in (template, other)]
        self.named = len(inputs[0]) != len(inputs[1]) or set(inputs[0]) == set(inputs[1])
        structure = StructureOf(operators, self.named, bare)
        self.names = [input_names(program, named=self.named) for program in (template, other)]
        self.constants = [Constants(p, operators.rules, p.parameters) for p in (template, other) if self.named]
        self.ours, self.theirs = template.get(structure), other.get(structure)
        self.order = {node: number for number, node in enumerate(template.graph.nodes)}
        self.found: dict[fx.Node, fx.Node] = {}
        self.sizes: dict[fx.Node, fx.Node] = {}
        """Sizes that stand in the same place of paired calls."""
        self.crossed: dict[tuple[fx.Node, fx.Node], bool] = {}

    # -- where they part -----------------------------------------------------------------------------------

    def compare(self, roots: Sequence[tuple[fx.Node, fx.Node]]) -> None:
        """Raise `LineUpError` for the first of the pairs below `roots` that do different things."""
        parted: list[tuple[int, fx.Node, fx.Node, str]] = []
        seen = set()
        todo = list(roots)
        while todo:
            a, b = pair = todo.pop()
            if pair in seen or self.ours.hashes[a] == self.theirs.hashes[b]:
                continue
            seen.add(pair)
            how = self._difference(a, b)
            if how is not None:
                parted.append((self.order[a], a, b, how))
            else:
                todo.extend(self.operands(a, b))
        if parted:
            _, a, b, how = min(parted, key=lambda each: each[0])
            self._part(a, b, how)

    def _difference(self, a: fx.Node, b: fx.Node) -> str | None:
        """How two nodes differ, their operands aside."""
        x, y = self.ours.described[a].description, self.theirs.described[b].description
        if self._given_to_one(a, b):
            return None
        if x.what != y.what:
            return "are different operators"
        if a.op == "placeholder" and self.names[0][a] != self.names[1][b]:
            return "are different inputs"
        if a.op == "get_attr" and (a.target in self.template.parameters) != (b.target in self.other.parameters):
            return "are a parameter and a constant"
        mine, theirs = dict(x.tokens), dict(y.tokens)
        if mine["value"] != theirs["value"]:
            return _difference_of_values(mine["value"], theirs["value"])
        if x == y:
            return None
        names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        return f"have different arguments ({', '.join(_both(name, mine, theirs) for name in names)})"

    def _given_to_one(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether one of two values is an input that the other parent does not have, and the other one a constant."""
        if not self.named or (a.op == "placeholder") == (b.op == "placeholder"):
            return False
        if a.op == "placeholder":
            missing, constant = self.names[0][a] not in self.names[1].values(), self.constants[1].holds(b)
        else:
            missing, constant = self.names[1][b] not in self.names[0].values(), self.constants[0].holds(a)
        kinds = [found[n].description.tokens[0] for found, n in ((self.ours.described, a), (self.theirs.described, b))]
        return missing and constant and kinds[0] == kinds[1]

    # -- pairing -------------------------------------------------------------------------------------------

    def match(self, a: fx.Node, b: fx.Node) -> None:
        todo = [(a, b, False)]
        while todo:
            a, b, operands_done = todo.pop()
            if operands_done or a in self.found:
                if self.found.setdefault(a, b) is not b:
                    self._part(a, b, "is used in two places of one and one place of the other")
                continue
            cut, other = borders(a), borders(b)
            if cut is not None and other is not None and not _same_cut(cut, other):
                self._part(a, b, f"take {cut[0]} to {cut[1]} of {cut[2]} and {other[0]} to {other[1]} of {other[2]}")
            self._note_sizes(self.ours.described[a], self.theirs.described[b])
            todo.append((a, b, True))
            todo.extend((x, y, False) for x, y in reversed(self.operands(a, b)))

    def operands(self, a: fx.Node, b: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        """The operands of two calls that do the same thing, in pairs."""
        if self._given_to_one(a, b):
            return []
        x, y = self.ours.described[a], self.theirs.described[b]
        right = y.operands
        if x.commutes and self._crossed(x.operands, right):
            right = right[::-1]
        return list(zip(x.operands, right, strict=True))

    def _crossed(self, pair: Sequence[fx.Node], other: Sequence[fx.Node]) -> bool:
        """Whether the operands of a commutative call stand in the other order in the other parent."""
        straight, crossed = (
            sum(self.ours.hashes[a] == self.theirs.hashes[b] for a, b in zip(pair, right, strict=True))
            for right in (other, other[::-1])
        )
        if straight != crossed:
            return crossed > straight
        known = [self.found.get(node) for node in pair]
        if straight:  # both alike: what is paired already decides
            return known[0] is other[1] or known[1] is other[0]
        return self._likeness(pair, other[::-1]) > self._likeness(pair, other)

    def _likeness(self, pair: Sequence[fx.Node], other: Sequence[fx.Node]) -> float:
        return sum(_alike(x, y, self.ours, self.theirs) for x, y in zip(pair, other, strict=True))

    # -- sizes ---------------------------------------------------------------------------------------------

    def _note_sizes(self, x: Described, y: Described) -> None:
        for place, node in x.sizes.items():
            if place in y.sizes:
                self.sizes.setdefault(node, y.sizes[place])

    def match_sizes(self) -> None:
        """Pair sizes that are computed in the same way from paired values."""
        for node in self.template.graph.nodes:
            if node.op == "call_function" and not has_tensor(node):
                self._match_size(node)

    def _match_size(self, node: fx.Node) -> None:
        other = self.sizes.get(node)
        if other is None or node.target is not other.target:
            return
        mine, theirs = list(node.args), list(other.args)
        if len(mine) != len(theirs):
            return
        for x, y in zip(mine, theirs, strict=True):
            if isinstance(x, fx.Node) and isinstance(y, fx.Node):
                if not has_tensor(x) and x not in self.found:
                    self.sizes.setdefault(x, y)
                    self._match_size(x)
                if self.found.get(x) is not y:
                    return
            elif x != y:
                return
        self.found[node] = other

    def _part(self, a: fx.Node, b: fx.Node, how: str) -> None:
        raise LineUpError(
            f"{self.template.task} and {self.other.task} do not line up: {_place(a)} and {_place(b)} {how}",
            "merge models of one structure (sizes may differ, depth and operators may not)",
        )


def _both(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """An argument, with both values where they are numbers or words."""
    values = [
        each[1] if isinstance(each, tuple) and len(each) == 2 else each for each in (mine.get(name), theirs.get(name))
    ]
    plain = all(isinstance(value, float | int | str) for value in values)
    return f"{name}: {values[0]} and {values[1]}" if plain else name


def _difference_of_values(a: Any, b: Any) -> str:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) == 2 and isinstance(a[0], int):
        return f"have {a[0]} and {b[0]} axes" if a[0] != b[0] else f"are {a[1]} and {b[1]}"
    return "have different results"


def _same_cut(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    """Whether two slices take the same part: the same positions, counted from either end, or the same share."""

    def ends(cut: tuple[int, int, int]) -> list[tuple[object, ...]]:
        start, stop, length = cut
        starts = ("from", start), ("before end", length - start), ("share", start / max(length, 1))
        stops = ("from", stop), ("before end", length - stop), ("share", stop / max(length, 1))
        return [starts, stops]

    return all(set(x) & set(y) for x, y in zip(ends(a), ends(b), strict=True))


def _alike(a: fx.Node, b: fx.Node, ours: Structure, theirs: Structure, depth: int = 4) -> float:
    """How much two operands look alike, a few levels deep: only to tell the two orders of a sum apart."""
    x, y = ours.described[a], theirs.described[b]
    if x.description.what != y.description.what:
        return 0.0
    if not depth or ours.hashes[a] == theirs.hashes[b]:
        return 1.0
    inner = [
        _alike(p, q, ours, theirs, depth - 1) if p is not None and q is not None else 0.0
        for p, q in zip_longest(x.operands, y.operands)
    ]
    return 0.5 + (0.5 * sum(inner) / len(inner) if inner else 0.5)


def _place(node: fx.Node) -> str:
    what = node.target if node.op != "call_function" else target_name(node.target)
    readers = (user.meta.get("source") for user in node.users)
    source = node.meta.get("source") or next((line for line in readers if line), None)
    return f"{what}" + (f" ({source})" if source else "")
