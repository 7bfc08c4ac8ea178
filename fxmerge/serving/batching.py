"""Requests wait a moment for others, and run as one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from fxmerge.serving.engine import Asked, Engine
from fxmerge.serving.protocol import FULL, Array, RequestError

if TYPE_CHECKING:
    from fxmerge.serving.metrics import Metrics


@dataclass(frozen=True)
class Limits:
    """How much of everything there may be. Times are in seconds."""

    max_batch: int = 32
    """Rows of a batch; a larger request runs alone."""
    max_wait: float = 0.002
    """How long the first request of a batch waits for others."""
    max_queue: int = 256
    """Requests that wait for a model."""
    timeout: float = 30.0
    """How long a request may take."""
    most_bytes: int = 64 << 20
    """Size of a request; also of what text and pictures become as numbers."""


@dataclass(eq=False)
class _Waiting:
    asked: Asked
    answer: asyncio.Future[dict[str, Array]]
    since: float = field(default_factory=monotonic)


class Batcher:
    """The queue of one model: one batch runs at a time, in a thread; those who wait for it form the next."""

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics, name: str) -> None:
        self.engine, self.limits, self.metrics, self.name = engine, limits, metrics, name
        self._queue: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._more, self._full = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._hurry = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fxmerge-serving")

    async def submit(self, asked: Asked) -> dict[str, Array]:
        """The outputs of a request. Raises `RequestError` if too many wait; whoever is cancelled leaves the queue."""
        if len(self._queue) >= self.limits.max_queue:
            raise RequestError(
                f"{len(self._queue)} requests wait for {self.name!r} already", "send it again in a moment", FULL
            )
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        one = _Waiting(asked, asyncio.get_running_loop().create_future())
        self._queue.append(one)
        self._changed()
        try:
            return await one.answer
        finally:
            if one in self._queue:  # cancelled: its client went away, or its time is over
                self._queue.remove(one)
                self._changed()

    def hurry(self) -> None:
        """Wait for no more requests: those that are here are the last."""
        self._hurry = True
        self._changed()

    async def close(self) -> None:
        """Answer all who wait, then stop."""
        self.hurry()
        while self._queue or self._running:
            answers = [one.answer for one in (*self._queue, *self._running)]
            await asyncio.wait(answers)
            await asyncio.sleep(0)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    def _changed(self) -> None:
        self.metrics.queue.labels(self.name).set(len(self._queue))
        if self._queue:
            self._more.set()
        if self._hurry or sum(one.asked.rows for one in self._queue) >= self.limits.max_batch:
            self._full.set()
        else:
            self._full.clear()

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._more.clear()
                await self._more.wait()
            await self._fill()
            self._running = self._take()
            if self._running:
                await self._run(self._running)
            self._running = []

    async def _fill(self) -> None:
        """Wait until the batch is full or its first request has waited long enough."""
        left = self._queue[0].since + self.limits.max_wait - monotonic()
        if left > 0 and not self._full.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._full.wait()

    def _take(self) -> list[_Waiting]:
        """The first that waits and all behind it that may share its batch; a larger request runs alone."""
        batch: list[_Waiting] = []
        rows = 0
        for one in tuple(self._queue):
            if batch and self.engine.key(one.asked) != self.engine.key(batch[0].asked):
                continue
            if batch and rows + one.asked.rows > self.limits.max_batch:
                break
            batch.append(one)
            rows += one.asked.rows
        for one in batch:
            self._queue.remove(one)
        self._changed()
        return batch

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        """Answer a batch; if it cannot be run, each of its requests runs alone, so that none fails for another."""
        loop = asyncio.get_running_loop()
        self.metrics.rows.labels(self.name).observe(sum(one.asked.rows for one in batch))
        try:
            answers = await loop.run_in_executor(self._thread, self.engine.run, [one.asked for one in batch])
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0], error)
                return
            for one in batch:
                if not one.answer.done():
                    await self._run([one])
            return
        for one, answer in zip(batch, answers, strict=True):
            _settle(one, answer)


def _settle(one: _Waiting, result: dict[str, Array] | Exception) -> None:
    if one.answer.done():  # nobody waits for it any more
        return
    if isinstance(result, Exception):
        one.answer.set_exception(result)
    else:
        one.answer.set_result(result)
