"""Where verbs print: results on the standard output, notes on the standard error, texts into files."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

WIDE = 260
"""Columns of what is written to a pipe or a file."""


def note(notes: Sequence[str], quiet: bool) -> None:
    """A line for each note."""
    for each in notes:
        stderr(quiet).print(Text(f"note: {each}", style="dim"), soft_wrap=True)


def stdout() -> Console:
    """The console for results; into a pipe or file, lines are long enough to be searched one by one."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE)


def stderr(quiet: bool) -> Console:
    """The console for what is no result."""
    return Console(stderr=True, quiet=quiet)
