"""Two vision transformers, one trained on MNIST and one on Fashion-MNIST, become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.classify import run
from benchmarks.models import ViT
from benchmarks.table import arguments
from benchmarks.tasks import Task, images
from fxmerge.demo import shifted, train

SHAPE: dict[str, Any] = {"image": 28, "patch": 7, "width": 64, "heads": 4, "hidden": 128, "depth": 4}
EPOCHS = 15
RATE = 2e-3


def main() -> None:
    given = arguments(__doc__ or "", "vit", seeds=3, epochs=EPOCHS)
    training = {"epochs": given.epochs, "lr": RATE}
    tasks = [images(given.data, name, task=task) for name, task in (("mnist", "mnist"), ("fashion_mnist", "fashion"))]
    run(
        "ViTs of MNIST and Fashion-MNIST",
        given,
        tasks,
        build=lambda task: ViT(classes=task.classes, **SHAPE),
        fit=lambda task, model: _fit(model, task, **training),
        settings=[{**training, **SHAPE, "seed": 20 + number} for number, _ in enumerate(tasks)],
        heads=lambda name: name.startswith("head"),
        sizes=(16, 100, 1000),
    )


def moved(part: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
    """Images moved by a pixel at most."""
    return [shifted(part[0], 1, generator)]


def _fit(model: nn.Module, task: Task, **training: Any) -> None:
    train(model, list(task.train.values()), task.train_labels, seed=0, augment=moved, **training)


if __name__ == "__main__":
    main()
