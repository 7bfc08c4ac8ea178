"""Audits coupling rules numerically: transform what a rule says may be transformed, and see whether the result follows.

    audit(my_rule)                                           # sizes made up from the signature
    audit(my_rule, Example("mylib.scan.default", (x, 2)))    # calls of your own

Sizes should be generic (no two equal, two groups of three, odd numbers): sizes that agree by chance hide mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling import Rule, RuleSet, labels_of, signature, tokens
from fxmerge.coupling.elements import Deviation, Element
from fxmerge.coupling.inference import Inference
from fxmerge.coupling.tolerance import Tolerances
from fxmerge.coupling.views import redeem
from fxmerge.ir.program import Port, Program
from fxmerge.ir.space import MOVABLE
from fxmerge.rewrite import operator

TOLERANCE = 1e-9
SIZES = (5, 3, 7, 4, 6, 9, 8, 11, 10, 13)


class AuditError(AssertionError):
    """A rule claims more than its operator does: its result does not transform with its operands."""


@dataclass(frozen=True)
class Example:
    """A call to audit. Tensors among the arguments are what is transformed; make them float64."""

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    constants: frozenset[int] = frozenset()
    """Positions of arguments that stay as they are."""


@dataclass(frozen=True)
class AuditReport:
    """What was audited, and what the rule could claim besides."""

    rule: str
    calls: int
    error: float
    """Largest deviation of a result from its prediction, relative."""
    notes: tuple[str, ...] = ()
    """What the rule does not claim although it seems to hold; empty where the rule says why it claims less."""


def audit(rule: Rule, *examples: Example, seed: int = 0, rounds: int = 3) -> AuditReport:
    """Check in float64 that results follow when operands are transformed by random elements of the claimed groups.

    Permutations, scales, signs and dense maps are all drawn. Raises AuditError at the first call whose result does not
    follow: a coupling is missing or a group too large; or for which something else that the rule says is wrong (that it
    works entry by entry, holds no new numbers, commutes). What could be claimed besides is noted, not raised.
    """
    calls = examples or tuple(_made_up(rule, op) for op in rule.ops)
    worst, notes = 0.0, []
    for example in calls:
        program = one_call(example)
        tolerances = Tolerances(Inference(program, RuleSet((rule,)), pin_outputs=False))
        before = _values(program, program.tensors)
        for number in range(rounds):
            element = Element(tolerances, {}, seed + number)
            error, result = _deviation(program, tolerances, element, before)
            worst = max(worst, error)
            if error > TOLERANCE:
                raise AuditError(_complaint(rule, example, tolerances, result, error))
        said, seen = _Facts.said(rule, program), _Facts.seen(example, before[0])
        if wrong := said.beyond(seen):
            what = f"that the operator {wrong[0]}"
            raise AuditError(f"the rule of {example.op} (from {rule.owner}) claims too much: {what}")
        if not rule.modest:
            notes += _too_little(program, tolerances, before, example, seed)
            notes += [f"{example.op}: it seems that the operator {what}" for what in seen.beyond(said, exact=False)]
    return AuditReport(rule.name, len(calls), worst, tuple(notes))


def one_call(example: Example) -> Program:
    """A program of one call, every tensor argument a parameter of it."""
    graph = fx.Graph()
    tensors: dict[str, Tensor] = {}
    constants = {id(example.args[position]) for position in example.constants}

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        name = f"{'constant' if id(value) in constants else 'operand'}{len(tensors)}"
        tensors[name] = value
        return graph.get_attr(name)

    args, kwargs = fx.node.map_aggregate((tuple(example.args), dict(example.kwargs)), place)
    node = graph.call_function(operator(example.op), args, kwargs)
    value = node.target(*example.args, **example.kwargs)  # type: ignore[operator]
    results = [node]
    if isinstance(value, tuple | list):
        results = [graph.call_function(getitem, (node, i)) for i in range(len(value))]
    graph.output(tuple(results))
    values = value if isinstance(value, tuple | list) else (value,)
    ports = tuple(Port(f"result{i}", tuple(v.shape), v.dtype) for i, v in enumerate(values))
    trained = frozenset(name for name in tensors if name.startswith("operand"))
    return Program(graph, tensors, (), ports, trained)


def _values(program: Program, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return list(program.run({}, tensors).values())


def _deviation(
    program: Program, tolerances: Tolerances, element: Element, before: Sequence[Tensor]
) -> tuple[float, int]:
    inference = tolerances.inference
    changed = dict(program.tensors)
    for name in sorted(program.parameters):
        moved = element.act(program.tensors[name], inference.tensors[name])
        assert moved is not None
        changed[name] = moved.contiguous()
    after = _values(program, changed)
    worst, result = 0.0, 0
    for number, (x, y, node) in enumerate(zip(before, after, program.result, strict=True)):
        expected = element.act(x, [redeem(axis, inference.coupler) for axis in inference.values[node]])
        assert expected is not None
        error = Deviation.between(y, expected).error
        if error > worst:
            worst, result = error, number
    return worst, result


def _complaint(rule: Rule, example: Example, tolerances: Tolerances, result: int, error: float) -> str:
    claimed = {f"{cls.size}": group for cls, group in tolerances.groups.items() if group in MOVABLE}
    shapes = ", ".join(str(tuple(a.shape)) for a in example.args if isinstance(a, Tensor))
    return (
        f"the rule of {example.op} (from {rule.owner}) claims too much: with operands of shapes {shapes}, "
        f"result {result} is off by {error:.1e} after its axes were transformed (claimed, by size: {claimed})"
    )


def _too_little(
    program: Program, tolerances: Tolerances, before: Sequence[Tensor], example: Example, seed: int
) -> list[str]:
    """Frozen axes of operands that a permutation of their own leaves without effect on the results."""
    notes = []
    for cls in [cls for cls, group in tolerances.groups.items() if group == "identity"]:
        element = Element(tolerances, {}, seed, ("permutation",), groups={cls: "permutation"})
        if _deviation(program, tolerances, element, before)[0] <= TOLERANCE:
            notes.append(f"{example.op}: an axis of {cls.size} is frozen, but seems free to be permuted")
    return notes


@dataclass(frozen=True)
class _Facts:
    """What holds for an operator besides its coupling; None where that cannot be seen."""

    entrywise: bool | None
    exact: bool | None
    commutes: bool | None

    @classmethod
    def said(cls, rule: Rule, program: Program) -> _Facts:
        """What a rule says of its one call."""
        call = next(node for node in program.graph.nodes if node.op == "call_function")
        found = signature(RuleSet((rule,)), call)
        tagged = torch.Tag.pointwise in getattr(call.target, "tags", ())
        entrywise = None if found is None else tagged or found.entrywise  # of a move, the axes say it
        return cls(entrywise, rule.keeps_numbers, rule.commutes)

    @classmethod
    def seen(cls, example: Example, result: Tensor) -> _Facts:
        """What is seen when the operator is called in other ways."""
        operands = [a for a in _tensors(example.args) if a.dtype == result.dtype]
        numbers = torch.cat([a.reshape(-1) for a in operands]) if operands and result.is_floating_point() else None
        exact = None if numbers is None else bool(torch.isin(result, numbers).all())
        return cls(_agrees(_flattened, example, result), exact, _agrees(_exchanged, example, result))

    def beyond(self, other: _Facts, exact: bool = True) -> list[str]:
        """What holds here and does not there."""
        claims = {"works entry by entry": "entrywise", "commutes": "commutes"}
        claims |= {"holds numbers of its operands alone": "exact"} if exact else {}
        return [what for what, name in claims.items() if getattr(self, name) and getattr(other, name) is False]


def _tensors(args: Any) -> list[Tensor]:
    found: list[Tensor] = []
    fx.node.map_aggregate(args, lambda a: found.append(a) if isinstance(a, Tensor) else None)
    return found


def _flattened(example: Example, result: Tensor) -> tuple[tuple[Any, ...], Tensor]:
    """The same numbers along one axis."""
    shape = torch.broadcast_tensors(*_tensors(example.args))[0].shape  # type: ignore[no-untyped-call]
    if shape != result.shape or result.ndim < 2:
        raise ValueError("the result is no entry for an entry")

    def flat(value: Any) -> Any:
        return value.expand(shape).reshape(-1) if isinstance(value, Tensor) and value.numel() > 1 else value

    return fx.node.map_aggregate(tuple(example.args), flat), result.reshape(-1)


def _exchanged(example: Example, result: Tensor) -> tuple[tuple[Any, ...], Tensor]:
    """The two operands, of one shape and entry by entry, in the other order."""
    a, b, *rest = example.args
    _flattened(example, result)
    if any(isinstance(value, Tensor) for value in rest) or a.shape != b.shape or (a == b).all():
        raise ValueError("there are no two operands to exchange")
    if result.dtype is torch.bool and bool((result == result.reshape(-1)[0]).all()):
        raise ValueError("the result says nothing")
    return (b, a, *rest), result


def _agrees(
    change: Callable[[Example, Tensor], tuple[tuple[Any, ...], Tensor]], example: Example, result: Tensor
) -> bool | None:
    """Whether a call changed in this way gives the result expected; None where it cannot be changed so."""
    try:
        args, expected = change(example, result)
        value = operator(example.op)(*args, **example.kwargs)
    except Exception:  # the operator takes no such call
        return None
    value = value[0] if isinstance(value, tuple | list) else value
    same = value.shape == expected.shape and value.dtype == expected.dtype
    return same and torch.allclose(value, expected, rtol=1e-12, equal_nan=True)


def _made_up(rule: Rule, op: str) -> Example:
    """A call of generic sizes for a rule whose signature is text."""
    if not isinstance(rule.couples, str):
        raise ValueError(f"the rule of {op} is a function of the call: give audit an Example to call it with")
    sizes: dict[str, int] = {}
    generator = torch.Generator().manual_seed(len(op))

    def tensor(term: str) -> Tensor:
        shape = []
        for token in tokens(term):
            if token == "...":
                shape += [3, 2]
                continue
            size = 1
            for label in labels_of(token.replace("!", "")):
                label, _, given = label.partition("=")
                key = label if label != "_" else f"_{len(sizes)}"
                size *= sizes.setdefault(key, int(given) if given else SIZES[len(sizes) % len(SIZES)])
            shape.append(size)
        return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5

    terms = rule.couples.partition("->")[0].split(",")
    schema = operator(op)._schema
    given = iter(terms)
    args: list[Any] = []
    for argument in schema.arguments:
        if "Tensor" in str(argument.type):
            args.append(tensor(next(given, "")))
        elif not argument.has_default_value():
            args.append(2)
        else:
            break
    return Example(op, tuple(args))
