"""Tables with an index, .parquet and Arrow files, one or many: only the rows and columns that are wanted are read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fxmerge.errors import DataError
from fxmerge.io.child import ChildError, Talk
from fxmerge.io.guard import check_file
from fxmerge.samples.reading import Broken
from fxmerge.samples.tables import AGAIN, MOST_COLUMNS, Row

SUFFIXES = (".parquet", ".arrow", ".feather")
STRETCHES = 64
"""Groups that the rows come from at least, where not all rows are wanted and there are so many."""
WORKER = "fxmerge.samples.arrow:columns"


@dataclass(frozen=True)
class Group:
    """Rows that are read together."""

    file: Path
    number: int
    first: int
    """The number of its first row among those of the file, from one."""
    rows: int


@dataclass(frozen=True)
class Columnar:
    """The rows of some files with the same columns."""

    where: str
    files: tuple[Path, ...]
    strict: bool = False
    named = True

    @classmethod
    def of(cls, where: str, files: Sequence[Path], strict: bool = False) -> Columnar:
        """Raises `DataError` without the library that reads them."""
        if find_spec("pyarrow") is None:
            suffix = files[0].suffix
            raise DataError(f"reading {suffix} needs the pyarrow library", 'install it: pip install "fxmerge[text]"')
        return cls(where, tuple(files), strict)

    @cached_property
    def _described(self) -> tuple[dict[str, str], list[Group], Broken]:
        """Columns and what they hold, the groups, and the files that cannot be read."""
        kinds: dict[str, str] = {}
        groups, broken = list[Group](), Broken(self.strict)
        with closing(self._talk()) as talk:
            for file in self.files:
                try:
                    check_file(file, DataError)
                    said, _ = talk.ask({"file": os.path.abspath(file)})
                except ChildError as error:
                    broken.add(DataError(f"{file} cannot be read: {error}", AGAIN))
                    continue
                kinds = kinds or dict(zip(said["names"], said["kinds"], strict=True))
                first = 1
                for number, rows in enumerate(said["groups"]):
                    groups.append(Group(file, number, first, rows))
                    first += rows
        broken.check(len(kinds))
        return kinds, groups, broken

    @property
    def kinds(self) -> dict[str, str]:
        """What every column holds: text, number, list, file or other."""
        return self._described[0]

    def total(self) -> int:
        return sum(group.rows for group in self._described[1])

    def read(self, broken: Broken, columns: Sequence[str] | None = None, most: int = 0) -> Generator[tuple[int, Row]]:
        kinds, groups, unread = self._described
        broken.join(unread)
        names = list(kinds) if columns is None else list(columns)
        with closing(self._talk()) as talk:
            for group, count in spread(groups, most):
                yield from self._group(talk, group, count, names, broken)

    def _group(
        self, talk: Talk, group: Group, count: int, names: list[str], broken: Broken
    ) -> Generator[tuple[int, Row]]:
        question: dict[str, Any] = {"file": os.path.abspath(group.file), "group": group.number, "rows": count}
        question["columns"], number = names, group.first
        while True:
            try:
                said, payload = talk.ask(question)
            except ChildError as error:
                last, left = group.first + count - 1, count - (number - group.first)
                broken.add(DataError(f"{group.file} cannot be read: rows {number} to {last}: {error}", AGAIN), left)
                return
            if not said["more"]:
                return
            for row in json.loads(payload):
                yield number, dict(zip(names, row, strict=True))
                number += 1
            question = {}

    def _talk(self) -> Talk:
        size = max((f.stat().st_size for f in self.files if f.is_file() and f.suffix != ".parquet"), default=0)
        return Talk(WORKER, {"most_columns": MOST_COLUMNS}, size=size)


def spread(groups: Sequence[Group], most: int) -> list[tuple[Group, int]]:
    """The groups to read and how many rows of each: all, or about `most`, evenly over all groups."""
    total = sum(group.rows for group in groups)
    if not most or total <= most:
        return [(group, group.rows) for group in groups]
    count = min(len(groups), max(STRETCHES, math.ceil(most * len(groups) / total)))
    count = min(count, most)
    chosen = [groups[place * len(groups) // count] for place in range(count)]
    share = math.ceil(most / count)
    return [(group, min(group.rows, share)) for group in chosen]
