"""Pictures and sound inside a table: the column that holds them, and their bytes, one after another."""

from __future__ import annotations

import base64
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fxmerge.errors import DataError
from fxmerge.io.guard import read_bytes
from fxmerge.messages import listed, printable
from fxmerge.samples.column_names import label_column
from fxmerge.samples.reading import Broken, Reading
from fxmerge.samples.tables import Rows

MOST_FILE = 1 << 28


def file_columns(rows: Rows) -> list[str]:
    return [name for name, kind in rows.kinds.items() if kind == "file"]


def files(
    rows: Rows, names: Sequence[str], folder: Path, reading: Reading, broken: Broken, most: int
) -> Generator[tuple[str, bytes, Any]]:
    """What each row is called in messages, the bytes of its file, and its label (None without one).

    A row may name a file in the data set's own folder in place of its bytes. Raises `DataError` for several columns.
    """
    if len(names) != 1:
        raise DataError(
            f"{rows.where} has several columns of files: {printable(listed(names))}",
            "keep one of them",
        )
    label = label_column(name for name, kind in rows.kinds.items() if kind != "file")
    columns = [names[0], *([label] if label and reading.labels else [])]
    with closing(rows.read(broken, columns, 0 if reading.limit else most)) as found:
        for number, row in found:
            where = f"{rows.where}: row {number}"
            try:
                content = _content(row[names[0]], folder, where)
            except DataError as error:
                broken.add(error)
                continue
            yield where, content, row.get(label) if label else None


def _content(value: Any, folder: Path, where: str) -> bytes:
    content, path = value or (None, None)
    if content is not None:
        return base64.b64decode(content)
    if not path:
        raise DataError(f"{where} has no file", "remove that row")
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise DataError(f"{where} names a file outside of its folder: {printable(str(path))}", "save it with its bytes")
    return read_bytes(file, DataError, most=MOST_FILE)
