"""What a law says of factors: which numbers multiply which operands, and which factors a result passes on.

>>> from fxmerge.coupling.law import parse
>>> factor_in(parse("self / other"), "other")
Factor(power=Fraction(-1, 1), beside=frozenset({'self'}), whole=True)
>>> factor_in(parse("rigid(scale * query + mask)"), "scale")
Factor(power=Fraction(1, 1), beside=frozenset({'query'}), whole=False)
>>> scales_with(parse("a + b"), frozenset("ab")), scales_with(parse("a + b"), frozenset("a"))
(True, False)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from fxmerge.coupling.law import Apply, Centred, Expr, Isotropic, Operand, Product, Sum, names


@dataclass(frozen=True)
class Factor:
    """How a name multiplies others in a law: to what power, the operands beside it, and whether the whole result."""

    power: Fraction
    beside: frozenset[str]
    whole: bool


def factor_in(expr: Expr, name: str) -> Factor | None:
    """How `name`, which stands in one place of a law, multiplies what is around it; None if it does not."""
    flat = _factors(expr)
    own = [part for part in flat if name in names(part)]
    if len(own) != 1:
        return None
    power = _power(own[0], name)
    if power is not None and len(flat) > 1:
        return Factor(power, frozenset(p.name for p in flat if isinstance(p, Operand) and p.name != name), whole=True)
    match own[0]:
        case Sum(terms):
            inside = [term for term in terms if name in names(term)]
        case Apply(argument=argument) | Isotropic(argument=argument) | Centred(argument=argument):
            inside = [argument]
        case _:
            inside = []
    found = factor_in(inside[0], name) if len(inside) == 1 else None
    return None if found is None else replace(found, whole=False)


def scales_with(expr: Expr, operands: frozenset[str], absent: frozenset[str] = frozenset()) -> bool:
    """Whether a factor of all these operands together is that factor of the result; `absent` terms are zero."""
    match expr:
        case Operand(name):
            return name in operands
        case Product(parts):
            own = [part for part in parts if operands & names(part)]
            return len(own) == 1 and scales_with(own[0], operands, absent)
        case Sum(terms):
            return all(scales_with(term, operands, absent) for term in terms if not names(term) <= absent)
        case Centred(argument):
            return scales_with(argument, operands, absent)
    return False


def _factors(expr: Expr) -> list[Expr]:
    return [factor for part in expr.factors for factor in _factors(part)] if isinstance(expr, Product) else [expr]


def _power(expr: Expr, name: str) -> Fraction | None:
    match expr:
        case Operand(own):
            return Fraction(1) if own == name else None
        case Apply(argument, degree, _) if degree is not None:
            inner = _power(argument, name)
            return None if inner is None else inner * degree
    return None
