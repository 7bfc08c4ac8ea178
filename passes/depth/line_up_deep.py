"""Line parents up, those of another depth with the template's number of blocks; at last, without their heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from fxmerge.pipeline import Known, Pipeline, Run
from passes.depth.match_depth import match_depth
from passes.line_up.fill_in import fill_like
from passes.line_up.further import FURTHER, line_up_all
from passes.line_up.pairs import line_up
from passes.operators import Operators
from passes.supernet.trunk_pairs import trunk_pairs


def line_up_deep(parents: Sequence[Program], template: int, known: Known, run: Run) -> list[Program]:
    """`parents` in line: as they are, or written further (`line_up_all`), or with as many blocks as the template.

    Where their heads alone part, of all ways to write them the one that leaves the least to heads.
    Raises the `LineUpError` of parents that part whatever is done.
    """
    operators = Operators(known.rules)
    try:
        return line_up_all(parents, template, run, operators)
    except LineUpError as error:
        last = error
    least: tuple[int, list[Program]] | None = None
    for written in _ways(parents, operators, run):
        found = [match_depth(written[template], each, known.rules) or each for each in written]
        try:
            for other in found:
                line_up(found[template], other, operators)
            return found
        except LineUpError as error:
            last = error
        try:
            heads = sum(trunk_pairs(found[template], other, known.rules).apart for other in found)
        except LineUpError:
            continue
        if least is None or heads < least[0]:
            least = heads, found
    if least is None:
        raise last
    return least[1]


def _ways(parents: Sequence[Program], operators: Operators, run: Run) -> Iterator[list[Program]]:
    """Parents as they are and written further, each also with what calls leave out that others have."""
    for steps in (Pipeline(()), *FURTHER):
        written = [run(steps, parent) if steps.passes else parent for parent in parents]
        yield written
        filled = fill_like(written, operators)
        if any(new is not old for new, old in zip(filled, written, strict=True)):
            yield filled
