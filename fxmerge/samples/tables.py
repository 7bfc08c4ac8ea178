"""Tables of text (.csv, .tsv, .jsonl) and .txt files, row by row, within bounds; what nobody asks for is not kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TextIO

from fxmerge.errors import DataError
from fxmerge.io.guard import reading
from fxmerge.messages import reason
from fxmerge.samples.column_names import KNOWN
from fxmerge.samples.reading import Broken

SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
MOST_COLUMNS, MOST_FIELD = 10_000, 1 << 24
AGAIN = "repair the file, or write it again"
LINE = "text"
"""What the one column of a .txt file is called."""

Row = Mapping[str, Any]


class Rows(Protocol):
    """A table, read when it is asked for."""

    @property
    def where(self) -> str:
        """What it is called in messages."""

    @property
    def named(self) -> bool:
        """Whether its columns have names."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """What every column holds (text, number, list, file, other), where that is known without reading."""

    def read(self, broken: Broken, columns: Sequence[str] | None = None, most: int = 0) -> Generator[tuple[int, Row]]:
        """Numbered rows of these columns; more than `most` are wanted by nobody. Broken ones are left out."""

    def total(self) -> int | None:
        """How many rows there are, where that is known without reading them."""


@dataclass(frozen=True)
class Lines:
    """A file of rows one after another: its first rows are what is read of a large one."""

    path: Path
    named: bool
    parse: Callable[[Path, Broken], Iterator[tuple[int, Row]]]

    @property
    def where(self) -> str:
        return str(self.path)

    @classmethod
    def of(cls, path: Path) -> Lines:
        """The table in a file. Raises `DataError` if its beginning cannot be read."""
        if path.suffix == ".jsonl":
            return cls(path, True, _objects)
        if path.suffix == ".txt":
            return cls(path, True, _lines)
        with reading(path, DataError, AGAIN):
            dialect, names, named = _told_by_header(path)
        return cls(path, named, lambda path, broken: _cells(path, broken, dialect, names, named))

    def read(self, broken: Broken, columns: Sequence[str] | None = None, most: int = 0) -> Generator[tuple[int, Row]]:
        with reading(self.path, DataError, AGAIN):
            for number, row in self.parse(self.path, broken):
                yield number, row if columns is None else {name: row[name] for name in columns if name in row}

    @property
    def kinds(self) -> Mapping[str, str]:
        return {}

    def total(self) -> int | None:
        return None


def _told_by_header(path: Path) -> tuple[Mapping[str, Any], list[str], bool]:
    """How a file is cut into cells, and its header: .csv also at semicolons or tabs, where that gives known names."""
    if path.suffix == ".tsv":  # without quoting, so that a text may hold quotation marks
        dialects = [{"delimiter": "\t", "strict": True, "quoting": csv.QUOTE_NONE}]
    else:
        dialects = [{"delimiter": cut, "strict": True, "quoting": csv.QUOTE_MINIMAL} for cut in ",;\t"]
    for dialect in dialects:
        with suppress(csv.Error):
            names, named = _header(path, dialect)
            if named:
                return dialect, names, named
    return dialects[0], *_header(path, dialects[0])


def _header(path: Path, dialect: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Column names of a .csv or .tsv file, and whether its first line gives them."""
    with _opened(path) as stream:
        first = next(csv.reader(_bounded(stream), **dialect), [])
    if len(first) > MOST_COLUMNS:
        raise ValueError(f"it has {len(first)} columns")
    named = any(cell.strip().lower() in KNOWN for cell in first)
    return ([cell.strip() for cell in first] if named else [str(i) for i in range(len(first))]), named


def _cells(
    path: Path, broken: Broken, dialect: Mapping[str, Any], names: Sequence[str], named: bool
) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(MOST_FIELD)
    with _opened(path) as stream:
        rows = csv.reader(_bounded(stream), **dialect)
        for number, cells in _numbered(rows, path, "row", broken):
            if (named and number == 1) or not cells:
                continue
            if len(cells) > len(names):
                _leave_out(path, f"row {number} has {len(cells)} columns, the first one {len(names)}", broken)
            elif _readable(cells, path, f"row {number}", broken):
                yield number, dict(zip_longest(names, cells, fillvalue=""))


def _numbered(rows: Iterator[list[str]], path: Path, what: str, broken: Broken) -> Iterator[tuple[int, list[str]]]:
    """Rows with their numbers from one, without those that cannot be parsed."""
    number = 0
    while True:
        number += 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            _leave_out(path, f"{what} {number}: {reason(error)}", broken)
            continue
        yield number, cells


def _objects(path: Path, broken: Broken) -> Iterator[tuple[int, Row]]:
    with _opened(path) as stream:
        for number, line in enumerate(_bounded(stream), 1):
            if not line.strip() or not _readable([line], path, f"line {number}", broken):
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or len(row) > MOST_COLUMNS:
                    raise ValueError(f"no object with at most {MOST_COLUMNS} fields")
            except (ValueError, RecursionError) as error:
                _leave_out(path, f"line {number}: {reason(error)}", broken)
                continue
            yield number, row


def _lines(path: Path, broken: Broken) -> Iterator[tuple[int, Row]]:
    with open(path, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(_bounded(stream), 1):
            if line.strip():
                yield number, {LINE: line}


def _opened(path: Path) -> TextIO:
    """The file as text in which bytes that are none are marked, so that they cost their own row and no more."""
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _readable(texts: Iterable[str], path: Path, what: str, broken: Broken) -> bool:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        _leave_out(path, f"{what} is no text in UTF-8", broken, "save the file as UTF-8")
        return False
    return True


def _leave_out(path: Path, why: str, broken: Broken, todo: str = AGAIN) -> None:
    broken.add(DataError(f"{path} cannot be read: {why}", todo))


def _bounded(stream: TextIO) -> Iterator[str]:
    """Lines of a file, none longer than `MOST_FIELD`."""
    while line := stream.readline(MOST_FIELD):
        if len(line) == MOST_FIELD:
            raise ValueError(f"it has a line of more than {MOST_FIELD >> 20} million characters")
        yield line
