"""A merged model served, against ONNX Runtime in a loop, the server without batches, and a server for each parent."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

import fxmerge
from benchmarks.models import BERT
from benchmarks.table import RESULTS, Row, save
from fxmerge.from_onnx.runtime import onnx_session
from fxmerge.ir.program import Program
from fxmerge.output.onnx import export_onnx

VOCABULARY, POSITIONS, CLASSES = 1000, 64, {"first": 2, "second": 6}
SHORTEST, LONGEST, ROWS = 12, 24, 256
"""Tokens of a row, and how many different rows are asked."""

CLOSE = 1e-4
"""An answer is wrong where it is further than this from what ONNX Runtime gives for the row alone."""


def main() -> int:
    given = _arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        merged, alone = _models(Path(scratch), given.width, given.depth)
        rows = _rows(merged)
        measured = asyncio.run(_measure(merged, alone, rows, given))
    facts = {"width": given.width, "depth": given.depth, "requests": given.requests, "each": given.each}
    save(given.out, measured, **facts)
    _show(measured)
    return 1 if any(row["lost"] or row["wrong"] for row in measured) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_serve", description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="requests of the long run")
    parser.add_argument("--each", type=int, default=300, help="requests a cell")
    parser.add_argument(
        "--rounds", type=int, default=3, help="times that all are measured in turn; the middle one counts"
    )
    parser.add_argument("--flight", type=int, nargs="+", default=(1, 4, 16, 64), help="requests in flight")
    parser.add_argument("--width", type=int, default=256, help="width of the parents")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the parents")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json", help="where the results go")
    return parser.parse_args()


# -- models and requests ---------------------------------------------------------------------------------------


def _models(folder: Path, width: int, depth: int) -> tuple[Path, list[Path]]:
    """A merged model of two encoders with random weights, and each of them alone."""
    parents = []
    for task, classes in CLASSES.items():
        torch.manual_seed(classes)
        net = BERT(
            VOCABULARY, classes, width=width, heads=4, hidden=4 * width, depth=depth, positions=POSITIONS, drop=0.0
        )
        ids = torch.randint(0, VOCABULARY, (4, LONGEST))
        parents.append(fxmerge.capture(net, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, task=task))
    fxmerge.merge(parents, method="average").export_onnx(folder / "merged.onnx")
    alone = []
    for parent in parents:
        alone.append(folder / f"{parent.task}.onnx")
        export_onnx(_named(parent), alone[-1], metadata={"fxmerge.tasks": json.dumps([parent.task])})
    return folder / "merged.onnx", alone


def _named(parent: Program) -> Program:
    outputs = tuple(dataclasses.replace(port, name=f"{parent.task}.{port.name}") for port in parent.outputs)
    return parent.evolve(outputs=outputs)


@dataclass(frozen=True)
class Asked:
    """A row of tokens, as arrays and as the bytes of an HTTP body, and what each task gives for it."""

    inputs: dict[str, Any]
    body: bytes
    length: int


def _rows(merged: Path) -> list[Asked]:
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(ROWS):
        size = int(draw.integers(SHORTEST, LONGEST + 1))
        inputs = {"input_ids": draw.integers(0, VOCABULARY, (1, size)), "attention_mask": np.ones((1, size), np.int64)}
        told = [
            {"name": n, "datatype": "INT64", "shape": [1, size], "parameters": {"binary_data_size": 8 * size}}
            for n in inputs
        ]
        text = json.dumps({"inputs": told, "parameters": {"binary_data_output": True}}).encode()
        rows.append(Asked(inputs, text + b"".join(value.tobytes() for value in inputs.values()), len(text)))
    return rows


# -- those that answer -----------------------------------------------------------------------------------------


@dataclass
class Server:
    """A process that serves one file, and connections to it."""

    process: Any
    port: int
    name: str
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def ask(self, row: Asked) -> Any:
        """The numbers of all outputs."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self.port)
        head = (
            f"POST /v2/models/{self.name}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(row.body)}\r\n"
            f"Inference-Header-Content-Length: {row.length}\r\n\r\n"
        )
        writer.write(head.encode() + row.body)
        told = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in told.split(b"\r\n")[1:] if line)
        body = await reader.readexactly(int(fields[b"content-length"]))
        self._idle.append((reader, writer))
        if not told.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(body.decode())
        return np.frombuffer(body[int(fields[b"inference-header-content-length"]) :], "<f4")

    def leave(self) -> None:
        """Close all connections: the server ends those that are idle for long."""
        while self._idle:
            self._idle.pop()[1].close()

    def memory(self) -> float:
        """MiB that the process holds."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


@contextmanager
def serving(path: Path, *flags: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "fxmerge", "serve", str(path), "--port", "0", "--grpc-port", "0", *flags]
    with (
        tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".log", delete=False) as lines,
        subprocess.Popen(command, stderr=lines, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process,
    ):
        try:
            yield Server(process, _port(Path(lines.name), process), path.stem)
        finally:
            process.terminate()


def _port(log: Path, process: Any) -> int:
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if line.endswith("}") and json.loads(line)["event"] == "serving":
                return int(json.loads(line)["port"])
        time.sleep(0.1)
    raise SystemExit(f"the server ended:\n{log.read_text()[-2000:]}")


# -- measuring -------------------------------------------------------------------------------------------------

Ask = Callable[[Asked], Awaitable[Any]]


async def _measure(merged: Path, alone: Sequence[Path], rows: list[Asked], given: argparse.Namespace) -> list[Row]:
    session = onnx_session(str(merged))
    right = {id(row): np.concatenate([v[0] for v in session.run(None, row.inputs)]) for row in rows}
    with ExitStack() as stack, ThreadPoolExecutor(max(given.flight)) as threads:
        batched = stack.enter_context(serving(merged, "--max-queue", "4096"))
        single = stack.enter_context(serving(merged, "--max-queue", "4096", "--max-batch", "1", "--max-wait-ms", "0"))
        at_once = stack.enter_context(serving(merged, "--max-queue", "4096", "--max-wait-ms", "0"))
        each = [stack.enter_context(serving(path, "--max-queue", "4096")) for path in alone]

        async def in_a_loop(row: Asked) -> Any:
            run = asyncio.get_running_loop().run_in_executor
            return np.concatenate([v[0] for v in await run(threads, session.run, None, row.inputs)])

        async def both(row: Asked) -> Any:
            return await asyncio.gather(*(server.ask(row) for server in each))

        contenders: dict[str, tuple[Ask, bool]] = {
            "merged, batches": (batched.ask, True),
            "merged, batches without waiting": (at_once.ask, True),
            "merged, one by one": (single.ask, True),
            "merged, ONNX Runtime in a loop": (in_a_loop, True),
            "a server each parent": (both, False),
        }
        measured: dict[tuple[str, int], list[Row]] = {}
        for turn in range(given.rounds + 1):
            for flight in given.flight:
                for name, (ask, checked) in contenders.items():
                    found = await _run(
                        ask, rows, given.each if turn else flight * 2, flight, right if checked else None
                    )
                    for server in (batched, at_once, single, *each):
                        server.leave()
                    if turn:  # the first is for warming up
                        measured.setdefault((name, flight), []).append({"model": name, "flight": flight} | found)
        long = {"model": "merged, batches, long run", "flight": 16, "memory_before": batched.memory()}
        long |= await _run(batched.ask, rows, given.requests, 16, right)
        long["memory_after"] = batched.memory()
    middle = [sorted(found, key=lambda row: row["requests_per_second"])[len(found) // 2] for found in measured.values()]
    losses = ("lost", "wrong")
    for row, found in zip(middle, measured.values(), strict=True):
        row |= {key: sum(one[key] for one in found) for key in losses}
    return [*sorted(middle, key=lambda row: row["flight"]), long]


async def _run(ask: Ask, rows: list[Asked], requests: int, flight: int, right: dict[int, Any] | None) -> Row:
    """Requests one after another in as many places as may be in flight."""
    numbers, times, lost, wrong = count(), [], 0, 0

    async def place() -> None:
        nonlocal lost, wrong
        while (number := next(numbers)) < requests:
            row, begin = rows[number % len(rows)], time.perf_counter()
            try:
                found = await ask(row)
            except Exception as error:
                print(f"lost: {error!r}", file=sys.stderr)
                lost += 1
                continue
            times.append(time.perf_counter() - begin)
            wrong += right is not None and not np.allclose(found, right[id(row)], atol=CLOSE)

    begin = time.perf_counter()
    await asyncio.gather(*(place() for _ in range(flight)))
    seconds = time.perf_counter() - begin
    middle, high = np.percentile(times, [50, 99]) * 1e3 if times else (0.0, 0.0)
    rate = len(times) / seconds
    return {
        "requests": requests, "requests_per_second": rate, "p50_ms": float(middle), "p99_ms": float(high),
        "lost": lost, "wrong": wrong,
    }  # fmt: skip


def _show(rows: list[Row]) -> None:
    table = Table(title="Answers for all tasks of a row of tokens")
    for heading in ("in flight", "", "requests/s", "p50 ms", "p99 ms", "lost", "wrong", "MiB before, after"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        memory = f"{row['memory_before']:.0f}, {row['memory_after']:.0f}" if "memory_after" in row else ""
        figures = [f"{row[key]:.1f}" for key in ("requests_per_second", "p50_ms", "p99_ms")]
        table.add_row(str(row["flight"]), row["model"], *figures, str(row["lost"]), str(row["wrong"]), memory)
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
