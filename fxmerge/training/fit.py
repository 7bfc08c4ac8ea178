"""Train a student to give the features its teachers give, on a fixed pool of unlabeled inputs.

The one loop behind every trained method: the student is a SuperNet (only M, U and norms learn), a folded net, or a
plain net. The loss is what it misses of each feature by that feature's own measure, so 1 is what the best constant
answer gets. Teachers label the pool once; the student reads it as often as its steps need.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxmerge.errors import DataError, OptionError
from fxmerge.training.labels import SPREAD_ROWS, Labels, Targets
from fxmerge.training.pool import Part, Pool, parts
from fxmerge.training.resume import Interrupted, between_steps, keep, recall, restore
from fxmerge.training.settings import Group, Judge, Log, Progress, Settings, groups_of, silent

JUDGED = 20
"""About so often in a run the student is judged, where there is a judge."""
FREE = ("device", "optimizer", "memory", "chosen")
"""Settings that a kept run may be continued with others of; its optimizer is named beside."""


def fit(
    student: nn.Module,
    groups: Sequence[Group] | None,
    pool: Pool,
    targets: Targets,
    settings: Settings,
    progress: Progress = silent,
    state: Path | None = None,
    judge: Judge | None = None,
) -> Log:
    """Train the groups of the student (all that is trainable if None) in place; same seed, same bits.

    With `state`, Ctrl-C writes the run to that file and raises `Interrupted`; a call with the same arguments
    and the same file continues where it stopped and removes the file when done. `judge` is asked some times in a run,
    and changes nothing of it.
    """
    with labels_of(pool, targets, settings) as labels:
        return fit_labelled(student, groups, labels, settings, progress, state, judge)


def fit_labelled(
    student: nn.Module,
    groups: Sequence[Group] | None,
    labels: Labels,
    settings: Settings,
    progress: Progress = silent,
    state: Path | None = None,
    judge: Judge | None = None,
) -> Log:
    """`fit` on a pool whose teachers are at hand: for several students, each is labelled once."""
    _check(labels.pool, settings)
    device = torch.device(settings.device)
    home = next((p.device for p in student.parameters()), torch.device("cpu"))
    with _deterministic(device):
        try:
            student.to(device)
            enough = min(SPREAD_ROWS, max(256, 2 * settings.steps * settings.batch_size))
            labels.measure(enough, lambda done, total: progress(done, total, "parents' features"))
            run = _Run(student, groups or groups_of(student), labels, settings)
            if state is not None and state.exists():
                run.load(state)
            run.train(progress, state, judge)
        finally:
            student.to(home)
    if state is not None:
        state.unlink(missing_ok=True)
    return run.log()


@contextmanager
def labels_of(pool: Pool, targets: Targets, settings: Settings) -> Iterator[Labels]:
    """The teachers' features of a pool, as these settings ask for them; the teachers are where they were afterwards."""
    device = torch.device(settings.device)
    home = next((t.device for t in targets.teacher.parameters()), torch.device("cpu"))
    try:
        yield Labels(pool, targets, device, settings.dtype, settings.memory, settings.batch_size)
    finally:
        targets.teacher.to(home)


def score(student: nn.Module, pool: Pool, targets: Targets, settings: Settings) -> tuple[float, ...]:
    """Of every feature over the pool, one less its error by its measure: 1 is perfect, 0 the best constant answer."""
    with labels_of(pool, targets, settings) as labels:
        return score_labelled(student, labels, settings)


@torch.no_grad()
def score_labelled(student: nn.Module, labels: Labels, settings: Settings) -> tuple[float, ...]:
    """`score` on a pool whose teachers are at hand."""
    labels.measure(rows=None)
    pool, errors = labels.pool, [0.0] * len(labels.measures)
    home = next((p.device for p in student.parameters()), torch.device("cpu"))
    try:
        student.to(settings.device)
        for table, number in pool.blocks():
            everything = torch.arange(len(labels.block(table, number).inputs[0]))
            for rows in torch.split(everything, settings.batch_size):
                found = _errors(student, Part(table, number, rows), labels, settings)
                errors = [e + float(f) * len(rows) / pool.rows for e, f in zip(errors, found, strict=True)]
    finally:
        student.to(home)
    return tuple(1 - error for error in errors)


class _Run:
    """One training run: the student, its optimizer and what was logged so far."""

    def __init__(self, student: nn.Module, groups: Sequence[Group], labels: Labels, settings: Settings) -> None:
        self.student, self.pool, self.labels, self.settings = student, labels.pool, labels, settings
        names = {id(p): name for name, p in student.named_parameters()}
        parameters = [p for group in groups for p in group.parameters]
        if not parameters:
            raise OptionError("there is nothing to train", "give at least one trainable parameter")
        self.trained = {names.get(id(p), f"parameter {i}"): p for i, p in enumerate(parameters)}
        self.untouched = set(self.trained)
        self.losses: list[float] = []
        self.held_back: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.rates = [settings.lr * group.rate for group in groups]
        self.optimizer = settings.optimizer([self._param_group(group) for group in groups])

    def _param_group(self, group: Group) -> dict[str, Any]:
        decay = self.settings.weight_decay if group.decay else 0.0
        return {
            "params": list(group.parameters),
            "lr": self.settings.lr * group.rate,
            "weight_decay": decay,
            "matrices": group.matrices,
        }

    def train(self, progress: Progress, state: Path | None, judge: Judge | None) -> None:
        total = self.settings.steps
        often = max(1, total // JUDGED)
        try:
            with between_steps() as pause:
                while len(self.losses) < total:
                    start, labelling = time.perf_counter(), self.labels.seconds
                    self.losses.append(self.step(len(self.losses)))
                    self.seconds += time.perf_counter() - start - (self.labels.seconds - labelling)
                    self._tell(progress)
                    if judge is not None and (len(self.losses) % often == 0 or len(self.losses) == total):
                        self.held_back.append((len(self.losses), judge(self.student)))
                        progress(len(self.losses), total, self._said(), held_back=1 - self.held_back[-1][1])
                    pause()
        except KeyboardInterrupt:
            if state is not None:
                keep(state, self.identity(), self.state())
            raise Interrupted(len(self.losses), total, state) from None

    def _said(self) -> str:
        held = f", held back {self.held_back[-1][1]:.3f}" if self.held_back else ""
        return f"train, loss {self.losses[-1]:.3f}{held}"

    def _tell(self, progress: Progress) -> None:
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        done, total = len(self.losses), self.settings.steps
        progress(done, total, self._said(), loss=self.losses[-1], lr=lr, rate=done / self.seconds)

    def step(self, step: int) -> float:
        """One update; its loss is the weighted mean over the features."""
        taken = parts(self.pool, step, self.settings.batch_size, self.settings.seed)
        total = sum(len(part.rows) for part in taken)
        value = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for part in taken:
            errors = torch.stack(_errors(self.student, part, self.labels, self.settings))
            loss = (errors * errors.new_tensor(self.labels.weights)).sum() * (len(part.rows) / total)
            value += float(loss.detach()) / sum(self.labels.weights)
            torch.autograd.backward(loss)
        if not math.isfinite(value):
            raise OptionError(
                f"training diverged: the loss of step {step + 1} is {value}",
                f"use a learning rate below {self.settings.lr:g}",
            )
        self.untouched = {n for n in self.untouched if (g := self.trained[n].grad) is None or not bool(g.any())}
        for name in self.untouched:  # nor does weight decay move what no gradient has reached yet
            self.trained[name].grad = None
        factor = one_cycle(step, self.settings.steps, self.settings.warmup)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        return value

    def log(self) -> Log:
        rate = len(self.losses) * self.settings.batch_size / self.seconds
        untouched = tuple(name for name in self.trained if name in self.untouched)
        return Log(
            tuple(self.losses), self.seconds, self.labels.seconds, rate, untouched, self.labels.constant,
            tuple(self.held_back), self.labels.made,
        )  # fmt: skip

    # -- keeping and resuming --------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What must be equal for a kept state to be this run's."""
        kept = {f.name: getattr(self.settings, f.name) for f in fields(self.settings) if f.name not in FREE}
        return {
            "settings": repr(kept) + type(self.optimizer).__name__,
            "parameters": {name: list(p.shape) for name, p in self.trained.items()},
            "samples": repr(self.pool.identity()),
            "chosen": dict(self.settings.chosen),
        }

    def state(self) -> dict[str, Any]:
        return {
            "weights": {name: p.detach().cpu() for name, p in self.trained.items()},
            "buffers": {name: b.cpu() for name, b in self.student.named_buffers()},
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "held_back": [float(value) for pair in self.held_back for value in pair],
            "untouched": sorted(self.untouched),
            "seconds": self.seconds,
        }

    def load(self, path: Path) -> None:
        own = self.state()
        kept = recall(path, self.identity(), {name: own[name] for name in own if name != "optimizer"})
        with torch.no_grad():
            for name, value in kept["weights"].items():
                self.trained[name].copy_(value)
            for name, buffer in self.student.named_buffers():
                buffer.copy_(kept["buffers"][name])
        restore(self.optimizer, kept.get("optimizer"), path)
        self.losses, self.seconds, self.untouched = kept["losses"], kept["seconds"], set(kept["untouched"])
        self.held_back = [
            (round(step), loss) for step, loss in zip(kept["held_back"][::2], kept["held_back"][1::2], strict=True)
        ]


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at a step: a cosine from 1/25 up to 1 and then down to almost 0."""
    top = warmup * steps
    rising = step < top
    place = step / top if rising else (steps - step) / (steps - top)
    low = 0.04 if rising else 1e-4
    return low + (1 - low) * (1 - math.cos(math.pi * place)) / 2


def _errors(student: nn.Module, part: Part, labels: Labels, settings: Settings) -> list[Tensor]:
    """What the student misses of every feature on rows of a block, by its measure."""
    device = torch.device(settings.device)
    block = labels.block(part.table, part.number)
    inputs = [value[part.rows].to(device) for value in block.inputs]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.dtype == torch.bfloat16):
        given = student(*inputs)
    errors = []
    for i, (mine, theirs) in enumerate(zip(given, block.features, strict=True)):
        pair = (labels.rows_first(i, mine, len(part.rows)), theirs[part.rows].to(device))
        ours, wanted = (labels.places(i, value, inputs) for value in pair)
        errors.append(labels.measures[i].error(ours, wanted))
    return errors


def _check(pool: Pool, settings: Settings) -> None:
    if settings.steps < 1 or settings.batch_size < 1:
        raise OptionError(
            f"{settings.steps} steps of {settings.batch_size} inputs train nothing", "both must be at least 1"
        )
    if pool.rows < settings.batch_size:
        raise DataError(
            f"{pool.rows} inputs are fewer than one batch of {settings.batch_size}",
            f"give more samples, leave augmentation on, or use a batch size up to {pool.rows}",
        )


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, choose kernels that give the same result every time. On a CPU all do."""
    before = torch.are_deterministic_algorithms_enabled()
    if device.type != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
