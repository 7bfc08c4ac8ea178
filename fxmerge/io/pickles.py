"""A pickle walked through before it is read: whether it ends, in little time and memory, nested as data is.

What its classes would do is left to who reads it: here every one stands for an object that does nothing.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxmerge.errors import SourceError
from fxmerge.io.archives import Archive
from fxmerge.io.child import ChildError, ask
from fxmerge.io.guard import AGAIN

MOST_BYTES = 16 << 20
"""Names and shapes of 10,000 tensors take 3 MiB. The tensors themselves lie outside."""

WALK = "fxmerge.io.pickles:walk"


def check_pickle(path: Path) -> None:
    """Raise `SourceError` if the pickle of a torch.save file is too long, nested without end, or never done."""
    try:
        if zipfile.is_zipfile(path):
            with Archive(path) as archive:
                inside = [name for name in archive.names if name.endswith("/data.pkl")]
                for name in inside:
                    if archive.size(name) > MOST_BYTES:
                        raise ChildError(f"it holds {archive.size(name) >> 20} MiB of Python values beside its tensors")
                    list(ask(WALK, {}, archive.read(name)))
        else:
            with open(path, "rb") as stream:
                list(ask(WALK, {}, stream.read(MOST_BYTES)))
    except ChildError as error:
        raise SourceError(f"{path} cannot be read: {error}", AGAIN) from error


def walk(request: dict[str, Any], data: bytes) -> Iterator[tuple[Any, bytes]]:
    """The worker. A pickle that is damaged is no matter here, the reader says so better; one that is endless is."""
    stream = io.BytesIO(data)
    try:
        for _ in range(5):  # torch's older format holds that many in a row
            _Walker(stream).load()
    except (MemoryError, RecursionError):
        raise
    except Exception:
        pass
    yield {}, b""


class _Inert:
    """Stands for whatever a pickle names: takes any state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None:
        hash(key)

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


class _Walker(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Inert

    def persistent_load(self, key: Any) -> Any:
        return _Inert()
