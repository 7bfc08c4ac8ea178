"""Two BERT-like classifiers, of sentiment (SST-2) and of question type (TREC), with one tokenizer, become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.classify import run
from benchmarks.models import BERT
from benchmarks.table import arguments
from benchmarks.tasks import LENGTH, Task, texts
from fxmerge.demo import train

UNKNOWN, FIRST_WORD = 1, 4
"""Token ids: of an unknown word, and the first that is no special token."""

VOCABULARY = 4096
SHAPE: dict[str, Any] = {"width": 64, "heads": 4, "hidden": 128, "depth": 4, "positions": LENGTH, "drop": 0.2}
SETTINGS: dict[str, Any] = {"epochs": 10, "lr": 1e-3, "batch": 32}


def main() -> None:
    given = arguments(__doc__ or "", "text", seeds=3)
    tasks = texts(given.data, ["sst2", "trec"], VOCABULARY)
    run(
        "BERT-like classifiers of SST-2 and TREC",
        given,
        tasks,
        build=lambda task: BERT(VOCABULARY, task.classes, **SHAPE),
        fit=lambda task, model: _fit(model, task),
        settings=[{**SETTINGS, **SHAPE, "seed": 30 + number} for number, _ in enumerate(tasks)],
        heads=lambda name: name.startswith("classifier"),
        sizes=(100, 1000),
        batch_size=32,
        pool=6400,
    )


def masked(part: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
    """Ids and their mask with a tenth of the words unknown."""
    ids, mask = part
    hidden = (torch.rand(ids.shape, generator=generator) < 0.1) & (ids >= FIRST_WORD)
    return [ids.masked_fill(hidden, UNKNOWN), mask]


def _fit(model: nn.Module, task: Task) -> None:
    train(model, list(task.train.values()), task.train_labels, seed=0, augment=masked, **SETTINGS)


if __name__ == "__main__":
    main()
