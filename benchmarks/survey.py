"""Many architectures examined one after another: what the benches of model libraries share."""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.architectures import cells, headings, write_all
from benchmarks.examine import Build, Examination
from benchmarks.table import RESULTS, Row, save

HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Subject:
    """An architecture by name, and how a random model of it is made."""

    name: str
    family: str
    build: Build
    trace_both: bool = True


class OutOfTime(BaseException):
    """An examination took longer than it may; no `except Exception` in between holds it up."""


def parser(what: str, name: str) -> argparse.ArgumentParser:
    """The command line these benches share."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.bench_{name}", description=what)
    found.add_argument("--only", nargs="+", help="run these architectures and keep the other rows of the last run")
    found.add_argument("--missing", action="store_true", help="run those of which the last run has no row")
    found.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="where the results go")
    found.add_argument("--docs", type=Path, default=HERE / "docs" / "architectures.md", help="the page that is written")
    found.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    found.add_argument("--limit", type=float, default=0.0, help="CPU seconds an architecture may take (default: any)")
    return found


def survey(given: argparse.Namespace, subjects: Sequence[Subject], **facts: Any) -> int:
    """Examine `subjects`, save after each, show and publish all; 1 if a step of any failed."""
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    rows = {row["model"]: row for row in _known(given.out)} if given.only or given.missing else {}
    failed = 0
    for subject in subjects:
        if (given.only and subject.name not in given.only) or (given.missing and subject.name in rows):
            continue
        row = rows[subject.name] = _examined(subject, given.limit)
        failed += bool(row["errors"])
        print(f"{subject.name}: " + ("; ".join(f"{k}: {v}" for k, v in row["errors"].items()) or "ok"), flush=True)
        missing = [subject.name for subject in subjects if subject.name not in rows]
        save(given.out, _in_order(rows, subjects), **facts, missing=missing)
        gc.collect()
    _show(_in_order(rows, subjects))
    write_all(given.docs)
    return 1 if failed else 0


def _examined(subject: Subject, limit: float) -> Row:
    row: Row = {"model": subject.name, "family": subject.family, "run": datetime.date.today().isoformat()}
    examination = Examination(subject.build, subject.trace_both, row)
    try:
        with _limited(limit):
            examination.run()
    except OutOfTime:
        row["errors"]["time"] = f"stopped in {examination.step} after {limit:g} s"
    return row


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` inside after `seconds` of CPU time; 0 is no limit."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _known(path: Path) -> list[Row]:
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def _in_order(rows: dict[str, Row], subjects: Sequence[Subject]) -> list[Row]:
    return [rows[subject.name] for subject in subjects if subject.name in rows]


def _show(rows: Sequence[Row]) -> None:
    table = Table(*headings(), title="Architectures")
    for row in rows:
        table.add_row(*cells(row))
    Console(width=160).print(table)
