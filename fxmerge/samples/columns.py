"""Which columns of a table hold its text, and which its labels: by their names, or by what is in its first rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fxmerge.errors import DataError
from fxmerge.messages import listed, printable
from fxmerge.samples.column_names import LABELS, PAIRS, TEXTS, label_column
from fxmerge.samples.reading import Broken
from fxmerge.samples.tables import LINE, Row, Rows

MOST_ROWS, MOST_TEXT = 200_000, 1 << 26
"""What is read of a table at most, the latter in characters."""
PEEK = 1000
"""Rows by which columns are told apart."""


@dataclass(frozen=True)
class Table:
    """Rows of text, or of pairs of texts, with their labels where a column holds some."""

    texts: list[str] | list[tuple[str, str]]
    labels: list[Any] | None
    notes: tuple[str, ...]


def read_text(rows: Rows, limit: int | None = None, broken: Broken | None = None, labels: bool = True) -> Table:
    """The text and label columns of a table: by name, or, without names, the longest text and the whole numbers.

    Rows that cannot be read, or have no text, are left out. Raises `DataError` if there is nothing else.
    """
    broken = broken or Broken(strict=True)
    looked = [name for name, kind in rows.kinds.items() if kind != "file"] or None
    with closing(rows.read(Broken(broken.strict), looked, PEEK)) as begun:
        first = [row for _, row in islice(begun, PEEK)]
    if not first:
        for _ in rows.read(broken):
            pass
        broken.check(0)
        raise DataError(f"{rows.where} has no rows", "write the samples again")
    texts, label, notes = _chosen(rows, first)
    others = [name for name in dict.fromkeys(name for row in first for name in row) if name not in texts]
    if labels and rows.named and not label and others and not notes:
        notes = (f"{rows.where}: no labels: of {printable(listed(others))} none is called {listed(LABELS)}",)
    label = label if labels else None
    most = 0 if limit else min(MOST_ROWS, max(1, MOST_TEXT // max(1, _size(first, texts))))
    found: list[tuple[str, ...]] = []
    given, size, more, total = [], 0, False, rows.total()
    with closing(rows.read(broken, [*texts, *([label] if label else [])], most)) as every:
        for number, row in every:
            if len(found) == limit:
                break
            values = tuple(value for text in texts if isinstance(value := row.get(text), str))
            if len(values) < len(texts):
                broken.add(DataError(f"{rows.where}: row {number} has no text", "remove that row"))
                continue
            size += sum(map(len, values))
            if len(found) == MOST_ROWS or size > MOST_TEXT:
                more = True
                break
            found.append(values)
            given.append(row.get(label) if label else None)
    broken.check(len(found))
    if limit is None and (more or (total is not None and len(found) + broken.count < total)):
        notes += (large(rows, len(found)),)
    if label and any(value in (None, "") for value in given):
        label, notes = None, (*notes, f"{rows.where}: some rows have no label, so none are used")
    pairs = found if len(texts) == 2 else [text for (text,) in found]
    return Table(pairs, given if label else None, notes)  # type: ignore[arg-type]


def large(rows: Rows, used: int) -> str:
    """What to say where there are more rows than are used."""
    total = rows.total()
    part = f"its first {used} rows" if total is None else f"{used} of its {total} rows, evenly spread,"
    return f"{rows.where} is large: {part} are used"


def _chosen(rows: Rows, first: Sequence[Row]) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
    """The one or two columns of text, the column of labels, and a note where names do not tell."""
    columns = list(dict.fromkeys(name for row in first for name in row))
    by_name = {name.lower(): name for name in reversed(columns)} if rows.named else {}
    pair = next((pair for pair in PAIRS if all(name in by_name for name in pair)), None)
    known = pair or next(((c.lower(),) for c in columns if c.lower() in by_name and c.lower() in TEXTS), None)
    told = [c for c in columns if not (rows.named and c.lower() in LABELS)]
    texts = tuple(by_name[name] for name in known) if known else (_longest(first, told, columns, rows.where),)
    label = label_column(c for c in by_name.values() if c not in texts)
    if not rows.named:
        label = next((c for c in columns if c not in texts and all(str(row[c]).isdigit() for row in first)), None)
    if (known and not pair) or columns == [LINE]:
        return texts, label, ()
    what = f"pairs of text taken from columns {' and '.join(texts)}" if pair else f"text taken from column {texts[0]}"
    return texts, label, (f"{rows.where}: {printable(what)}, labels from {printable(label or 'none')}",)


def _longest(first: Sequence[Row], told: Sequence[str], columns: Sequence[str], where: str) -> str:
    """Of these columns the one with most text, where text is what is no number. `columns` are all there are."""
    lengths = {c: sum(len(row[c]) for row in first if _is_text(row.get(c))) for c in told}
    best = max(lengths, key=lambda c: lengths[c], default="")
    if not lengths.get(best):
        raise DataError(
            f"{where} has no column of text (it has {printable(listed(columns))})", f"name one {TEXTS[0]!r}"
        )
    return best


def _is_text(value: Any) -> bool:
    """Whether a cell holds words: cells of .csv files are strings, numbers among them too."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _size(first: Sequence[Row], texts: Sequence[str]) -> int:
    """Characters of a row."""
    return sum(len(row[c]) for row in first for c in texts if isinstance(row.get(c), str)) // len(first)
