"""How far the outputs of two programs are from each other: each output by itself, relative to its own spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxmerge.errors import VerificationError
from fxmerge.ir.program import Program

UNUSUAL = 1e3
"""A value this many times larger than the median is a fill (the -1e9 of a mask): it says nothing of the spread."""
ROUNDING = 1e-3
"""A difference is never measured by less than this share of the value itself: 1000.01 cannot be told from 1000."""
FLOORS = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""What rounding alone does to the outputs of a network that computes in these dtypes."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of one output: as it is, and relative to the output's spread."""

    absolute: float
    relative: float
    spread: float
    """Standard deviation of the output's usual values; the size of the largest one where they are all the same."""


def difference(expected: Tensor, got: Tensor) -> Difference:
    """Compare two values of one output, in float64. Equal infinities, and places that are no number in both, agree."""
    x, y = expected.detach().double().cpu(), got.detach().double().cpu()
    if x.shape != y.shape:
        return Difference(float("inf"), float("inf"), 0.0)
    if not x.numel():
        return Difference(0.0, 0.0, 0.0)
    spread = spread_of(x)
    gap = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs()).nan_to_num(nan=float("inf"))
    measure = (ROUNDING * x.abs()).nan_to_num(nan=0.0, posinf=0.0).clamp_min(spread or 1.0)
    return Difference(float(gap.max()), float((gap / measure).max()), spread)


def spread_of(values: Tensor) -> float:
    """How much an output varies: what a difference is measured by."""
    finite = values[values.isfinite()]
    if not finite.numel():
        return 0.0
    size = finite.abs()
    usual = finite[size <= UNUSUAL * size.median()]
    usual = usual if usual.numel() > 1 and float(size.median()) > 0 else finite
    spread = float(usual.std(correction=0))
    return spread if spread > 1e-12 * float(usual.abs().max()) else float(usual.abs().max())


def differences(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> dict[str, Difference]:
    """The difference of every output, by name."""
    assert expected.keys() == got.keys(), f"{sorted(expected)} against {sorted(got)}"
    return {name: difference(expected[name], got[name]) for name in expected}


def compare(a: Program, b: Program, inputs: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Difference]:
    """Run two programs on the same inputs and compare the named outputs."""
    with torch.no_grad():
        one, two = a.run(inputs), b.run(inputs)
    return differences({n: one[n] for n in names}, {n: two[n] for n in names})


def largest(found: Mapping[str, Difference]) -> float:
    """The largest relative difference of any output."""
    return max((each.relative for each in found.values()), default=0.0)


def worse(a: Mapping[str, Difference], b: Mapping[str, Difference]) -> dict[str, Difference]:
    """Of each output, the larger of two differences."""
    return {n: max((f[n] for f in (a, b) if n in f), key=lambda d: d.relative) for n in {**a, **b}}


def floor(program: Program) -> float:
    """The smallest tolerance that makes sense: what rounding does in the coarsest dtype a program computes in."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    return max((FLOORS.get(v.dtype, 0.0) for v in values if isinstance(v, Tensor)), default=0.0)


def require(what: str, found: Mapping[str, Difference], tolerance: float, todo: str) -> None:
    """Raise `VerificationError` for the output that is furthest off, if by more than `tolerance` of its spread."""
    for name, each in sorted(found.items(), key=lambda item: -item[1].relative):
        if not each.relative <= tolerance:
            raise VerificationError(
                f"{what}: output {name} differs by {each.absolute:.3g}, {each.relative:.3g} of its spread"
                f" of {each.spread:.3g} (tolerance {tolerance:.3g})",
                todo,
            )
