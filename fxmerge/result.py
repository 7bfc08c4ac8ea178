"""What a merge found out about itself, as values; `Result.as_dict` is what `--result` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fxmerge.from_onnx.metadata import Answer
from fxmerge.ir.difference import Difference
from fxmerge.training.settings import Log


@dataclass(frozen=True)
class ParentFacts:
    """A parent: its task, where it came from, what it was."""

    task: str
    source: str | None
    sha256: str
    parameters: int
    license: str | None = None
    """What its folder says, in its card or config."""
    role: Literal["merged", "teacher"] = "merged"
    """Whether its weights are in the merged model, or the template's weights only learnt its outputs."""


@dataclass(frozen=True)
class MergedFacts:
    """The merged model in numbers."""

    parameters: int
    spaces: int
    opaque_axes: int
    trainable: int = 0
    averaged: int = 0
    """Parameters that were merged as a plain average."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """By space: the smallest group that holds its maps, before weights were changed behind the fold."""
    groups_at_start: Mapping[str, str] = field(default_factory=dict)
    """The same of what training began with; none where nothing was trained."""
    groups_of: Literal["result", "start"] = "result"
    """Whether `groups` are those of the result, or of a start whose weights were changed behind the fold."""
    outputs: tuple[str, ...] = ()
    """Names of its outputs."""
    size: float = 0.0
    """Its parameters, in those of the parent whose shape it has."""
    shared_until: str | None = None
    """The last block that all tasks share, "input" for none; None where they share all but their heads."""
    apart: tuple[str, ...] = ()
    """The blocks of which every task has its own."""


@dataclass(frozen=True)
class Point:
    """A size, and what is kept of the parents at it."""

    shared_until: str
    size: float
    """Parameters, in those of the parent whose shape the model has."""
    parameters: int
    method: str
    kept: float | None = None
    """Agreement of the task that is kept least; R² of outputs that are no class scores."""
    error: float | None = None
    """Of the outputs, relative to their spread, mean over all."""


@dataclass(frozen=True)
class TaskFigures:
    """How well one task is kept."""

    task: str
    samples: int
    held_back: int
    skipped: int = 0
    """Broken files and rows of samples that were left out."""
    agreement: float | None = None
    feature_r2: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    """R² on held-back samples after each stage."""
    outputs: Sequence[Mapping[str, Any]] = ()
    """How well each output is kept."""


@dataclass(frozen=True)
class OutputChecks:
    """Largest differences of one output, relative to its spread; None where there was nothing to compare."""

    rewrite: float | None = None
    """The parent as it was given, and as it was rewritten."""
    fold: float | None = None
    """The trained SuperNet, and the folded model."""
    onnx: float | None = None
    """The folded model, and what ONNX Runtime makes of the written one."""
    written: float | None = None
    """The folded model, and what was written, read back."""


@dataclass(frozen=True)
class Checks:
    """What was verified, by "TASK.OUTPUT"."""

    outputs: Mapping[str, OutputChecks]
    all_gradients: bool | None = None

    @classmethod
    def of(
        cls, rewrite: Mapping[str, Difference], fold: Mapping[str, Difference], all_gradients: bool | None
    ) -> Checks:
        both = {name: OutputChecks(_relative(rewrite, name), _relative(fold, name)) for name in fold}
        return cls(both, all_gradients)

    def with_outputs(self, fold: Mapping[str, Difference]) -> Checks:
        """These, and outputs that were added behind the fold."""
        added = {name: OutputChecks(fold=found.relative) for name, found in fold.items()}
        return Checks({**self.outputs, **added}, self.all_gradients)

    def with_written(self, found: Mapping[str, Difference], onnx: bool) -> Checks:
        """These, and what the written file computes when it is read back."""
        outputs = {}
        for name, each in self.outputs.items():
            gap = _relative(found, name)
            outputs[name] = OutputChecks(each.rewrite, each.fold, gap if onnx else None, gap)
        return Checks(outputs, self.all_gradients)

    def largest(self, check: str) -> float | None:
        """The largest difference of any output in one check."""
        return max((v for v in (getattr(each, check) for each in self.outputs.values()) if v is not None), default=None)

    def as_dict(self) -> dict[str, Any]:
        return {
            "fold_max_abs": self.largest("fold"),
            "onnx_max_abs": self.largest("onnx"),
            "rewrite_max_abs": self.largest("rewrite"),
            "written_max_abs": self.largest("written"),
            "all_gradients": self.all_gradients,
            "outputs": {name: asdict(each) for name, each in self.outputs.items()},
        }


def _relative(found: Mapping[str, Difference], name: str) -> float | None:
    return found[name].relative if name in found else None


@dataclass(frozen=True)
class Training:
    """How training went."""

    steps: int
    loss_first: float
    loss_last: float
    losses: Sequence[float]
    """At most a hundred or so of them, over all steps."""
    samples_per_second: float
    held_back: Sequence[tuple[int, float]] = ()
    """(step, loss on samples that nothing trains on), of a run with `--log` or `--report`."""
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What trials chose, and their errors on held-back samples."""

    @classmethod
    def of(cls, log: Log, augmentation: Mapping[str, Any], chosen: Mapping[str, Any]) -> Training:
        losses = tuple(round(loss, 6) for loss in log.losses[:: max(1, len(log.losses) // 100)])
        held = tuple((step, round(loss, 6)) for step, loss in log.held_back)
        return cls(log.steps, log.loss_first, log.loss_last, losses, log.samples_per_second, held, augmentation, chosen)


@dataclass(frozen=True)
class Estimate:
    """What a merge will take, about: nothing of samples that are read lazily, nor of what is written."""

    seconds: float
    memory_mib: int

    @property
    def told(self) -> str:
        """The same in words."""
        whole = round(self.seconds)
        took = f"{self.seconds:.2g} s" if whole < 10 else f"{whole} s" if whole < 120 else f"{whole / 60:.0f} min"
        return f"about {took} of training and {self.memory_mib:,} MiB, by one step that was timed on this machine"


@dataclass(frozen=True)
class Gate:
    """The output that says which task a row belongs to."""

    output: str
    tasks: tuple[str, ...]
    """In the order of its probabilities."""
    after: str
    """The block whose result it reads."""
    features: int = 0
    accuracy: float | None = None
    """Share of held-back samples whose task it names, mean over tasks; None of a dry run."""
    by_task: Mapping[str, float] = field(default_factory=dict)
    held_back: int = 0
    """Samples of all tasks that measured it; of none where there were too few, and cross-validation did."""
    tried: Mapping[str, float] = field(default_factory=dict)
    """Accuracy by cross-validation behind each block that was tried."""
    answers: tuple[Answer, ...] = ()
    """None without --answer."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """Of a model with answers: numbers that several tasks share ("shared"), and each task's own set beside."""
    latency: Mapping[str, float] = field(default_factory=dict)
    """Of a model with answers: milliseconds of the gate, each task alone, each answer, and all outputs."""
    rows: int = 0
    """How many rows these are for."""


@dataclass(frozen=True)
class Result:
    """Everything that `--result` and the report say of a merge."""

    fxmerge: str
    method: str
    init: str
    seed: int
    out: str | None
    parents: tuple[ParentFacts, ...]
    merged: MergedFacts
    tasks: tuple[TaskFigures, ...] = ()
    checks: Checks | None = None
    """None of a dry run."""
    training: Training | None = None
    """None of a method without training."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Whether the parents share a base, by how near their weights are."""
    post: tuple[Mapping[str, Any], ...] = ()
    """What each step behind the merge changed (by name, and by how much) and left as it was (and why)."""
    gate: Gate | None = None
    """None without --gate."""
    estimate: Estimate | None = None
    """Of a dry run alone."""
    curve: tuple[Point, ...] = ()
    """From the smallest model to the largest; of a dry run the sizes alone."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, as in a file for `--config`; the rest was left at its default."""
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss_mib: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, key by key as documented."""
        return {
            "fxmerge": self.fxmerge,
            "method": self.method,
            "init": self.init,
            "seed": self.seed,
            "out": self.out,
            "parents": [asdict(parent) for parent in self.parents],
            "merged": asdict(self.merged),
            "tasks": [asdict(task) for task in self.tasks],
            "checks": self.checks.as_dict() if self.checks else {},
            "training": asdict(self.training) if self.training else {},
            "base": dict(self.base),
            "post": [dict(did) for did in self.post],
            "gate": asdict(self.gate) if self.gate else {},
            "estimate": asdict(self.estimate) if self.estimate else {},
            "curve": [asdict(point) for point in self.curve],
            "options": dict(self.options),
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
            "peak_rss_mib": self.peak_rss_mib,
        }
