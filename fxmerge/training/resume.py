"""Stop a long run between two steps, keep its state in a file, and go on from it."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxmerge.errors import OptionError
from fxmerge.io.files import atomic_write
from fxmerge.io.guard import reading
from fxmerge.io.pickles import check_pickle
from fxmerge.io.tensor_files import written_by_torch


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the state was kept: give the same `state` to `fit` to go on."""

    def __init__(self, step: int, steps: int, state: Path | None) -> None:
        kept = f"state kept in {state}" if state else "no state kept"
        super().__init__(f"interrupted at step {step} of {steps}; {kept}")
        self.step, self.steps, self.state = step, steps, state


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Hold the first Ctrl-C back until the function given is called; a second one acts at once.

    A step is never cut in half by the first. Outside the main thread nothing is held back, since no Ctrl-C arrives.
    """
    caught: list[int] = []
    before: Any = None

    def hold(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, before)

    def pause() -> None:
        if caught:
            caught.clear()
            raise KeyboardInterrupt

    held = threading.current_thread() is threading.main_thread()
    if held:
        before = signal.signal(signal.SIGINT, hold) or signal.default_int_handler
    try:
        yield pause
    finally:
        if held:
            signal.signal(signal.SIGINT, before)
    pause()


def keep(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the state of a run, and what identifies the run, to a file: all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, written_by_torch(part) as file:
        torch.save({"identity": dict(identity), "state": dict(state)}, file)


def recall(path: Path, identity: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The state kept at `path` by a run with the same identity; the file is read as data, never as code.

    `own` is the state of the run that asks: what is read has its names, shapes and types, whatever the file says.
    """
    with reading(path, OptionError, "remove it", how="is not a kept training state"):
        kept = _kept(path)
        theirs, state = kept["identity"], dict(kept["state"])
        other = [key for key in identity if identity[key] != theirs.get(key)]
    if other:
        raise OptionError(
            f"{path} was kept by a run with other {', '.join(other)}",
            "resume with the command that was interrupted, or name another folder",
        )
    wrong = next((bad for key in own if (bad := _unlike(state.get(key), own[key], key))), "")
    if wrong:
        raise OptionError(f"{path} is not a kept training state: {wrong}", "remove it")
    return state


def chosen(path: Path | None, wanted: Mapping[str, type]) -> dict[str, Any]:
    """What trials had chosen for the run whose state is kept at `path`; nothing where there is none.

    `wanted` are the names and types that this method chooses: a run of another method kept others.
    """
    if path is None or not path.exists():
        return {}
    with reading(path, OptionError, "remove it", how="is not a kept training state"):
        found = dict(_kept(path)["identity"]["chosen"])
    if found and {name: type(value) for name, value in found.items()} != wanted:
        raise OptionError(
            f"{path} was kept by a run of another method",
            "resume with the command that was interrupted, or name another folder",
        )
    return found


def _kept(path: Path) -> Any:
    check_pickle(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def restore(optimizer: torch.optim.Optimizer, kept: Any, path: Path) -> None:
    """Give the optimizer what it kept of each parameter; its settings stay those of this run."""
    own = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = kept.get("state") if isinstance(kept, Mapping) else None
    fits = isinstance(entries, Mapping) and all(
        isinstance(number, int) and 0 <= number < len(parameters) and _remembers(entry, parameters[number])
        for number, entry in entries.items()
    )
    if not fits:
        raise OptionError(f"{path} is not a kept training state: it holds another optimizer", "remove it")
    optimizer.load_state_dict({**own, "state": dict(entries)})  # type: ignore[arg-type]


def _remembers(entry: Any, parameter: Tensor) -> bool:
    """Whether what is kept of a parameter is numbers, and tensors of its shape."""
    return isinstance(entry, Mapping) and all(
        isinstance(v, int | float)
        or (isinstance(v, Tensor) and v.layout == torch.strided and v.shape in (parameter.shape, torch.Size([])))
        for v in entry.values()
    )


def _unlike(value: Any, own: Any, where: str) -> str:
    """What keeps `value` from taking the place of `own`, or nothing. Lists may be of any length."""
    if isinstance(own, Tensor):
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.dtype == own.dtype
        return "" if plain and value.shape == own.shape else f"{where} is no tensor of shape {tuple(own.shape)}"
    if isinstance(own, Mapping):
        if not isinstance(value, Mapping) or value.keys() != own.keys():
            return f"{where} does not hold what this run keeps"
        return next((bad for key in own if (bad := _unlike(value[key], own[key], f"{where}.{key}"))), "")
    if isinstance(own, list):
        kind = type(own[0]) if own else float
        same = isinstance(value, list) and all(type(v) is kind and v == v for v in value)
        return "" if same else f"{where} is no list of {kind.__name__}"
    number = isinstance(value, int | float) and math.isfinite(value) and value >= 0
    return "" if number else f"{where} is no number"
