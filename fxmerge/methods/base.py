"""What a method is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from fxmerge.ir.maps import Form
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.mixing import Mixed
from fxmerge.methods.one_base import Nearness
from fxmerge.methods.wanted import Loss
from fxmerge.training.optimizers import Choice
from fxmerge.training.pool import Pool
from fxmerge.training.settings import Log, Progress, Settings


class Init(Protocol):
    """A way to fill the maps before training."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def __call__(self, job: Job, form: Form) -> SuperNet:
        """The SuperNet with its maps and its own tensors set, trainable in this form."""
        ...


@dataclass(frozen=True)
class Trained:
    """Options of every method that trains; its fields are its options, and a method adds its own by deriving from it.

    `foldable{steps=100,init=first}` as text, `--steps 100 --init first` as flags.
    """

    init: str = "auto"
    """What training starts from."""
    inner: float = 0.0
    """Weight of the inner features in the loss, beside the final ones' weight of one."""
    augment: Literal["auto", "none", "image", "tokens", "vector", "written"] = "auto"
    pool: int | None = None
    """Samples a task after augmentation."""
    steps: int = 600
    batch_size: int | None = None
    """None for what is usual for the kind of outputs."""
    lr: float | None = 3e-3
    """None where trials choose it."""
    weight_decay: float = 1e-3
    optimizer: Choice = "adamw"
    loss: Loss = "features"
    """What is compared: final features of everything, or ("auto") what fits the kind of each output."""
    dtype: Literal["float32", "bfloat16"] = "float32"


class Pools(Protocol):
    """The pools that can be made from the samples: one for each kind of augmentation."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The likeliest first."""
        ...

    @property
    def samples(self) -> Sequence[Mapping[str, Tensor]]:
        """Of every parent, by its own input names: as they were given."""
        ...

    @property
    def triable(self) -> bool:
        """Whether there are samples enough to hold some back."""
        ...

    def trial(self, kind: str, share: float) -> Pool:
        """For a trial of this share of the steps."""
        ...

    @property
    def held_back(self) -> int:
        """How many samples of a task are held back from trials: of the task with fewest."""
        ...

    def held(self) -> Pool:
        """What trials are judged by."""
        ...

    def held_of(self, k: int) -> Pool | None:
        """The same of task k alone; None where rows are of all tasks at once."""
        ...

    def pool(self, kind: str, steps: int | None = None) -> Pool:
        """Of all samples, for a run of so many steps."""
        ...


@dataclass(frozen=True)
class Job:
    """One merge: the SuperNet, the inputs, and the passes a method may need."""

    supernet: SuperNet
    pool: Pool | None
    """Unlabeled inputs, augmented; made as they are read. None without data."""
    settings: Settings
    options: Trained
    hoist: Callable[[Program], Program]
    """The same function with maps applied where that costs least."""
    fold_trunk: Callable[[Program], Program]
    """What all parents share folded into ordinary trainable weights; heads keep their unmerge maps."""
    progress: Progress
    state: Path | None = None
    """Where an interrupted run keeps its state."""
    notes: list[str] = field(default_factory=list)
    held: Pool | None = None
    """Inputs that nothing trains on, where a run is watched: its loss on them is told beside the training loss."""
    pools: Pools | None = None
    """Other pools of the same samples, where the kind of augmentation is left to a trial."""
    base: Callable[[], Mapping[str, Tensor]] | None = None
    """The trunk of the model that the parents were tuned from, by the template's names; None if it was not given."""
    near: Nearness | None = None
    """How near the parents' weights are."""
    classes: Callable[[int, str, Tensor], int | None] = lambda k, output, value: None
    """The axis along which values of an output of parent k are scores of classes; None for other outputs."""


@dataclass(frozen=True)
class Stage:
    """The merge as it was when a stage was done, for its figures."""

    name: str
    program: Program


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
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    """How the inputs were varied that it was trained on."""
    stages: tuple[Stage, ...] = ()
    """Where there was more than one: every stage, the last one too."""
    mixed: tuple[Mixed, ...] = ()
    """How the maps that the result came from mix the parents, where the SuperNet may hold others by now."""
    solved: frozenset[str] = frozenset()
    """The SuperNet's own tensors that are no plain average, though nothing is trained."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What trials chose, and their errors."""
    groups: Mapping[str, str] | None = None
    """By space the group that holds its maps, as `groups_of` says; None where `program` holds the maps themselves."""
    began: Mapping[str, str] | None = None
    """The same of what was trained or solved from there on; None where maps are the whole result."""
    behind: bool = False
    """Whether weights were changed behind the fold, so that `groups` can only be those of the start."""


class Method(Protocol):
    """A way to fill the maps of a SuperNet. If it is a frozen dataclass, its fields are its options.

    One that trains may have a `plan(job)` beside: the outcome before any training, for a dry run, from a job without
    inputs. `about`, an `About`, says what `fxmerge methods` prints beside the summary; it may be left out.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """One line for `fxmerge methods`."""
        ...

    @property
    def needs_data(self) -> bool: ...

    def __call__(self, job: Job) -> Outcome: ...


def by_name(inputs: Mapping[str, Tensor], program: Program) -> tuple[Tensor, ...]:
    """Inputs in the order of a program's ports."""
    return tuple(inputs[port.name] for port in program.inputs)
