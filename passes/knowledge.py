"""All that is known of operators, as the one value that the engine looks up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxmerge.coupling import RuleSet
from fxmerge.ir.program import Program
from fxmerge.ir.shared import SharedPlace
from fxmerge.ir.space import Spaces
from fxmerge.pipeline import Known, Pipeline
from fxmerge.pipeline.extension import Extension
from fxmerge.pipeline.knowledge import Plan
from fxmerge.rewrite import Trace
from passes import pipeline as steps
from passes.operators import Operators
from passes.spaces.check import CheckReport, check
from passes.spaces.describe import describe
from passes.spaces.find import SpacesOf
from passes.spelling.compute_weights import compute_weights
from passes.spelling.normalize import normalize
from passes.supernet import answer, gate
from passes.supernet.blocks import Blocks
from passes.supernet.sites import SitesOf


@dataclass(frozen=True)
class OperatorKnowledge:
    """The parts of `fxmerge.pipeline.knowledge.Knowledge`, which says what each is for."""

    builtin: Extension

    def plain(self, program: Program, rules: RuleSet) -> Program:
        return compute_weights(program, rules)

    def restore(self, program: Program, merged: Mapping[str, Tensor], known: Known) -> dict[str, Tensor]:
        return steps.restore(program, merged, known)

    def pipeline(self, plan: Plan) -> Pipeline:
        return steps.pipeline(plan)

    def fold_trunk(self, plan: Plan) -> Pipeline:
        return steps.fold_trunk(plan)

    def show_pooled(self, program: Program, places: Mapping[str, SharedPlace], mask: str | None) -> Program:
        return gate.show_pooled(program, places, mask)

    def add_gate(
        self, program: Program, place: SharedPlace, mask: str | None, weight: Tensor, bias: Tensor, name: str
    ) -> Program:
        return gate.add_gate(program, place, mask, weight, bias, name)

    def add_answer(self, program: Program, gate: str, parts: Sequence[str], tie: float | None, name: str) -> Program:
        return answer.add_answer(program, gate, parts, tie, name)

    def spaces(self, program: Program, rules: RuleSet) -> Spaces:
        return program.get(SpacesOf(rules))

    def describe(self, program: Program, rules: RuleSet) -> dict[str, Any]:
        sites = normalize(program, rules=rules).get(SitesOf(rules))
        sizes = {name: tensor.numel() for name, tensor in program.tensors.items()}
        blocks = [
            {"name": part.name, "parameters": sum(sizes.get(name, 0) for name in part.parameters)}
            for part in Blocks(sites).parts()
        ]
        return describe(program, rules) | {"blocks": blocks}

    def check(self, program: Program, rules: RuleSet, seed: int) -> CheckReport:
        return check(program, rules, seed=seed)

    def in_order_of(self, node: fx.Node, axis: int, rules: RuleSet) -> fx.Node:
        operators = Operators(rules)
        while node.op == "call_function" and (source := operators.ordered_by(node, axis)) is not None:
            node = source
        return node

    def trace_rewrites(self, program: Program, known: Known) -> Trace:
        trace = Trace()
        normalize(program, known.rewrites, trace, known.rules)
        return trace


KNOWLEDGE = OperatorKnowledge(steps.BUILTIN)
