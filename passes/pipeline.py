"""The whole pipeline in one place, as passes; and all built-in knowledge as one extension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods import METHODS
from fxmerge.pipeline import Pass, Pipeline, Stage
from fxmerge.pipeline.extension import BUILTIN_OWNER, Extension
from fxmerge.rewrite import Trace
from passes.rewrites import REWRITES
from passes.rules import BUILTIN as RULES
from passes.spelling.cleanup import cleanup
from passes.spelling.compute_weights import compute_weights
from passes.spelling.join_recurrent import join_recurrent
from passes.spelling.lower_to_onnx import spell_out
from passes.spelling.normalize import normalize
from passes.spelling.split_recurrent import split_recurrent
from passes.supernet.fold_merge import fold_merge
from passes.supernet.hoist import Order, hoist
from passes.supernet.insert_merge import insert_merge


@dataclass(frozen=True)
class ComputeWeights(Pass):
    """Compute what parameters alone make (weight norm, adapters, casts): one plain weight each."""

    def run(self, program: Program, known: Extension) -> Program:
        return compute_weights(program, known.rules)


@dataclass(frozen=True)
class Normalize(Pass):
    """Write one thing one way: fewer spellings for every later pass."""

    def run(self, program: Program, known: Extension) -> Program:
        return normalize(program, known.rewrites)


@dataclass(frozen=True)
class SplitRecurrent(Pass):
    """Write recurrent layers one by one, each direction by itself."""

    def run(self, program: Program, known: Extension) -> Program:
        return split_recurrent(program)


@dataclass(frozen=True)
class Cleanup(Pass):
    """Say everything once: equal calls become one, unused nodes and tensors go."""

    stage: ClassVar[Literal["any"]] = "any"

    def run(self, program: Program, known: Extension) -> Program:
        return cleanup(program)


@dataclass(frozen=True)
class InsertMerge(Pass):
    """Join the parents into one SuperNet: M behind every writer, U before every reader."""

    stage: ClassVar[Stage] = "join"
    driven: ClassVar[bool] = True
    template: int = 0
    width_scale: float = 1.0

    def join(self, parents: Sequence[Program], known: Extension) -> SuperNet:
        """The SuperNet of normalized parents."""
        return insert_merge(parents, known.rules, self.template, self.width_scale if self.width_scale != 1 else None)


@dataclass(frozen=True)
class Hoist(Pass):
    """Carry merge and unmerge from activations to weights, where that costs less."""

    stage: ClassVar[Stage] = "supernet"
    driven: ClassVar[bool] = True
    order: Order = "weights"
    rows: int = 0
    tails: bool = True

    def run(self, program: Program, known: Extension) -> Program:
        return hoist(program, self.order, rows=self.rows, tails=self.tails)


@dataclass(frozen=True)
class FoldMerge(Pass):
    """Compute every fold: the SuperNet becomes an ordinary network."""

    stage: ClassVar[Stage] = "merged"
    driven: ClassVar[bool] = True
    tasks: tuple[str, ...] = ()
    template: int = 0
    tails: bool = True

    def run(self, program: Program, known: Extension) -> Program:
        return fold_merge(program, self.tasks, self.template, tails=self.tails)


@dataclass(frozen=True)
class JoinRecurrent(Pass):
    """Write recurrent layers as torch's own operators again."""

    stage: ClassVar[Stage] = "merged"

    def run(self, program: Program, known: Extension) -> Program:
        return join_recurrent(program)


@dataclass(frozen=True)
class SpellOut(Pass):
    """Write operators that only one library knows in operators that everybody knows."""

    stage: ClassVar[Stage] = "merged"

    def run(self, program: Program, known: Extension) -> Program:
        return spell_out(program)


PIPELINE = Pipeline(
    (
        ComputeWeights(), Normalize(), SplitRecurrent(), Cleanup(), InsertMerge(), Hoist(),
        FoldMerge(), JoinRecurrent(), SpellOut(), Cleanup(),
    )
)  # fmt: skip
"""What happens to parents, in order; the method trains between hoist and fold-merge."""

BUILTIN = Extension(
    BUILTIN_OWNER,
    rules=RULES,
    rewrites=REWRITES,
    passes=[ComputeWeights, Normalize, SplitRecurrent, Cleanup, InsertMerge, Hoist, FoldMerge, JoinRecurrent, SpellOut],
    methods=METHODS,
)
"""Everything that comes with fxmerge."""


def trace_rewrites(program: Program, known: Extension) -> Trace:
    """How often each rewrite fires on a parent, and for each its best refusal."""
    trace = Trace()
    normalize(program, known.rewrites, trace)
    return trace
