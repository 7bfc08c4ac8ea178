"""Arrays from .npz, .npy and .safetensors files; never pickled ones, never more than is worth its memory."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fxmerge.errors import DataError, UnsafeFileError
from fxmerge.io.guard import reading
from fxmerge.messages import printable, reason
from fxmerge.samples.reading import Broken

Array = np.ndarray[Any, np.dtype[Any]] | Tensor

SUFFIXES = (".npz", ".npy", ".safetensors")
MOST_NUMBERS, MOST_BYTES = 3 << 26, 1 << 29
"""What is read of a file: its first rows, all arrays together; 40,000 images of 32 x 32 x 3 fit in float32."""

MOST_ARRAYS = 1000
FREE_BYTES = 1 << 28
MOST_RATIO = 200
"""A compressed file over `FREE_BYTES` may unpack to at most this many times its size: images reach 20."""

AGAIN = "write the file again: it is damaged or of another format"


@dataclass(frozen=True)
class Header:
    """What a .npy member says of its array, compared with the bytes that are there."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_arrays(path: Path, broken: Broken | None = None) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The arrays of a file by name (a .npy file's one array has the name ""), and a note if there are more rows.

    A damaged array of a .npz file is left out. Raises `DataError` if the file is damaged or declares more than it
    holds, `UnsafeFileError` if it needs pickle.
    """
    with reading(path, DataError, AGAIN):
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix == ".npy":
            with open(path, "rb") as stream:
                header = _header(stream, path.stat().st_size, str(path))
                cut = _cut({"": header.shape}, {"": header.dtype.itemsize}, path)
                return {"": _read(stream, header, cut)}, _notes(cut, path)
        return _read_zip(path, broken or Broken(strict=True))


def as_tensor(array: Array, where: str) -> Tensor:
    """The array as a tensor. Raises `DataError` if it holds no numbers."""
    if isinstance(array, Tensor):
        return array
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise DataError(f"{where} holds {array.dtype} values, not numbers", "give an array of numbers")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _read_safetensors(path: Path) -> tuple[dict[str, Array], tuple[str, ...]]:
    with safe_open(path, framework="pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        cut = _cut(shapes, dict.fromkeys(shapes, 4), path)
        kept = {name: _kept(shape, cut) for name, shape in shapes.items()}
        arrays = {n: tensors.get_tensor(n) if kept[n] is None else part[: kept[n]] for n, part in slices.items()}
        return arrays, _notes(cut, path)


def _read_zip(path: Path, broken: Broken) -> tuple[dict[str, Array], tuple[str, ...]]:
    with zipfile.ZipFile(path) as archive:
        entries = [e for e in archive.infolist() if e.filename.endswith(".npy")]
        if not 0 < len(entries) <= MOST_ARRAYS:
            raise ValueError("it holds no arrays" if not entries else f"it holds {len(entries)} arrays")
        total, size = sum(e.file_size for e in entries), path.stat().st_size
        if total > FREE_BYTES and total > MOST_RATIO * size:
            raise DataError(
                f"{path} unpacks to {total >> 20} MiB, {total // size} times its size",
                f"save the arrays with numpy.savez (without compression): at most {MOST_RATIO} times is unpacked",
            )
        headers = {}
        for entry in entries:
            with _parts(path, entry.filename, broken), archive.open(entry) as stream:
                where = f"{path}: {printable(entry.filename)}"
                headers[entry.filename] = _header(stream, entry.file_size, where)
        cut = _cut(
            {name: h.shape for name, h in headers.items()},
            {name: h.dtype.itemsize for name, h in headers.items()},
            path,
        )
        arrays: dict[str, Array] = {}
        for entry in (entry for entry in entries if entry.filename in headers):
            with _parts(path, entry.filename, broken), archive.open(entry) as stream:
                _header(stream, entry.file_size, str(path))
                arrays[entry.filename.removesuffix(".npy")] = _read(stream, headers[entry.filename], cut)
        broken.check(len(arrays))
        return arrays, _notes(cut, path)


@contextmanager
def _parts(path: Path, name: str, broken: Broken) -> Iterator[None]:
    """Leave out one array of a file if it is damaged."""
    try:
        yield
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        broken.add(DataError(f"{path} cannot be read: {printable(name)}: {reason(error)}", AGAIN))


def _cut(shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], path: Path) -> tuple[int, int] | None:
    """How many rows to read of how many, if all of them are too much. Raises `DataError` if one row is."""
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    numbers, bytes_ = sum(counts.values()), sum(count * sizes[name] for name, count in counts.items())
    share = min(MOST_NUMBERS / max(numbers, 1), MOST_BYTES / max(bytes_, 1))
    if share >= 1:
        return None
    largest = max(counts, key=lambda name: counts[name])
    rows = shapes[largest][0] if shapes[largest] else 1
    fixed = sum(count for name, count in counts.items() if shapes[name][:1] != (rows,))
    if int(rows * share) < 1 or fixed > MOST_NUMBERS // 2:
        raise DataError(
            f"{path} holds arrays of {bytes_ >> 20} MiB, and not in rows that can be read one by one",
            f"give at most {MOST_BYTES >> 20} MiB",
        )
    return int(rows * share), rows


def _kept(shape: tuple[int, ...], cut: tuple[int, int] | None) -> int | None:
    """The rows to read of an array of this shape; None for all."""
    return cut[0] if cut is not None and shape[:1] == (cut[1],) else None


def _notes(cut: tuple[int, int] | None, path: Path) -> tuple[str, ...]:
    return () if cut is None else (f"{path} is large: the first {cut[0]} of {cut[1]} rows are used",)


def _header(stream: IO[bytes], size: int, where: str) -> Header:
    """The header of one .npy array, compared with the `size` bytes there are before anything is allocated."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = Header(*read(stream))
    if header.dtype.hasobject:
        raise UnsafeFileError(
            f"{where} holds Python objects, which are pickled", "save plain arrays of numbers or text"
        )
    if min(header.shape, default=0) < 0 or header.size > size:
        raise ValueError(f"the header says {header.size} bytes, the file has {size}")
    return header


def _read(stream: IO[bytes], header: Header, cut: tuple[int, int] | None) -> np.ndarray[Any, np.dtype[Any]]:
    """The array, or its first rows."""
    rows = _kept(header.shape, cut)
    if rows is not None and header.fortran:
        raise ValueError("it is too large to be read column by column: save it in C order")
    shape = header.shape if rows is None else (rows, *header.shape[1:])
    size = math.prod(shape) * header.dtype.itemsize
    block = bytearray()
    while len(block) < size:  # in pieces, so that no more is taken than there is
        piece = stream.read(min(size - len(block), 1 << 24))
        if not piece:
            raise ValueError("it is truncated")
        block += piece
    return np.frombuffer(block, dtype=header.dtype).reshape(shape, order="F" if header.fortran else "C")
