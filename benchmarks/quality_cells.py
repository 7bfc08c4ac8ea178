"""A ledger of measured cells: kept in a JSON file after each, found again by the settings that made them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.table import Row, environment, grouped, rounded

KEYS = ("setting", "inputs", "method", "seed")
"""What tells one cell from another; a new measurement replaces the old one of the same."""


@dataclass(frozen=True)
class Ledger:
    """The cells of a file. Several processes may write to it in turn."""

    path: Path

    def rows(self) -> list[Row]:
        """All cells."""
        return self._document()["rows"]  # type: ignore[no-any-return]

    def find(self, settings: Mapping[str, Any] | None = None, **keys: Any) -> list[Row]:
        """The cells with these keys, and, where `settings` are given, made with just these."""
        wanted = rounded(settings) if settings is not None else None
        return [
            row
            for row in self.rows()
            if all(row.get(key) == value for key, value in keys.items())
            and (wanted is None or row.get("settings") == wanted)
        ]

    def keep(self, row: Row) -> None:
        """Write a cell in place of the one with its keys."""
        with self._alone():
            document = self._document()
            others = [each for each in document["rows"] if _key(each) != _key(row)]
            document |= {"environment": environment(), "rows": [*others, rounded(row)]}
            self._write(document)

    def search(self, name: str) -> Mapping[str, Any] | None:
        """What was kept of a search."""
        found: Mapping[str, Any] | None = self._document()["searches"].get(name)
        return found

    def keep_search(self, name: str, found: Mapping[str, Any]) -> None:
        """Write what a search found, with all that it tried."""
        with self._alone():
            document = self._document()
            document["searches"][name] = rounded(found)
            self._write(document)

    def _document(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {"environment": environment(), "rows": [], "searches": {}}
        document: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return document

    def _write(self, document: Mapping[str, Any]) -> None:
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The folder of the file is locked: it is there before the file, and stays the same."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


@cache
def code() -> str:
    """A digest of the compiler's source: cells of another one may no longer hold."""
    root = Path(__file__).parents[1]
    files = sorted(path for room in ("fxmerge", "passes") for path in (root / room).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:10]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in KEYS)


def show(rows: Sequence[Row], families: Sequence[str], methods: Sequence[str]) -> None:
    """Print one table: a line for each family, number of inputs and method; mean over seeds, and the range."""
    table = Table(title="Merged models on held-out test data: mean over seeds (range)")
    for heading in ("family", "inputs", "method", "figure"):
        table.add_column(heading)
    for heading in ("tasks", "mean", "share of parents", "CPU s", "seeds"):
        table.add_column(heading, justify="right")
    order = {name: number for number, name in enumerate(("parents", "ceiling", *methods))}
    chosen = [row for row in rows if row["setting"] in families and row["method"] in order]
    chosen.sort(key=lambda row: (families.index(row["setting"]), row.get("inputs") or 0, order[row["method"]]))
    before = ""
    for (family, inputs, method), group in grouped(chosen, ("setting", "inputs", "method")).items():
        if before and family != before:
            table.add_section()
        before = family
        digits = 2 if group[0]["figure"] == "perplexity" else 3
        tasks = " ".join(
            f"{statistics.fmean(row['scores'][t] for row in group):.{digits}f}" for t in group[0]["scores"]
        )
        cells = [_cell([row["mean"] for row in group], digits), _cell([row["share"] for row in group], 3)]
        spent = [row["cpu_seconds"] for row in group if row.get("cpu_seconds") is not None]
        seconds = f"{statistics.fmean(spent):.0f}" if spent else ""
        figure = group[0]["figure"] + (" (less is better)" if group[0]["figure"] == "perplexity" else "")
        table.add_row(family, str(inputs or ""), method, figure, tasks, *cells, seconds, str(len(group)))
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    old = [row for row in chosen if "inputs" in row and row.get("code") != code()]
    if old:
        console.print(f"{len(old)} cells were measured with another state of the compiler: --again renews them.")


def _cell(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"
