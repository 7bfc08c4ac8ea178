"""The one place where an exception becomes two lines on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fxmerge.errors import FxmergeError

DONE, BUG, USER, VERIFICATION, INTERRUPTED = 0, 1, 2, 3, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Stopped(Exception):
    """Ctrl-C on its way through the command-line library, which would drop what it says."""

    def __init__(self, cause: KeyboardInterrupt) -> None:
        super().__init__()
        self.cause = cause


def run(app: Callable[..., Any], args: Sequence[str]) -> int:
    """Run a command line; the exit code is that of the interface."""
    verbose = any(arg in ("-v", "--verbose") for arg in args)
    try:
        code = app(args=list(args), prog_name="fxmerge", standalone_mode=False)
        sys.stdout.flush()  # a disk that is full shows here, not when the interpreter ends
        return code if isinstance(code, int) else DONE
    except (Stopped, KeyboardInterrupt) as stopped:
        return _interrupted(getattr(stopped, "cause", stopped), args)
    except FxmergeError as error:
        return _say(error.what, error.todo, error.exit_code, verbose)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        _drop_output()
        return BUG
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser of the command line; its classes moved between versions
            return _usage(error)
        if isinstance(error, OSError) and error.filename:
            what = f"{error.filename}: {error.strerror}"
            return _say(what, "check the path, its permissions and the free space", USER, verbose)
        if isinstance(error, OSError) and error.errno in FULL:  # of the standard output, or of a file without a name
            _drop_output()
            todo = "free some space where the output goes and where temporary files lie (TMPDIR=FOLDER chooses another)"
            return _say(
                f"what was printed or kept for a while cannot be written: {error.strerror}", todo, USER, verbose
            )
        first = (str(error).splitlines() or [""])[0]
        what = f"this is a bug in fxmerge: {type(error).__name__}: {first} ({_place(error)})"
        return _say(what, "please report it with what the same command prints with -v", BUG, verbose)


def _drop_output() -> None:
    """Let go of what still waits to be printed: it would fail again as the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(what: str, todo: str, code: int, verbose: bool) -> int:
    console = Console(stderr=True)
    if verbose:
        console.print_exception()
    console.print(Text("error: ", style="bold red") + Text(what, style=""), soft_wrap=True)
    if todo:
        console.print(Text(todo), soft_wrap=True)
    return code


def _usage(error: Any) -> int:
    message = " ".join(str(error.format_message()).split())
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return USER
    command = getattr(getattr(error, "ctx", None), "command_path", "fxmerge")
    return _say(message[0].lower() + message[1:], f"`{command} --help` shows how it is used", USER, False)


def _interrupted(cause: BaseException, args: Sequence[str]) -> int:
    state = getattr(cause, "state", None)
    if state is None:
        return _say("interrupted", "nothing was written", INTERRUPTED, False)
    again = [*args] if any(arg.startswith("--resume") for arg in args) else [*args, "--resume", str(Path(state).parent)]
    return _say(str(cause), f"go on with: {shlex.join(['fxmerge', *again])}", INTERRUPTED, False)


def _place(error: BaseException) -> str:
    """The deepest line of our own code in the traceback, else the deepest of all."""
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    here = str(Path(__file__).parents[2])
    own = [place for place in places if place[0].startswith(here) and "site-packages" not in place[0][len(here) :]]
    file, line = (own or places or [("unknown", 0)])[-1]
    return f"{Path(file).name}:{line}"
