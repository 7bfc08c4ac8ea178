"""The models of a server: each a file that may be replaced while it is served."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxmerge.errors import FxmergeError, OptionError
from fxmerge.io.files import weights_beside
from fxmerge.ir.program import Port
from fxmerge.messages import reason
from fxmerge.serving.batching import Batcher, Limits
from fxmerge.serving.engine import Engine, datatype
from fxmerge.serving.logs import log
from fxmerge.serving.metrics import Metrics
from fxmerge.serving.raw import Raw

State = tuple[tuple[int, ...], ...]


class Served:
    """A model by name: the engine that answers now, its queue, and the file both came from."""

    def __init__(self, path: Path, limits: Limits, metrics: Metrics, device: str, *, raw: bool = False) -> None:
        self.name, self.path, self.limits, self.metrics, self.device = path.stem, path, limits, metrics, device
        self._seen = self._tried = _state(path)
        self._is_raw = raw
        self._use(*self._open())
        self._closing: set[asyncio.Task[None]] = set()

    def _open(self) -> tuple[Engine, Raw | None]:
        engine = Engine(self.path, device=self.device)
        return engine, Raw(engine, self.limits) if self._is_raw else None

    def _use(self, engine: Engine, raw: Raw | None) -> None:
        self.engine, self.raw = engine, raw
        self.batcher = Batcher(engine, self.limits, self.metrics, self.name)

    @property
    def notes(self) -> list[str]:
        """What was found out when the model was opened, and its clients should know."""
        return self.engine.notes + (self.raw.notes if self.raw else [])

    async def look(self) -> None:
        """Take a file that was replaced, once it is the same at two looks; keep the old one if it is not whole."""
        now = _state(self.path)
        settled, self._seen = now == self._seen, now
        if not now or not settled or now == self._tried:
            return
        self._tried = now
        try:
            engine, raw = await asyncio.to_thread(self._open)
            if _state(self.path) != now:
                return  # replaced again meanwhile: the next look takes it
        except FxmergeError as error:
            self._refused(error.what, error.todo)
        except Exception as error:
            self._refused(f"{self.path}: {reason(error)}", "")
        else:
            before, old = self.engine.version, self._close(self.batcher, self.raw)
            self._use(engine, raw)
            task = asyncio.create_task(old)
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self.metrics.reloads.labels(self.name, "taken").inc()
            log("reloaded", model=self.name, version=engine.version, before=before, notes=self.notes)

    def _refused(self, what: str, todo: str) -> None:
        self.metrics.reloads.labels(self.name, "refused").inc()
        told = f"{todo}; " if todo else ""
        log(
            "reload refused", level="error", model=self.name, what=what, version=self.engine.version,
            todo=f"{told}the model that was there before is served on",
        )  # fmt: skip

    async def close(self) -> None:
        """Answer all who wait."""
        await asyncio.gather(self._close(self.batcher, self.raw), *self._closing)

    async def _close(self, batcher: Batcher, raw: Raw | None) -> None:
        await batcher.close()
        if raw:
            await asyncio.to_thread(raw.close)

    def metadata(self) -> dict[str, Any]:
        """What the protocol tells of a model."""

        inputs, outputs = ([_told(p) for p in ports.values()] for ports in (self.engine.inputs, self.engine.outputs))
        if self.raw:
            inputs, outputs = self.raw.told_inputs(), outputs + self.raw.told_outputs()
        return {
            "name": self.name, "versions": [self.engine.version], "platform": "onnx_onnxv1",
            "inputs": inputs, "outputs": outputs,
        }  # fmt: skip


def _told(port: Port) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in port.shape]
    return {"name": port.name, "datatype": datatype(port), "shape": shape}


def open_models(
    paths: Sequence[str], limits: Limits, metrics: Metrics, device: str, *, raw: bool = False
) -> dict[str, Served]:
    """Models by the stems of their files. Raises `OptionError` where two have one."""
    served: dict[str, Served] = {}
    for text in paths:
        path = Path(text)
        if path.stem in served:
            raise OptionError(f"two models are called {path.stem!r}", "rename one of the files")
        served[path.stem] = Served(path, limits, metrics, device, raw=raw)
    return served


def _state(path: Path) -> State:
    """What tells that a file, or the file of its weights, is another one; empty where it is not there."""
    try:
        found = [path.stat()] + [p.stat() for p in (weights_beside(path),) if p.exists()]
    except OSError:
        return ()
    return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in found)
