"""Stop a long run between two steps, keep its state in a file, and go on from it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fxmerge.errors import OptionError
from fxmerge.io.files import atomic_write


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
    with atomic_write(path) as part:
        torch.save({"identity": dict(identity), "state": dict(state)}, part)


def recall(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The state kept at `path` by a run with the same identity; the file is read as data, never as code."""
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        theirs, state = kept["identity"], dict(kept["state"])
    except Exception as error:
        raise OptionError(f"{path} is not a kept training state ({type(error).__name__})", "remove it") from error
    other = [key for key in identity if identity[key] != theirs.get(key)]
    if other:
        raise OptionError(
            f"{path} was kept by a run with other {', '.join(other)}",
            "resume with the command that was interrupted, or name another folder",
        )
    return state
