"""The door between the engine and what is known of operators: one value with these parts, which `passes` gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, fx

from fxmerge.coupling import RuleSet
from fxmerge.ir.program import Program
from fxmerge.ir.shared import SharedPlace
from fxmerge.ir.space import Spaces
from fxmerge.pipeline.extension import Extension
from fxmerge.pipeline.passes import Known, Pipeline
from fxmerge.rewrite import Trace


@dataclass(frozen=True)
class Plan:
    """What the driver knows of a merge before it begins."""

    tasks: tuple[str, ...] = ()
    template: int = 0
    """Number of the parent whose sizes the result has."""
    width_scale: float = 1.0
    """How many times as wide as the template it is."""
    rows: int = 0
    """Inputs in a step of training: they decide where maps are applied."""
    teachers: bool = False
    """Whether a parent that does not line up may take part, as a teacher only."""
    until: str = ""
    """The block behind which every task has its own part; none for the tasks' heads alone."""


class Checked(Protocol):
    """What checking a model's spaces found."""

    @property
    def ok(self) -> bool: ...

    @property
    def error(self) -> float:
        """Largest difference of an output, relative to its largest entry."""
        ...

    @property
    def first_bad(self) -> str | None:
        """The first operator whose result moved otherwise than predicted, and its source line."""
        ...


class Knowledge(Protocol):
    """All that is known of operators."""

    @property
    def builtin(self) -> Extension:
        """Rules, rewrites and passes that come with fxmerge."""
        ...

    def plain(self, program: Program, rules: RuleSet) -> Program:
        """The program with what it computes from parameters alone computed: the weights that a merge sees."""
        ...

    def restore(self, program: Program, merged: Mapping[str, Tensor], known: Known) -> dict[str, Tensor]:
        """Parameters of a program that a merge of it lacks, told from the weights that the program computes of them."""
        ...

    def pipeline(self, plan: Plan) -> Pipeline:
        """Every step of a merge, in order."""
        ...

    def fold_trunk(self, plan: Plan) -> Pipeline:
        """What a method runs that trains ordinary weights: the trunk folded, the heads' maps left."""
        ...

    def show_pooled(self, program: Program, places: Mapping[str, SharedPlace], mask: str | None) -> Program:
        """The program with the means of these values as its outputs, (rows, features), padding left out."""
        ...

    def add_gate(
        self, program: Program, place: SharedPlace, mask: str | None, weight: Tensor, bias: Tensor, name: str
    ) -> Program:
        """The program with one more output, probabilities (rows, tasks), of the mean of a value."""
        ...

    def add_answer(self, program: Program, gate: str, parts: Sequence[str], tie: float | None, name: str) -> Program:
        """The program with one more output: the `parts` mixed by `gate`, or, with a `tie`, the likeliest."""
        ...

    def spaces(self, program: Program, rules: RuleSet) -> Spaces:
        """The spaces of a program."""
        ...

    def describe(self, program: Program, rules: RuleSet) -> dict[str, Any]:
        """The spaces of a program as plain data: what `inspect --json` prints."""
        ...

    def check(self, program: Program, rules: RuleSet, seed: int) -> Checked:
        """Transform every space at random, in float64: do the outputs move?"""
        ...

    def in_order_of(self, node: fx.Node, axis: int, rules: RuleSet) -> fx.Node:
        """The value that is made into `node` by calls alone that keep the order of entries along an axis."""
        ...

    def trace_rewrites(self, program: Program, known: Known) -> Trace:
        """How often each rewrite fires on a parent, and for each its best refusal."""
        ...
