"""Weights from .safetensors files and torch.save files, read without executing anything in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.io.archives import Archive
from fxmerge.messages import printable, reason

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
"""Keys under which training scripts keep the state dict in a checkpoint."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

CAPTURE = (
    "capture it where its code is: fxmerge.save(model, 'a.pt', inputs=(x,)); if you trust the file, --allow-pickle"
)


def read_weights(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor] | nn.Module:
    """A state dict by name; with `allow_pickle` also a whole pickled module.

    Raises `UnsafeFileError` if reading would execute code, `SourceError` if the file is damaged or holds no weights.
    """
    if is_safetensors(path):
        return _read_safetensors(path)
    value = _unpickle(path, allow_pickle)
    if isinstance(value, nn.Module):
        return value
    state = _state_of(value)
    if not state:
        raise SourceError(f"{path} holds no weights", "save model.state_dict() with torch.save, or capture the model")
    _check_sizes(state, path)
    return state


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
    try:
        return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        if allow_pickle:
            raise SourceError(f"{path} is damaged: {reason(error)}", "copy or write the file again") from error
        raise UnsafeFileError(
            f"{path} is a pickled object: reading it would execute code from the file", CAPTURE
        ) from error
    except Exception as error:  # damaged pickles fail in many ways; with allow_pickle the file's own code may fail too
        missing = isinstance(error, AttributeError | ImportError)
        todo = "run from the folder that holds its code" if allow_pickle and missing else "copy or write the file again"
        raise SourceError(f"{path} cannot be read: {reason(error)}", todo) from error


def _state_of(value: Any) -> dict[str, Tensor]:
    """The tensors of a state dict or checkpoint, without what wrappers put before their names."""
    if not isinstance(value, Mapping):
        return {}
    for key in WRAPPERS:
        if isinstance(value.get(key), Mapping):
            return _state_of(value[key])
    state = {str(name): tensor.detach() for name, tensor in value.items() if isinstance(tensor, Tensor)}
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_sizes(state: Mapping[str, Tensor], path: Path) -> None:
    """No tensor is larger than the file that holds it: a few bytes can claim any shape."""
    for name, tensor in state.items():
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
