"""What a method is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import Feature, SuperNet
from fxmerge.training.fit import Log, Pool, Progress, Settings


class Init(Protocol):
    """A way to fill the maps before training; an alignment method is one too."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def __call__(self, supernet: SuperNet) -> tuple[float, ...]:
        """The weight of every parent in the average that the maps start from."""
        ...


@dataclass(frozen=True)
class Options:
    """What the user can say about a method, beside the training settings."""

    init: str = "average"
    rank: int | None = None
    """Rank of low-rank maps; 0 for diagonal ones; None for full ones."""
    inner: float = 0.0
    """Weight of the inner features in the loss, beside the final ones' weight of one."""


@dataclass(frozen=True)
class Job:
    """One merge: the SuperNet, the inputs, and the passes a method may need."""

    supernet: SuperNet
    pool: Pool | None
    """Unlabeled inputs, augmented; None without data."""
    settings: Settings
    options: Options
    hoist: Callable[[Program], Program]
    """The same function with maps applied where that costs least."""
    fold_trunk: Callable[[Program], Program]
    """What all parents share folded into ordinary trainable weights; heads keep their unmerge maps."""
    progress: Progress
    state: Path | None = None
    """Where an interrupted run keeps its state."""
    notes: list[str] = field(default_factory=list)

    def wanted(self) -> tuple[Feature, ...]:
        """The features that the loss compares."""
        return self.supernet.feature_ports(final_only=self.options.inner == 0)


@dataclass(frozen=True)
class Outcome:
    """The merged model before its last fold: `program` still may hold merge and unmerge nodes."""

    program: Program
    init: str
    log: Log | None = None
    student: nn.Module | None = None
    trainable: int = 0
    unreached: tuple[str, ...] = ()
    """Maps, or weights, that no gradient reached."""


class Method(Protocol):
    """A way to fill the maps of a SuperNet."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """One line for `fxmerge methods`, with the paper."""
        ...

    @property
    def needs_data(self) -> bool: ...

    def __call__(self, job: Job) -> Outcome: ...


def by_name(inputs: Mapping[str, Tensor], program: Program) -> tuple[Tensor, ...]:
    """Inputs in the order of a program's ports."""
    return tuple(inputs[port.name] for port in program.inputs)
