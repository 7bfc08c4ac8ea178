"""Tiny random models of public architectures through the whole compiler: what is found, and that all of it is exact."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.architectures import PROTOTYPE, cells, headings, write
from benchmarks.examine import Examination
from benchmarks.table import RESULTS, Row, save


def main() -> int:
    given = _arguments()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    rows = {row["model"]: row for row in _known(given.out)} if given.only else {}
    failed = 0
    for entry in _entries(given.zoo):
        if given.only and entry["name"] not in given.only:
            continue
        row: Row = {"model": entry["name"], "family": entry["family"], "run": _today()}
        row |= Examination(lambda seed, entry=entry: _build(entry, seed)).run()
        rows[entry["name"]] = row
        failed += bool(row["errors"])
        print(f"{entry['name']}: " + ("; ".join(f"{k}: {v}" for k, v in row["errors"].items()) or "ok"), flush=True)
        save(given.out, _in_order(rows, given.zoo), **_facts())
    _show(list(rows.values()))
    write(given.docs, given.out, given.out.with_name("vision.json"))
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_zoo", description=__doc__)
    here = Path(__file__).parents[1]
    parser.add_argument("--zoo", type=Path, default=here.parent / "shared" / "zoo", help="folder of zoo.py, zoo.json")
    parser.add_argument("--only", nargs="+", help="run these architectures and keep the other rows of the last run")
    parser.add_argument("--out", type=Path, default=RESULTS / "zoo.json", help="where the results go")
    parser.add_argument(
        "--docs", type=Path, default=here / "docs" / "architectures.md", help="the page that is written"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return parser.parse_args()


def _entries(folder: Path) -> list[dict[str, Any]]:
    if not (folder / "zoo.py").is_file():
        raise SystemExit(f"{folder} holds no zoo.py\ngive its folder with --zoo")
    sys.path.insert(0, str(folder))
    import zoo

    found: list[dict[str, Any]] = zoo.entries()
    return found


def _build(entry: dict[str, Any], seed: int) -> Any:
    import zoo

    return zoo.build(entry, seed=seed)


def _known(path: Path) -> list[Row]:
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def _in_order(rows: dict[str, Row], folder: Path) -> list[Row]:
    names = [entry["name"] for entry in _entries(folder)]
    return sorted(rows.values(), key=lambda row: names.index(row["model"]))


def _facts() -> Row:
    return {"transformers": metadata.version("transformers"), "prototype": PROTOTYPE}


def _today() -> str:
    return datetime.date.today().isoformat()


def _show(rows: list[Row]) -> None:
    table = Table(*headings(), title="Architectures")
    for row in rows:
        table.add_row(*cells(row))
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
