"""Stages of a long piece of work: named, timed, and told how far they have come; what shows them is somebody else's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Tell(Protocol):
    """What work calls to say how far it has come: `done` of `total`, a few words, and what it measures by name."""

    def __call__(self, done: int, total: int, message: str = "", **values: float) -> None: ...


class Stages:
    """Names the stages of a piece of work and times them; this one shows nothing.

    with stages("train") as tell:
        tell(10, 600, "loss 0.42")
    """

    watched = False
    """Whether what is told is kept, and not only shown."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """How long each stage took; a stage entered twice adds up."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[Tell]:
        begin = time.perf_counter()
        try:
            with self.show(name) as tell:
                yield tell
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    @contextmanager
    def show(self, name: str) -> Iterator[Tell]:
        yield silent


def silent(done: int, total: int, message: str = "", **values: float) -> None:
    """Progress that nobody watches."""
