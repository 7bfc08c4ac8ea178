"""Draw what a user gains, `docs/gain.svg`, from the results of `bench_quality`: `python -m benchmarks.picture`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from benchmarks.table import RESULTS, Row, grouped

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

matplotlib.rcParams["svg.hashsalt"] = "fxmerge"  # the same figures make the same file
PICTURE = RESULTS.parents[1] / "docs" / "gain.svg"
SHOWN = {
    "average": ("plain average", "#b8b8b8", "o"),
    "foldable": ("FS-Merge as published", "#e0a458", "s"),
    "distill-searched": ("distillation, tuned alike", "#6c8ebf", "D"),
    "condense": ("closed form, untrained", "#7fb685", "^"),
    "default": ("fxmerge", "#c1272d", "o"),
}
"""By method: its name in the picture, its colour and its marker; what is drawn last lies on top."""
FAMILIES = {
    "vits": "vision transformers",
    "vits-unequal-64": "ViTs of widths 48 and 64",
    "vits-unequal-48": "the same at width 48",
    "vits-four": "four ViTs",
    "rmsnorm": "gated ViTs with RMSNorm",
    "resnets": "ResNets",
    "resnets-unequal": "ResNets of widths 16 and 20",
    "resnets-cifar": "ResNets of photographs",
    "detectors": "detectors",
    "text": "text encoders",
    "text-three": "three text encoders",
    "gpt": "GPT-like decoders",
    "llama": "Llama-like decoders",
    "fine-tunes": "fine-tunes of one base",
}


LEAST = 0.84
"""Shares below are not told apart: a mark at the edge says how small they are."""
MOST = 1.012
MIDDLE = 100
"""Seconds: what takes more is named to the left of its mark."""

Shares = Mapping[tuple[str, int], Mapping[str, Sequence[float]]]
"""By family and number of inputs, by method: the share of every seed, more being better."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "quality.json")
    parser.add_argument("--out", type=Path, default=PICTURE)
    given = parser.parse_args()
    draw(json.loads(given.results.read_text(encoding="utf-8"))["rows"], given.out)


def shares(rows: Sequence[Row]) -> Shares:
    """Where the default was measured: of every seed the share of what the parents reach."""
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    measured = [row for row in rows if row["method"] in SHOWN and row["setting"] in FAMILIES]
    for (family, inputs, method), group in grouped(measured, ("setting", "inputs", "method")).items():
        less_is_better = group[0]["figure"] == "perplexity"
        values = [1 / row["share"] if less_is_better else row["share"] for row in group]
        found.setdefault((family, inputs), {})[method] = values
    order = sorted(found, key=lambda key: ([*FAMILIES].index(key[0]), -key[1]))
    return {key: found[key] for key in order if "default" in found[key]}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Left every family with what each method keeps of its parents; right what it takes in time and size."""
    cells = shares(rows)
    size = (10, 0.9 + 0.3 * len(cells))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(3, 2), layout="constrained")
    _families(left, cells)
    _costs(right, rows, cells)
    handles, names = left.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper left", ncols=5, frameon=False, fontsize="small", handletextpad=0.1,
        columnspacing=1,
    )  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path.name}")


def _families(axes: Axes, cells: Shares) -> None:
    """A line for every family and number of inputs; a mark a method, and a bar from its worst to its best seed."""
    lines = range(len(cells), 0, -1)
    for method, (name, colour, marker) in SHOWN.items():
        points = [(each[method], y) for y, each in zip(lines, cells.values(), strict=True) if method in each]
        size = 70 if method == "default" else 32
        means = [max(statistics.fmean(values), LEAST) for values, _ in points]
        axes.scatter(means, [y for _, y in points], s=size, c=colour, marker=marker, label=name, zorder=3)
        for values, y in points:
            if statistics.fmean(values) > LEAST:
                axes.plot([max(min(values), LEAST), max(values)], [y, y], color=colour, linewidth=2, zorder=2)
    for y, each in zip(lines, cells.values(), strict=True):
        low = [f"{m:.2f}".lstrip("0") for v in each.values() if (m := statistics.fmean(v)) <= LEAST]
        axes.text(LEAST + 0.01, y, ", ".join(low), va="center", fontsize="x-small", color="#666")
    axes.axvline(1, color="#444", linewidth=1, zorder=1)
    axes.set_yticks([*lines], [f"{FAMILIES[family]}, {inputs} inputs" for family, inputs in cells])
    axes.set_xlim(LEAST - 0.005, MOST)
    axes.set_ylim(0.4, len(cells) + 0.6)
    axes.set_xlabel("share of what the separate parents reach on test data")
    axes.grid(axis="y", color="#eee")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _costs(axes: Axes, rows: Sequence[Row], cells: Shares) -> None:
    """Mean share against mean processor time, over the cells that every method has."""
    methods = [m for m in SHOWN if sum(m in each for each in cells.values()) > len(cells) // 2]
    common = [key for key, each in cells.items() if all(method in each for method in methods)]
    spent = grouped([row for row in rows if row.get("inputs")], ("setting", "inputs", "method"))
    for method in methods:
        name, colour, marker = SHOWN[method]
        alone = [row["cpu_seconds"] for key in common for row in spent[*key, method] if row["cpu_seconds"] is not None]
        x = statistics.fmean(alone)
        y = statistics.fmean(value for key in common for value in cells[key][method])
        axes.scatter([x], [max(y, LEAST)], s=90, c=colour, marker=marker, zorder=3)
        shown = f"   {name}{', below' * (y < LEAST)}   \n   {y:.2f}, {x:.0f} s   "
        axes.text(x, max(y, LEAST), shown, fontsize="small", va="center", ha="right" if x > MIDDLE else "left")
    axes.axhline(1, color="#444", linewidth=1, zorder=1)
    axes.text(1, 1.002, "the parents: 2 to 4 models to serve", transform=axes.get_yaxis_transform(), va="bottom",
              ha="right", fontsize="small")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(0.5, 800)
    axes.set_ylim(LEAST - 0.02, MOST)
    axes.set_xlabel("processor seconds of a merge")
    axes.set_ylabel(f"mean share over {len(common)} lines: one model to serve")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
