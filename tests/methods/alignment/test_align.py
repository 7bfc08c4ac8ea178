"""Learned elements: in their groups whatever their parameters are, and never worse than what they start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fxmerge
from fxmerge.ir.program import Program
from fxmerge.methods import align
from fxmerge.methods.alignment.learned import Elements, cayley
from fxmerge.methods.alignment.maps import aligned
from fxmerge.methods.average import AVERAGE
from fxmerge.methods.base import Job, Outcome
from tests.methods.test_condense import parent


def drawn(elements: Elements, seed: int = 0) -> Elements:
    """Elements at random places of their groups."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in elements.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return elements


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What the merges of a test gave to the method, which did nothing."""
    found: list[Job] = []

    def call(self: align.Align, job: Job) -> Outcome:
        found.append(job)
        return AVERAGE(job)

    monkeypatch.setattr(align.Align, "__call__", call)
    return found


@pytest.mark.parametrize(("family", "count"), [("vit-fused", 2), ("resnet", 2), ("mlp", 3)])
def test_every_element_leaves_every_parent_as_it_is(
    family: str, count: int, jobs: list[Job], double: Callable[[Program], Program]
) -> None:
    x: dict[str, Tensor] = {}
    parents = []
    for k in range(count):
        program, x = parent(family, k + 1, "abc"[k])
        parents.append(program)
    fxmerge.merge(parents, data=x, method="align")
    job = dataclasses.replace(jobs[0], supernet=jobs[0].supernet.with_program(double(jobs[0].supernet.program)))
    for _, block in job.supernet.maps():
        block.dtype = torch.float64
    with torch.no_grad():
        alignment = drawn(Elements(align.begun("permute", job)))()
    given = {name: value[:8].double() if value.is_floating_point() else value[:8] for name, value in x.items()}
    for k, program in enumerate(parents):
        alone = aligned(alignment, "fixed", weights=[float(k == i) for i in range(count)]).program
        found = alone.run(dict(zip(job.supernet.inputs[k], given.values(), strict=True)))
        for name, value in double(program).run(given).items():
            torch.testing.assert_close(found[f"{program.task}.{name}"], value, rtol=1e-9, atol=1e-9)


def test_cayley_turns() -> None:
    turn = cayley(torch.randn(3, 5, 5, dtype=torch.float64))
    torch.testing.assert_close(turn @ turn.mT, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))
    assert torch.equal(cayley(torch.zeros(4, 4)), torch.eye(4))
