"""Progress of work that takes longer than two seconds, with rate and time left: bars on a terminal, else lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from fxmerge.stages import Stages, Tell

PATIENCE = 2.0
"""Seconds before a bar appears, or a line says that a stage is done."""
LINE_EVERY = 10.0
"""Seconds before the first line that says how far a stage is; the next ones take half as long as all before."""


class Bars(Stages):
    """Stages as bars on a terminal; a stage that tells nothing has a spinner and its time."""

    def __init__(self, console: Console | None = None, patience: float = PATIENCE, name: str = "") -> None:
        """`name`: of the work as a whole, in front of every stage's."""
        super().__init__()
        self.name = name
        self.console = console or Console(stderr=True)
        self.patience = patience

    @contextmanager
    def show(self, name: str) -> Iterator[Tell]:
        if not self.console.is_terminal:
            lines = _Lines(self.console, f"{self.name} {name}".strip(), self.patience)
            yield lines.tell
            lines.done()
            return
        whole, cut = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis")
        bars = Progress(
            SpinnerColumn(), TextColumn("{task.description}", table_column=whole), BarColumn(bar_width=12),
            _Rate(table_column=whole), TimeElapsedColumn(table_column=whole),
            TextColumn("{task.fields[message]}", style="dim", table_column=cut), console=self.console, transient=True,
        )  # fmt: skip
        task = bars.add_task(f"{self.name} {name}".strip(), total=None, message="")
        late = threading.Timer(self.patience, bars.start)
        late.daemon = True
        late.start()

        def tell(done: int, total: int, message: str = "", **values: float) -> None:
            bars.update(task, completed=done, total=total or None, message=message)

        try:
            yield tell
        finally:
            late.cancel()
            late.join()  # it may be starting the display just now
            bars.stop()


class _Lines:
    """Lines for a log: how far after a while and then ever more seldom, and how long the stage took in the end."""

    def __init__(self, console: Console, name: str, patience: float) -> None:
        self.console, self.name, self.patience = console, name, patience
        self.begun = self.since = time.perf_counter()
        self.next = LINE_EVERY if patience else 0.0
        self.total = self.first = self.last = 0
        """Of how many, how many were done when that began, and how many were last."""

    def tell(self, done: int, total: int, message: str = "", **values: float) -> None:
        now = time.perf_counter()
        if total != self.total or done < self.last:
            self.total, self.first, self.since = total, done, now
        self.last = done
        if now - self.begun < self.next:
            return
        self.next = (now - self.begun) * 1.5 + (LINE_EVERY if self.patience else 0.0)
        parts = [f"{done}/{total}"]
        if done > self.first and now > self.since:
            rate = (done - self.first) / (now - self.since)
            parts += [f"{rate:.3g}/s", f"{duration((total - done) / rate)} left"]
        self._print(" · ".join([*parts, message]))

    def done(self) -> None:
        """The line at the end of a stage; none for one that was quick."""
        seconds = time.perf_counter() - self.begun
        if seconds >= self.patience:
            self._print(f"done in {duration(seconds)}")

    def _print(self, text: str) -> None:
        self.console.print(Text(f"{self.name}: {text}"), soft_wrap=True, highlight=False)


def bars(quiet: bool, name: str = "") -> Bars:
    """Bars on the standard error, or none; `name` is of the work as a whole."""
    return Bars(Console(stderr=True, quiet=quiet), name=name)


class _Rate(ProgressColumn):
    """How far, how fast, how long: 120/600 · 31.2/s · 15 s left."""

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
    """A time span as people say it: "0.42 s", "3.1 s", "38 s", "4 min 10 s", "1 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
