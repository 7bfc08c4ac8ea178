"""The command line: verbs, flags, exit codes, what is printed and what is drawn; the work is done elsewhere."""

from __future__ import annotations

from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    from fxmerge.cli.verbs import main as run

    return run(args)
