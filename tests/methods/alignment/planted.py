"""Parents that are one another's symmetries: A, and A with every space transformed by an element of its group."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fxmerge.coupling.elements import Element, Kind
from fxmerge.ir.program import Program
from passes.spaces.find import TolerancesOf
from passes.spaces.heads import within


def planted(program: Program, kinds: Sequence[Kind] = ("permutation",), seed: int = 0, task: str = "b") -> Program:
    """The same function with other weights: every space transformed at random, by what `kinds` names of its group."""
    tolerances = program.get(TolerancesOf())
    element, inference = Element(tolerances, within(tolerances), seed, kinds), tolerances.inference
    tensors = dict(program.tensors)
    for name in inference.transformed & inference.tensors.keys():
        moved = element.act(tensors[name].detach().double(), inference.tensors[name])
        assert moved is not None
        tensors[name] = moved.to(tensors[name].dtype)
    return dataclasses.replace(program.evolve(tensors=tensors), task=task)
