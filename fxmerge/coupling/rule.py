"""Coupling rules: which axes of an operator's operands and results are the same axis, and what they tolerate.

    linear = couples("aten.linear.default", "... i, o i, o -> ... o", "input * weight + bias")

    @couples("aten.sum.dim_IntList")            # the signature as a function of the call
    def sum_over(call): return "a b -> a", "self"

    @moves("aten.transpose.int")                # operators that only move axes around
    def transpose(move): ...

How a signature is written stands in `fxmerge.coupling.signature`. The law (see `fxmerge.coupling.law`) says how the
result depends on the operands; without one, every label tolerates permutations and no more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from torch import fx

from fxmerge.coupling.call import Call, operator_name
from fxmerge.coupling.move import Move
from fxmerge.coupling.signature import Expansion, Signature
from fxmerge.errors import ExtensionError

Couples: TypeAlias = "str | tuple[str, str]"
"""A signature, or a signature and a law."""

Moment: TypeAlias = "Literal['mean', 'variance']"
"""The variance is of a sample: its squares are divided by one less than their count."""

Inner: TypeAlias = "tuple[tuple[Literal['write', 'read'], str, int] | None, ...]"
"""Per axis of an operand that is a linear map inside an operator: which axis it writes or reads, of which operand or of
the result ("->")."""


@dataclass(frozen=True)
class Rule:
    """What is known about some operators: a signature (text, or a function of the call), or how they move axes."""

    ops: tuple[str, ...]
    couples: Couples | Callable[[Call], Couples] | None = None
    moves: Callable[[Move], Any] | None = None
    law: str = ""
    state: tuple[str, ...] = ()
    """Operands that are running statistics: they change with their space although nobody trained them."""
    moments: Mapping[str, tuple[str, Moment]] = field(default_factory=dict, hash=False)
    """By running statistic: the operand that it is of, along the axes that both have, and what it is of it."""
    fills: Literal["", "value", "blank"] = ""
    """The result depends on the shapes of the operands alone; "blank": and nobody reads what it holds."""
    roles: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What the spaces of some labels are for, where the operator alone can tell."""
    inner: Mapping[str, Inner] = field(default_factory=dict, hash=False)
    """Operands that are linear maps inside the operator (a state fed back, say): it runs once, on folded weights."""
    empty: Callable[..., Any] | None = None
    """Empty results for the operator's arguments, where it cannot be traced at sizes that are left open."""
    number: float | str | None = None
    """What a tensor is filled with everywhere, or the argument that says so."""
    onnx: Callable[..., Any] | None = None
    """The operator in ONNX (a function of onnxscript values), where PyTorch's exporter has no translation of it."""
    exact: bool | None = None
    """Whether every number of the result is one of an operand's, as it stood there: moves do so unless they say no."""
    commutes: bool = False
    """Whether its two operands may stand in either order."""
    increases: bool = False
    """Whether a larger entry of its one operand always gives a larger one: entry by entry, or along its axis `dim`."""
    sizes: tuple[str, ...] = ()
    """Arguments that spell out sizes, in which parents of different widths differ, beside those named as torch names
    them (size, shape, groups …)."""
    modest: str = ""
    """Why the rule claims less than seems to hold, where it does so on purpose; an audit then notes nothing."""
    owner: str = ""

    @property
    def keeps_numbers(self) -> bool:
        """Whether the result holds numbers of the operands and no others."""
        return self.exact if self.exact is not None else self.moves is not None

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
        return Expansion(text, law, call).signature()


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
    *ops_and_form: str,
    law: str = "",
    state: tuple[str, ...] = (),
    moments: Mapping[str, tuple[str, Moment]] | None = None,
    roles: Mapping[str, str] | None = None,
    exact: bool | None = None,
    commutes: bool = False,
    increases: bool = False,
    sizes: tuple[str, ...] = (),
    onnx: Callable[..., Any] | None = None,
    modest: str = "",
) -> Rule:
    """A rule by signature: `couples(op, signature[, law])`, or `@couples(op, …)` above a function of the call.

    The function returns a signature, or a signature and a law. `exact` says that the result holds nothing but numbers
    of an operand (rows of a table, say), `commutes` that the two operands may change places, `increases` that
    larger entries give larger ones, `sizes` which arguments spell out sizes; `onnx` is the operator in ONNX; `modest`
    says why it claims less than seems to hold.
    `state` names running statistics, and `moments` of what they are the mean or the variance.
    """
    owner = sys._getframe(1).f_globals.get("__name__", "")
    start = next((i for i, text in enumerate(ops_and_form) if "->" in text), len(ops_and_form))
    ops, form = ops_and_form[:start], ops_and_form[start:]
    text = form[0] if form else None
    rule = Rule(ops, text, law=form[1] if len(form) > 1 else law, state=state, roles=roles or {}, owner=owner)
    rule = replace(rule, exact=exact, commutes=commutes, increases=increases, sizes=sizes, onnx=onnx)
    return replace(rule, moments=moments or {}, modest=modest)


def moves(
    *ops: str,
    exact: bool | None = None,
    sizes: tuple[str, ...] = (),
    onnx: Callable[..., Any] | None = None,
    modest: str = "",
) -> Callable[[Callable[[Move], Any]], Rule]:
    """A rule for operators that only move axes around: the function returns the axes of the result.

    `exact=False` says that numbers are computed, or added, along the way (a gate, a border of zeros), `sizes`
    which arguments spell out sizes, `onnx` is the operator in ONNX.
    """
    return lambda function: Rule(
        tuple(ops), moves=function, exact=exact, sizes=sizes, onnx=onnx, modest=modest, owner=function.__module__
    )


def fills(*ops: str, blank: bool = False, number: float | str | None = None) -> Rule:
    """A rule for operators whose result depends on nothing but shapes: it is a constant.

    `blank`: nobody reads what it holds. `number`: what stands everywhere in it, or the argument that says so.
    """
    owner = sys._getframe(1).f_globals.get("__name__", "")
    return Rule(tuple(ops), fills="blank" if blank else "value", number=number, owner=owner)


def signature(rules: RuleSet, node: fx.Node) -> Signature | None:
    """A call in terms of labels; None if no rule knows the call, or the operator only moves axes."""
    rule = rules.find(node)
    try:
        return rule.signature(Call.of(node)) if rule is not None else None
    except Exception:  # the analysis reports what a rule raises
        return None
