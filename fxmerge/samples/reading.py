"""What is asked of the reading of samples, and what becomes of parts of them that are broken."""

from __future__ import annotations

from dataclasses import dataclass

from fxmerge.errors import DataError


@dataclass(frozen=True)
class Reading:
    """How samples are read, beside what their files and the model say themselves."""

    limit: int | None = None
    """The first rows alone."""
    batch_axis: int | None = None
    """Where arrays have the batch, for inputs that the model does not take with the batch first."""
    strict: bool = False
    """Whether a broken file or row is an error; else it is left out and counted."""
    labels: bool = True
    """Whether labels are read; a merge needs none."""


USUAL = Reading()


class Broken:
    """Counts the files and rows that are left out because they cannot be read; the first of them is remembered."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.count = 0
        self.first: DataError | None = None

    def add(self, error: DataError, count: int = 1) -> None:
        """Leave something out. Raises `error` where broken parts are errors."""
        if self.strict:
            raise error
        self.first = self.first or error
        self.count += count

    def join(self, other: Broken) -> None:
        """Count what another one left out."""
        self.first = self.first or other.first
        self.count += other.count

    def check(self, left: int) -> None:
        """Raise the first error if nothing is left."""
        if self.first is not None and not left:
            raise self.first

    def notes(self, where: str) -> tuple[str, ...]:
        """What to say of what was left out."""
        if self.first is None:
            return ()
        part = "one broken part was" if self.count == 1 else f"{self.count} broken parts were"
        return (f"{where}: {part} left out (--strict-data stops there): {self.first.what}",)
