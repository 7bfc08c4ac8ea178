"""What a step behind a merge is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fxmerge.coupling import RuleSet
from fxmerge.ir.program import Program
from fxmerge.methods.base import Job

ROWS = 1000
"""Samples of a task that are looked at."""


@dataclass(frozen=True)
class Merge:
    """A merge that is done: its trunk is folded into ordinary weights, the tasks' heads keep their unmerge maps."""

    job: Job
    program: Program
    rules: RuleSet
    trained: bool
    """Whether weights were trained behind the fold, so that no map says what a unit of the trunk is made of."""


@dataclass(frozen=True)
class Done:
    """The program afterwards, and what stands of the step in the result."""

    program: Program
    changed: Mapping[str, Any] = field(default_factory=dict)
    """What was changed, by its name in the merged model, and by how much."""
    left: Mapping[str, str] = field(default_factory=dict)
    """What was left as it was, and why."""


class Step(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def __call__(self, merge: Merge) -> Done: ...
