"""Coupling rules: which axes of an operator's operands and results are the same axis, and what they tolerate.

    linear = couples("aten.linear.default", "... i, o i, o -> ... o", "input * weight + bias")

    @couples("aten.sum.dim_IntList")            # the signature as a function of the call
    def sum_over(call): return "a b -> a", "self"

    @moves("aten.transpose.int")                # operators that only move axes around
    def transpose(move): ...

A signature has one term per tensor operand, in the order of the operator's schema. A term has one token per axis: a
label (`d`), a product of labels major to minor (`(h d)`), `...` for any leading axes (they broadcast), `1` for an
axis of size one, `_` for an axis of its own that tolerates nothing. `d!` says that the label tolerates nothing, `g=2`
how long it is where the shapes leave that open. An axis of size one beside a label of another size broadcasts. The
law (see `fxmerge.ir.law`) says how the result depends on the operands; without one, every label tolerates
permutations and no more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, fx

from fxmerge.coupling import law as laws
from fxmerge.errors import ExtensionError

if TYPE_CHECKING:
    from fxmerge.coupling.move import Move

Couples: TypeAlias = "str | tuple[str, str]"
"""A signature, or a signature and a law."""


class RuleError(AssertionError):
    """A rule does not fit the call it was asked about: a bug in the rule."""


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments by the names of its schema, and the shapes of its tensors."""

    node: fx.Node
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, node: fx.Node) -> Call:
        return cls(node, _arguments(node))

    def __getitem__(self, name: str) -> Any:
        """An argument, sizes computed in the graph as plain integers; tensors as nodes."""
        return fx.node.map_arg(self.arguments.get(name), _plain)

    @property
    def operands(self) -> tuple[tuple[str, fx.Node | None], ...]:
        """Tensor operands in order, by name; those of a list are named `tensors0`, `tensors1` …"""
        return tuple(_operands(self.node, self.arguments))

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor operand."""
        return tuple(dict(self.operands)[name].meta["val"].shape)  # type: ignore[union-attr]

    def rank(self, name: str) -> int:
        return len(self.shape(name))

    def dim(self, name: str, operand: str) -> int:
        """The argument `name` as a non-negative axis of `operand`."""
        return int(self[name]) % max(self.rank(operand), 1)

    def dims(self, name: str, operand: str) -> tuple[int, ...]:
        """The argument `name` as non-negative axes of `operand`; all of them if it is empty or absent."""
        rank = self.rank(operand)
        given = self[name]
        given = [given] if isinstance(given, int) else given
        return tuple(sorted(d % rank for d in given)) if given else tuple(range(rank))

    @property
    def results(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of every result tensor."""
        value = self.node.meta["val"]
        values = value if isinstance(value, tuple | list) else (value,)
        return tuple(tuple(v.shape) for v in values if isinstance(v, Tensor))

    @property
    def result(self) -> tuple[int, ...]:
        return self.results[0]

    def __str__(self) -> str:
        return f"{operator_name(self.node)} at {self.node.meta.get('source') or 'an unknown line'}"


def operator_name(node: fx.Node) -> str:
    """Name of what a node calls, as rules and reports write it: "aten.linear.default"."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {f"argument{i}": value for i, value in enumerate(node.args)} | dict(node.kwargs)
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments}


def _operands(node: fx.Node, arguments: Mapping[str, Any]) -> Iterator[tuple[str, fx.Node | None]]:
    schema = getattr(node.target, "_schema", None)
    types = {a.name: str(a.type) for a in schema.arguments} if schema else {}
    for name, value in arguments.items():
        kind = types.get(name, "Tensor")
        if isinstance(value, list | tuple):
            if "Tensor" in kind:
                yield from ((f"{name}{i}", v if _is_tensor(v) else None) for i, v in enumerate(value))
        elif _is_tensor(value):
            yield name, value
        elif "Tensor" in kind:
            yield name, None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def _plain(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return value if isinstance(value, int | float | bool) else node


# -- signatures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """One call in terms of labels. An axis is its label, or a product "(g i)"; "1" is an axis of size one."""

    operands: tuple[tuple[str, ...] | None, ...]
    """Per tensor operand, in the order of the schema; None if it was not given."""
    results: tuple[tuple[str, ...], ...]
    linear: frozenset[int] = frozenset()
    """Operands in which the operator is linear (affine), the others held fixed."""
    pinned: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict, compare=False)
    law: str = ""
    names: tuple[str, ...] = ()
    """Names of the operands in the schema."""

    def __str__(self) -> str:
        terms = (" ".join(term) if term else "" for term in self.operands)
        return ", ".join(terms) + " -> " + ", ".join(" ".join(term) for term in self.results)


def labels_of(axis: str) -> tuple[str, ...]:
    """The labels of one axis of a signature, major to minor: "(g i)" has two, "1" none."""
    return tuple(label for label in axis.strip("()").split() if label != "1")


def tokens(term: str) -> list[str]:
    """One term of a signature, axis by axis."""
    return re.findall(r"\([^)]*\)|\.\.\.|[^\s()]+", term)


_MARKED = re.compile(r"(\w+)(?:=(\d+))?(!)?")


class _Expand:
    """Fits a signature's text to the shapes of a call."""

    def __init__(self, text: str, law: str, call: Call) -> None:
        self.text, self.law, self.call = text, law, call
        self.sizes: dict[str, int] = {}
        self.pinned: set[str] = set()
        self.own = 0

    def signature(self) -> Signature:
        left, _, right = self.text.partition("->")
        patterns = [tokens(term) for term in left.split(",")]
        operands = self.call.operands
        if len(operands) > len(patterns):
            extra = [name for name, node in operands[len(patterns) :] if node is not None]
            if extra:
                raise RuleError(f"the rule of {self.call} says nothing about {', '.join(extra)}: {self.text!r}")
        shapes = [tuple(node.meta["val"].shape) if node is not None else None for _, node in operands]
        terms = [
            self._spread(tokens, shape) if shape is not None else None
            for tokens, shape in zip(patterns, shapes, strict=False)
        ]
        self.leading = max((sum(a.startswith(".") for a in term) for term in terms if term), default=0)
        outs = [tokens(term) for term in right.split(",")] if right.strip() else [[]]
        results = [self._spread(t, s) for t, s in zip(outs, self.call.results, strict=False)]
        shapes = [shape for shape, _ in zip(shapes, terms, strict=False)]
        self._solve([(t, s) for t, s in (*zip(terms, shapes, strict=True),) if t is not None and s is not None])
        self._solve(list(zip(results, self.call.results, strict=False)))
        fitted = tuple(
            self._fit(t, s) if t is not None and s is not None else None for t, s in zip(terms, shapes, strict=True)
        )
        names = tuple(name for name, _ in operands[: len(terms)])
        linear = laws.linear_in(laws.parse(self.law)) if self.law else frozenset()
        return Signature(
            operands=fitted,
            results=tuple(self._fit(t, s) for t, s in zip(results, self.call.results, strict=False)),
            linear=frozenset(i for i, name in enumerate(names) if name in linear),
            pinned=frozenset(self.pinned),
            sizes=dict(self.sizes),
            law=self.law,
            names=names,
        )

    def _spread(self, tokens: list[str], shape: tuple[int, ...] | None) -> tuple[str, ...]:
        """One token per axis: the dots become labels numbered from the right, `_` a label of its own."""
        assert shape is not None
        missing = len(shape) - (len(tokens) - ("..." in tokens))
        if missing < 0 or (missing > 0 and "..." not in tokens):
            raise RuleError(f"the rule of {self.call} expects {' '.join(tokens)!r}, the shape is {list(shape)}")
        found: list[str] = []
        for token in tokens:
            if token == "...":
                found += [f".{missing - 1 - i}" for i in range(missing)]
            elif token == "_":
                self.own += 1
                found.append(f"_{self.own}")
                self.pinned.add(f"_{self.own}")
            else:
                found.append(re.sub(_MARKED, self._mark, token))
        return tuple(found)

    def _mark(self, marked: re.Match[str]) -> str:
        """Note what is marked on a label: `!` that it tolerates nothing, `=3` its size."""
        label, size, pinned = marked.groups()
        if pinned:
            self.pinned.add(label)
        if size:
            self.sizes[label] = int(size)
        return label

    def _solve(self, terms: list[tuple[tuple[str, ...], tuple[int, ...]]]) -> None:
        """Sizes of labels: those of plain axes first, then those of products of which all but one factor are known."""
        plain = [(a, n) for term, shape in terms for a, n in zip(term, shape, strict=True)]
        for axis, size in plain:
            if not axis.startswith("(") and axis != "1":
                self.sizes[axis] = max(size, self.sizes.get(axis, 1)) if size != 0 else 0
        for _ in plain:
            for axis, size in plain:
                unknown = [label for label in labels_of(axis) if label not in self.sizes]
                if len(unknown) == 1:
                    known = prod(self.sizes[label] for label in labels_of(axis) if label in self.sizes)
                    self.sizes[unknown[0]] = size // known

    def _fit(self, term: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
        """The term with broadcast axes written as "1"; every other axis must have the size its labels say."""
        fitted = []
        for axis, size in zip(term, shape, strict=True):
            labels = labels_of(axis)
            if any(label not in self.sizes for label in labels):
                raise RuleError(f"the rule of {self.call} leaves the size of {axis!r} open: {self.text!r}")
            wanted = prod(self.sizes[label] for label in labels)
            if size != wanted and size != 1:
                raise RuleError(f"the rule of {self.call} makes {axis!r} {wanted} long, it is {size}: {self.text!r}")
            fitted.append(axis if size == wanted else "1")
        return tuple(fitted)


# -- rules -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What is known about some operators: a signature (text, or a function of the call), or how they move axes."""

    ops: tuple[str, ...]
    couples: Couples | Callable[[Call], Couples] | None = None
    moves: Callable[[Move], Any] | None = None
    law: str = ""
    state: tuple[str, ...] = ()
    """Operands that are running statistics: they change with their space although nobody trained them."""
    fills: Literal["", "value", "blank"] = ""
    """The result depends on the shapes of the operands alone; "blank": and nobody reads what it holds."""
    roles: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What the spaces of some labels are for, where the operator alone can tell."""
    owner: str = ""

    @property
    def name(self) -> str:
        return ", ".join(self.ops)

    def __call__(self, function: Callable[[Call], Couples]) -> Rule:
        """The same rule with its signature as a function of the call: what `@couples(op)` does."""
        return replace(self, couples=function, owner=function.__module__)

    def signature(self, call: Call) -> Signature | None:
        """The call in terms of labels; None for an operator that only moves axes."""
        if self.couples is None:
            return None
        form = self.couples(call) if callable(self.couples) else self.couples
        text, law = (form, self.law) if isinstance(form, str) else form
        return _Expand(text, law, call).signature()


@dataclass(frozen=True)
class RuleSet:
    """Rules by operator. Sets join with `+`; two different rules for one operator are an error."""

    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        table: dict[str, Rule] = {}
        for rule in self.rules:
            for op in rule.ops:
                if op in table and table[op] != rule:
                    raise ExtensionError(
                        f"two rules for {op}: one from {table[op].owner}, one from {rule.owner}",
                        "leave one of them out, or give the operator of one another name",
                    )
                table[op] = rule
        object.__setattr__(self, "_table", table)

    def __add__(self, other: RuleSet | Rule) -> RuleSet:
        more = (other,) if isinstance(other, Rule) else other.rules
        return RuleSet((*self.rules, *(rule for rule in more if rule not in self.rules)))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def find(self, node: fx.Node) -> Rule | None:
        """The rule for a call: for its overload, else for all overloads of its operator."""
        return self.find_named(operator_name(node))

    def find_named(self, name: str) -> Rule | None:
        """The rule for an operator by its full name."""
        table: dict[str, Rule] = self.__dict__["_table"]
        return table.get(name) or table.get(name.rpartition(".")[0])


def couples(
    *ops_and_form: str, law: str = "", state: tuple[str, ...] = (), roles: Mapping[str, str] | None = None
) -> Rule:
    """A rule by signature: `couples(op, signature[, law])`, or `@couples(op, …)` above a function of the call.

    The function returns a signature, or a signature and a law.
    """
    owner = sys._getframe(1).f_globals.get("__name__", "")
    start = next((i for i, text in enumerate(ops_and_form) if "->" in text), len(ops_and_form))
    ops, form = ops_and_form[:start], ops_and_form[start:]
    text = form[0] if form else None
    return Rule(ops, text, law=form[1] if len(form) > 1 else law, state=state, roles=roles or {}, owner=owner)


def moves(*ops: str) -> Callable[[Callable[[Move], Any]], Rule]:
    """A rule for operators that only move axes around: the function returns the axes of the result."""
    return lambda function: Rule(tuple(ops), moves=function, owner=function.__module__)


def fills(*ops: str, blank: bool = False) -> Rule:
    """A rule for operators whose result depends on nothing but shapes: it is a constant."""
    return Rule(tuple(ops), fills="blank" if blank else "value", owner=sys._getframe(1).f_globals.get("__name__", ""))


def signature(rules: RuleSet, node: fx.Node) -> Signature | None:
    """A call in terms of labels, or None if no rule says or the operator only moves axes."""
    rule = rules.find(node)
    return rule.signature(Call.of(node)) if rule is not None else None
