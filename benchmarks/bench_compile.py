"""Seconds and memory of normalize, spaces and insert-merge: a ViT-B pair, and 7B-shaped Llamas without weights."""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxmerge
import passes
from benchmarks.models import ViT
from benchmarks.table import RESULTS, Row, save
from fxmerge.ir.program import Program
from passes.spaces.find import SpacesOf

LAYERS = (2, 4, 8, 16, 32, 64)

BOUNDS = {("vit", 12): {"cpu_seconds": 5.0}, ("llama", 32): {"cpu_seconds": 60.0, "peak_mib": 2048.0}}
"""What a row may take at most, capture aside. All runs on one thread: processor seconds are seconds on an idle core."""


def main() -> int:
    given = _arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(measure(*given.one.split(":"))))
        return 0
    rows = [_apart("vit:12"), *(_apart(f"llama:{layers}") for layers in given.layers)]
    save(given.out, rows, growth=growth(rows))
    _show(rows)
    missed = [f"{row['model']} {row['layers']}: {key}" for row in rows for key in _missed(row)]
    print(
        f"seconds grow with nodes to the power {growth(rows):.2f}"
        + ("; too much: " + ", ".join(missed) if missed else "")
    )
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_compile", description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, help="depths of the Llamas")
    parser.add_argument("--out", type=Path, default=RESULTS / "compile.json", help="where the results go")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _apart(what: str) -> Row:
    """A measurement in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.bench_compile", "--one", what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-2000:]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    print(f"{row['model']} {row['layers']}: {row['seconds']:.2f} s, {row['peak_mib']:.0f} MiB", flush=True)
    return row


def measure(model: str, layers: str) -> Row:
    """One pair of models: wall-clock and processor seconds of each step, peak memory, and the size of the problem."""
    begin = time.perf_counter()
    first, second = (vit if model == "vit" else llama)(int(layers))
    row: Row = {"model": model, "layers": int(layers), "capture": time.perf_counter() - begin, "captured_mib": _peak()}
    steps: dict[str, list[float]] = {}
    rules = passes.BUILTIN.rules
    parents = _timed(steps, "normalize", lambda: [passes.cleanup(passes.normalize(p)) for p in (first, second)])
    _timed(steps, "spaces", lambda: [parent.get(SpacesOf(rules)) for parent in parents])
    net = _timed(steps, "insert-merge", lambda: passes.insert_merge(parents, rules, 0))
    row |= {"steps": {name: wall for name, (wall, _) in steps.items()}}
    row |= {"seconds": sum(wall for wall, _ in steps.values()), "cpu_seconds": sum(cpu for _, cpu in steps.values())}
    row |= {"nodes": len(first.graph.nodes), "spaces": len(parents[0].get(SpacesOf(rules)).spaces)}
    row |= {"maps": len(net.program.maps), "parameters": first.count(), "peak_mib": _peak()}
    return row


def _timed(steps: dict[str, list[float]], name: str, run: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    steps[name] = [time.perf_counter() - wall, time.process_time() - cpu]
    return result


def _peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def vit(layers: int) -> tuple[Program, Program]:
    """Two ViT-B/16 with random weights."""
    return tuple(
        fxmerge.capture(
            ViT(image=224, patch=16, width=768, heads=12, hidden=3072, depth=layers, classes=1000, channels=3),
            (torch.zeros(1, 3, 224, 224),),
            task=task,
        )
        for task in ("first", "second")
    )  # type: ignore[return-value]


def llama(layers: int) -> tuple[Program, Program]:
    """Two Llamas of the shape of 7B on the meta device: weights take no memory. The second copies the first's graph."""
    import transformers

    with torch.device("meta"):
        config = transformers.LlamaConfig(num_hidden_layers=layers, use_cache=False)
        model = Logits(transformers.LlamaForCausalLM(config).eval())
        tokens = torch.zeros(1, 16, dtype=torch.long)
    first = fxmerge.capture(model, {"input_ids": tokens}, task="first")
    graph, _ = first.copy_graph()
    return first, first.evolve(graph=graph, task="second")


class Logits(nn.Module):
    """A language model as a function of token ids alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def growth(rows: list[Row]) -> float:
    """The power of the number of nodes with which processor seconds grow: the least-squares slope over the Llamas.

    The smallest one is left out: what every run costs once weighs there.
    """
    deep = [row for row in rows if row["model"] == "llama"][1:]
    if len(deep) < 2:
        return 0.0
    nodes, seconds = ([math.log(row[key]) for row in deep] for key in ("nodes", "cpu_seconds"))
    return statistics.linear_regression(nodes, seconds).slope


def _missed(row: Row) -> list[str]:
    bounds = BOUNDS.get((row["model"], row["layers"]), {})
    return [f"{key} {row[key]:.1f} of {bound:.0f}" for key, bound in bounds.items() if row[key] > bound]


def _show(rows: list[Row]) -> None:
    table = Table(title="Analysis of a pair, capture aside")
    for heading in (
        "model",
        "layers",
        "nodes",
        "spaces",
        "maps",
        "normalize",
        "spaces",
        "insert-merge",
        "seconds",
        "CPU",
        "MiB",
        "",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    most = max(row["seconds"] for row in rows)
    for row in rows:
        steps = [f"{row['steps'][step]:.2f}" for step in ("normalize", "spaces", "insert-merge")]
        sizes = [str(row[key]) for key in ("layers", "nodes", "spaces", "maps")]
        ends = [f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", f"{row['peak_mib']:.0f}"]
        table.add_row(row["model"], *sizes, *steps, *ends, "█" * max(1, round(24 * row["seconds"] / most)))
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
