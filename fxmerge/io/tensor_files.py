"""Files of tensors: a library's writer that meets a full disk raises `OSError`, as any other writer does."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fxmerge.messages import reason


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file, which whoever may read other files may read: the library keeps its own to their owner."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(reason(error)) from error
    path.chmod(mode)


@contextmanager
def written_by_torch(path: Path) -> Iterator[BinaryIO]:
    """A file for torch's archive writer, which ends the process where a write fails: here that waits until the end."""
    with open(path, "wb") as file:
        patient = _Patient(file)
        yield cast(BinaryIO, patient)
        if patient.failed is not None:
            raise patient.failed


class _Patient(io.RawIOBase):
    """Hands on what is written until that fails once, and lets the rest go."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file = file
        self.failed: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._try(lambda: self.file.write(data))
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._try(lambda: self.file.seek(offset, whence))
        return offset

    def _try(self, do: Callable[[], object]) -> None:
        if self.failed is None:
            try:
                do()
            except OSError as error:
                self.failed = error
