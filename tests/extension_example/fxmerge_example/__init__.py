"""A gated unit as an operator of its own, and everything fxmerge needs to know about it."""

from fxmerge import Extension
from fxmerge_example.by_size import BY_SIZE
from fxmerge_example.lower_example import LowerExample
from fxmerge_example.operators import gate
from fxmerge_example.rewrites import find_gate
from fxmerge_example.rules import gate_rule, swap_rule

extension = Extension(rules=[gate_rule, swap_rule], rewrites=find_gate, passes=LowerExample, methods=BY_SIZE)

__all__ = ["extension", "gate"]
