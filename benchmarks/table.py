"""Results as a file that can be compared and as a table that can be read."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fxmerge

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]


def arguments(what: str, name: str, seeds: int = 1, epochs: int | None = None) -> argparse.Namespace:
    """The command line all benchmarks share; with `epochs`, also that of how long parents are trained."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.bench_{name}", description=what)
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of the data sets (default: ../shared/data)")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="where the results go")
    parser.add_argument(
        "--seeds", type=int, default=seeds, help=f"merges a setting, each on other inputs (default: {seeds})"
    )
    parser.add_argument("--inputs", type=int, nargs="+", help="unlabeled inputs a task, one merge each")
    parser.add_argument("--steps", type=int, default=600, help="training steps of distill and foldable (default: 600)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    if epochs is not None:
        parser.add_argument("--epochs", type=int, default=epochs, help=f"to train parents for (default: {epochs})")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def environment() -> Row:
    """What a reader needs to judge figures by; nothing that names the machine."""
    packages = ("torch", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime")
    versions = {"fxmerge": fxmerge.__version__}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def save(path: Path, rows: Sequence[Row], **facts: Any) -> None:
    """Write rows, the facts that hold for all of them, and the environment as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"facts": facts, "environment": environment(), "rows": [rounded(row) for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {path.name}")


def show(title: str, rows: Sequence[Row], keys: Sequence[str], figures: Sequence[str], digits: int = 3) -> None:
    """Print the mean of `figures` over seeds for each value of `keys`, and the range of their mean."""
    table = Table(title=title)
    for key in keys:
        table.add_column(key)
    for figure in (*figures, "seeds"):
        table.add_column(figure, justify="right")
    for values, group in grouped(rows, keys).items():
        cells = []
        for figure in figures:
            known = [row[figure] for row in group if row.get(figure) is not None]
            cells.append(_cell(known, 1 if figure == "seconds" else digits, spread=figure in ("mean", "perplexity")))
        table.add_row(*(str(v) for v in values), *cells, str(len(group)))
    Console().print(table)


def grouped(rows: Sequence[Row], keys: Sequence[str]) -> Mapping[tuple[Any, ...], list[Row]]:
    """Rows by the values of `keys`, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key, "") for key in keys), []).append(row)
    return groups


def _cell(values: Sequence[float], digits: int, spread: bool) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    if max(values) == min(values) or not spread:
        return mean
    return f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def rounded(value: Any) -> Any:
    """The value with every number in it at six digits, as files keep it."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return value
