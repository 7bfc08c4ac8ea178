"""Progress bars: for work that takes longer than two seconds, on a terminal, with rate and time left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

PATIENCE = 2.0
"""Seconds before a bar appears."""


class Tell(Protocol):
    """What work calls to say how far it has come: `done` of `total`, and a few words."""

    def __call__(self, done: int, total: int, message: str = "") -> None: ...


class Bars:
    """One bar at a time: `stage` opens it, a call moves it. A stage that is never moved has a spinner and its time.

    with bars.stage("train"):
        bars(10, 600, "loss 0.42")
    """

    def __init__(self, console: Console | None = None, *, patience: float = PATIENCE, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.patience = patience
        self.shown = self.console.is_terminal and not quiet
        self.open: list[tuple[Progress, TaskID]] = []

    def __call__(self, done: int, total: int, message: str = "") -> None:
        if self.open:
            bar, task = self.open[-1]
            bar.update(task, completed=done, total=total or None, message=message)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if not self.shown or self.open:  # a stage inside another moves the outer one's bar
            yield
            return
        bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), _Rate(), TimeElapsedColumn(),
            TextColumn("{task.fields[message]}", style="dim"), console=self.console, transient=True,
        )  # fmt: skip
        self.open.append((bar, bar.add_task(name, total=None, message="")))
        late = threading.Timer(self.patience, bar.start)
        late.daemon = True
        late.start()
        try:
            yield
        finally:
            late.cancel()
            late.join()  # it may be starting the display just now
            bar.stop()
            self.open.pop()


def stage(progress: object, name: str) -> AbstractContextManager[None]:
    """The stage `name` of whatever is told of progress, if it knows stages."""
    known = getattr(progress, "stage", None)
    return known(name) if known else nullcontext()


class _Rate(ProgressColumn):
    """ "120/600 · 31.2/s · 15 s left"."""

    def render(self, task: Task) -> Text:
        if not task.total:
            return Text("")
        parts = [f"{task.completed:.0f}/{task.total:.0f}"]
        if task.speed:
            parts.append(f"{task.speed:.3g}/s")
        if task.time_remaining is not None:
            parts.append(f"{duration(task.time_remaining)} left")
        return Text(" · ".join(parts), style="cyan")


def duration(seconds: float) -> str:
    """A time span as people say it: "0.4 s", "38 s", "4 min 10 s", "1 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
