"""Draw what a user gains, `docs/gain.svg`, from the results of `bench_quality`: `python -m benchmarks.picture`."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.table import RESULTS, grouped

matplotlib.use("agg")

import matplotlib.pyplot as plt

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "quality.json")
    parser.add_argument("--out", type=Path, default=PICTURE)
    given = parser.parse_args()
    draw(json.loads(given.results.read_text(encoding="utf-8"))["rows"], given.out)


def shares(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, float]]:
    """By family and number of inputs, by method: the mean share of what the parents reach, more being better."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    measured = [row for row in rows if row["method"] in SHOWN and row["setting"] in FAMILIES]
    for (family, inputs, method), group in grouped(measured, ("setting", "inputs", "method")).items():
        share = statistics.fmean(row["share"] for row in group)
        less_is_better = group[0]["figure"] == "perplexity"
        found.setdefault((family, inputs), {})[method] = 1 / share if less_is_better else share
    return {key: found[key] for key in sorted(found, key=lambda key: ([*FAMILIES].index(key[0]), -key[1]))}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A line for every family and number of inputs, a mark for every method on it."""
    cells = {key: each for key, each in shares(rows).items() if "default" in each}
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.3 * len(cells)), layout="constrained")
    lines = range(len(cells), 0, -1)
    for method, (name, colour, marker) in SHOWN.items():
        points = [(each[method], y) for y, each in zip(lines, cells.values(), strict=True) if method in each]
        if points:
            size = 70 if method == "default" else 32
            axes.scatter(*zip(*points, strict=True), s=size, c=colour, marker=marker, label=name, zorder=3)
    axes.axvline(1, color="#444", linewidth=1, zorder=1)
    axes.set_yticks([*lines], [f"{FAMILIES[family]}, {inputs} inputs" for family, inputs in cells])
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0.4, len(cells) + 0.6)
    axes.set_xlabel("share of what the separate parents reach on held-out test data")
    axes.grid(axis="y", color="#eee")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(
        loc="outside upper left", ncols=5, frameon=False, fontsize="small", handletextpad=0.1, columnspacing=1
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
