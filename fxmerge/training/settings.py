"""How a run of training is asked for, what is told while it lasts, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from fxmerge.training.optimizers import OptimizerFactory, adamw


class Progress(Protocol):
    """What is told how far work has come: `done` of `total`, a few words, and what it measures by name."""

    def __call__(self, done: int, total: int, message: str, **values: float) -> None: ...


def silent(done: int, total: int, message: str, **values: float) -> None:
    """Progress that nobody watches."""


Judge = Callable[[nn.Module], float]
"""The loss of a student on samples that it is not trained on."""


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike: at `rate` times the settings' lr, with or without weight decay."""

    parameters: tuple[nn.Parameter, ...]
    rate: float = 1.0
    decay: bool = True
    matrices: bool = False
    """Whether they map one space to another: not so vectors, and tables that are looked up."""


@dataclass(frozen=True)
class Settings:
    """How to train. `lr` is the peak of a one-cycle schedule that rises over the share `warmup` of the steps."""

    steps: int = 600
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-3
    warmup: float = 0.3
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """float32, or bfloat16 for mixed precision; float64 asks for a student and a pool of float64."""
    memory: int = 1 << 30
    """Bytes that inputs and teachers' features may take together; what does not fit is made again when it is read."""
    optimizer: OptimizerFactory = adamw
    chosen: Mapping[str, str | float] = field(default_factory=dict)
    """What trials chose, by name: kept with the state of an interrupted run, which goes on without them."""


@dataclass(frozen=True)
class Log:
    """What a training run did. `seconds` and `samples_per_second` are of the steps, without the labelling."""

    losses: tuple[float, ...]
    seconds: float
    label_seconds: float
    samples_per_second: float
    untouched: tuple[str, ...] = ()
    """Trained parameters that never received a gradient other than zero, by the student's names."""
    constant: tuple[bool, ...] = ()
    """For every feature, whether it has one value for all inputs."""
    held_back: tuple[tuple[int, float], ...] = ()
    """(steps, loss on samples that are not trained on), some times in a run; nothing unless it is measured."""
    labelled: int = 0
    """Rows that `label_seconds` went into."""

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def loss_first(self) -> float:
        return self.losses[0]

    @property
    def loss_last(self) -> float:
        """Mean over the last twenty steps."""
        last = self.losses[-20:]
        return sum(last) / len(last)


def groups_of(student: nn.Module, tables: Collection[str] = ()) -> tuple[Group, ...]:
    """The student's trainable parameters: matrices with weight decay, vectors (norms, biases) without.

    `tables` are names of parameters that are looked up, not multiplied with.
    """
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    wide = tuple(p for name, p in trained.items() if p.dim() > 1 and name not in tables)
    looked_up = tuple(p for name, p in trained.items() if p.dim() > 1 and name in tables)
    vectors = tuple(p for p in trained.values() if p.dim() <= 1)
    groups = (Group(wide, matrices=True), Group(looked_up), Group(vectors, decay=False))
    return tuple(group for group in groups if group.parameters)
