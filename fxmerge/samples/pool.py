"""The pool of a merge: unlabeled inputs of all tasks, augmented, in the order in which a SuperNet takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.student import pool_of
from fxmerge.samples import augment as augmentation
from fxmerge.training.labels import Pool

Samples = dict[str, Tensor]

POOL = 12_800
"""Rows after augmentation, unless asked otherwise."""


@dataclass(frozen=True)
class Recipe:
    """What the user can say about the pool."""

    kind: str = "auto"
    rows: int | None = None
    seed: int = 0


def build_pool(supernet: SuperNet, samples: Sequence[Samples], recipe: Recipe) -> tuple[Pool, dict[str, Any]]:
    """Augmented inputs, and how they were made, for the result.

    Of all tasks together, or row beside row where tasks have inputs of their own.
    """
    given = [supernet.given(k, own) for k, own in enumerate(samples)]
    groups = [given] if supernet.together else [[own] for own in given]
    count = min(augmentation.room(own, recipe.rows or POOL) for own in given)
    inputs: Samples = {}
    for tasks, parent in zip(groups, supernet.parents, strict=False):
        kind = _kind(tasks, parent, recipe)
        inputs |= augmentation.augment(tasks, kind, count, recipe.seed)
    fewest = min(len(next(iter(task.values()))) for task in groups[-1])
    steps = [] if kind == "none" else list(augmentation.recipe(kind, fewest))
    rows = min(len(value) for value in inputs.values())
    pool = pool_of(supernet.program, {name: value[:rows] for name, value in inputs.items()})
    return pool, {"kind": kind, "steps": steps, "pool": pool.rows}


def _kind(tasks: Sequence[Samples], parent: Program, recipe: Recipe) -> str:
    if recipe.kind != "auto":
        return recipe.kind
    ports = [replace(port, name=name) for port, name in zip(parent.inputs, tasks[0], strict=True)]
    return augmentation.kind_of(ports, tasks[0])
