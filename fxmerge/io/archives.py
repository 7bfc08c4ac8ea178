"""Zip files read with bounds: what is declared must fit what is there, so a small file cannot fill the memory."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import IO

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.io.files import LARGEST_JSON
from fxmerge.messages import listed, printable, reason

MOST_MEMBERS = 200_000


class Archive:
    """An open zip file. Every problem with it is a `SourceError` that names the file."""

    def __init__(self, file: Path | IO[bytes], name: str = "") -> None:
        self.path = name or str(file)
        try:
            self._zip = zipfile.ZipFile(file)
            stream = self._zip.fp
            assert stream is not None
            self._length = stream.seek(0, 2)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self._damaged(error) from error
        entries = self._zip.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        if len(entries) != len(self._entries) or len(entries) > MOST_MEMBERS:
            self._zip.close()
            raise SourceError(f"{self.path} is damaged: it lists a member twice", "write the file again")

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    @property
    def names(self) -> Collection[str]:
        return self._entries.keys()

    def only(self, names: Collection[str]) -> None:
        """Refuse the file unless it holds exactly `names`."""
        more = [n for n in self._entries if n not in names]
        if more:
            raise UnsafeFileError(
                f"{self.path} holds members that do not belong there: {printable(listed(more))}",
                "do not use this file; capture the model again with `fxmerge capture`",
            )
        missing = [n for n in names if n not in self._entries]
        if missing:
            raise SourceError(f"{self.path} is damaged: it lacks {listed(missing)}", "capture the model again")

    def size(self, name: str) -> int:
        """Length of a member in bytes, checked against the length of the file."""
        entry = self._entries.get(name)
        if entry is None:
            raise SourceError(f"{self.path} is damaged: it lacks {printable(name)}", "write the file again")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if (stored and entry.file_size != entry.compress_size) or entry.compress_size > self._length:
            raise SourceError(
                f"{self.path} is damaged: {printable(name)} has an impossible size", "write the file again"
            )
        if not stored and entry.file_size > LARGEST_JSON:
            raise SourceError(
                f"{self.path}: {printable(name)} unpacks to {entry.file_size >> 20} MiB, more than is allowed",
                f"members over {LARGEST_JSON >> 20} MiB must be stored without compression",
            )
        return entry.file_size

    def read(self, name: str) -> bytes:
        """The bytes of a member, its checksum verified."""
        size = self.size(name)
        try:
            with self._zip.open(name) as stream:
                data = stream.read(size + 1)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
            raise self._damaged(error) from error
        if len(data) != size:
            raise SourceError(
                f"{self.path} is damaged: {printable(name)} is not as long as it says", "write the file again"
            )
        return data

    def _damaged(self, error: BaseException) -> SourceError:
        return SourceError(
            f"{self.path} is damaged or truncated: {reason(error)}", "write the file again, or copy it again"
        )
