"""Coupling rules and what follows from them: axes, laws, and the groups that every space tolerates."""

from fxmerge.coupling.call import Call, RuleRefusal, has_tensor, operator_name
from fxmerge.coupling.rule import Moment, Rule, RuleSet, couples, fills, moves, signature
from fxmerge.coupling.signature import Signature, labels_of, tokens

__all__ = [
    "Call",
    "Moment",
    "Rule",
    "RuleRefusal",
    "RuleSet",
    "Signature",
    "couples",
    "fills",
    "has_tensor",
    "labels_of",
    "moves",
    "operator_name",
    "signature",
    "tokens",
]
