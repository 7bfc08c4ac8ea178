"""Names for the symbolic sizes of an exported program: batch, sequence, time, height, width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram

LARGEST = 1 << 30
"""Upper bound of a dynamic size that the model does not bound."""

AXES = ("sequence", "time", "depth", "height", "width")
"""What an axis that is not the batch may be called."""


def meanings(value: Tensor) -> tuple[str, ...]:
    """What each axis of an input is called when its size is dynamic, rows first."""
    if not value.is_floating_point() and value.ndim <= 3:
        return ("batch", *["sequence"] * (value.ndim - 1))
    spatial = {4: ("channels", "height", "width"), 5: ("channels", "depth", "height", "width")}
    return ("batch", *spatial.get(value.ndim, ("time",) * (value.ndim - 1)))


class Sizes:
    """The name and the range of every symbolic size of an exported program.

    `rows` says which inputs count the batch on their first axis, `called` what other axes are called. `tied` holds
    groups of axes (input, axis) that are one size although the trace does not say so.
    """

    def __init__(
        self,
        exported: ExportedProgram,
        values: Mapping[str, Tensor],
        rows: frozenset[str],
        called: Mapping[tuple[str, int], str],
        tied: Sequence[frozenset[tuple[str, int]]] = (),
    ) -> None:
        self.names: dict[str, str] = {}
        self.ranges: dict[str, tuple[int, int]] = {}
        self.axes: list[tuple[str, int]] = []
        """Axes that have a size of their own, the batch aside."""
        groups: dict[frozenset[tuple[str, int]], str] = {}
        for port, value in sorted(values.items(), key=lambda item: item[1].is_floating_point()):
            words = meanings(value)
            for axis, size in enumerate(value.shape):
                if not isinstance(size, torch.SymInt) or str(size) in self.names:
                    continue
                if axis == 0 and port in rows:
                    name = "batch"
                else:
                    group = next((g for g in tied if (port, axis) in g), frozenset({(port, axis)}))
                    name = groups.setdefault(group, "") or self._free(
                        called.get((port, axis), words[axis] if axis else "length")
                    )
                    groups[group] = name
                    self.axes.append((port, axis))
                self.names[str(size)] = name
                self._bound(size, name, exported)

    def _free(self, wish: str) -> str:
        name, number = wish, 2
        while name in self.names.values():
            name, number = f"{wish}{number}", number + 1
        return name

    def _bound(self, size: torch.SymInt, name: str, exported: ExportedProgram) -> None:
        bounds = exported.range_constraints.get(size.node.expr)
        if bounds is not None:
            low = int(bounds.lower) if bounds.lower.is_Integer else 0
            high = int(bounds.upper) if bounds.upper.is_Integer else LARGEST
            before = self.ranges.get(name, (0, LARGEST))
            self.ranges[name] = (max(low, before[0]), min(high, before[1]))

    def shape(self, value: Tensor) -> tuple[int | str, ...]:
        return tuple(self.names.get(str(s), str(s)) if isinstance(s, torch.SymInt) else int(s) for s in value.shape)
