"""Rewrites as values: a pattern of calls, a check, a replacement; and for each, why it did not fire.

    x = var("x")

    @rewrite(op("aten.mul.Tensor", x, x))
    def square(match):
        \"""x · x  -->  square(x)\"""
        return match.call("aten.square.default", match["x"])

A check, if there is one, returns a `Refusal` (a reason and the node it is about) or None; it cannot change the graph.
Attempts that get past the outermost call are remembered: `Trace` keeps, for every rewrite, the one that got furthest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling import RuleSet
from fxmerge.errors import ExtensionError
from fxmerge.ir.program import Program, prune, target_name
from fxmerge.rewrite.pattern import Attempt, Bound, Pattern, either, op, var

__all__ = ["Match", "Refusal", "Rewrite", "Trace", "apply", "either", "op", "rewrite", "var"]

MOST = 20
"""A program may be rewritten this many times per node; more is a rewrite that undoes itself or another."""


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite did not fire, and the node that was in its way."""

    reason: str
    node: fx.Node | None = None

    def __str__(self) -> str:
        if self.node is None:
            return self.reason
        source = self.node.meta.get("source")
        where = f"%{self.node.name}" + (f" ({source})" if source else "")
        return f"{self.reason}, at {where}"


@dataclass
class Match:
    """Where a pattern fits: what its variables stand for, and the calls it covers, outermost first."""

    nodes: tuple[fx.Node, ...]
    bindings: Mapping[str, Any]
    program: Program
    """The program before any rewrite: its tensors, and which of its sizes are dynamic."""
    rules: RuleSet | None = None
    """What is known of operators; None: what comes with fxmerge."""
    _graph: fx.Graph | None = None
    made: list[fx.Node] = field(default_factory=list)
    """The calls that `call` added."""

    @property
    def root(self) -> fx.Node:
        return self.nodes[0]

    def __getitem__(self, name: str) -> Any:
        """What a variable stands for: a node, or a number, list or None that stands in the call."""
        return self.bindings[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of the tensor that a variable stands for."""
        return tuple(self.bindings[name].meta["val"].shape)

    def call(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call of an operator, by its name ("aten.mul.Tensor"), before the outermost matched call."""
        assert self._graph is not None, "a check must not change the graph"
        with self._graph.inserting_before(self.root):
            node = self._graph.call_function(operator(name), args, kwargs)
        node.meta["val"] = _value(node, self.root)
        self.made.append(node)
        return node


@dataclass(frozen=True)
class Rewrite:
    """Replace what `pattern` matches by the node that `replace` returns, unless `check` refuses."""

    name: str
    pattern: Pattern
    replace: Callable[[Match], fx.Node | Refusal]
    check: Callable[[Match], Refusal | None] | None = None
    summary: str = ""
    shared: bool = False
    """Also fire where calls inside the match are used elsewhere too; they then stay beside the new ones."""


def rewrite(
    pattern: Pattern, *, check: Callable[[Match], Refusal | None] | None = None, shared: bool = False
) -> Callable[[Callable[[Match], fx.Node | Refusal]], Rewrite]:
    """Make a rewrite of a function that returns the replacement; it is named after the function."""

    def made(replace: Callable[[Match], fx.Node | Refusal]) -> Rewrite:
        name = replace.__name__.strip("_").replace("_", "-")
        summary = (replace.__doc__ or "").strip().partition("\n")[0]
        return Rewrite(name, pattern, replace, check, summary, shared)

    return made


@dataclass
class Trace:
    """What rewrites did: how often each fired, and for each the refusal of the attempt that got furthest."""

    fired: Counter[str] = field(default_factory=Counter)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    _depth: dict[str, int] = field(default_factory=dict)

    def refuse(self, name: str, depth: int, refusal: Refusal) -> None:
        """Note an attempt that failed after `depth` calls had matched."""
        if depth > self._depth.get(name, -1):
            self._depth[name], self.refusals[name] = depth, refusal

    def __add__(self, other: Trace) -> Trace:
        """Both together."""
        total = Trace(self.fired + other.fired, dict(self.refusals), dict(self._depth))
        for name, refusal in other.refusals.items():
            total.refuse(name, other._depth[name], refusal)
        return total

    def text(self) -> str:
        """A line for every rewrite: how often it fired, and its best refusal."""
        lines = []
        for name in dict.fromkeys([*self.fired, *self.refusals]):
            times = f"fired {self.fired[name]} times" if self.fired[name] else "did not fire"
            refused = f"; refused: {self.refusals[name]}" if name in self.refusals else ""
            lines.append(f"{name}: {times}{refused}")
        return "\n".join(lines)


def apply(
    program: Program, rewrites: Iterable[Rewrite], trace: Trace | None = None, rules: RuleSet | None = None
) -> Program:
    """`program` with every rewrite applied wherever it fits, until none does; made nodes name their rewrite.

    `rules` say what operators are; without them, checks know those that come with fxmerge.
    Raises `ExtensionError` for a rewrite that changes a value's shape or dtype, or that never comes to an end.
    """
    graph, _ = program.copy_graph()
    work = _Work(program, graph, tuple(rewrites), trace if trace is not None else Trace(), rules)
    while work.sweep():
        pass
    for each in work.rewrites:
        if each.name not in work.trace.fired and each.name not in work.trace.refusals:
            work.trace.refuse(each.name, 0, Refusal(f"there is no {each.pattern}"))
    if not work.count:
        return program
    prune(graph)
    return program.evolve(graph=graph)


class _Work:
    """A graph under rewriting."""

    def __init__(
        self,
        program: Program,
        graph: fx.Graph,
        rewrites: tuple[Rewrite, ...],
        trace: Trace,
        rules: RuleSet | None,
    ) -> None:
        self.program, self.graph, self.rewrites, self.trace, self.rules = program, graph, rewrites, trace, rules
        self.count = 0
        self.limit = MOST * len(graph.nodes)
        self.erased: set[fx.Node] = set()

    def sweep(self) -> bool:
        """Try every rewrite on every call once, and again on what it made. Returns whether anything fired."""
        before = self.count
        for node in list(self.graph.nodes):
            current: fx.Node | None = node
            while current is not None and current.op == "call_function" and current not in self.erased:
                current = self.fire(current)
        return self.count > before

    def fire(self, node: fx.Node) -> fx.Node | None:
        """Apply the first rewrite that fits at a node; returns the new node."""
        for each in self.rewrites:
            if not each.pattern.may_start(target_name(node.target)):
                continue
            new = self.attempt(each, node)
            if new is not None:
                return new
        return None

    def attempt(self, each: Rewrite, node: fx.Node) -> fx.Node | None:
        tried = Attempt()
        for bound in each.pattern.match(node, Bound(), tried):
            refusal = self.refused(each, bound)
            if refusal is None:
                result = self.replace(each, bound)
                if isinstance(result, fx.Node):
                    return result
                refusal = result
            self.trace.refuse(each.name, 1000, refusal)
        if tried.node is not None:
            self.trace.refuse(each.name, tried.depth, Refusal(tried.reason, tried.node))
        return None

    def refused(self, each: Rewrite, bound: Bound) -> Refusal | None:
        inside = set(bound.nodes)
        for node in bound.nodes[1:] if not each.shared else ():
            if any(user not in inside for user in node.users):
                return Refusal(f"{target_name(node.target)} is used elsewhere too", node)
        if each.check is None:
            return None
        return each.check(Match(bound.nodes, bound.bindings, self.program, self.rules))

    def replace(self, each: Rewrite, bound: Bound) -> fx.Node | Refusal:
        match = Match(bound.nodes, bound.bindings, self.program, self.rules, self.graph)
        root = match.root
        new = each.replace(match)
        if isinstance(new, Refusal):
            self.erase(reversed(match.made))
            return new
        if not isinstance(new, fx.Node):
            raise ExtensionError(
                f"rewrite {each.name} returned {type(new).__name__}, not a node", "return match.call(…) or a Refusal"
            )
        self.same_kind(each, root, new)
        for node in match.made:
            node.meta = {"source": root.meta.get("source"), "by": each.name} | node.meta
        root.replace_all_uses_with(new)
        self.erase(sorted(bound.nodes, reverse=True))
        self.trace.fired[each.name] += 1
        self.count += 1
        if self.count > self.limit:
            raise ExtensionError(
                f"rewrite {each.name} does not come to an end: {self.count} rewrites so far",
                "refuse in its check what it, or another rewrite, has made already",
            )
        return new

    def erase(self, nodes: Iterable[fx.Node]) -> None:
        """Remove the nodes of a match that nothing uses any more."""
        for node in nodes:
            if not node.users and node not in self.erased:
                self.graph.erase_node(node)
                self.erased.add(node)

    def same_kind(self, each: Rewrite, old: fx.Node, new: fx.Node) -> None:
        a, b = (_kind(node.meta.get("val")) for node in (old, new))
        if a != b:
            raise ExtensionError(
                f"rewrite {each.name} replaces {a} by {b} at {old.meta.get('source') or 'an unknown line'}",
                "a replacement has the shape and dtype of what it replaces",
            )


def operator(name: str) -> Any:
    """The operator of a name such as "aten.mul.Tensor". Raises `ExtensionError` if torch knows none."""
    parts = name.split(".")
    found: Any = torch.ops
    try:
        for part in parts if len(parts) == 3 else [*parts, "default"]:
            found = getattr(found, part)
    except (AttributeError, RuntimeError):
        raise ExtensionError(
            f"torch knows no operator {name!r}",
            "write it as namespace.name.overload, and import the package it is from",
        ) from None
    return found


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_kind(v) for v in value) + ")"
    return type(value).__name__


def _value(node: fx.Node, near: fx.Node) -> Any:
    """The fake value of a new call, computed like its neighbours'."""
    modes: Iterator[Any] = (
        value.fake_mode
        for value in [near.meta["val"], *(n.meta.get("val") for n in (*node.all_input_nodes, *near.all_input_nodes))]
        if hasattr(value, "fake_mode")
    )
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with next(modes, nullcontext()), torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]
