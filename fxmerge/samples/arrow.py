"""The child that reads columns: parquet files, and Arrow batches as the datasets library saves them.

    {"file": f}                                         -->  {"names": [...], "kinds": [...], "groups": [rows, ...]}
    {"file": f, "group": g, "columns": [...], "rows": n} -->  {"more": true}, rows as JSON
    {}                                                  -->  {"more": false}, the next rows of the same group

Only the groups and columns that are asked for are read, a batch at a time. No torch here: a child starts quickly.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

ROWS, FEW = 256, 16
"""Rows of an answer; the latter where they hold pictures or sound."""


class Table(Protocol):
    """A file of groups of rows."""

    schema: Any

    @property
    def groups(self) -> list[int]:
        """How many rows each has."""

    def batches(self, group: int, columns: Sequence[str], rows: int) -> Iterator[Any]:
        """The batches of a group, of so many rows at most."""


def columns(request: dict[str, Any], data: bytes) -> Generator[tuple[Any, bytes], tuple[Any, bytes], None]:
    """Answers to questions about files of columns."""
    opened: dict[str, Table] = {}
    rest: Iterator[list[list[Any]]] = iter(())
    question, _ = yield {}, b""
    while True:
        file = question.get("file")
        if file is not None and file not in opened:
            opened = {file: _open(file)}
        if file is not None and "group" not in question:
            answer: tuple[Any, bytes] = _description(opened[file], request["most_columns"]), b""
        else:
            if file is not None:
                rest = _rows(opened[file], question)
            rows = next(rest, None)
            answer = {"more": rows is not None}, json.dumps(rows).encode()
        question, _ = yield answer


def _open(file: str) -> Table:
    with open(file, "rb") as stream:
        head = stream.read(6)
    return _Parquet(file) if head[:4] == b"PAR1" else _Batches(file, indexed=head == b"ARROW1")


class _Parquet:
    def __init__(self, file: str) -> None:
        import pyarrow.parquet

        self.file = pyarrow.parquet.ParquetFile(file, memory_map=False, pre_buffer=False, buffer_size=1 << 20)
        self.schema = self.file.schema_arrow

    @property
    def groups(self) -> list[int]:
        about = self.file.metadata
        return [about.row_group(number).num_rows for number in range(about.num_row_groups)]

    def batches(self, group: int, columns: Sequence[str], rows: int) -> Iterator[Any]:
        found: Iterator[Any] = self.file.iter_batches(rows, [group], list(columns), use_threads=False)
        return found


class _Batches:
    """A stream of batches, or a file of them: mapped, so that what is passed over is not read."""

    def __init__(self, file: str, indexed: bool) -> None:
        self.path, self.indexed = file, indexed
        self._stream, self._place = self._open(), 0
        self.schema = self._stream.schema

    @cached_property
    def groups(self) -> list[int]:
        if self.indexed:
            return [self._stream.get_batch(n).num_rows for n in range(self._stream.num_record_batches)]
        return [batch.num_rows for batch in self._open()]

    def batches(self, group: int, columns: Sequence[str], rows: int) -> Iterator[Any]:
        batch = self._batch(group).select(list(columns))
        batch.validate(full=True)
        for first in range(0, batch.num_rows, rows):
            yield batch.slice(first, rows)

    def _batch(self, group: int) -> Any:
        if self.indexed:
            return self._stream.get_batch(group)
        if group < self._place:
            self._stream, self._place = self._open(), 0
        while True:
            batch = self._stream.read_next_batch()
            self._place += 1
            if self._place > group:
                return batch

    def _open(self) -> Any:
        import pyarrow.ipc

        source = pyarrow.memory_map(self.path)
        return pyarrow.ipc.open_file(source) if self.indexed else pyarrow.ipc.open_stream(source)


def _description(table: Table, most: int) -> dict[str, Any]:
    names = table.schema.names
    if len(set(names)) != len(names) or len(names) > most:
        raise ValueError(f"it has {len(names)} columns, {len(set(names))} of different names")
    return {"names": names, "kinds": [_kind(field.type) for field in table.schema], "groups": table.groups}


def _kind(kind: Any) -> str:
    """What a column holds: text, numbers, lists of numbers, files (pictures and sound), or anything else."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return "number"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "file"
    if types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        return "file"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "list" if _kind(kind.value_type) in ("number", "list") else "other"
    return "other"


def _rows(table: Table, question: dict[str, Any]) -> Iterator[list[list[Any]]]:
    """Rows of a group, a few at a time."""
    names, left = question["columns"], question["rows"]
    kinds = [_kind(table.schema.field(name).type) for name in names]
    for batch in table.batches(question["group"], names, FEW if "file" in kinds else ROWS):
        by_name = dict(zip(batch.schema.names, batch.columns, strict=True))
        lists = [[_plain(v, kind) for v in by_name[n][:left].to_pylist()] for n, kind in zip(names, kinds, strict=True)]
        left -= batch.num_rows
        yield [list(row) for row in zip(*lists, strict=True)]
        if left <= 0:
            return


def _plain(value: Any, kind: str) -> Any:
    """A value as JSON has it; a file as `[bytes in base 64, path]`, of which one may be missing."""
    if kind == "file":
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        return [None if content is None else base64.b64encode(content).decode(), path]
    if kind == "other":
        return value if value is None else str(value)[:1000]
    return value
