"""What can go wrong, one class per kind of action the user must take."""

from __future__ import annotations


class FxmergeError(Exception):
    """A problem the user can solve: one line says what, one line what to do. Exit code 2."""

    exit_code = 2

    def __init__(self, what: str, todo: str = "") -> None:
        super().__init__(what if not todo else f"{what}\n{todo}")
        self.what, self.todo = what, todo


class SourceError(FxmergeError):
    """A model cannot be read from where it was said to be."""


class UnsafeFileError(SourceError):
    """A file would execute code when read."""


class DataError(FxmergeError):
    """Samples are missing or do not fit."""


class CaptureError(FxmergeError):
    """A model cannot be traced."""


class LineUpError(FxmergeError):
    """Parents do not have the same structure."""


class OptionError(FxmergeError):
    """An unknown or impossible flag, key or name."""


class OutputError(FxmergeError):
    """The output cannot be written where it was asked for."""


class ExtensionError(FxmergeError):
    """An extension cannot be loaded or clashes with another."""


class VerificationError(FxmergeError):
    """A check of the merged model failed; nothing was written. Exit code 3."""

    exit_code = 3
