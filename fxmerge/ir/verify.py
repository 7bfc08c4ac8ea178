"""Checks that run at every merge: gradients reached every map, the fold is the SuperNet, ONNX Runtime is the fold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxmerge.errors import VerificationError
from fxmerge.ir.maps import Map
from fxmerge.ir.program import Program


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference over all outputs, and the size of the largest output value beside it."""

    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        return self.absolute / max(self.scale, 1.0)


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Difference:
    """Compare two sets of outputs by name, in float64. Places that are the same infinity in both are equal."""
    assert a.keys() == b.keys(), f"{sorted(a)} against {sorted(b)}"
    worst, scale = 0.0, 0.0
    for name in a:
        x, y = a[name].detach().double().cpu(), b[name].detach().double().cpu()
        gap = torch.where(x == y, 0.0, (x - y).abs())
        worst = max(worst, float(gap.nan_to_num(nan=float("inf")).max()) if gap.numel() else 0.0)
        finite = x[x.isfinite()].abs()
        scale = max(scale, float(finite.max()) if finite.numel() else 0.0)
    return Difference(worst, scale)


def compare(a: Program, b: Program, inputs: Mapping[str, Tensor], names: Iterable[str]) -> Difference:
    """Run two programs on the same inputs and compare the named outputs."""
    with torch.no_grad():
        one, two = a.run(inputs), b.run(inputs)
    return difference({n: one[n] for n in names}, {n: two[n] for n in names})


def require(what: str, found: Difference, tolerance: float) -> None:
    """Raise `VerificationError` if a difference exceeds the tolerance (absolute, or relative to outputs above one)."""
    if not found.relative <= tolerance:
        raise VerificationError(
            f"{what}: outputs differ by {found.absolute:.3g}"
            f" (largest output {found.scale:.3g}, tolerance {tolerance:.3g})",
            "nothing was written; this is a fault of fxmerge or of an extension, please report it",
        )


class GradientWatch:
    """Remembers which matrices of a SuperNet's maps ever received a gradient that is not zero."""

    def __init__(self, maps: Iterable[tuple[str, Map]]) -> None:
        self.reached: dict[str, bool] = {}
        self._handles: list[Any] = []
        for name, block in maps:
            for k in range(len(block.sizes)):
                parts = [p for p in _parts(block, k) if p.requires_grad]
                if parts:
                    self.reached[f"{name} of parent {k}"] = False
                for part in parts:
                    owner: Any = part
                    hook = self._hook(f"{name} of parent {k}")
                    self._handles.append(owner.register_post_accumulate_grad_hook(hook))

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def seen(parameter: Tensor) -> None:
            if not self.reached[name] and parameter.grad is not None:
                self.reached[name] = bool((parameter.grad != 0).any())

        return seen

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def missing(self) -> list[str]:
        return [name for name, reached in self.reached.items() if not reached]


def _parts(block: Map, k: int) -> list[nn.Parameter]:
    lists = (block.dense, block.diagonals, block.lefts, block.rights)
    return [parts[k] for parts in lists if k < len(parts)]
