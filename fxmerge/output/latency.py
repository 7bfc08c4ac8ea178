"""How long the merged model and its parents take in ONNX Runtime, on the CPU, and how large their files are."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from fxmerge.from_onnx.runtime import OnnxModel
from fxmerge.io.files import weights_beside
from fxmerge.ir.program import Program
from fxmerge.output.onnx import export_onnx
from fxmerge.output.parts import only, save_part

SECONDS, WARM = 0.4, 2
"""How long each way is run, and how often before it counts."""


@dataclass(frozen=True)
class Timed:
    """A way to answer all tasks, or one: median milliseconds, and the bytes of its files."""

    what: str
    milliseconds: float
    size: int
    tasks: int


def latencies(merged: Program, parents: Sequence[Program], given: Sequence[Mapping[str, Tensor]]) -> list[Timed]:
    """The merged model, every parent alone, all of them in turn, and all at once, each in a thread of its own.

    `given`: the inputs of the merged model, then those of every parent. Takes well under a second for each, beside
    writing the files.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs: list[Callable[[], object]] = []
        sizes: list[int] = []
        for number, program in enumerate((merged, *parents)):
            path = Path(folder) / f"{number}.onnx"
            export_onnx(program, path)
            model = OnnxModel(path)
            named = {port.name: given[number][port.name] for port in model.inputs}
            runs.append(partial(model.run, named))
            beside = weights_beside(path)
            sizes.append(path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0))
        own, count, total = runs[1:], len(parents), sum(sizes[1:])
        found = [Timed("merged", _median(runs[0]), sizes[0], count)]
        found += [Timed(p.task, _median(run), size, 1) for p, run, size in zip(parents, own, sizes[1:], strict=True)]
        found.append(Timed("all parents in turn", _median(lambda: [run() for run in own]), total, count))
        with ThreadPoolExecutor(count) as pool:
            at_once = _median(lambda: list(pool.map(lambda run: run(), own)))
        return [*found, Timed("all parents at once", at_once, total, count)]


def cut_latencies(
    program: Program, wanted: Mapping[str, Sequence[str]], given: Mapping[str, Tensor]
) -> dict[str, float]:
    """Median milliseconds of parts of one program, each cut to the outputs that it is `wanted` for."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        whole, part = Path(folder) / "whole.onnx", Path(folder) / "part.onnx"
        export_onnx(program, whole)
        for name, outputs in wanted.items():
            save_part(only(whole, None, outputs), part)
            model = OnnxModel(part)
            found[name] = round(_median(partial(model.run, {p.name: given[p.name] for p in model.inputs})), 4)
    return found


def _median(run: Callable[[], object]) -> float:
    for _ in range(WARM):
        run()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)
