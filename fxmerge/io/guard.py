"""One guard around the reading of a file: what may be opened, and what becomes of all that can go wrong."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxmerge.errors import FxmergeError, SourceError
from fxmerge.messages import reason

AGAIN = "copy or write the file again"


def check_file(path: Path, kind: type[FxmergeError] = SourceError, *, most: int | None = None, todo: str = "") -> None:
    """Raise `kind` unless `path` is an ordinary file that may be opened, is not empty and has at most `most` bytes."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise kind(f"{path} does not exist", todo or "give an existing file") from error
    except (OSError, ValueError) as error:  # loops of links, names too long, zero bytes in a name
        raise kind(f"{path} cannot be opened: {_why(error)}", todo or "give another path") from error
    if stat.S_ISDIR(found.st_mode):
        raise kind(f"{path} is a folder, not a file", todo or "give a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise kind(f"{path} is no ordinary file but a device, pipe or socket", todo or "write it to a file first")
    if not os.access(path, os.R_OK):
        raise kind(f"{path} cannot be opened: permission denied", todo or "change its permissions")
    if found.st_size == 0:
        raise kind(f"{path} is empty", todo or AGAIN)
    if most is not None and found.st_size > most:
        raise kind(f"{path} is too large: {_size(found.st_size)}", todo or f"the limit is {_size(most)}")


@contextmanager
def reading(
    path: Path,
    kind: type[FxmergeError] = SourceError,
    todo: str = AGAIN,
    *,
    most: int | None = None,
    how: str = "cannot be read",
) -> Iterator[None]:
    """Turn whatever goes wrong while an ordinary file is read into `kind`, which names the file and says `todo`.

    Parsers of untrusted bytes raise errors of every class, panics of native libraries among them; only what the
    user or the interpreter asks for passes. Errors of ours gain the file's name where they lack it.
    """
    check_file(path, kind, most=most)
    try:
        yield
    except FxmergeError as error:
        if error.names(str(path)):
            raise
        raise type(error)(f"{path}: {error.what}", error.todo) from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise kind(f"{path} {how}: it would take more memory than there is", todo) from error
    except RecursionError as error:
        raise kind(f"{path} {how}: it is nested too deeply", todo) from error
    except BaseException as error:
        raise kind(f"{path} {how}: {reason(error)}", todo) from error


def read_bytes(path: Path, kind: type[FxmergeError] = SourceError, *, most: int, todo: str = "") -> bytes:
    """The bytes of an ordinary file of at most `most`, even if it grows meanwhile."""
    check_file(path, kind, most=most, todo=todo)
    with reading(path, kind, todo or AGAIN), open(path, "rb") as stream:
        return stream.read(most)


def _why(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{max(1, count >> 10)} KiB"
