"""Text of messages: names listed and made safe to print, near misses, and what a damaged file says."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Any, TypeVar

from fxmerge.errors import OptionError, SourceError

T = TypeVar("T")

MOST_NAMES, LONGEST_NAME = 5000, 200


def damaged(what: str) -> SourceError:
    """The error for a file that says something impossible."""
    return SourceError(f"the file is damaged: {what}", "capture or export the model again")


def field(value: Any, key: str, kind: type[T]) -> T:
    """`value[key]` of parsed JSON. Raises `SourceError` unless it is there and of that kind."""
    item = value.get(key) if isinstance(value, dict) else None
    if not isinstance(item, kind):
        raise damaged(f"{key!r} is missing or not a {kind.__name__}")
    return item


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint "did you mean 'x'?" for the closest known name, or nothing."""
    near = [other for other in islice(known, MOST_NAMES) if len(other) < LONGEST_NAME]  # comparing is quadratic
    close = difflib.get_close_matches(name[:LONGEST_NAME], near, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[object], limit: int = 8) -> str:
    """Names for a message: the first few, then how many more."""
    texts = [str(n) for n in names]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return (", ".join(texts[:limit]) or "none") + more


def printable(text: str) -> str:
    """Text from a file made safe to print on one line: no control characters, bounded."""
    return "".join(c if c.isprintable() else "?" for c in text)[:300]


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    return printable(next(iter(str(error).splitlines()), "") or type(error).__name__)


def unknown(kind: str, name: str, known: Iterable[str], todo: str = "") -> OptionError:
    """The error for a name nobody knows, with the nearest that somebody does."""
    names = sorted(known)
    return OptionError(
        f"unknown {kind} {printable(name)!r}{nearest(name, names)}", todo or f"known are: {', '.join(names) or 'none'}"
    )
