"""Files as everyone here uses them: atomic writing, hashing, bounded reading."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from fxmerge.errors import OutputError, SourceError
from fxmerge.io.guard import read_bytes
from fxmerge.messages import reason

LARGEST_JSON = 32 << 20
"""A graph of 100 layers takes about 3 MiB; parsed JSON takes ten to twenty times its text."""


@contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside `path`, moved to `path` on success and removed on failure.

    A file or a folder may be made there, and a file of weights beside it (`weights_beside`): both are moved, or none.
    Raises `OutputError` if the folder is missing or cannot be written, on a full disk, or if `path` exists without
    `overwrite`.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary / path.name
            _move(temporary, path)
        finally:
            _remove(temporary)
    except OSError as error:
        raise unwritten(path, error) from error


def unwritten(path: str | Path, error: OSError) -> OutputError:
    """What to say where the system refuses to write at `path`."""
    why = error.strerror or reason(error)
    return OutputError(f"{path} cannot be written: {why}", "free some space there, or choose another place")


def write_text(path: str | Path, text: str, *, overwrite: bool = True) -> None:
    """A text file, whole or not at all."""
    with atomic_write(path, overwrite=overwrite) as part:
        part.write_text(text, encoding="utf-8")


def weights_beside(path: str | Path) -> Path:
    """Where the weights of an ONNX model lie that are too large to lie in it."""
    return Path(f"{path}.data")


def check_output(path: str | Path, *, overwrite: bool = True) -> None:
    """Raise `OutputError` if nothing can be written at `path`. Creates nothing."""
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(
            f"the output folder {folder} does not exist", f"create it first: mkdir -p {quote(str(folder))}"
        )
    if _is_device(path):
        raise OutputError(f"{path} is a device or a pipe, which nothing may replace", "give the name of a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"the output folder {folder} is not writable", "choose another folder or change its permissions"
        )
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already", "add --overwrite to replace it, or choose another name")
    if path.suffix == ".onnx" and weights_beside(path).exists() and not overwrite:
        raise OutputError(
            f"{weights_beside(path)} exists already: a large model's weights go there",
            "add --overwrite to replace it, or choose another name",
        )
    ours = any((path / name).is_file() for name in ("config.json", "fxmerge.json"))
    if path.is_dir() and any(path.iterdir()) and not ours:
        raise OutputError(
            f"{path} is a folder with other things in it", "choose a new folder: only a model's folder is replaced"
        )


def _is_device(path: Path) -> bool:
    """Whether a file moved to `path` would take the place of what is no file; of links to one too (/dev/stdout)."""
    if path.parent.resolve() == Path("/dev"):
        return True
    return path.exists() and not (path.is_file() or path.is_dir())


def try_writing(folder: Path) -> None:
    """Write a file without a name: permissions alone do not tell, on a full or read-only disk or as root."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"fxmerge")
    except OSError as error:
        raise unwritten(folder, error) from error


def check_room(path: str | Path, size: int) -> None:
    """Raise `OutputError` if there is no room for `size` bytes at `path`. Creates nothing."""
    folder = Path(path).parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OutputError(
            f"{path} takes {_amount(size)} or more, and {folder} has room for {_amount(free)}",
            "free some space there, or choose another place",
        )


def _amount(size: int) -> str:
    return (
        f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size} bytes"
    )


def sha256(path: str | Path) -> str:
    """Hash of a file, or of a folder's files and their names."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def parse_json(data: bytes, what: str) -> Any:
    """The value of JSON text. Raises `SourceError` naming `what` if it is too large, too deep or not JSON."""
    if len(data) > LARGEST_JSON:
        raise SourceError(
            f"{what} is too large: {len(data) >> 20} MiB of JSON", f"the limit is {LARGEST_JSON >> 20} MiB"
        )
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{what} is not valid JSON ({reason(error)})", "write the file again: it is damaged"
        ) from error


def read_json(path: Path) -> Any:
    """The value of a JSON file, bounded in size."""
    return parse_json(read_bytes(path, most=LARGEST_JSON), str(path))


def _move(temporary: Path, path: Path) -> None:
    """Put what was made in `temporary` in its place, the file at `path` last; undone if that fails half-way."""
    made, beside = temporary / path.name, weights_beside(path)
    weights, saved = weights_beside(made), temporary / "replaced"
    has_weights = weights.is_file()
    had_weights = beside.is_file() and (has_weights or path.suffix == ".onnx")
    if had_weights:  # of the model that is replaced: stale from now on
        os.replace(beside, saved)
    try:
        if has_weights:
            os.replace(weights, beside)
        _replace(made, path)
    except OSError:
        if has_weights:
            _remove(beside)
        if had_weights:
            os.replace(saved, beside)
        raise


def _replace(temporary: Path, path: Path) -> None:
    if not path.exists() or not (path.is_dir() or temporary.is_dir()):
        os.replace(temporary, path)
        return
    old = temporary.parent / "replaced"
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
