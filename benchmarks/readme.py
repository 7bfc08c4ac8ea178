"""Write the README's tables from the result files: `python -m benchmarks.readme`; `--check` only compares."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.table import RESULTS, Row, grouped

README = RESULTS.parents[1] / "README.md"
FIRST, LAST = "<!-- tables: python -m benchmarks.readme -->", "<!-- end of tables -->"
TITLES = {
    "digits": "Digits 0–4 (width 32) and 5–9 (width 48), scikit-learn's 8 × 8 images, ViTs",
    "mlp": "MNIST 0–4 and 5–9, MLPs of six layers",
    "vit": "MNIST and Fashion-MNIST, ViTs of width 64 with 4 blocks",
    "vit_brief": "The same with weaker parents, trained for 3 epochs instead of 15",
    "text": "SST-2 and TREC, BERT-like encoders of width 64 with 4 blocks",
    "decoder": "Shakespeare and WikiText-2, byte-level decoders of width 96 with 3 blocks",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the tables are old")
    given = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = renewed(old, RESULTS)
    if given.check:
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


def renewed(text: str, results: Path) -> str:
    """`text` with fresh tables between its two marks."""
    before, rest = text.split(FIRST)
    _, after = rest.split(LAST)
    tables = [
        table(title, json.loads(path.read_text()))
        for name, title in TITLES.items()
        if (path := results / f"{name}.json").is_file()
    ]
    return "\n".join([before + FIRST, "", *tables, LAST + after])


def table(title: str, document: dict[str, Any]) -> str:
    """A Markdown table: a row a method, a column a number of unlabeled inputs; mean over seeds, and the range."""
    rows: list[Row] = document["rows"]
    figure = "perplexity" if "perplexity" in rows[0] else "mean"
    digits = 2 if figure == "perplexity" else 3
    sizes = [*dict.fromkeys(row["inputs"] for row in rows if "inputs" in row)]
    seeds = len({row["seed"] for row in rows if "seed" in row})
    what = (
        "perplexity a byte, mean of the two texts (less is better)"
        if figure == "perplexity"
        else "accuracy, mean of the two tasks"
    )
    lines = [f"**{title}**: {what}, {seeds} seed{'s' * (seeds > 1)}.", ""]
    lines.append("| unlabeled inputs a task | " + " | ".join(str(size) for size in sizes) + " |")
    lines.append("|---|" + "--:|" * len(sizes))
    for (method,), group in grouped(rows, ["method"]).items():
        cells = [_cell([row[figure] for row in group if row.get("inputs", size) == size], digits) for size in sizes]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


if __name__ == "__main__":
    raise SystemExit(main())
