"""What can go wrong, one class per kind of action the user must take."""

from __future__ import annotations


class FxmergeError(Exception):
    """A problem the user can solve: one line says what, one line what to do. Exit code 2."""

    exit_code = 2

    def __init__(self, what: str, todo: str = "") -> None:
        self.what, self.todo = escaped(what), escaped(todo)
        super().__init__(self.what if not todo else f"{self.what}\n{self.todo}")

    def names(self, text: str) -> bool:
        """Whether the message holds `text`, as it is shown."""
        return escaped(text) in self.what


def escaped(text: str) -> str:
    """Text on one line that no terminal obeys: a name in it may hold line ends and escape codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


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
