"""Write the package's operators with ones that ONNX has, once the model is merged.

gate(x, s)     -->  x · sigmoid(s · x)
swap(x, n)     -->  cat(slices of x, last first)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from fxmerge import Program
from fxmerge.pipeline import Known, Pass, Stage
from fxmerge.rewrite import Match, apply, op, rewrite, var


@rewrite(op("example.gate", var("x"), var("s")))
def spell_gate(match: Match) -> fx.Node:
    """gate(x, s)  -->  x · sigmoid(s · x)"""
    scaled = match.call("aten.mul.Tensor", match["s"], match["x"])
    return match.call("aten.mul.Tensor", match["x"], match.call("aten.sigmoid.default", scaled))


@rewrite(op("example.swap", var("x"), var("parts")))
def spell_swap(match: Match) -> fx.Node:
    """swap(x, n)  -->  cat(slices of x, last first)"""
    size = match.shape("x")[-1] // match["parts"]
    starts = range(0, match.shape("x")[-1], size)
    slices = [match.call("aten.slice.Tensor", match["x"], -1, start, start + size) for start in starts]
    return match.call("aten.cat.default", slices[::-1], -1)


@dataclass(frozen=True)
class LowerExample(Pass):
    """Write example.gate and example.swap with operators that ONNX has."""

    stage: ClassVar[Stage] = "merged"
    after: ClassVar[str] = "fold-merge"
    swap: bool = True

    def run(self, program: Program, known: Known) -> Program:
        return apply(program, [spell_gate, spell_swap] if self.swap else [spell_gate])
