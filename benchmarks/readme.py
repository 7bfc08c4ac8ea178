"""Write the README's table from `results/quality.json`: `python -m benchmarks.readme`; `--check` only compares."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.picture import FAMILIES
from benchmarks.table import RESULTS, Row, grouped

README = RESULTS.parents[1] / "README.md"
FIRST, LAST = "<!-- tables: python -m benchmarks.readme -->", "<!-- end of tables -->"
METHODS = ("average", "foldable", "distill-searched", "condense", "default", "ceiling")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the table is old")
    given = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = renewed(old, RESULTS)
    if given.check:
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


def renewed(text: str, results: Path) -> str:
    """`text` with a fresh table between its two marks."""
    before, rest = text.split(FIRST)
    _, after = rest.split(LAST)
    rows: list[Row] = json.loads((results / "quality.json").read_text(encoding="utf-8"))["rows"]
    return "\n".join([before + FIRST, "", table(rows), LAST + after])


def table(rows: list[Row]) -> str:
    """A Markdown table: a line for every family and number of inputs, a column a method; mean over seeds."""
    parents = {row["setting"]: row for row in rows if row["method"] == "parents"}
    ceilings = {row["setting"]: [row] for row in rows if row["method"] == "ceiling"}
    cells = grouped([row for row in rows if row.get("inputs")], ("setting", "inputs", "method"))
    lines = [
        "| family | inputs | figure | parents | " + " | ".join(METHODS) + " | seeds |",
        "|---|--:|---|--:|" + "--:|" * (len(METHODS) + 1),
    ]
    measured = {(family, inputs) for family, inputs, method in cells if method == "default" and family in FAMILIES}
    for family, inputs in sorted(measured, key=lambda key: ([*FAMILIES].index(key[0]), key[1])):
        found = {method: cells.get((family, inputs, method), []) for method in METHODS}
        found["ceiling"] = ceilings.get(family, [])
        own = parents[family]
        shown = [_cell(found[method], own["figure"]) for method in METHODS]
        start = f"| {FAMILIES[family]} | {inputs} | {own['figure']} | {_number(own['mean'], own['figure'])} | "
        lines.append(start + " | ".join(shown) + f" | {len(found['default'])} |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[Row], figure: str) -> str:
    """Mean figure, its share of the parents' with half the range over seeds, and processor seconds."""
    if not rows:
        return "–"
    mean = _number(statistics.fmean(row["mean"] for row in rows), figure)
    shares = [row["share"] for row in rows]
    spread = f" ± {(max(shares) - min(shares)) / 2:.3f}" if len(shares) > 1 else ""
    spent = [row["cpu_seconds"] for row in rows if row.get("cpu_seconds") is not None]
    seconds = f", {statistics.fmean(spent):.0f} s" if spent else ""
    return f"{mean} ({statistics.fmean(shares):.3f}{spread}{seconds})"


def _number(value: float, figure: str) -> str:
    return f"{value:.2f}" if figure == "perplexity" else f"{value:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
