"""Patterns of calls: what a rewrite looks for.

    op("aten.add.Tensor", var("x"), 1.0)          an operator by name; every argument is a pattern or a constant
    op("aten.mul", …)                             any overload
    op(…).either_order()                          its first two arguments may stand in either order
    either(a, b)                                  the first alternative that fits
    var("x")                                      anything; the same name twice is the same value twice

An argument that a pattern does not mention must have its default value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx

from fxmerge.coupling import Call
from fxmerge.ir.program import target_name


@dataclass(frozen=True)
class Bound:
    """What has been matched so far."""

    bindings: Mapping[str, Any] = field(default_factory=dict)
    nodes: tuple[fx.Node, ...] = ()


@dataclass
class Attempt:
    """The point at which an attempt failed that matched most calls before it."""

    depth: int = 0
    reason: str = ""
    node: fx.Node | None = None

    def fail(self, bound: Bound, reason: str, node: fx.Node | None) -> None:
        node = node if node is not None else (bound.nodes[-1] if bound.nodes else None)
        if len(bound.nodes) > self.depth:
            self.depth, self.reason, self.node = len(bound.nodes), reason, node


class Pattern:
    """What a value in a graph may look like."""

    def match(self, value: Any, bound: Bound, tried: Attempt) -> Iterator[Bound]:
        """Every way in which `value` fits, given what is bound; failures are told to `tried`."""
        raise NotImplementedError

    def may_start(self, target: str) -> bool:
        """Whether a call of this target can be the outermost one."""
        return True


@dataclass(frozen=True)
class Var(Pattern):
    """Any value; equal names stand for the same value."""

    name: str

    def match(self, value: Any, bound: Bound, tried: Attempt) -> Iterator[Bound]:
        if self.name not in bound.bindings:
            yield replace(bound, bindings={**bound.bindings, self.name: value})
        elif _same(bound.bindings[self.name], value):
            yield bound
        else:
            tried.fail(bound, f"two different values for {self.name}", _node(value))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Op(Pattern):
    """A call of an operator; `name` with or without its overload."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    both_orders: bool = False

    def either_order(self) -> Op:
        """The same call with its first two arguments in either order."""
        return replace(self, both_orders=True)

    def may_start(self, target: str) -> bool:
        return target == self.name or target.rpartition(".")[0] == self.name

    def match(self, value: Any, bound: Bound, tried: Attempt) -> Iterator[Bound]:
        if not isinstance(value, fx.Node) or value.op != "call_function":
            return tried.fail(bound, f"expected {self.name}, found {_shown(value)}", _node(value))
        if not self.may_start(target_name(value.target)):
            return tried.fail(bound, f"expected {self.name}, found {target_name(value.target)}", value)
        given = Call.of(value).arguments
        inside = replace(bound, nodes=(*bound.nodes, value))
        orders = [self.args]
        if self.both_orders:
            orders.append((self.args[1], self.args[0], *self.args[2:]))
        for args in orders:
            wanted = dict(zip(given, args, strict=False)) | dict(self.kwargs)
            if len(args) > len(given) or not self.kwargs.keys() <= given.keys():
                tried.fail(inside, f"{self.name} has no such arguments", value)
                continue
            if self._defaults(value, given, wanted, inside, tried):
                yield from _match_all(list(wanted.items()), given, inside, tried)
        return None

    def _defaults(
        self, node: fx.Node, given: Mapping[str, Any], wanted: Mapping[str, Any], bound: Bound, tried: Attempt
    ) -> bool:
        """Whether every argument that the pattern leaves out has its default value."""
        schema = getattr(node.target, "_schema", None)
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()} if schema else {}
        for name, value in given.items():
            if name not in wanted and not (name in defaults and _same(defaults[name], value)):
                tried.fail(bound, f"{self.name} has {name}={_shown(value)}, which the pattern leaves out", node)
                return False
        return True

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Either(Pattern):
    """One of several patterns; the first that fits is taken first."""

    patterns: tuple[Pattern, ...]

    def may_start(self, target: str) -> bool:
        return any(pattern.may_start(target) for pattern in self.patterns)

    def match(self, value: Any, bound: Bound, tried: Attempt) -> Iterator[Bound]:
        for pattern in self.patterns:
            yield from pattern.match(value, bound, tried)

    def __str__(self) -> str:
        return " or ".join(str(pattern) for pattern in self.patterns)


def var(name: str) -> Var:
    """Anything, to be used as `match[name]`."""
    return Var(name)


def op(name: str, *args: Any, **kwargs: Any) -> Op:
    """A call of the operator `name` on these arguments: patterns, constants, or lists of them."""
    return Op(name, args, kwargs)


def either(*patterns: Pattern) -> Either:
    """Whichever of these fits."""
    return Either(patterns)


def _match_all(
    wanted: list[tuple[str, Any]], given: Mapping[str, Any], bound: Bound, tried: Attempt
) -> Iterator[Bound]:
    if not wanted:
        yield bound
        return
    (name, pattern), rest = wanted[0], wanted[1:]
    for found in _match_value(pattern, given[name], bound, tried, name):
        yield from _match_all(rest, given, found, tried)


def _match_value(pattern: Any, value: Any, bound: Bound, tried: Attempt, name: str) -> Iterator[Bound]:
    if isinstance(pattern, Pattern):
        yield from pattern.match(value, bound, tried)
    elif isinstance(pattern, list | tuple) and isinstance(value, list | tuple) and len(pattern) == len(value):
        items = {str(i): item for i, item in enumerate(value)}
        yield from _match_all(list(zip(items, pattern, strict=True)), items, bound, tried)
    elif _same(pattern, value):
        yield bound
    else:
        tried.fail(bound, f"expected {name}={_shown(pattern)}, found {_shown(value)}", _node(value))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, fx.Node) or isinstance(b, fx.Node):
        return a is b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return not isinstance(a, Tensor) and isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _node(value: Any) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def _shown(value: Any) -> str:
    if isinstance(value, fx.Node):
        return str(value.target) if value.op in ("placeholder", "get_attr") else target_name(value.target)
    return str(value)
