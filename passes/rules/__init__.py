"""Coupling rules of the operators of the field, one file per family."""

from __future__ import annotations

from fxmerge.coupling import Rule, RuleSet
from passes.rules import (
    attention,
    constants,
    convolution,
    experts,
    indexing,
    layout,
    linear,
    norm,
    pointwise,
    recurrent,
    reduction,
    spectral,
)

FAMILIES = (
    linear,
    attention,
    norm,
    pointwise,
    reduction,
    convolution,
    layout,
    indexing,
    experts,
    spectral,
    constants,
    recurrent,
)


def _rules_of(module: object) -> tuple[Rule, ...]:
    return tuple(value for value in vars(module).values() if isinstance(value, Rule))


BUILTIN = RuleSet(tuple(rule for module in FAMILIES for rule in _rules_of(module)))
"""Every built-in rule."""
