"""Arrays from .npz, .npy and .safetensors files; never pickled ones, never larger than the file can hold."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fxmerge.errors import DataError, FxmergeError, UnsafeFileError
from fxmerge.messages import reason

Array = np.ndarray[Any, np.dtype[Any]] | Tensor

SUFFIXES = (".npz", ".npy", ".safetensors")
FREE_BYTES = 1 << 28
MOST_RATIO = 200
"""A compressed array over `FREE_BYTES` may be at most this many times larger than its file: images reach 20."""


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a file by name; a .npy file's one array has the name "".

    Raises `DataError` if the file is damaged or declares more than it can hold, `UnsafeFileError` if it needs pickle.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
        if path.suffix == ".npy":
            with open(path, "rb") as stream:
                return {"": _read(stream, path.stat().st_size, str(path))}
        return _read_zip(path)
    except FxmergeError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and safetensors each have errors of their own
        raise DataError(
            f"{path} cannot be read: {reason(error)}", "write the file again: it is damaged or of another format"
        ) from error


def as_tensor(array: Array, where: str) -> Tensor:
    """The array as a tensor. Raises `DataError` if it holds no numbers."""
    if isinstance(array, Tensor):
        return array
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where} holds {array.dtype} values, not numbers", "give an array of numbers")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _read_zip(path: Path) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(path) as archive:
        entries = [e for e in archive.infolist() if e.filename.endswith(".npy")]
        if not entries:
            raise ValueError("it holds no arrays")
        total = sum(e.file_size for e in entries)
        if total > FREE_BYTES and total > MOST_RATIO * path.stat().st_size:
            raise DataError(
                f"{path} unpacks to {total >> 20} MiB, {total // max(1, path.stat().st_size)} times its size",
                f"save the arrays with numpy.savez (without compression): at most {MOST_RATIO} times is unpacked",
            )
        for entry in entries:
            with archive.open(entry) as stream:
                arrays[entry.filename.removesuffix(".npy")] = _read(
                    stream, entry.file_size, f"{path}: {entry.filename}"
                )
    return arrays


def _read(stream: IO[bytes], size: int, where: str) -> np.ndarray[Any, np.dtype[Any]]:
    """One .npy array, its header compared with the `size` bytes there are before anything is allocated."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise UnsafeFileError(
            f"{where} holds Python objects, which are pickled", "save plain arrays of numbers or text"
        )
    count = math.prod(shape)
    if count * dtype.itemsize > size:
        raise ValueError(f"the header says {count * dtype.itemsize} bytes, the file has {size}")
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError("it is truncated")
    flat = np.frombuffer(bytearray(data), dtype=dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
