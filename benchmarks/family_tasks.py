"""Tasks that a family of networks is trained for: labelled batches, a loss, a figure, and inputs without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.bench_decoder import TEST_WINDOWS, fit, perplexity, windows
from benchmarks.merging import Score
from benchmarks.tasks import Task
from fxmerge.demo import accuracy, train

Labelled = tuple[Sequence[Tensor], Tensor]
"""The inputs of a batch, and what they are labelled with."""
Augment = Callable[[Sequence[Tensor], torch.Generator], Sequence[Tensor]]
Distance = Callable[[Tensor, Tensor], float]
"""From a merged model's outputs and its parent's on the same inputs to how far they are apart."""


def difference(got: Tensor, wanted: Tensor) -> float:
    """Mean squared difference, as a share of the parent's own variance over all but its classes or channels."""
    own = wanted.movedim(1, -1).flatten(0, -2)
    return float((got - wanted).square().mean() / (own - own.mean(0)).square().mean())


def divergence(got: Tensor, wanted: Tensor) -> float:
    """Mean Kullback-Leibler divergence from what the parent says of a class or of the next token."""
    classes = wanted.shape[-1]
    mine, theirs = (value.reshape(-1, classes).log_softmax(-1) for value in (got, wanted))
    return float(F.kl_div(mine, theirs, reduction="batchmean", log_target=True))


@dataclass(frozen=True)
class Study:
    """A supervised task of a family. Merging gets `unlabeled` inputs alone; `score` alone reads test data."""

    name: str
    outputs: int
    """Entries of the outputs' `axis`: classes, bytes, channels of a grid."""
    draw: Callable[[int, torch.Generator], Labelled]
    """A random training batch."""
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Score
    unlabeled: Callable[[int, int], dict[str, Tensor]]
    """So many training inputs without labels, drawn with a seed."""
    inputs: tuple[str, ...] = ("x",)
    axis: int = 1
    apart: Distance = difference
    alone: Callable[..., None] | None = None
    """Trains a model for this task alone; None for `fit_jointly`."""


def fit_alone(model: nn.Module, study: Study, **training: Any) -> None:
    """Train a parent."""
    if study.alone is None:
        fit_jointly(model, [study], **training)
    else:
        study.alone(model, **training)


def fit_jointly(
    model: nn.Module, studies: Sequence[Study], *, steps: int, lr: float, batch: int = 64, weight_decay: float = 0.05
) -> None:
    """Train one model for all tasks with their labels, `batch` inputs of each a step; its outputs stand side by side.

    All inputs of a step pass together, so that what a batch is normalized by is what is met later.
    """
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(steps):
        parts = [study.draw(batch, generator) for study in studies]
        given = model(*(torch.cat(values) for values in zip(*(inputs for inputs, _ in parts), strict=True)))
        loss = given.new_zeros(())
        for study, rows, (_, labels) in zip(studies, given.split(batch), parts, strict=True):
            loss = loss + study.loss(own(rows, study, studies), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    model.eval()


def own(outputs: Tensor, study: Study, studies: Sequence[Study]) -> Tensor:
    """The part of a joint model's outputs that answers one of its tasks."""
    begin = sum(each.outputs for each in studies[: list(studies).index(study)])
    return outputs.narrow(study.axis, begin, study.outputs)


def classify(task: Task, augment: Augment | None = None) -> Study:
    """A task whose figure is the share of test inputs that are classified right."""
    inputs = list(task.train.values())

    def draw(count: int, generator: torch.Generator) -> Labelled:
        rows = torch.randint(0, len(task.train_labels), (count,), generator=generator)
        part: Sequence[Tensor] = [x[rows] for x in inputs]
        return (augment(part, generator) if augment else part), task.train_labels[rows]

    return Study(
        task.name,
        task.classes,
        draw,
        partial(F.cross_entropy, label_smoothing=0.05),
        partial(accuracy, inputs=list(task.test.values()), labels=task.test_labels),
        task.unlabeled,
        tuple(task.test),
        apart=divergence,
        alone=partial(train, inputs=inputs, labels=task.train_labels, seed=0, augment=augment),
    )


def language(name: str, text: Tensor, valid: Tensor, classes: int = 256) -> Study:
    """The next byte of a text, scored by the perplexity of another part of it."""

    def draw(count: int, generator: torch.Generator) -> Labelled:
        part = windows(text, count, generator)
        return [part[:, :-1]], part[:, 1:]

    def unlabeled(count: int, seed: int) -> dict[str, Tensor]:
        return {"input_ids": windows(text, count, torch.Generator().manual_seed(seed))[:, :-1]}

    test = windows(valid, TEST_WINDOWS, torch.Generator().manual_seed(0))
    return Study(
        name,
        classes,
        draw,
        lambda given, wanted: F.cross_entropy(given.flatten(0, 1), wanted.flatten()),
        perplexity(test),
        unlabeled,
        ("input_ids",),
        axis=2,
        apart=divergence,
        alone=partial(fit, text=text),
    )
