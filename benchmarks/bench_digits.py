"""The demo's two digit classifiers of different widths, with fewer inputs, more seeds, and rates searched."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.classify import run
from benchmarks.table import arguments
from benchmarks.tasks import Task
from fxmerge.demo import EPOCHS, NARROW, UNLABELED, WIDE, build, fit, split_of


def main() -> None:
    given = arguments(__doc__ or "", "digits", seeds=3)
    halves = {half.task: half for half in (NARROW, WIDE)}
    tasks = []
    for half in halves.values():
        x, y, test, labels = split_of(half)
        tasks.append(Task(half.task, {"x": x}, y, {"x": test}, labels, len(half.classes)))
    run(
        "ViTs of digits 0-4 (width 32) and 5-9 (width 48)",
        given,
        tasks,
        build=lambda task: build(halves[task.name]),
        fit=lambda task, model: fit(model, halves[task.name]),
        settings=[{**asdict(half), "classes": list(half.classes), "epochs": EPOCHS} for half in halves.values()],
        heads=None,
        sizes=(16, 100, UNLABELED),
        like=1,
    )


if __name__ == "__main__":
    main()
