"""Text and labels from tables (.csv, .tsv, .jsonl, .parquet) and .txt files: their first rows, within bounds."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from fxmerge.errors import DataError
from fxmerge.io.child import ask
from fxmerge.io.guard import reading
from fxmerge.messages import listed, printable

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
TEXTS = ("text", "sentence", "content", "document", "review", "question", "title")
LABELS = ("label", "labels", "y", "class", "target")
MOST_ROWS, MOST_TEXT = 200_000, 1 << 26
"""What is read of a file: the first rows, up to these, the latter in characters."""

MOST_COLUMNS, MOST_FIELD = 10_000, 1 << 24
PARQUET = "fxmerge.samples.workers:parquet"


@dataclass(frozen=True)
class Table:
    """Rows of text, with their labels where a column holds some."""

    texts: list[str]
    labels: list[Any] | None
    notes: tuple[str, ...]


def read_text(path: Path, limit: int | None) -> Table:
    """The text and label columns of a file: by name, or, without a header, the longest text and the whole numbers.

    Raises `DataError` if the file cannot be read or has no text.
    """
    with reading(path, DataError, "repair the file, or write it again"):
        if path.suffix == ".txt":
            return _checked(_lines(path, limit), path)
        rows, named, notes = _rows(path, limit)
        if not rows:
            raise DataError(f"{path} has no rows", "write the samples again")
        columns = list(rows[0])
        text = next((c for c in columns if named and c.lower() in TEXTS), None) or _longest(rows, path)
        label = next((c for c in columns if named and c.lower() in LABELS and c != text), None)
        if not named:
            label = next((c for c in columns if c != text and all(str(row[c]).isdigit() for row in rows)), None)
        if not named or text.lower() not in TEXTS:
            notes += (f"{path}: text taken from column {printable(text)}, labels from {printable(label or 'none')}",)
        labels = None if label is None else [row.get(label) for row in rows]
        if labels and any(value in (None, "") for value in labels):
            labels, notes = None, (*notes, f"{path}: some rows have no label, so none are used")
        return _checked(Table([row.get(text) for row in rows], labels, notes), path)  # type: ignore[misc]


def _lines(path: Path, limit: int | None) -> Table:
    lines: list[str] = []
    size = 0
    with reading(path, DataError), open(path, encoding="utf-8", errors="replace") as stream:
        for line in _bounded(stream):
            if len(lines) == limit:
                break
            size += len(line)
            if size > MOST_TEXT or len(lines) == MOST_ROWS:
                return Table(lines, None, (f"{path} is large: its first {len(lines)} lines are used",))
            if line.strip():
                lines.append(line)
    return Table(lines, None, ())


def _rows(path: Path, limit: int | None) -> tuple[list[dict[str, Any]], bool, tuple[str, ...]]:
    """The first rows of a table, whether its columns have names, and a note if there are more rows than are read."""
    kinds = {".csv": _delimited, ".tsv": _delimited, ".jsonl": _json_lines, ".parquet": _parquet}
    with reading(path, DataError, "repair the file, or write it again"):
        found, named = kinds[path.suffix](path)
        rows: list[dict[str, Any]] = []
        size = 0
        for row in found:
            if limit is not None and len(rows) == limit:
                break
            size += sum(len(value) for value in row.values() if isinstance(value, str))
            if len(rows) == MOST_ROWS or size > MOST_TEXT:
                return rows, named, (f"{path} is large: its first {len(rows)} rows are used",)
            rows.append(row)
        return rows, named, ()


def _delimited(path: Path) -> tuple[Iterator[dict[str, Any]], bool]:
    """Rows of a .csv or .tsv file; the latter has no quoting, so that a text may hold quotation marks."""
    tabs = path.suffix == ".tsv"
    dialect: dict[str, Any] = {"delimiter": "\t" if tabs else ",", "strict": True}
    dialect["quoting"] = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    columns, named = _columns(path, dialect)

    def rows() -> Iterator[dict[str, Any]]:
        csv.field_size_limit(MOST_FIELD)
        with open(path, encoding="utf-8-sig", newline="") as stream:
            for number, cells in enumerate(csv.reader(_bounded(stream), **dialect), 1):
                if (named and number == 1) or not cells:
                    continue
                if len(cells) > len(columns):
                    raise ValueError(f"row {number} has {len(cells)} columns, the first one {len(columns)}")
                yield dict(zip_longest(columns, cells, fillvalue=""))

    return rows(), named


def _json_lines(path: Path) -> tuple[Iterator[dict[str, Any]], bool]:
    def rows() -> Iterator[dict[str, Any]]:
        with open(path, encoding="utf-8-sig") as stream:
            for number, line in enumerate(_bounded(stream), 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict) or len(row) > MOST_COLUMNS:
                    raise ValueError(f"line {number} is no object with at most {MOST_COLUMNS} fields")
                yield row

    return rows(), True


def _parquet(path: Path) -> tuple[Iterator[dict[str, Any]], bool]:
    if find_spec("pyarrow") is None:
        raise DataError("reading .parquet needs the pyarrow library", 'install it: pip install "fxmerge[text]"')

    def rows() -> Iterator[dict[str, Any]]:
        columns: list[str] = []
        for answer, payload in ask(PARQUET, {"file": os.path.abspath(path), "most_columns": MOST_COLUMNS}):
            columns = answer.get("columns", columns)
            for row in json.loads(payload) if payload else ():
                yield dict(zip(columns, row, strict=True))

    return rows(), True


def _bounded(stream: TextIO) -> Iterator[str]:
    """Lines of a file, none longer than `MOST_FIELD`."""
    while line := stream.readline(MOST_FIELD):
        if len(line) == MOST_FIELD:
            raise ValueError(f"it has a line of more than {MOST_FIELD >> 20} million characters")
        yield line


def _columns(path: Path, dialect: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Column names of a .csv or .tsv file, and whether its first line gives them."""
    with open(path, encoding="utf-8-sig", newline="") as stream:
        first = next(csv.reader(_bounded(stream), **dialect), [])
    if len(first) > MOST_COLUMNS:
        raise ValueError(f"it has {len(first)} columns")
    named = any(cell.strip().lower() in (*TEXTS, *LABELS) for cell in first)
    return ([cell.strip() for cell in first] if named else [str(i) for i in range(len(first))]), named


def _longest(rows: Sequence[dict[str, Any]], path: Path) -> str:
    """The column with most text."""
    lengths = {c: sum(len(row[c]) for row in rows if isinstance(row.get(c), str)) for c in rows[0]}
    best = max(lengths, key=lambda c: lengths[c])
    if lengths[best] == 0:
        raise DataError(f"{path} has no column of text (it has {printable(listed(rows[0]))})", f"name one {TEXTS[0]!r}")
    return best


def _checked(table: Table, path: Path) -> Table:
    bad = next((i for i, text in enumerate(table.texts) if not isinstance(text, str)), None)
    if bad is not None:
        raise DataError(f"{path}: row {bad + 1} has no text", "remove that row")
    if not table.texts:
        raise DataError(f"{path} has no text", "write the samples again")
    return table
