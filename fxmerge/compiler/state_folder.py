"""Where an interrupted merge keeps its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fxmerge.config import MergeConfig
from fxmerge.errors import OptionError


@contextmanager
def state_folder(config: MergeConfig, say: Callable[[str], None]) -> Iterator[MergeConfig]:
    """The config with a folder where an interrupted merge keeps its state: `--resume`, else one beside `--out`.

    A state left by an earlier run is used only if `--resume` names it, and dropped otherwise; an empty folder is
    removed afterwards.
    """
    folder = Path(config.resume or f"{config.out or 'merge'}.state")
    old = sorted(folder.glob("*.pt"))
    if config.resume and not old:
        raise OptionError(f"--resume {folder}: no state of an interrupted merge there", "start without --resume")
    if old and not config.resume:
        say(f"starting over: the state of an interrupted merge in {folder} is dropped (--resume {folder} continues it)")
        for file in old:
            file.unlink()
    try:
        yield config.with_options(resume=str(folder))
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
