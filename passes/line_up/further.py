"""Write a parent in yet fewer ways than normalize does, so that it lines up with one from another code base."""

from __future__ import annotations

from collections.abc import Callable

from fxmerge.ir.program import Program
from fxmerge.rewrite import apply
from passes.line_up.carry_moves.carry import carry_moves
from passes.line_up.masks import plain_masks
from passes.line_up.order_sums import order_sums
from passes.line_up.split_parameters import own_tensors
from passes.rewrites import REWRITES
from passes.rewrites.fused_projections import APART
from passes.rewrites.other_code_bases import SPELLINGS
from passes.spelling.cleanup import cleanup

ROUNDS = 2
"""Moves that are carried away let rewrites fire, and these leave moves: once more is enough for what we know."""


def write_further(program: Program) -> Program:
    """`program`, normalised, with fused projections apart, moves only where they matter and sums in one order."""
    program = cleanup(apply(program, (*SPELLINGS, *REWRITES)))
    for _ in range(ROUNDS):
        program = cleanup(carry_moves(plain_masks(program)))
        program = cleanup(apply(program, (*APART, *REWRITES)))
    return own_tensors(cleanup(order_sums(cleanup(carry_moves(plain_masks(program))))))


FURTHER: tuple[Callable[[Program], Program], ...] = (own_tensors, write_further)
"""What is tried in turn when parents do not line up as they are."""
