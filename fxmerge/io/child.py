"""Work on a stranger's file in a child process of bounded memory and time, where a native library may crash or hang.

A worker is a generator function `module:name` of fxmerge that takes a request (JSON) and bytes and yields answers
(JSON, bytes). Every answer renews its time. The child imports what the worker needs and no more; torch is not among it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

MEMORY = 3 << 29
"""Bytes of memory a worker may take beside what it is given."""

SECONDS = 20
"""Processor time a worker may take for one answer: beside other work it takes a multiple of what it takes alone."""

WALL = 60
"""Seconds that may pass before an answer where the machine is not busy: a worker may wait, and compute nothing."""

RATE = 32 << 20
"""Bytes of a file that are worth a second more."""

MOST_ANSWER = 1 << 31
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "2",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONDONTWRITEBYTECODE": "1",
}
START = (
    "import sys; sys.path.insert(0, {root!r}); import fxmerge; del sys.path[0]; import fxmerge.io.child as c; c.serve()"
)


class ChildError(Exception):
    """A worker could not do its work; the text says why, on one line."""


def ask(worker: str, request: dict[str, Any], data: bytes = b"", *, size: int = 0) -> Iterator[tuple[Any, bytes]]:
    """The answers of `worker` ("module:name"), run in a child. Raises `ChildError` if it fails, dies or hangs.

    `size`: bytes of the files that it reads itself; large ones get more memory and time.
    """
    with tempfile.TemporaryDirectory(prefix="fxmerge-", ignore_cleanup_errors=True) as scratch:
        yield from _answers(_start(scratch), {"worker": worker, "request": request, "size": size}, data)


class Talk:
    """A worker kept alive between questions. It is begun anew, from its first request, when it failed at the last one.

    Such a worker yields an answer to its request, and then one to each question that it is sent, a request and bytes.
    """

    def __init__(self, worker: str, request: dict[str, Any], data: bytes = b"", *, size: int = 0) -> None:
        """`size`: bytes that a question may have."""
        self._first = {"worker": worker, "request": request, "size": size, "talk": True}, data
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.begun: Any = None
        """The answer to the first request."""

    def begin(self) -> None:
        """Start the worker, unless it runs. Raises `ChildError`."""
        if self._process is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="fxmerge-", ignore_cleanup_errors=True)
            self._process = _start(self._scratch.name)
            head, data = self._first
            self.begun, _ = self._exchange({**head, "seconds": SECONDS}, data)

    def ask(self, question: dict[str, Any], data: bytes = b"") -> tuple[Any, bytes]:
        """The answer to a question. Raises `ChildError` if the worker fails, dies or hangs."""
        self.begin()
        return self._exchange(question, data)

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.kill()
            self._process.stdout.close()
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
        if self._scratch is not None:
            self._scratch.cleanup()
        self._process = self._scratch = None

    def _exchange(self, question: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
        assert self._process is not None
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()
        try:
            with _Alarm(self._process, late, _wall()):
                with suppress(BrokenPipeError):
                    _write(self._process.stdin, question, data)
                answer = _read(self._process.stdout)
            if answer is None:
                raise ChildError(_end(self._process.wait(), late.is_set()))
            said, payload = answer
            if "answer" not in said:
                raise ChildError(said.get("error", "it ended"))
            return said["answer"], payload
        except BaseException:
            self.close()
            raise


def _start(scratch: str) -> subprocess.Popen[bytes]:
    """A child that keeps its temporary files in `scratch`: one that is killed cannot remove them."""
    code = START.format(root=str(Path(__file__).parents[2]))
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT, **places}, process_group=0,  # Ctrl-C is for this process alone
    )  # fmt: skip


def _answers(process: subprocess.Popen[bytes], head: dict[str, Any], data: bytes) -> Iterator[tuple[Any, bytes]]:
    assert process.stdin is not None and process.stdout is not None
    late = threading.Event()
    try:
        with suppress(BrokenPipeError), process.stdin as stream:
            _write(stream, {**head, "seconds": SECONDS}, data)
        while True:
            with _Alarm(process, late, _wall(head["size"])):
                answer = _read(process.stdout)
            if answer is None:
                raise ChildError(_end(process.wait(), late.is_set()))
            said, payload = answer
            if "error" in said:
                raise ChildError(said["error"])
            if "done" in said:
                return
            yield said["answer"], payload
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def serve() -> None:
    """Be the child: bound this process, read one request, write the worker's answers."""
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    asked = _read(sys.stdin.buffer)
    assert asked is not None
    head, data = asked
    size = head["size"] + len(data)
    seconds = head["seconds"] + size // RATE
    _bound(MEMORY + 4 * size)
    module, _, name = head["worker"].partition(":")
    assert module.startswith("fxmerge.")
    try:
        _renew(seconds)
        work = getattr(import_module(module), name)(head["request"], data)
        asked = None
        with suppress(StopIteration):
            while True:
                answer, payload = work.send(asked) if asked else next(work)
                _write(out, {"answer": answer}, payload)
                _renew(seconds)
                if head.get("talk") and (asked := _read(sys.stdin.buffer)) is None:
                    return
        _write(out, {"done": True}, b"")
    except MemoryError:
        _write(out, {"error": f"it would take more than {MEMORY >> 20} MiB of memory"}, b"")
    except BaseException as error:  # a native library panics with errors outside Exception
        text = next(iter(str(error).splitlines()), "")[:300] or type(error).__name__
        _write(out, {"error": text}, b"")


def _wall(size: int = 0) -> float:
    """Seconds that may pass before an answer about so many bytes: more where others want the processors too."""
    try:
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):  # Windows, and systems that do not say
        load = 0.0
    return (WALL + size // RATE) * max(1.0, load)


class _Alarm:
    """Kill the process if this block takes too long."""

    def __init__(self, process: subprocess.Popen[bytes], late: threading.Event, seconds: float) -> None:
        def stop() -> None:
            late.set()
            process.kill()

        self._timer = threading.Timer(seconds, stop)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *problem: object) -> None:
        self._timer.cancel()


def _bound(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only bound
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _renew(seconds: int) -> None:
    """Allow so many seconds more of processor time, counted from now."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + seconds + 1
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _write(stream: IO[bytes], head: Any, data: bytes) -> None:
    text = json.dumps(head).encode()
    stream.write(b"%d %d\n" % (len(text), len(data)) + text)
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes]) -> tuple[Any, bytes] | None:
    """One message, or None if the other side is gone before it is whole."""
    first = stream.readline(64).split()
    if len(first) != 2 or not all(part.isdigit() for part in first):
        return None
    sizes = [int(part) for part in first]
    if max(sizes) > MOST_ANSWER:
        return None
    text, data = (stream.read(size) for size in sizes)
    return (json.loads(text), data) if [len(text), len(data)] == sizes else None


def _end(code: int, late: bool) -> str:
    """Why a child ended without an answer."""
    if late or code == -24:  # SIGXCPU
        return f"it takes longer than {SECONDS} seconds to read"
    return f"the library that reads it ran out of memory or crashed (code {code})"
