"""The whole pipeline on one screen: every step of a merge, in the order in which it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.pipeline import Join, Known, Pass, Pipeline, Run, Stage, Together, Train
from fxmerge.pipeline.borders import FOLDED
from fxmerge.pipeline.extension import BUILTIN_OWNER, Extension
from fxmerge.pipeline.knowledge import Plan
from fxmerge.rewrite import Rewrite, apply
from passes.depth.line_up_deep import line_up_deep
from passes.line_up.further import FURTHER
from passes.onnx_ops import ONNX_OPERATORS
from passes.rewrites import REWRITES
from passes.rewrites.joined_axes import JOINED
from passes.rules import BUILTIN as RULES
from passes.spelling.cleanup import Cleanup
from passes.spelling.compute_weights import compute_weights
from passes.spelling.join_recurrent import join_recurrent
from passes.spelling.lower_to_onnx import lower_to_onnx
from passes.spelling.normalize import normalize
from passes.spelling.restore_parameters import restore_parameters
from passes.supernet.fold_merge import fold_merge
from passes.supernet.hoist import hoist
from passes.supernet.insert_merge import insert_merge
from passes.supernet.stand_in import can_teach, stand_in


def pipeline(plan: Plan = Plan()) -> Pipeline:  # noqa: B008 (a value)
    """Everything that happens in a merge."""
    return Pipeline(
        (
            ComputeWeights(),
            Normalize(),
            JoinAxes(),
            Cleanup(),
            LineUp(plan.template, plan.teachers),
            InsertMerge(plan.template, plan.width_scale, plan.until),
            HoistByCost(plan.rows),
            Train(),
            Hoist(),
            FoldMerge(plan.tasks, plan.template),
            JoinRecurrent(),
            LowerToOnnx(),
            Cleanup(),
        )
    )


def fold_trunk(plan: Plan) -> Pipeline:
    """What all parents share folded into ordinary weights; heads keep their unmerge maps."""
    return Pipeline((Hoist(tails=False), FoldTrunk(plan.tasks, plan.template)))


@dataclass(frozen=True)
class ComputeWeights(Pass):
    """Compute what parameters alone make (weight norm, adapters, casts): one plain weight each."""

    def run(self, program: Program, known: Known) -> Program:
        return compute_weights(program, known.rules, joined=True)


@dataclass(frozen=True)
class Normalize(Pass):
    """Write one thing one way: fewer spellings for every later pass."""

    def run(self, program: Program, known: Known) -> Program:
        return normalize(program, known.rewrites, rules=known.rules)


@dataclass(frozen=True)
class JoinAxes(Pass):
    """Multiply with matrices where weights of more axes stand: what they read and write is solved as one."""

    brings: ClassVar[tuple[Rewrite, ...]] = JOINED

    def run(self, program: Program, known: Known) -> Program:
        return compute_weights(apply(program, known.rewrites, rules=known.rules), known.rules, joined=True)


def restore(program: Program, merged: Mapping[str, Tensor], known: Known) -> dict[str, Tensor]:
    """What `ComputeWeights` and `JoinAxes` made weights of, told from the merged weights, the last step first."""
    written = Normalize().run(ComputeWeights().run(program, known), known)
    written = apply(written, (*JoinAxes.brings, *known.rewrites), rules=known.rules)
    last = restore_parameters(written, merged, known.rules)
    found = last | restore_parameters(program, {**merged, **last}, known.rules)
    return {name: value for name, value in found.items() if name in program.parameters}


@dataclass(frozen=True)
class LineUp(Together):
    """Pair what the parents have in common; where they part, write all of them further until they do not.

    Parents of another depth are written with the template's number of blocks.
    A parent that still parts teaches only, if the method lets it: the template's trunk with new heads stands for it.
    """

    template: int = 0
    teachers: bool = False

    @property
    def within(self) -> tuple[Pass, ...]:
        return tuple({each.name: each for steps in FURTHER for each in steps}.values())

    def run_all(self, parents: Sequence[Program], known: Known, run: Run) -> list[Program]:
        try:
            return line_up_deep(parents, self.template, known, run)
        except LineUpError as error:
            if not self.teachers:
                raise self._advised(error, parents) from error
        return self._with_stand_ins(parents, known, run)

    def _advised(self, error: LineUpError, parents: Sequence[Program]) -> LineUpError:
        """With the methods named that would let parents teach, where these could."""
        if not all(can_teach(parents[self.template], parent) for parent in parents):
            return error
        other = "or take --method auto or --method distill: there, a parent that does not line up teaches only"
        return LineUpError(error.what, f"{error.todo}; {other}")

    def _with_stand_ins(self, parents: Sequence[Program], known: Known, run: Run) -> list[Program]:
        """Those in line that can be, and a stand-in for each of the others."""
        why: dict[int, str] = {}
        first = parents[self.template]
        for k, parent in enumerate(parents):
            try:
                line_up_deep([first, parent], 0, known, run)
            except LineUpError as error:
                why[k] = error.what
        able = [k for k in range(len(parents)) if k not in why]
        lined = line_up_deep([parents[k] for k in able], able.index(self.template), known, run)
        found = dict(zip(able, lined, strict=True))
        template = found[self.template]
        found |= {k: stand_in(template, parents[k], known.rules, said) for k, said in why.items()}
        return [found[k] for k in range(len(parents))]


@dataclass(frozen=True)
class InsertMerge(Join):
    """Join the parents into one SuperNet: M behind every writer, U before every reader."""

    template: int = 0
    width_scale: float = 1.0
    until: str = ""
    """The block behind which every task has its own part; none for the task's heads alone."""

    def join(self, parents: Sequence[Program], known: Known) -> SuperNet:
        """The SuperNet of parents in line."""
        scale = self.width_scale if self.width_scale != 1 else None
        return insert_merge(parents, known.rules, self.template, scale, self.until)


@dataclass(frozen=True)
class HoistByCost(Pass):
    """Carry merge and unmerge from activations to weights, where that costs less."""

    stage: ClassVar[Stage] = "train"
    rows: int = 0

    def run(self, program: Program, known: Known) -> Program:
        return hoist(program, "auto", rows=self.rows)


@dataclass(frozen=True)
class Hoist(Pass):
    """Carry merge and unmerge from activations to weights."""

    stage: ClassVar[Stage] = "fold"
    tails: bool = True

    def run(self, program: Program, known: Known) -> Program:
        return hoist(program, tails=self.tails)


@dataclass(frozen=True)
class FoldTrunk(Pass):
    """Compute every fold of the trunk; the heads keep their maps."""

    stage: ClassVar[Stage] = "fold"
    tasks: tuple[str, ...] = ()
    template: int = 0

    def run(self, program: Program, known: Known) -> Program:
        return fold_merge(program, self.tasks, self.template, tails=False)


@dataclass(frozen=True)
class FoldMerge(Pass):
    """Compute every fold: the SuperNet becomes an ordinary network."""

    stage: ClassVar[Stage] = "fold"
    ensures = (FOLDED,)
    tasks: tuple[str, ...] = ()
    template: int = 0

    def run(self, program: Program, known: Known) -> Program:
        return fold_merge(program, self.tasks, self.template)


@dataclass(frozen=True)
class JoinRecurrent(Pass):
    """Write recurrent layers as torch's own operators again."""

    stage: ClassVar[Stage] = "merged"

    def run(self, program: Program, known: Known) -> Program:
        return join_recurrent(program)


@dataclass(frozen=True)
class LowerToOnnx(Pass):
    """Write operators that only one library knows in operators that everybody knows."""

    stage: ClassVar[Stage] = "merged"

    def run(self, program: Program, known: Known) -> Program:
        return lower_to_onnx(program)


PIPELINE = pipeline()
"""The pipeline of a merge that nothing is known of yet."""

BUILTIN = Extension(
    BUILTIN_OWNER,
    rules=RULES,
    rewrites=REWRITES,
    passes=list(dict.fromkeys(type(each) for each in (*PIPELINE, *fold_trunk(Plan()), *LineUp().within))),
    onnx=ONNX_OPERATORS,
)
"""Rules, rewrites and passes that come with fxmerge."""
