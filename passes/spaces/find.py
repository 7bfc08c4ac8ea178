"""The spaces of a program: classes of coupled axes, what each is for and what it tolerates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxmerge.coupling import Call, RuleSet, operator_name
from fxmerge.coupling.axes import Axis, Class
from fxmerge.coupling.inference import Inference, Pin
from fxmerge.coupling.tolerance import Tolerances, occurrences
from fxmerge.coupling.views import Held, Promise
from fxmerge.ir.program import Program
from fxmerge.ir.space import AxisExpr, Cat, Leaf, Opaque, Prod, Space, Spaces
from passes.operators import Operators
from passes.rules import BUILTIN
from passes.spaces.fixed_tables import tables
from passes.spaces.heads import within
from passes.spaces.roles import evidence, roles_of, uses


@dataclass(frozen=True)
class InferenceOf:
    """Axes coupled by a set of rules, as an analysis: `program.get(InferenceOf(rules))`."""

    rules: RuleSet = BUILTIN
    tables: bool = False
    """Whether fixed tables that are added may move too. A merge folds them; a model's own parameters cannot."""

    def __call__(self, program: Program) -> Inference:
        return Inference(
            program, self.rules, tables=tables(program, Operators(self.rules)) if self.tables else frozenset()
        )


@dataclass(frozen=True)
class TolerancesOf:
    """What the coupled axes tolerate, as an analysis."""

    rules: RuleSet = BUILTIN
    tables: bool = False

    def __call__(self, program: Program) -> Tolerances:
        return Tolerances(program.get(InferenceOf(self.rules, self.tables)))


@dataclass(frozen=True)
class SpacesOf:
    """Every axis in terms of spaces, as an analysis."""

    rules: RuleSet = BUILTIN
    tables: bool = False

    def __call__(self, program: Program) -> Spaces:
        return _Freeze(program, program.get(TolerancesOf(self.rules, self.tables))).spaces()


def spaces(program: Program) -> Spaces:
    """The spaces of a program by the built-in rules."""
    return program.get(SpacesOf())


class _Freeze:
    """Names the classes of an inference, in the order in which the parameters show them."""

    def __init__(self, program: Program, tolerances: Tolerances) -> None:
        self.program, self.tolerances = program, tolerances
        self.inference: Inference = tolerances.inference
        self.ids: dict[Class, str] = {}
        self.made: dict[Axis, AxisExpr] = {}

    def spaces(self) -> Spaces:
        tensors = {
            name: tuple(map(self.expr, self.inference.tensors[name]))
            for name in self.program.tensors
            if name in self.inference.tensors
        }
        axes = {node: self._value(value) for node, value in self.inference.values.items()}
        for node in axes:
            if node.op == "get_attr":
                tensors.setdefault(str(node.target), axes[node])
        made = self._spaces()
        transformed = self.inference.transformed & tensors.keys()
        known = tuple(self._opaque()), transformed, self.inference.unused, frozenset(self.tolerances.steady())
        return Spaces(axes, tensors, made, *known)

    # -- axes --------------------------------------------------------------------------------------

    def _value(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._value, value))
        return self.expr(value)

    def expr(self, axis: Held) -> AxisExpr:
        """An axis in terms of spaces. A factor of a view that nobody ever needed split has no name of its own."""
        if isinstance(axis, Promise):
            if not axis.view.redeemed:
                return Leaf("", axis.size)
            axis = axis.view.redeem(self.inference.coupler)[axis.index]
        if axis not in self.made:
            self.made[axis] = self._expr(axis)
        return self.made[axis]

    def _expr(self, axis: Axis) -> AxisExpr:
        if axis.size == 1:
            return Leaf(self.ids.setdefault(_UNIT, f"s{len(self.ids)}"), 1)
        if axis.kind == "leaf":
            return Leaf(self.ids.setdefault(axis.cls, f"s{len(self.ids)}"), axis.size)
        children = [self.expr(part) for part in axis.parts if part.size != 1 or axis.kind == "cat"]
        kind = Prod if axis.kind == "prod" else Cat
        flat = [c for child in children for c in (child.children if isinstance(child, kind) else (child,))]
        return flat[0] if len(flat) == 1 else kind(tuple(flat))

    # -- spaces ------------------------------------------------------------------------------------

    def _spaces(self) -> dict[str, Space]:
        tolerances = self.tolerances
        inside = within(tolerances)
        found_uses = evidence(self.inference)
        roles = roles_of(tolerances, found_uses)
        found: dict[str, Space] = {}
        for cls, name in self.ids.items():
            group = tolerances.groups.get(cls, "identity")
            owner = inside.get(cls)
            readers, writers, others = uses(found_uses, cls)
            found[name] = Space(
                id=name,
                size=cls.size,
                role=roles.get(cls, "other"),
                tolerance=group,
                within=self.ids[owner] if owner is not None else None,
                readers=readers,
                writers=writers,
                others=others,
                scales=tolerances.rank(cls, signs=False),
                signs=tolerances.rank(cls, signs=True),
                reason=tolerances.reasons.get(cls, "") if cls is not _UNIT else "an axis of size one",
            )
        return found

    def _opaque(self) -> Iterator[Opaque]:
        """Parameter axes that an operator without a rule touches, once each."""
        by_class: dict[Class, Pin] = {}
        for pin in self.inference.pins:
            if pin.opaque is not None:
                for leaf in occurrences(pin.axis):
                    by_class.setdefault(leaf.cls, pin)
        for name in sorted(self.inference.transformed & self.inference.tensors.keys()):
            for number, axis in enumerate(self.inference.tensors[name]):
                first = next((by_class[leaf.cls] for leaf in occurrences(axis) if leaf.cls in by_class), None)
                if first is not None and first.opaque is not None:
                    yield self._opaque_axis(name, number, first.opaque, first.reason)

    def _opaque_axis(self, name: str, number: int, node: fx.Node, reason: str) -> Opaque:
        message = suggestion(node) if self.inference.rules.find(node) is None else reason
        return Opaque(name, number, operator_name(node), node.meta.get("source", ""), message, reason)


def suggestion(node: fx.Node) -> str:
    """The three lines of a rule that would let the axes move that an unknown operator freezes."""
    terms = []
    for _, operand in Call.of(node).operands:
        if operand is not None:
            terms.append(" ".join(f"{_LETTERS[i % 26]}" for i in range(operand.meta["val"].ndim)))
    value = node.meta["val"]
    outs = [v for v in (value if isinstance(value, tuple | list) else (value,)) if isinstance(v, Tensor)]
    right = ", ".join(" ".join(_LETTERS[i % 26] for i in range(out.ndim)) for out in outs)
    return (
        "from fxmerge import Extension, couples\n"
        f'rule = couples("{operator_name(node)}", "{", ".join(terms)} -> {right}")  # equal letters: one axis\n'
        "extension = Extension(rules=rule)"
    )


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_UNIT = Class(1)
