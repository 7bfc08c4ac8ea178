"""Watch a pipeline at work: print what a pass changed, time it, check what it made.

FXMERGE_PRINT=hoist,cleanup | all     a unified diff of the program's text after these passes, on stderr
FXMERGE_VERIFY=0 | 1 | 2              after every pass: nothing, structure (default), structure and numbers
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fxmerge.errors import OptionError, VerificationError
from fxmerge.ir.difference import compare, floor, require
from fxmerge.ir.probe import probe
from fxmerge.ir.program import Port, Program
from fxmerge.messages import nearest
from fxmerge.pipeline.passes import Pass

TOLERANCE = 1e-4
"""Largest difference a pass may make to an output, relative to its spread, in the model's own dtype."""


@dataclass
class Watch:
    """The callback that prints, times and verifies every pass."""

    printed: frozenset[str] = frozenset()
    level: int = 1
    write: Callable[[str], object] = field(default=lambda text: sys.stderr.write(text))
    times: list[tuple[str, float]] = field(default_factory=list)
    """Seconds of every pass that ran, in order."""

    @classmethod
    def from_environment(cls, passes: Collection[str], environ: Mapping[str, str] = os.environ) -> Watch:
        """What FXMERGE_PRINT and FXMERGE_VERIFY ask for. Raises `OptionError` for names that are no pass."""
        names = frozenset(name.strip() for name in environ.get("FXMERGE_PRINT", "").split(",") if name.strip())
        for name in sorted(names - {"all", *passes}):
            raise OptionError(
                f"FXMERGE_PRINT names no pass: {name!r}{nearest(name, passes)}", f"known are: all, {', '.join(passes)}"
            )
        level = environ.get("FXMERGE_VERIFY", "1")
        if level not in ("0", "1", "2"):
            raise OptionError(
                f"FXMERGE_VERIFY is {level!r}", "give 0 (no check), 1 (structure) or 2 (structure and numbers)"
            )
        return cls(names, int(level))

    def __call__(self, done: Pass, before: Program, after: Program, seconds: float) -> None:
        self.times.append((done.name, seconds))
        if self.printed & {"all", done.name}:
            self.write(diff(done, before, after))
        if self.level > 0:
            check_structure(done, after)
        if self.level > 1 and done.exact:
            check_numbers(done, before, after)


def diff(done: Pass, before: Program, after: Program) -> str:
    """Unified diff of the program's text, empty lines where nothing changed."""
    old, new = before.text().splitlines(True), after.text().splitlines(True)
    lines = list(difflib.unified_diff(old, new, f"before {done}", f"after {done}", n=2))
    return "".join(lines) if lines else f"--- {done}: nothing changed\n"


def check_structure(done: Pass, program: Program) -> None:
    """Every name leads to a tensor or map, and the outputs have the shapes and dtypes that the ports promise."""
    for node in program.graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            raise VerificationError(f"after {done.name}, {node.name} has no value in its meta", _REPORT)
        if node.op == "get_attr" and node.target not in program.tensors and node.target not in program.maps:
            raise VerificationError(f"after {done.name}, {node.target!r} is no tensor of the program", _REPORT)
    missing = sorted(program.parameters - program.tensors.keys())
    if missing:
        raise VerificationError(f"after {done.name}, parameter {missing[0]!r} has no tensor", _REPORT)
    if len(program.result) != len(program.outputs):
        raise VerificationError(
            f"after {done.name}, {len(program.result)} results meet {len(program.outputs)} output ports", _REPORT
        )
    for port, node in zip(program.outputs, program.result, strict=True):
        _check_port(done, program, port, node.meta.get("val"))


def _check_port(done: Pass, program: Program, port: Port, value: object) -> None:
    shape = tuple(program.hints.get(n, -1) if isinstance(n, str) else n for n in port.shape)
    if not isinstance(value, Tensor):
        raise VerificationError(f"after {done.name}, output {port.name} is no tensor", _REPORT)
    agree = len(shape) == value.ndim and all(a in (-1, b) for a, b in zip(shape, value.shape, strict=True))
    if not agree or value.dtype != port.dtype:
        raise VerificationError(
            f"after {done.name}, output {port.name} is {value.dtype}{list(value.shape)},"
            f" its port says {port.dtype}{list(shape)}",
            _REPORT,
        )


def check_numbers(done: Pass, before: Program, after: Program) -> None:
    """Outputs that both programs have must agree on a few inputs."""
    names = {port.name for port in after.outputs} & {port.name for port in before.outputs}
    if [port.name for port in before.inputs] != [port.name for port in after.inputs]:
        raise VerificationError(f"{done.name} changed the program's inputs", _REPORT)
    found = compare(before, after, probe(before), names)
    require(
        f"{done.name} changed what the program computes",
        found,
        max(TOLERANCE, floor(before)),
        f"{_REPORT}; FXMERGE_PRINT={done.name} shows what it did",
    )


_REPORT = "this is a fault of the pass; please report it to its owner (`fxmerge passes` lists owners)"
