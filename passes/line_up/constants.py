"""Constants in which parents differ that line up: numbers in their calls, and tensors that are no parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call
from fxmerge.ir.program import Program, target_name
from passes.line_up.digests import VALUES
from passes.operators import Operators

ROUNDING = 1e-6
"""Relative difference of two numbers, or of two tensors' entries, that were written down in different precision."""
POWERS = (0.25, 0.5, 1.0, 2.0)
"""A constant may follow a size by one of these powers, as the scale of attention does."""


@dataclass(frozen=True)
class Difference:
    """A constant that is `ours` in the template and `theirs` in another parent, and the pair of nodes that hold it."""

    node: fx.Node
    other: fx.Node
    name: str
    """The argument of the call; empty for a tensor."""
    ours: Any
    theirs: Any

    def said(self, one: str, two: str) -> str:
        """Both values and where they stand, for tasks `one` and `two`."""
        what = target_name(self.node.target) if self.node.op == "call_function" else str(self.node.target)
        what = f"{self.name} of {what}" if self.name else what
        return f"{what} is {_shown(self.ours, self.node)} in {one} and {_shown(self.theirs, self.other)} in {two}"


def differences(
    template: Program, other: Program, pairs: Mapping[fx.Node, fx.Node], operators: Operators
) -> Iterator[Difference]:
    """Every constant that differs, in the order of computation; numbers that follow from other sizes aside."""
    sizes = _sizes(pairs)
    for ours, theirs in pairs.items():
        if ours.op == "get_attr":
            a, b = template.tensors[str(ours.target)], other.tensors[str(theirs.target)]
            if ours.target not in template.parameters and a.shape == b.shape and not _equal(a, b):
                if a.numel() == 1 and _follows(a.item(), b.item(), sizes):
                    continue  # the root of a width that a model keeps as a tensor
                yield Difference(ours, theirs, "", a, b)
        elif ours.op == "call_function" and isinstance(ours.meta["val"], Tensor):
            mine, its = Call.of(ours).arguments, Call.of(theirs).arguments
            for name in (VALUES | operators.numbers(ours)) & mine.keys() & its.keys():
                x, y = (_number(name, call[name], node) for call, node in ((mine, ours), (its, theirs)))
                if x is not None and y is not None and not _same(x, y) and not _follows(x, y, sizes):
                    yield Difference(ours, theirs, name, x, y)


def _number(name: str, value: Any, node: fx.Node) -> float | None:
    """The number that an argument is; the scale that attention takes where none is given."""
    if value is None and name == "scale":
        query = node.all_input_nodes[0].meta["val"]
        return float(1 / math.sqrt(query.shape[-1]))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _same(a: float, b: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=ROUNDING)


def _follows(a: float, b: float, sizes: set[float]) -> bool:
    """Whether two numbers are to each other as some size of the one to that of the other, or a power of it."""
    if a == 0 or b == 0 or not math.isfinite(a) or not math.isfinite(b) or a * b < 0:
        return False
    return any(_same(a / b, ratio**power) for ratio in sizes for power in (*POWERS, *(-p for p in POWERS)))


def _sizes(pairs: Mapping[fx.Node, fx.Node]) -> set[float]:
    """The ratios of sizes in which two programs differ."""
    found: set[float] = set()
    for ours, theirs in pairs.items():
        a, b = ours.meta.get("val"), theirs.meta.get("val")
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            found.update(m / n for m, n in zip(a.shape, b.shape, strict=False) if m != n and m and n)
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point() or not b.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a.double(), b.double(), rtol=ROUNDING, atol=0, equal_nan=True)


def _shown(value: Any, node: fx.Node) -> str:
    """A value, and the source line of the call that holds it or reads it."""
    readers = (user.meta.get("source") for user in node.users)
    source = node.meta.get("source") or next((line for line in readers if line), None)
    text = f"{value:g}" if isinstance(value, float) else _described(value)
    return text + (f" ({source})" if source else "")


def _described(value: Tensor) -> str:
    if value.numel() == 1:
        return f"{value.item():g}"
    first = ", ".join(f"{x:g}" for x in value.reshape(-1)[:3].double().tolist())
    return f"[{first}, …]" if value.numel() > 3 else f"[{first}]"
