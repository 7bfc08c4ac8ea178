"""The server without its doors: what REST and gRPC both ask of it, with its limits, measures and log lines."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from fxmerge.errors import OptionError
from fxmerge.io.guard import read_bytes
from fxmerge.messages import listed, nearest, printable, reason
from fxmerge.serving.batching import Limits
from fxmerge.serving.engine import Engine
from fxmerge.serving.logs import log
from fxmerge.serving.metrics import Metrics
from fxmerge.serving.models import Served
from fxmerge.serving.protocol import (
    BROKEN,
    FULL,
    LATE,
    NO_KEY,
    STOPPING,
    UNKNOWN,
    InferAnswer,
    InferRequest,
    RequestError,
)
from fxmerge.serving.raw import Raw, Taken
from fxmerge.version import __version__

Hold = Callable[[int], None]

AT_ONCE = 8
"""Largest requests that may be in memory at once, or as many bytes of smaller ones."""

GONE = 499
"""The status in logs and metrics of a request whose client went away."""


class Service:
    """Models by name, and how requests to them are answered."""

    def __init__(
        self, models: Mapping[str, Served], metrics: Metrics, limits: Limits, *, keys: Sequence[bytes] = ()
    ) -> None:
        self.models, self.metrics = models, metrics
        self.timeout, self.most_bytes, self.keys = limits.timeout, limits.most_bytes, tuple(keys)
        self.stopping, self.held = False, 0

    def stop(self) -> None:
        """Accept nothing more, and answer what was accepted without waiting for others."""
        self.stopping = True
        for served in self.models.values():
            served.batcher.hurry()

    def metadata(self) -> dict[str, Any]:
        """What the protocol tells of a server."""
        return {"name": "fxmerge", "version": __version__, "extensions": ["binary_tensor_data"]}

    def find(self, name: str, version: str = "") -> Served:
        """The model of a name. Raises `RequestError` if it, or its version, is not served."""
        served = self.models.get(name)
        if served is None:
            raise RequestError(
                f"there is no model {printable(name)!r}{nearest(name, self.models)}",
                f"ask for one of {listed(self.models)}", UNKNOWN,
            )  # fmt: skip
        if version not in ("", served.engine.version):
            raise RequestError(
                f"the model {name!r} has no version {printable(version)!r}",
                f"ask for {served.engine.version}, or leave the version out", UNKNOWN,
            )  # fmt: skip
        return served

    def admit(self, header: str | None) -> None:
        """Raise `RequestError` unless the header `Authorization` holds a key, where keys are asked for."""
        if not self.keys:
            return
        scheme, _, key = (header or "").partition(" ")
        given = key.strip().encode("utf-8", "surrogateescape")
        right = [hmac.compare_digest(given, known) for known in self.keys]  # as long whichever key it is
        if scheme.lower() != "bearer" or not any(right):
            raise RequestError("the API key is missing or wrong", "send it as Authorization: Bearer KEY", NO_KEY)

    @contextmanager
    def holding(self) -> Iterator[Hold]:
        """Count the bytes of a request until it is answered. Raises `RequestError` if there are too many of all."""
        mine = 0

        def hold(size: int) -> None:
            nonlocal mine
            if self.held + size > AT_ONCE * self.most_bytes:
                raise RequestError(
                    f"requests of {self.held} bytes are being answered", "send it again in a moment", FULL
                )
            self.held, mine = self.held + size, mine + size

        try:
            yield hold
        finally:
            self.held -= mine

    async def infer(self, name: str, version: str, request: InferRequest, protocol: str) -> InferAnswer:
        """Outputs of a request. Raises `RequestError`, whatever goes wrong."""
        start, status, rows, outputs = perf_counter(), 200, 0, request.outputs
        try:
            if self.stopping:
                raise RequestError("the server is stopping", "send it to another, or again in a moment", STOPPING)
            served = self.find(name, version)
            async with asyncio.timeout(self.timeout):
                taken, engine, raw = await self._take(served, request)
                with self.holding() as hold:
                    hold(sum(value.nbytes for value in taken.request.inputs.values()) if raw else 0)
                    asked = engine.accept(taken.request)
                    rows, outputs = asked.rows, taken.outputs or asked.outputs
                    values = await served.batcher.submit(asked)
            for task in dict.fromkeys(engine.task_of.get(output, "") for output in asked.outputs):
                self.metrics.latency.labels(name, task).observe(perf_counter() - start)
            told = raw.answer(values, outputs) if raw else {output: values[output] for output in outputs}
            return InferAnswer(name, engine.version, told, {"truncated": taken.cut} if taken.cut else {})
        except TimeoutError as error:
            status = LATE
            raise RequestError(
                f"the request was not answered within {self.timeout:g} s", "send fewer rows, or raise --timeout", LATE
            ) from error
        except RequestError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = GONE
            raise
        except Exception as error:
            status = BROKEN
            log("bug", level="error", what=reason(error), exc=type(error).__name__)
            raise RequestError(
                f"this is a bug in fxmerge: {type(error).__name__}: {reason(error)}", "please report it", BROKEN
            ) from error
        finally:
            self._answered(
                name, protocol, status, rows=rows, outputs=[printable(output) for output in outputs[:8]],
                ms=round(1e3 * (perf_counter() - start), 3),
            )  # fmt: skip

    async def _take(self, served: Served, request: InferRequest) -> tuple[Taken, Engine, Raw | None]:
        """The request in numbers, for the engine that answers now."""
        while True:
            engine, raw = served.engine, served.raw
            taken = await raw.take(request, self.timeout) if raw else Taken(request, ())
            if served.engine is engine:  # else the file was replaced while text or pictures were read
                return taken, engine, raw

    def refused(self, name: str, protocol: str, error: RequestError) -> None:
        """Count and log a request that could not be read."""
        self._answered(name, protocol, error.status, what=error.what)

    def _answered(self, name: str, protocol: str, status: int, **fields: Any) -> None:
        self.metrics.requests.labels(name if name in self.models else "", protocol, str(status)).inc()
        log("infer", model=printable(name), protocol=protocol, status=status, **fields)

    async def watch(self, seconds: float = 1.0) -> None:
        """Look for replaced files, for ever."""
        while True:
            await asyncio.sleep(seconds)
            for served in self.models.values():
                await served.look()

    async def close(self) -> None:
        """Answer all who wait."""
        await asyncio.gather(*(served.close() for served in self.models.values()))


def read_keys(path: str) -> tuple[bytes, ...]:
    """The API keys in a file, one a line. Raises `OptionError` if there is none."""
    text = read_bytes(Path(path), OptionError, most=1 << 20)
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise OptionError(f"{path} holds no key", "write one key a line")
    return keys
