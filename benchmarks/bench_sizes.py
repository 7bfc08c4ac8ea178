"""Sizes between one model and both parents: the trunk ended behind each of a handful of blocks, nothing trained."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.families import FAMILIES, Family, Net
from benchmarks.family_tasks import Study, classify
from benchmarks.quality_case import Case
from benchmarks.table import RESULTS, Row, save, show
from benchmarks.tasks import Task
from fxmerge.compiler.sizes import point_of
from fxmerge.demo import EPOCHS, NARROW, WIDE, Half, ViT, fit, split_of

METHODS = ("average", "condense")
"""What trains nothing, so that a curve takes minutes."""


def _study(half: Half) -> Study:
    x, y, test, labels = split_of(half)
    task = Task(half.task, {"x": x}, y, {"x": test}, labels, len(half.classes))
    return replace(classify(task), alone=lambda model, **_: fit(model, half))


def _studies(_: Path) -> list[Study]:
    return [_study(half) for half in (NARROW, WIDE)]


def _vit(classes: int, **shape: int) -> nn.Module:
    return ViT(image=8, patch=2, depth=3, classes=classes, **shape)


_NETS = [Net(f"digits-{half.task}", _vit, half.shape, {"epochs": EPOCHS}, half.seed) for half in (NARROW, WIDE)]
DIGITS = Family("digits", _studies, tuple(_NETS), joint=_NETS[1], options={"like": 1})
"""The demo's classifiers, of unequal widths; they need no data but scikit-learn's."""
MEASURED: Mapping[str, Family] = {
    "digits": DIGITS,
    **{name: FAMILIES[name] for name in ("vits", "resnets", "resnets-cifar", "text")},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_sizes", description=__doc__)
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of the data sets (default: ../shared/data)")
    parser.add_argument("--out", type=Path, default=RESULTS / "sizes.json", help="where the results go")
    parser.add_argument("--families", nargs="+", choices=MEASURED, default=[*MEASURED], help="(default: all)")
    parser.add_argument("--inputs", type=int, default=100, help="unlabeled inputs a task (default: 100)")
    parser.add_argument("--seeds", type=int, default=3, help="merges a place, each on other inputs (default: 3)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in given.families:
        rows += measured(Case.of(MEASURED[name], given.data), given.inputs, given.seeds)
        save(given.out, rows, methods=list(METHODS))
    keys, figures = ("setting", "method", "shared_until"), ("size", "kept", "error", "mean", "share", "cpu_seconds")
    show("sizes: agreement with the parents on held-back inputs, and accuracy on test data", rows, keys, figures)


def measured(case: Case, count: int, seeds: int) -> list[Row]:
    """A row for every place, method and draw of the inputs; `kept` is that of the task that is kept least."""
    whole = case.reference()["mean"]
    rows: list[Row] = []
    for seed in range(seeds):
        data = case.data(count, seed)
        for place in _places(case):
            for method in METHODS:
                merged, spent = case.merge(data, seed, {"method": method, "share_until": place})
                point = point_of(place, merged.result)
                facts: Row = {"shared_until": place, "size": point.size, "kept": point.kept, "error": point.error}
                row = {**case.measured(merged), "method": method, "inputs": count, "seed": seed, **facts}
                rows.append({**row, "share": row["mean"] / whole, "cpu_seconds": spent})
                said = f"{row['setting']} seed {seed} until {place}, {method}: size {point.size:.3f}"
                print(f"  {said}, kept {point.kept:.3f}, share {rows[-1]['share']:.3f}", flush=True)
    return rows


def _places(case: Case) -> Sequence[str]:
    """Where `--curve` ends the trunk."""
    plan, _ = case.merge(case.data(8, 0), 0, {"method": "average", "curve": True, "dry_run": True})
    return [point["shared_until"] for point in plan.result["curve"]]


if __name__ == "__main__":
    main()
