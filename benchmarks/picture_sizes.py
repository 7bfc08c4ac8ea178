"""Draw size against what is kept, `docs/sizes.svg`, of `bench_sizes`: `python -m benchmarks.picture_sizes`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.picture import FAMILIES, PICTURE, SHOWN, plt
from benchmarks.table import RESULTS, Row, grouped

NAMES = {**FAMILIES, "digits": "ViTs of widths 32 and 48"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "sizes.json")
    parser.add_argument("--out", type=Path, default=PICTURE.with_name("sizes.svg"))
    given = parser.parse_args()
    draw(json.loads(given.results.read_text(encoding="utf-8"))["rows"], given.out)


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for every family, a line for every method: the mean over draws, from the least to the most."""
    families = grouped(rows, ("setting",))
    size = (0.6 + 2.4 * len(families), 2.7)
    figure, panels = plt.subplots(1, len(families), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for panel, ((family,), own) in zip(panels[0], families.items(), strict=True):
        for (method,), group in grouped(own, ("method",)).items():
            name, colour, marker = SHOWN[method]
            places = grouped(group, ("shared_until",)).values()
            points = sorted((each[0]["size"], sorted(row["share"] for row in each)) for each in places)
            sizes, shares = [x for x, _ in points], [each for _, each in points]
            panel.plot(sizes, list(map(statistics.fmean, shares)), color=colour, marker=marker, ms=4, label=name)
            panel.fill_between(sizes, [s[0] for s in shares], [s[-1] for s in shares], color=colour, alpha=0.2, lw=0)
        panel.axhline(1, color="#444", linewidth=1, zorder=1)
        panel.set_title(NAMES[family], fontsize="small")
        panel.grid(color="#eee")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylim(0, 1.05)
    panels[0][0].set_ylabel("share of what\nthe parents reach", fontsize="small")
    figure.supxlabel("size, in models of the merged model's shape", fontsize="small")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
