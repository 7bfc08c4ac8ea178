"""Two MLPs, one for MNIST's digits 0-4 and one for 5-9, become one (the split of the FS-Merge paper)."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.classify import run
from benchmarks.models import MLP
from benchmarks.table import arguments
from benchmarks.tasks import images
from fxmerge.demo import train

WIDTHS = (128,) * 6
"""Six layers: plain averaging of two nets of three wide layers on so easy a task keeps most of their accuracy."""

SETTINGS: dict[str, Any] = {"epochs": 15, "lr": 2e-3}


def main() -> None:
    given = arguments(__doc__ or "", "mlp", seeds=3)
    halves = {"0-4": range(0, 5), "5-9": range(5, 10)}
    tasks = [images(given.data, "mnist", classes, task=f"digits {name}", flat=True) for name, classes in halves.items()]
    run(
        "MLPs of digits 0-4 and 5-9",
        given,
        tasks,
        build=lambda task: MLP(784, WIDTHS, task.classes),
        fit=lambda task, model: _fit(model, task),
        settings=[{**SETTINGS, "widths": WIDTHS, "seed": 10 + number} for number, _ in enumerate(tasks)],
        heads=lambda name: name.startswith("head"),
        sizes=(16, 100, 1000),
    )


def _fit(model: nn.Module, task: Any) -> None:
    train(model, list(task.train.values()), task.train_labels, seed=0, **SETTINGS)


if __name__ == "__main__":
    main()
