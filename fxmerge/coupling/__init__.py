"""Coupling rules and what follows from them: axes, laws, and the groups that every space tolerates."""

from fxmerge.coupling.rule import (
    Call,
    Rule,
    RuleSet,
    Signature,
    couples,
    fills,
    labels_of,
    moves,
    operator_name,
    signature,
    tokens,
)

__all__ = [
    "Call",
    "Rule",
    "RuleSet",
    "Signature",
    "couples",
    "fills",
    "labels_of",
    "moves",
    "operator_name",
    "signature",
    "tokens",
]
