"""Weights from .safetensors files and torch.save files, read without executing anything in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.io.archives import Archive
from fxmerge.io.guard import reading
from fxmerge.io.pickles import check_pickle
from fxmerge.messages import printable, reason
from fxmerge.sources.checkpoint import Checkpoint, modules_in

CAPTURE = (
    "capture it where its code is: fxmerge.save(model, 'a.pt', inputs=(x,)); if you trust the file, --allow-pickle"
)


def read_weights(path: Path, *, allow_pickle: bool = False) -> Checkpoint | nn.Module:
    """What a file of weights holds; with `allow_pickle` also a whole pickled module, at any depth.

    Raises `UnsafeFileError` if reading would execute code, `SourceError` if the file is damaged or holds no weights.
    """
    with reading(path):
        if is_safetensors(path):
            return Checkpoint(path, _read_safetensors(path))
        value = _unpickle(path, allow_pickle)
        if isinstance(value, nn.Module):
            return value
        found = Checkpoint(path, value if isinstance(value, Mapping) else {})
        if not found.largest and not modules_in(value):
            todo = "save model.state_dict() with torch.save, or capture the model"
            raise SourceError(f"{path} holds no weights", todo)
        _check_tensors(found.largest, path)
        return found


def is_safetensors(path: Path) -> bool:
    """Whether the file starts like a safetensors file, whatever its name."""
    with open(path, "rb") as stream:
        head = stream.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def is_pickle(path: Path) -> bool:
    """Whether the file starts like torch.save's older format, or like any other pickle."""
    with open(path, "rb") as stream:
        return stream.read(1) == b"\x80"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"{path} is damaged: {reason(error)}", "copy or write the file again") from error


def _unpickle(path: Path, allow_pickle: bool) -> Any:
    if zipfile.is_zipfile(path):
        with Archive(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.names):
                raise SourceError(
                    f"{path} is a TorchScript file", "save the model's state dict, or capture the model itself"
                )
            for name in archive.names:
                archive.size(name)
    if not allow_pickle:
        check_pickle(path)
    try:
        with torch.serialization.safe_globals(_numpy_values()):
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        if allow_pickle:
            raise SourceError(f"{path} is damaged: {reason(error)}", "copy or write the file again") from error
        named = re.search(r"GLOBAL (\S+) was not", str(error))
        raise UnsafeFileError(
            f"{path} is a pickled object: reading it would execute code from the file"
            + (f" (it holds a {printable(named[1])})" if named else ""),
            CAPTURE,
        ) from error
    except Exception as error:  # damaged pickles fail in many ways; with allow_pickle the file's own code may fail too
        if "pickle protocol" in str(error):
            raise UnsafeFileError(f"{path} is a plain pickle, not a file of torch.save", CAPTURE) from error
        missing = isinstance(error, AttributeError | ImportError)
        todo = "run from the folder that holds its code" if allow_pickle and missing else "copy or write the file again"
        raise SourceError(f"{path} cannot be read: {reason(error)}", todo) from error


def _numpy_values() -> list[Any]:
    """What numbers and arrays of NumPy are pickled as, for torch's list of what may be read: they run nothing.

    Arrays of objects are not among them.
    """
    kinds = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType") and name != "ObjectDType"]
    makers = [(np.float64(0).__reduce__()[0], "scalar"), (_empty_array, "_reconstruct")]
    modules = ("numpy._core.multiarray", "numpy.core.multiarray")  # the second in files of NumPy 1
    named = [(make, f"{module}.{name}") for make, name in makers for module in modules]
    return [np.dtype, np.ndarray, *kinds, *named]


def _empty_array(kind: Any, shape: Any, dtype: Any) -> Any:
    """What a pickled array starts as; its contents follow, and must be as long as its shape says."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("an array that starts as something else")
    return np.ndarray((0,), dtype)


def _check_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Every tensor is a plain one, no larger than the file that holds it: a few bytes can claim any shape."""
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            raise SourceError(f"{path}: {printable(name)} is no plain tensor", "convert it to an ordinary one")
        if tensor.numel() * tensor.element_size() > path.stat().st_size:
            raise SourceError(
                f"{path} is damaged: {printable(name)} claims {tuple(tensor.shape)} numbers, more than the file holds",
                "save the state dict again, with expanded tensors made contiguous",
            )


def check_weights(tensors: Mapping[str, Tensor], trained: frozenset[str], where: str) -> None:
    """Raise `SourceError` naming the first trained tensor with NaN or infinite values (or other tensor with NaN)."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        bad = ~torch.isfinite(tensor) if name in trained else torch.isnan(tensor)
        if bool(bad.any()):
            raise SourceError(
                f"{where}: {int(bad.sum())} of {tensor.numel()} numbers of {name} are NaN or infinite",
                "use a checkpoint from before the training diverged",
            )
