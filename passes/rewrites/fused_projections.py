"""Fused projections taken apart: a linear map of which every reader takes a part becomes one linear map per part.

    linear(x, W)[..., a:b]                         -->   linear(x, W[a:b])
    reshape(linear(x, W), [b, t, 3, h, d])[:, :, i]   -->   reshape(linear(x, W[i-th third]), [b, t, h, d])

The parts of a fused weight are slices of it, whatever the order in which it holds queries, keys, values and heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from fxmerge.ir.program import target_name
from fxmerge.rewrite import Match, Refusal, either, op, rewrite, var
from passes.rewrites.common import called, is_number, rank, shape

LINEAR = op("aten.linear.default", var("x"), var("w"), var("b"))
FEATURES = op("aten.reshape.default", LINEAR, var("sizes"))
PARTS = either(
    op("aten.slice.Tensor", LINEAR, var("dim"), var("start"), var("end")),
    op("aten.slice.Tensor", FEATURES, var("dim"), var("start"), var("end")),
    op("aten.select.int", FEATURES, var("dim"), var("index")),
)


@dataclass(frozen=True)
class _Part:
    """Features `start` to `stop` along factor `place` of the output features, whose sizes are `factors`."""

    factors: tuple[int, ...]
    place: int
    start: int
    stop: int
    kept: bool
    """Whether the axis stays (a slice) or goes (a select)."""

    @property
    def features(self) -> int:
        return prod(self.factors) // self.factors[self.place] * (self.stop - self.start)


def _part(match: Match) -> _Part | Refusal:
    """Which part of the output features a match takes."""
    taken, linear = match.root, match.nodes[-1]
    axis = match["dim"] % rank(match.nodes[1])
    rows = rank(linear) - 1
    if shape(match.nodes[1])[:rows] != shape(linear)[:-1]:
        return Refusal("the rows are reshaped too", match.nodes[1])
    if axis < rows:
        return Refusal("a part of the rows is taken, not of the features", taken)
    factors, place = shape(match.nodes[1])[rows:], axis - rows
    if called(taken, "aten.select.int"):
        start = match["index"] % factors[place] if is_number(match["index"]) else None
        stop = start
    else:
        start, stop = _border(match["start"], 0, factors[place]), _border(match["end"], factors[place], factors[place])
    if start is None or stop is None:
        return Refusal("where the part lies depends on the input", taken)
    kept = not called(taken, "aten.select.int")
    return _Part(factors, place, start, stop if kept else start + 1, kept)


def _border(value: Any, default: int, length: int) -> int | None:
    if value is None:
        return default
    if not isinstance(value, int):
        return None
    return min(max(value + length if value < 0 else value, 0), length)


def _only_parts_are_read(match: Match) -> Refusal | None:
    linear = match.nodes[-1]
    for user in linear.users:
        readers = list(user.users) if called(user, "aten.reshape.default") else [user]
        whole = next((reader for reader in readers if not _is_part(reader)), None)
        if whole is not None:
            return Refusal("the projection is read as a whole too", whole)
    found = _part(match)
    return found if isinstance(found, Refusal) else None


def _is_part(reader: fx.Node) -> bool:
    return reader.op == "call_function" and PARTS.may_start(target_name(reader.target))


def _of_tensor(match: Match, tensor: fx.Node, part: _Part) -> fx.Node:
    """The rows of a weight, or the entries of a bias, that compute a part of the features."""
    inner = prod(part.factors[part.place + 1 :])
    if part.place == 0:
        return match.call("aten.slice.Tensor", tensor, 0, part.start * inner, part.stop * inner)
    rest = shape(tensor)[1:]
    factors = match.call("aten.reshape.default", tensor, [*part.factors, *rest])
    taken = match.call("aten.slice.Tensor", factors, part.place, part.start, part.stop)
    return match.call("aten.reshape.default", taken, [part.features, *rest])


@rewrite(
    PARTS,
    check=_only_parts_are_read,
    shared=True,
)
def projection_apart(match: Match) -> fx.Node | Refusal:
    """linear(x, W)[a:b]  -->  linear(x, W[a:b])"""
    part = _part(match)
    if isinstance(part, Refusal):
        return part
    weight = _of_tensor(match, match["w"], part)
    bias = [] if match["b"] is None else [_of_tensor(match, match["b"], part)]
    result = match.call("aten.linear.default", match["x"], weight, *bias)
    if "sizes" not in match.bindings:
        return result
    axis = match["dim"] % rank(match.nodes[1])
    sizes = list(match["sizes"])
    sizes[axis : axis + 1] = [part.stop - part.start] if part.kept else []
    return match.call("aten.reshape.default", result, sizes)


APART = (projection_apart,)
