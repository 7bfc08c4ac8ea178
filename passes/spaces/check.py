"""Check that a program does not change when every space is transformed by a random element of its group.

Everything runs in float64, truly: casts inside the model are lifted in the copy that is checked, and running statistics
are replaced by random ones (untrained statistics, zeros and ones, hide mistakes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxmerge.coupling import RuleSet, operator_name
from fxmerge.coupling.elements import Deviation, Element, Kind
from fxmerge.coupling.inference import Inference
from fxmerge.ir.program import Program
from fxmerge.ir.row_blocks import is_batch
from fxmerge.ir.space import MOVABLE
from fxmerge.ir.wide import outputs, values, widen
from passes.rules import BUILTIN
from passes.spaces.find import TolerancesOf
from passes.spaces.heads import within

TOLERANCE = 1e-9
"""Largest relative error of an output in float64."""

ROUNDS: tuple[tuple[Kind, ...], ...] = (("permutation",), ("permutation", "scale", "sign", "dense"))
"""What is drawn in each round: a permutation of every space, then everything its group holds."""


@dataclass(frozen=True)
class CheckReport:
    """How far the outputs moved."""

    ok: bool
    error: float
    """Largest error of an output, relative to its largest entry."""
    outputs: Mapping[str, float]
    spaces: int
    """Number of spaces that were transformed."""
    moved: float
    """Share of the parameters that were transformed."""
    first_bad: str | None = None
    """The first operator whose result moved otherwise than its axes predict, and its source line."""


def check(
    program: Program, rules: RuleSet = BUILTIN, seed: int = 0, inputs: Mapping[str, Tensor] | None = None
) -> CheckReport:
    """Transform every space at random and compare the outputs, in float64."""
    tolerances = program.get(TolerancesOf(rules))
    run = _Run(program, tolerances.inference, seed, inputs)
    before = run.outputs(run.tensors)
    errors = dict.fromkeys(before, 0.0)
    first_bad, moved = None, 0.0
    for number, kinds in enumerate(ROUNDS):
        element = Element(tolerances, within(tolerances), seed + number, kinds)
        changed = run.transformed(element)
        after = run.outputs(changed)
        for name, value in after.items():
            errors[name] = max(errors[name], Deviation.between(value, before[name]).error)
        if max(errors.values()) > TOLERANCE:
            first_bad = run.first_bad(changed, element)
            break
        moved = max(moved, _moved(run, changed))
    worst = max(errors.values(), default=0.0)
    spaces = sum(group in MOVABLE for group in tolerances.groups.values())
    return CheckReport(worst <= TOLERANCE, worst, errors, spaces, moved, first_bad)


def _moved(run: _Run, changed: Mapping[str, Tensor]) -> float:
    """Share of the parameters that changed; unused ones count as they were."""
    names = run.program.parameters
    moved = [n for n in names - run.inference.unused if not torch.equal(run.tensors[n], changed[n])]
    return sum(run.tensors[n].numel() for n in moved) / max(sum(run.tensors[n].numel() for n in names), 1)


class _Run:
    """A program's float64 copy, its tensors and inputs."""

    def __init__(self, program: Program, inference: Inference, seed: int, inputs: Mapping[str, Tensor] | None) -> None:
        self.program, self.inference = program, inference
        generator = torch.Generator().manual_seed(seed)
        self.tensors = {name: widen(tensor.detach()) for name, tensor in program.tensors.items()}
        for name in sorted(inference.transformed - program.parameters):
            self.tensors[name] = _unlike_fresh(self.tensors[name], generator)
        self.inputs = {name: widen(value) for name, value in (inputs or sample_inputs(program, generator)).items()}

    def transformed(self, element: Element) -> dict[str, Tensor]:
        """The tensors with every space transformed."""
        changed = dict(self.tensors)
        for name in sorted(self.inference.transformed & self.inference.tensors.keys()):
            changed[name] = element.act(self.tensors[name], self.inference.tensors[name])  # type: ignore[assignment]
        return changed

    def outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return outputs(self.program, tensors, self.inputs)

    def first_bad(self, changed: Mapping[str, Tensor], element: Element) -> str | None:
        """The first operator whose result is not what its axes predict."""
        pairs = zip(*(values(self.program, tensors, self.inputs) for tensors in (self.tensors, changed)), strict=True)
        for (node, before), (_, after) in pairs:
            for number, (x, y, axes) in enumerate(_sides(before, after, self.inference.values.get(node))):
                expected = element.act(x, axes)
                if expected is not None and Deviation.between(y, expected).error > TOLERANCE:
                    more = f", result {number}" if number else ""
                    what = str(node.target) if node.op == "get_attr" else operator_name(node)
                    return f"{what} ({node.name}{more}) at {node.meta.get('source') or 'an unknown line'}"
        return None


def _sides(before: Any, after: Any, axes: Any) -> Iterator[tuple[Tensor, Tensor, Any]]:
    if axes is None:
        return
    if isinstance(before, Tensor):
        yield before, after, axes
    elif isinstance(before, tuple | list):
        yield from ((x, y, a) for x, y, a in zip(before, after, axes, strict=True) if isinstance(x, Tensor))


def sample_inputs(program: Program, generator: torch.Generator) -> dict[str, Tensor]:
    """A few rows of the program's samples, as many as a fixed batch has; random inputs where it has none.

    Random integers are zeros and ones.
    """
    found = {}
    for port in program.inputs:
        shape = [program.hints[size] if isinstance(size, str) else size for size in port.shape]
        if port.name in program.samples:
            sample = program.samples[port.name]
            found[port.name] = _few(sample, program.rows) if port.shape and is_batch(port.shape[0]) else sample
        elif port.dtype.is_floating_point:
            found[port.name] = torch.randn(shape, generator=generator)
        else:
            found[port.name] = torch.randint(0, 2, shape, generator=generator).to(port.dtype)
    return found


def _few(sample: Tensor, rows: int | None) -> Tensor:
    return sample[:3] if rows is None else sample[torch.arange(rows) % len(sample)]


def _unlike_fresh(statistic: Tensor, generator: torch.Generator) -> Tensor:
    """A running statistic with random factors, and random shifts unless it is positive (as variances must stay)."""
    value = statistic * (torch.rand(statistic.shape, generator=generator, dtype=torch.float64) + 0.5)
    positive = bool((statistic > 0).all())
    return value if positive else value + torch.randn(statistic.shape, generator=generator, dtype=torch.float64) * 0.3
