"""Parents that are one another's symmetries: A, and A with every space transformed by an element of its group."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fxmerge.coupling.elements import Element, Kind
from fxmerge.ir.program import Program
from passes.spaces.find import TolerancesOf
from passes.spaces.heads import within


def planted(
    program: Program,
    kinds: Sequence[Kind] = ("permutation",),
    seed: int = 0,
    task: str = "b",
    *,
    stretched: bool = True,
) -> Program:
    """The same function with other weights: every space transformed at random, by what `kinds` names of its group.

    Dense maps are turns alone unless `stretched`.
    """
    tolerances = program.get(TolerancesOf())
    turns = {cls: "orthogonal" if group == "invertible" else group for cls, group in tolerances.groups.items()}
    groups = tolerances.groups if stretched else turns
    element, inference = Element(tolerances, within(tolerances), seed, kinds, groups), tolerances.inference
    tensors = dict(program.tensors)
    for name in sorted(inference.transformed & inference.tensors.keys()):
        moved = element.act(tensors[name].detach().double(), inference.tensors[name])
        assert moved is not None
        tensors[name] = moved.to(tensors[name].dtype)
    return dataclasses.replace(program.evolve(tensors=tensors), task=task)
