"""Write parents in yet fewer ways than normalize does, so that those of different code bases line up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from fxmerge.pipeline import Known, Pass, Pipeline, Run
from fxmerge.pipeline.passes import Use, use_of
from fxmerge.rewrite import Rewrite, apply
from passes.line_up.carry_moves.carry import carry_moves
from passes.line_up.fill_in import fill_in
from passes.line_up.fold_factors import fold_factors
from passes.line_up.fold_rows import fold_rows
from passes.line_up.hold_constants import hold_constants
from passes.line_up.masks import plain_masks
from passes.line_up.order_sums import order_sums
from passes.line_up.pairs import line_up
from passes.line_up.split_parameters import own_tensors
from passes.operators import OPERATORS, Operators
from passes.rewrites import REWRITES
from passes.rewrites.fused_projections import APART
from passes.rewrites.other_code_bases import SPELLINGS
from passes.rules import BUILTIN
from passes.spelling.cleanup import Cleanup


@dataclass(frozen=True)
class Respell(Pass):
    """Write in one way what other code bases write in ways of their own."""

    brings: ClassVar[tuple[Rewrite, ...]] = SPELLINGS

    def run(self, program: Program, known: Known) -> Program:
        return apply(program, known.rewrites, rules=known.rules)


@dataclass(frozen=True)
class PlainMasks(Pass):
    """Write masks by what they hide."""

    def run(self, program: Program, known: Known) -> Program:
        return plain_masks(program)


@dataclass(frozen=True)
class CarryMoves(Pass):
    """Carry moves behind the calls that do not mind them."""

    def run(self, program: Program, known: Known) -> Program:
        return carry_moves(program, Operators(known.rules))


@dataclass(frozen=True)
class TakeApart(Pass):
    """Write fused projections as one call each."""

    brings: ClassVar[tuple[Rewrite, ...]] = APART

    def run(self, program: Program, known: Known) -> Program:
        return apply(program, known.rewrites, rules=known.rules)


@dataclass(frozen=True)
class OrderSums(Pass):
    """Write sums in one order."""

    def run(self, program: Program, known: Known) -> Program:
        return order_sums(program, Operators(known.rules))


@dataclass(frozen=True)
class FoldRows(Pass):
    """Add rows that are the same at every place to a table beside them."""

    def run(self, program: Program, known: Known) -> Program:
        return fold_rows(program, Operators(known.rules))


@dataclass(frozen=True)
class FoldFactors(Pass):
    """Multiply factors into the weights that write what they multiply."""

    def run(self, program: Program, known: Known) -> Program:
        return fold_factors(program, Operators(known.rules))


@dataclass(frozen=True)
class HoldConstants(Pass):
    """Hold what is computed from numbers alone as a table."""

    def run(self, program: Program, known: Known) -> Program:
        return hold_constants(program, Operators(known.rules))


@dataclass(frozen=True)
class SplitParameters(Pass):
    """Make a moved parameter, or part of one, a parameter of its own."""

    def run(self, program: Program, known: Known) -> Program:
        return own_tensors(program, Operators(known.rules))


CARRY = (PlainMasks(), CarryMoves(), Cleanup())
ROUND = (*CARRY, TakeApart(), Cleanup())
"""Moves that are carried away let rewrites fire, and these leave moves: twice is enough for what we know."""

RESPELT = (Respell(), Cleanup(), *ROUND, *ROUND, *CARRY)
LAST = (OrderSums(), Cleanup(), SplitParameters())

FURTHER = (
    Pipeline((SplitParameters(),)),
    Pipeline((HoldConstants(), Cleanup())),
    Pipeline((*RESPELT, *LAST)),
    Pipeline((*RESPELT, FoldRows(), *LAST)),
    Pipeline((*RESPELT, FoldRows(), *LAST, FoldFactors(), *LAST)),
)
"""What is tried in turn when parents do not line up as they are."""


def unwatched(steps: Pipeline, program: Program) -> Program:
    """Run passes with the built-in rules and rewrites."""
    for each in steps:
        program = each.run(program, use_of(each, Use(BUILTIN, REWRITES)))
    return program


def line_up_all(
    parents: Sequence[Program], template: int = 0, run: Run = unwatched, operators: Operators = OPERATORS
) -> list[Program]:
    """`parents` themselves if they line up as they are; otherwise all of them written further until they do.

    Raises the `LineUpError` of the parents written furthest if they never do: what is left is no matter of spelling.
    """
    try:
        return _in_line(parents, template, operators)
    except LineUpError as error:
        last = error
    for steps in FURTHER:
        try:
            return _in_line([run(steps, parent) for parent in parents], template, operators)
        except LineUpError as error:
            last = error
    raise last


def _in_line(parents: Sequence[Program], template: int, operators: Operators) -> list[Program]:
    """`parents` if they line up, or with what calls leave out that others have; raises `LineUpError`."""
    try:
        return _paired(parents, template, operators)
    except LineUpError as error:
        try:
            return _paired(fill_in(parents, template, operators), template, operators)
        except LineUpError:
            raise error from None


def _paired(parents: Sequence[Program], template: int, operators: Operators) -> list[Program]:
    for other in parents:
        line_up(parents[template], other, operators)
    return list(parents)
