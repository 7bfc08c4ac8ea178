"""One architecture through the whole compiler: capture, spaces, check, merge through ONNX, planted symmetry."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import fxmerge
import passes
from benchmarks.planted import plant
from benchmarks.table import Row
from fxmerge.ir.program import Program
from passes.spaces.describe import describe

LINEAR = ("invertible", "orthogonal")
MOVABLE = ("permutation", "signed_permutation", *LINEAR)

Build = Callable[[int], tuple[nn.Module, Mapping[str, Any]]]
"""From a seed to a random model in eval mode and its sample inputs by name."""


@dataclass
class Examination:
    """What is found out about one architecture. A step that fails leaves its error in the row, and the rest goes on."""

    build: Build
    trace_both: bool = True
    """Trace the second parent too, not only put its weights into the program of the first."""
    row: Row = field(default_factory=dict)
    step: str = "capture"

    def run(self) -> Row:
        self.row |= {"seconds": {}, "errors": {}}
        programs: list[Program] = []
        with self._step("capture"):
            for seed, task in enumerate(("first", "second")):
                model, inputs = self.build(seed)
                if programs and not self.trace_both:
                    weights = {name: value.clone() for name, value in model.state_dict().items()}
                    programs.append(programs[0].evolve(task=task, tensors=_replaced(programs[0].tensors, weights)))
                else:
                    programs.append(fxmerge.capture(model, dict(inputs), task=task))
            self._captured(programs[0])
        if not programs:
            return self.row
        with self._step("analyse"):
            self.row |= summary(programs[0])
        with self._step("check"):
            report = passes.check(programs[0])
            self.row |= {"check": report.error, "moved": report.moved, "first_bad": report.first_bad}
            assert report.ok, f"the outputs moved by {report.error:.1e}: {report.first_bad}"
        if len(programs) == 2:
            with self._step("merge"), tempfile.TemporaryDirectory() as folder:
                self._merge(programs, Path(folder) / "merged.onnx")
        with self._step("plant"):
            self._plant(programs[0])
        return self.row

    def _captured(self, program: Program) -> None:
        dynamic = dict.fromkeys(size for port in program.inputs for size in port.dynamic)
        self.row |= {"dynamic": list(dynamic), "parameters": program.count(), "notes": list(program.notes)}

    def _merge(self, programs: list[Program], path: Path) -> None:
        merged = fxmerge.merge(programs, method="average", out=str(path))
        self.row |= {"fold": merged.result["checks"]["fold_max_abs"], "onnx": merged.result["checks"]["onnx_max_abs"]}
        self.row["onnx_bytes"] = path.stat().st_size

    def _plant(self, program: Program) -> None:
        found = plant(program)
        self.row["planted"] = vars(found)
        worst = max(found.twin, found.undone, found.weights, found.outputs)
        assert worst < 1e-6, f"the symmetry is not undone: {found}"
        assert found.plain > 1e-3, f"the symmetry moved nothing: {found}"

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        self.step, begin = name, time.perf_counter()
        try:
            yield
        except Exception as error:  # a bench reports whatever goes wrong and goes on
            text = str(error).strip().splitlines()
            self.row["errors"][name] = f"{type(error).__name__}: {text[0] if text else ''}"[:300]
        self.row["seconds"][name] = time.perf_counter() - begin


def _replaced(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with those of the same name and shape in `weights` instead."""
    assert all(weights[name].shape == value.shape for name, value in tensors.items() if name in weights)
    return {name: weights.get(name, value) for name, value in tensors.items()}


def summary(program: Program) -> Row:
    """Coverage, free axes, and how many spaces there are, move, and are linear."""
    found = describe(program)
    groups = [space["tolerates"] for space in found["spaces"].values() if space["size"] > 1]
    return {
        "coverage": found["coverage"],
        "free_axes": found["free_axes"],
        "opaque": [f"{o['operator']} at {o['at']}" for o in found["opaque"]],
        "spaces": len(groups),
        "movable": sum(group in MOVABLE for group in groups),
        "linear": sum(group in LINEAR for group in groups),
        "rotary": groups.count("rotary"),
    }
