"""Compare two result files: `python -m benchmarks.compare old.json new.json`. Exit code 1 if a figure got worse."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.table import grouped

KEYS = ("setting", "inputs", "method")
FIGURES = {"mean": 1, "perplexity": -1, "seconds": -1}
"""Figures compared, and whether more (1) or less (-1) is better."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="relative loss of accuracy or perplexity to accept"
    )
    parser.add_argument("--slower", type=float, default=0.25, help="relative loss of time to accept")
    given = parser.parse_args()
    old, new = (_means(json.loads(path.read_text())["rows"]) for path in (given.old, given.new))
    table = Table("what", "figure", "old", "new", "change")
    worse = 0
    for key in sorted(old.keys() & new.keys(), key=str):
        before, after = old[key], new[key]
        change = (after - before) / abs(before) if before else 0.0
        allowed = given.slower if key[-1] == "seconds" else given.tolerance
        bad = change * FIGURES[key[-1]] < -allowed
        worse += bad
        name = " ".join(str(part) for part in key[:-1])
        table.add_row(name, key[-1], f"{before:.4g}", f"{after:.4g}", f"{change:+.1%}" + (" worse" if bad else ""))
    Console().print(table)
    for name, only in (("old", old.keys() - new.keys()), ("new", new.keys() - old.keys())):
        if only:
            print(
                f"{len(only)} figures only in {name}: {', '.join(sorted({' '.join(map(str, k[:-1])) for k in only}))}"
            )
    return int(worse > 0)


def _means(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], float]:
    """Mean over seeds of each figure of each setting."""
    return {
        (*key, figure): statistics.fmean(row[figure] for row in group if figure in row)
        for key, group in grouped(rows, KEYS).items()
        for figure in FIGURES
        if any(figure in row for row in group)
    }


if __name__ == "__main__":
    raise SystemExit(main())
