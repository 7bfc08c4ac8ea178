"""Rewrites as values: a pattern of calls, a check, a replacement; and for each, why it did not fire."""

from fxmerge.rewrite.engine import Match, Refusal, Rewrite, Trace, apply, operator, rewrite
from fxmerge.rewrite.pattern import either, op, var

__all__ = ["Match", "Refusal", "Rewrite", "Trace", "apply", "either", "op", "operator", "rewrite", "var"]
