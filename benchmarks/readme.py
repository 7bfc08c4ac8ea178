"""Write the tables of the README and of docs/methods.md from `results`: `python -m benchmarks.readme`.

`--check` only compares.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence

from benchmarks.picture import FAMILIES
from benchmarks.table import RESULTS, Row, grouped
from fxmerge.methods import METHODS as fxmerge_methods

README = RESULTS.parents[1] / "README.md"
PAGE = RESULTS.parents[1] / "docs" / "methods.md"
FIRST, LAST = "<!-- tables: python -m benchmarks.readme -->", "<!-- end of tables -->"
ALL_METHODS = tuple(method.name for method in fxmerge_methods)
METHODS = ("average", "foldable", "distill-searched", "condense", "default", "ceiling")


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table is old")
    given = parser.parse_args(args)
    old = {path: path.read_text(encoding="utf-8") for path in (README, PAGE)}
    new = {README: renewed(old[README], table(_rows("quality"))), PAGE: renewed(old[PAGE], by_method(_rows("methods")))}
    if given.check:
        return int(old != new)
    for path, text in new.items():
        path.write_text(text, encoding="utf-8")
    return 0


def renewed(text: str, fresh: str) -> str:
    """`text` with a fresh table between its two marks."""
    before, rest = text.split(FIRST)
    _, after = rest.split(LAST)
    return "\n".join([before + FIRST, "", fresh, LAST + after])


def _rows(name: str) -> list[Row]:
    rows: list[Row] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return rows


def by_method(rows: list[Row]) -> str:
    """Markdown tables, one for every number of inputs: a line a method, a column a family."""
    cells = grouped([row for row in rows if row.get("inputs")], ("setting", "inputs", "method"))
    tables = []
    for inputs in sorted({inputs for _, inputs, _ in cells}):
        families = [family for family in FAMILIES if any((family, inputs, m) in cells for m in ALL_METHODS)]
        methods = [method for method in ALL_METHODS if any((family, inputs, method) in cells for family in families)]
        lines = [f"With {inputs} unlabeled inputs a task:", ""]
        lines += ["| | " + " | ".join(FAMILIES[family] for family in families) + " | CPU s |"]
        lines += ["|---|" + "--:|" * (len(families) + 1)]
        for method in methods:
            found = [cells.get((family, inputs, method), []) for family in families]
            spent = [statistics.fmean(row["cpu_seconds"] for row in group) for group in found if group]
            seconds = (
                f"{min(spent):.0f} to {max(spent):.0f}" if round(min(spent)) < round(max(spent)) else f"{spent[0]:.0f}"
            )
            lines += [f"| `{method}` | " + " | ".join(_share(group) for group in found) + f" | {seconds} |"]
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def _share(rows: list[Row]) -> str:
    """Mean share with half its range over seeds."""
    if not rows:
        return "–"
    shares = [row["share"] for row in rows]
    mean = statistics.fmean(shares)
    spread = f" ± {(max(shares) - min(shares)) / 2:.3f}" if len(shares) > 1 else ""
    return (f"{mean:.3f}" if mean < 10 else f"{mean:.0f}") + spread


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
