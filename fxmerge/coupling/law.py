"""Laws: how the result of an operator depends on its operands, as a small formula.

    linear      input * weight + bias
    attention   rigid(query * key + attn_mask) * value
    tanh        odd(self)

From a law and the labels of a signature follow, for each axis, the equations that the exponents of a diagonal map must
solve (operand `a` scaled by `s ** e_a` along the axis), once for positive scales (over the rationals) and once for
signs (over GF(2)), and the largest group that a single axis tolerates. Nothing else in the analysis knows tolerance.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from fractions import Fraction
from functools import cache

RESULT = "->"
"""The slot of the result in an equation."""

Form = dict[str, Fraction]


class Cap(IntEnum):
    """The most general change of basis an operator commutes with along an axis, equations aside."""

    MONOMIAL = 0
    ORTHOGONAL = 1
    INVERTIBLE = 2


@dataclass(frozen=True)
class Equations:
    """What one call demands of one label: linear forms of exponents that must vanish, by slot, and a cap."""

    scale: tuple[Mapping[str, Fraction], ...]
    sign: tuple[Mapping[str, Fraction], ...]
    cap: Cap


@dataclass(frozen=True)
class Operand:
    name: str


@dataclass(frozen=True)
class Sum:
    terms: tuple[Expr, ...]


@dataclass(frozen=True)
class Product:
    factors: tuple[Expr, ...]


@dataclass(frozen=True)
class Apply:
    """A function that scales as `degree` says (None: not at all) and flips with its argument as `parity` says."""

    argument: Expr
    degree: Fraction | None
    parity: int | None


@dataclass(frozen=True)
class Isotropic:
    """A function of the length along some labels, which rotations keep; times the argument itself if it is `odd`."""

    argument: Expr
    labels: frozenset[str]
    odd: bool


@dataclass(frozen=True)
class Centred:
    """The argument less its mean along some labels: the rotations stay that keep the vector of ones."""

    argument: Expr
    labels: frozenset[str]


Expr = Operand | Sum | Product | Apply | Isotropic | Centred

FUNCTIONS: dict[str, tuple[Fraction | None, int | None]] = {
    "rigid": (None, None),
    "odd": (None, 1),
    "even": (None, 0),
    "positive": (Fraction(1), None),
    "absolute": (Fraction(1), 0),
}
"""Name in a law -> (degree under positive scales, parity under signs)."""


@cache
def parse(text: str) -> Expr:
    """The formula as an expression. Raises ValueError on anything but names, + - * / and the functions of a law."""
    return _parse(ast.parse(text, mode="eval").body)


def _parse(node: ast.expr) -> Expr:
    match node:
        case ast.Name(id=name):
            return Operand(name)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return Sum((_parse(left), _parse(right)))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return Product((_parse(left), _parse(right)))
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return Product((_parse(left), Apply(_parse(right), Fraction(-1), 1)))
        case ast.Call(func=ast.Name(id="power"), args=[argument, exponent]):
            degree = Fraction(ast.literal_eval(exponent)).limit_denominator(1000)
            return Apply(_parse(argument), degree, degree.numerator % 2 if degree.denominator == 1 else None)
        case ast.Call(func=ast.Name(id="isotropic" | "length" as name), args=[argument, *labels]):
            return Isotropic(_parse(argument), frozenset(map(ast.unparse, labels)), odd=name == "isotropic")
        case ast.Call(func=ast.Name(id="centred"), args=[argument, *labels]):
            return Centred(_parse(argument), frozenset(map(ast.unparse, labels)))
        case ast.Call(func=ast.Name(id=name), args=[argument]) if name in FUNCTIONS:
            return Apply(_parse(argument), *FUNCTIONS[name])
    known = ", ".join((*FUNCTIONS, "power", "isotropic", "length", "centred"))
    raise ValueError(f"a law is made of operand names, + - * / and the functions {known}; not {ast.unparse(node)!r}")


def names(expr: Expr) -> frozenset[str]:
    """Operands a formula mentions."""
    match expr:
        case Operand(name):
            return frozenset((name,))
        case Sum(parts) | Product(parts):
            return frozenset().union(*map(names, parts))
        case Apply(argument=argument) | Isotropic(argument=argument) | Centred(argument=argument):
            return names(argument)


def linear_in(expr: Expr) -> frozenset[str]:
    """Operands in which the formula is linear (affine), the others held fixed."""
    match expr:
        case Operand(name):
            return frozenset((name,))
        case Sum(parts):
            return frozenset().union(*(linear_in(p) for p in parts)) - _nonlinear(expr)
        case Product(parts):
            once = [n for n in names(expr) if sum(n in names(p) for p in parts) == 1]
            return frozenset(once) & frozenset().union(*(linear_in(p) for p in parts))
    return frozenset()


def linear_together(expr: Expr, operands: Collection[str]) -> bool:
    """Whether the formula is linear (affine) in these operands at once: in each, and no term multiplies two of them."""
    return linear_in(expr).issuperset(operands) and not _multiplied(expr, frozenset(operands))


def _multiplied(expr: Expr, operands: frozenset[str]) -> bool:
    match expr:
        case Sum(parts):
            return any(_multiplied(part, operands) for part in parts)
        case Product(parts):
            holding = [part for part in parts if names(part) & operands]
            return len(holding) > 1 or any(_multiplied(part, operands) for part in holding)
    return False


def added_in(expr: Expr) -> frozenset[str]:
    """Operands that are a term of a sum, as they are or times what does not depend on them, and stand nowhere else."""
    match expr:
        case Sum(terms):
            bare = frozenset(term.name for term in terms if isinstance(term, Operand))
            return frozenset(n for n in bare.union(*map(added_in, terms)) if sum(n in names(t) for t in terms) == 1)
        case Product(parts):
            found = frozenset().union(*map(added_in, parts))
            return frozenset(n for n in found if sum(n in names(part) for part in parts) == 1)
    return frozenset()


def neutral_in(expr: Expr) -> dict[str, float]:
    """Operands that leave the formula as it is when they hold this number everywhere: 0 if added, 1 if a factor.

    >>> neutral_in(parse("isotropic(input, d) * weight + bias"))
    {'weight': 1.0, 'bias': 0.0}
    """
    found: dict[str, float] = {}
    match expr:
        case Sum(terms):
            for term in terms:
                found |= {term.name: 0.0} if isinstance(term, Operand) else neutral_in(term)
        case Product(factors):
            for factor in factors:
                found |= {factor.name: 1.0} if isinstance(factor, Operand) else {}
                found |= neutral_in(factor) if isinstance(factor, Product) else {}
    parts = expr.terms if isinstance(expr, Sum) else expr.factors if isinstance(expr, Product) else ()
    return {name: number for name, number in found.items() if sum(name in names(part) for part in parts) == 1}


@dataclass(frozen=True)
class Normed:
    """An operand that is normed along some labels: what it is multiplied by and what is added acts on each entry."""

    operand: str
    labels: frozenset[str]
    centred: bool


def normed_in(expr: Expr) -> Normed | None:
    """The one operand that a formula norms, if it does nothing else but scale and shift."""
    match expr:
        case Isotropic(Operand(name), labels, True):
            return Normed(name, labels, centred=False)
        case Isotropic(Centred(Operand(name), own), labels, True) if own == labels:
            return Normed(name, labels, centred=True)
        case Sum(parts) | Product(parts):
            rest = [part for part in parts if not isinstance(part, Operand)]
            found = normed_in(rest[0]) if len(rest) == 1 else None
            return found if found is not None and Operand(found.operand) not in parts else None
    return None


def _nonlinear(expr: Sum) -> frozenset[str]:
    return frozenset().union(*(names(term) - linear_in(term) for term in expr.terms))


@cache
def equations(
    law: str, label: str, carriers: frozenset[str], absent: frozenset[str], zero: frozenset[str], kept: bool
) -> Equations:
    """What a call demands of `label`, which the operands `carriers` and, if `kept`, the result carry.

    `absent` operands were not given; `zero` ones are known to be zero everywhere.

    A worked example, RMSNorm along its features d. The length of x must stay, so x may not be scaled, e(input) = 0; a
    rotation would keep it. But the weight acts on each coordinate by itself, so permutations, scales and signs are
    left. The result goes with the weight, e(->) = e(weight); its sign is that of both, s(->) = s(input) + s(weight).

    >>> law, both, none = "isotropic(input, d) * weight", frozenset({"input", "weight"}), frozenset()
    >>> norm = equations(law, "d", both, none, none, True)
    >>> [" + ".join(f"{c} e({slot})" for slot, c in form.items()) for form in norm.scale], norm.cap.name
    (['1 e(input)', '1 e(->) + -1 e(weight)'], 'MONOMIAL')
    >>> [sorted(form) for form in norm.sign]
    [['->', 'input', 'weight']]

    Without its weight the norm commutes with every rotation:

    >>> equations(law, "d", frozenset({"input"}), frozenset({"weight"}), none, True).cap.name
    'ORTHOGONAL'
    """
    expr = parse(law)
    mentioned = names(expr)
    work = _Label(label, carriers & mentioned - zero, absent, zero, kept)
    form = work.visit(expr)
    if form is not None and kept:
        if form.carries:
            work.vanish(_minus({RESULT: Fraction(1)}, form.scale), _minus({RESULT: Fraction(1)}, form.sign))
        else:
            work.rigid({RESULT: Fraction(1)})
    for name in carriers - mentioned - zero:
        work.rigid({name: Fraction(1)})
    return Equations(tuple(work.scale), tuple(work.sign), work.cap)


@dataclass
class _Value:
    """Exponents of a subexpression along the label, if it carries the label at all."""

    carries: bool
    scale: Form = field(default_factory=dict)
    sign: Form = field(default_factory=dict)


class _Label:
    """Walks a formula for one label and collects the equations."""

    def __init__(
        self, label: str, carriers: frozenset[str], absent: frozenset[str], zero: frozenset[str], kept: bool
    ) -> None:
        self.label, self.carriers, self.absent, self.zero, self.kept = label, carriers, absent, zero, kept
        self.scale: list[Form] = []
        self.sign: list[Form] = []
        self.cap = Cap.INVERTIBLE

    def vanish(self, scale: Form, sign: Form) -> None:
        if any(scale.values()):
            self.scale.append({k: v for k, v in scale.items() if v})
        odd = {k: Fraction(1) for k, v in sign.items() if v % 2}
        if odd:
            self.sign.append(odd)

    def rigid(self, *forms: Form) -> None:
        self.cap = Cap.MONOMIAL
        for form in forms:
            self.vanish(form, form)

    def visit(self, expr: Expr) -> _Value | None:
        """The value of a subexpression; None if it is zero or was not given."""
        value = self._visit(expr)
        if value is not None and value.carries and not self.kept and self.carriers <= names(expr):
            self._contract(expr, value)
            return _Value(False)
        return value

    def _contract(self, expr: Expr, value: _Value) -> None:
        self.vanish(value.scale, value.sign)
        carrying = [f for f in expr.factors if names(f) & self.carriers] if isinstance(expr, Product) else []
        if len(carrying) != 2:
            self.cap = Cap.MONOMIAL

    def _visit(self, expr: Expr) -> _Value | None:
        match expr:
            case Operand(name):
                if name in self.absent or name in self.zero:
                    return None
                form = {name: Fraction(1)} if name in self.carriers else {}
                return _Value(name in self.carriers, dict(form), dict(form))
            case Product(factors):
                return self._product(factors)
            case Sum(terms):
                return self._sum(terms)
            case Apply(argument, degree, parity):
                # what is summed away of a single operand is summed after the function
                visit = self._visit if isinstance(argument, Operand) else self.visit
                return self._apply(visit(argument), degree, parity)
            case Centred(argument, labels):
                value = self._visit(argument)
                if value is None or not value.carries or self.label not in labels:
                    return value
                self.cap = Cap.MONOMIAL
                self.vanish(value.scale, value.sign)
                return _Value(True)
            case Isotropic(argument, labels, odd):
                return self._isotropic(self._visit(argument), self.label in labels, odd)

    def _product(self, factors: tuple[Expr, ...]) -> _Value | None:
        found = [(f, self.visit(f)) for f in factors]
        if any(value is None and names(f) & self.zero for f, value in found):
            return None
        values = [value for _, value in found if value is not None]
        carrying = [v for v in values if v.carries]
        if len(carrying) > 2 or (len(carrying) == 2 and self.kept):
            self.cap = Cap.MONOMIAL
        result = _Value(bool(carrying))
        for value in carrying:
            result.scale = _plus(result.scale, value.scale)
            result.sign = _plus(result.sign, value.sign)
        return result

    def _sum(self, terms: tuple[Expr, ...]) -> _Value | None:
        values = [v for v in map(self.visit, terms) if v is not None]
        carrying = [v for v in values if v.carries]
        if len(carrying) < len(values):
            for value in carrying:
                self.cap = Cap.MONOMIAL
                self.vanish(value.scale, value.sign)
        for value in carrying[1:]:
            self.vanish(_minus(value.scale, carrying[0].scale), _minus(value.sign, carrying[0].sign))
        found = carrying or values
        return found[0] if found else None

    def _apply(self, value: _Value | None, degree: Fraction | None, parity: int | None) -> _Value | None:
        if value is None or not value.carries:
            return value
        self.cap = Cap.MONOMIAL
        result = _Value(True)
        if degree is None:
            self.vanish(value.scale, {})
        else:
            result.scale = {k: v * degree for k, v in value.scale.items()}
        if parity is None:
            self.vanish({}, value.sign)
        else:
            result.sign = {k: v * parity for k, v in value.sign.items()}
        return result

    def _isotropic(self, value: _Value | None, along: bool, odd: bool) -> _Value | None:
        if value is None or not value.carries:
            return value
        self.cap = min(self.cap, Cap.ORTHOGONAL if along else Cap.MONOMIAL)
        self.vanish(value.scale, {})
        if along and not odd and not self.kept:  # nothing is left of the label
            return _Value(False)
        return _Value(True, {}, value.sign if odd else {})


def _plus(a: Form, b: Form) -> Form:
    return {k: a.get(k, Fraction(0)) + b.get(k, Fraction(0)) for k in {**a, **b}}


def _minus(a: Form, b: Form) -> Form:
    return _plus(a, {k: -v for k, v in b.items()})
